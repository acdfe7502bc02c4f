"""Which source wins, what is said when it cannot be used, and what data is called after reading."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from app.datasets.download import download
from app.datasets.locate import DATASETS, Source, find_local, locate, read
from app.errors import ConfigError, DataError, DownloadError

RATINGS = "userId,movieId,rating,timestamp\n1,1,4.0,5\n"
MOVIES = "movieId,title,genres\n1,Toy Story (1995),Comedy\n"
NOWHERE = "http://127.0.0.1:9/unused"  # nothing listens on the discard port: refused at once


def make_data(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ratings.csv").write_text(RATINGS)
    (folder / "movies.csv").write_text(MOVIES)
    return folder


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def base_url(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server with ml-latest-small.zip and ml-25m.zip, and no other file."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    folder = tmp_path_factory.mktemp("served")
    for name in ("ml-latest-small", "ml-25m"):
        with zipfile.ZipFile(folder / f"{name}.zip", "w") as archive:
            archive.writestr(f"{name}/ratings.csv", RATINGS)
            archive.writestr(f"{name}/movies.csv", MOVIES)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(folder))) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


Choose = Callable[..., Source]


@pytest.fixture
def choose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Choose:
    """`locate` with nothing named and an absent default folder, unless the test says otherwise."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("app.datasets.download.download", partial(download, retries=0))  # tested in its own room
    nothing = {"dataset": None, "data_dir": None, "movielens_dir": None, "base_url": NOWHERE, "progress": False}
    return lambda **options: locate(**{**nothing, "default_dir": tmp_path / "default", **options})


def test_the_first_source_in_order_wins(tmp_path: Path, choose: Choose, base_url: str) -> None:
    given, environment = make_data(tmp_path / "given"), make_data(tmp_path / "env")
    default = make_data(tmp_path / "default")
    small = make_data(default / "ml-latest-small")
    assert choose(data_dir=given, movielens_dir=environment) == Source(None, given)
    assert choose(movielens_dir=environment) == Source(None, environment)
    assert choose(dataset="ml-25m", movielens_dir=environment) == Source("ml-25m", environment)
    assert choose() == Source(None, default)
    assert choose(dataset="ml-latest-small") == Source("ml-latest-small", small)
    (default / "ratings.csv").unlink()
    assert choose() == Source(None, small)
    assert choose(dataset="ml-25m", base_url=base_url) == Source("ml-25m", default / "ml-25m")


def test_synthetic_leaves_the_environment_aside_but_contradicts_a_folder(tmp_path: Path, choose: Choose) -> None:
    folder = make_data(tmp_path / "data")
    assert choose(dataset="synthetic", movielens_dir=folder) == Source("synthetic", None)
    assert choose(dataset="synthetic", movielens_dir=tmp_path / "missing") == Source("synthetic", None)
    with pytest.raises(ConfigError, match=r"--dataset synthetic contradicts --data-dir .*; leave one of the two out"):
        choose(dataset="synthetic", data_dir=folder)


def test_an_unknown_name_is_refused_with_the_known_ones(choose: Choose) -> None:
    with pytest.raises(ConfigError) as caught:
        choose(dataset="ml-1m")
    assert all(name in str(caught.value) for name in ("'ml-1m'", *DATASETS, "--data-dir"))


@pytest.mark.parametrize(("option", "named"), [("data_dir", "--data-dir"), ("movielens_dir", "MOVIELENS_DIR")])
def test_a_named_folder_without_ratings_is_an_error_and_never_replaced(
    tmp_path: Path, choose: Choose, base_url: str, option: str, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_data(tmp_path / "default")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    for name, state in (("empty", "holds no ratings.csv"), ("file", "is not a folder"), ("absent", "does not exist")):
        for ask in (
            partial(choose, base_url=base_url),
            partial(find_local, **{"data_dir": None, "movielens_dir": None, "default_dir": tmp_path / "default"}),
        ):
            with pytest.raises(DataError) as caught:
                ask(**{option: Path(name)})
            assert str(tmp_path / name) in str(caught.value)
            assert named in str(caught.value)
            assert f"{state}; name the folder that has ratings.csv" in str(caught.value)


def test_the_folder_one_level_below_is_suggested(tmp_path: Path, choose: Choose) -> None:
    make_data(tmp_path / "data" / "ml-latest-small")
    with pytest.raises(DataError, match=r"did you mean .*/data/ml-latest-small"):
        choose(data_dir=tmp_path / "data")


@pytest.mark.parametrize("prepare", ["absent", "empty", "hidden files and known folders"])
def test_an_unused_default_folder_is_filled_by_a_download(
    tmp_path: Path, choose: Choose, base_url: str, prepare: str
) -> None:
    default = tmp_path / "default"
    if prepare != "absent":
        default.mkdir()
    if prepare.startswith("hidden"):
        (default / ".gitkeep").touch()
        (default / "ml-32m").mkdir()
    assert choose(base_url=base_url) == Source("ml-latest-small", default / "ml-latest-small")
    assert (default / "ml-latest-small" / "ratings.csv").read_text() == RATINGS
    assert choose() == Source(None, default / "ml-latest-small")


def test_without_network_nothing_named_means_synthetic_with_the_reason(tmp_path: Path, choose: Choose) -> None:
    source = choose()
    assert (source.name, source.folder) == ("synthetic", None)
    (warning,) = source.warnings
    assert "invented ratings are used instead of MovieLens" in warning
    assert f"{NOWHERE}/ml-latest-small.zip" in warning
    assert "Connection refused" in warning
    assert "--data-dir" in warning
    assert [path.name for path in (tmp_path / "default").iterdir()] == [".download-lock"]


def test_a_named_data_set_that_cannot_be_fetched_is_an_error(choose: Choose, base_url: str) -> None:
    with pytest.raises(DownloadError, match="Connection refused"):
        choose(dataset="ml-latest-small")
    with pytest.raises(DownloadError, match="404"):
        choose(dataset="ml-32m", base_url=base_url)


@pytest.mark.parametrize("name", ["movies.csv", "my-folder/x", "ml-25m"])
def test_a_default_folder_with_somebodys_files_is_not_downloaded_into(
    tmp_path: Path, choose: Choose, base_url: str, name: str
) -> None:
    path = tmp_path / "default" / name
    path.parent.mkdir(parents=True)
    path.touch()  # "ml-25m" too is a file here, where only a folder would be ours
    with pytest.raises(DataError, match=f"default holds {name.split('/')[0]} but no ratings.csv; add ratings.csv"):
        choose(base_url=base_url)
    assert not (tmp_path / "default" / "ml-latest-small").exists()


def test_a_half_filled_download_folder_is_an_error_rather_than_a_fallback(tmp_path: Path, choose: Choose) -> None:
    (tmp_path / "default" / "ml-latest-small").mkdir(parents=True)
    (tmp_path / "default" / "ml-latest-small" / "movies.csv").touch()
    with pytest.raises(DataError, match=r"holds no ratings\.csv, so the download cannot be put there"):
        choose()


def test_a_default_folder_that_is_a_file_is_refused(tmp_path: Path, choose: Choose) -> None:
    (tmp_path / "default").touch()
    with pytest.raises(DataError, match="default is not a folder; move it away"):
        choose()


def test_what_lies_locally_is_found_without_network(tmp_path: Path) -> None:
    find = partial(find_local, data_dir=None, movielens_dir=None, default_dir=tmp_path / "default")
    assert find() is None
    small = make_data(tmp_path / "default" / "ml-latest-small")
    assert find() == small
    default = make_data(tmp_path / "default")
    assert find() == default
    environment = make_data(tmp_path / "env")
    assert find(movielens_dir=environment) == environment
    given = make_data(tmp_path / "given")
    assert find(data_dir=given, movielens_dir=environment) == given


def test_a_folder_that_cannot_be_looked_into_is_an_error(tmp_path: Path, choose: Choose) -> None:
    """A name that the file system refuses stands in for a folder without rights, which root does not know."""
    with pytest.raises(DataError, match=r"cannot be opened|does not exist"):
        choose(data_dir=tmp_path / ("x" * 300))


def test_asking_where_data_lies_loads_no_heavy_library() -> None:
    code = """
import sys
from pathlib import Path
from app.datasets.locate import find_local
find_local(data_dir=None, movielens_dir=None, default_dir=Path("absent"))
sys.exit(", ".join({"pandas", "numpy", "pooch", "requests", "tqdm"} & set(sys.modules)) or 0)
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")


def test_unnamed_data_is_named_by_its_fingerprint_or_folder(tmp_path: Path, movielens_dir: Path) -> None:
    name, data = read(Source(None, movielens_dir), n_ratings=0, random_state=0)
    assert (name, data.warnings) == ("ml-latest-small", ())
    name, data = read(Source(None, make_data(tmp_path / "my-ratings")), n_ratings=0, random_state=0)
    assert (name, data.warnings) == ("my-ratings", ())


def test_the_real_files_pass_for_what_they_are(movielens_dir: Path) -> None:
    name, data = read(Source("ml-latest-small", movielens_dir), n_ratings=0, random_state=0)
    assert (name, data.warnings) == ("ml-latest-small", ())


def test_files_that_only_claim_to_be_ml_latest_small_give_a_warning_each(tmp_path: Path) -> None:
    folder = make_data(tmp_path / "data")
    (folder / "tags.csv").write_text("userId,movieId,tag,timestamp\n")
    name, data = read(Source("ml-latest-small", folder), n_ratings=0, random_state=0)
    assert name == "ml-latest-small"
    assert len(data.warnings) == 3
    for warning, file in zip(data.warnings, ("ratings.csv", "movies.csv", "tags.csv"), strict=True):
        assert warning.startswith(f"{folder / file} differs from ml-latest-small of 2018: expected SHA-256 ")
    assert data.fingerprint in data.warnings[0]
    assert "aa289ca83157595d0df6aea1be6a4ded676ddc4385472e8313a8ed9805352646" in data.warnings[0]


def test_other_data_in_a_folder_called_ml_latest_small_gives_a_warning(tmp_path: Path) -> None:
    folder = make_data(tmp_path / "ml-latest-small")
    name, data = read(Source(None, folder), n_ratings=0, random_state=0)
    assert name == "ml-latest-small"
    assert f"{folder / 'ratings.csv'} differs from ml-latest-small of 2018" in data.warnings[0]


def test_ml_latest_small_does_not_pass_for_another_data_set(movielens_dir: Path) -> None:
    with pytest.raises(DataError, match="holds ml-latest-small, not ml-25m"):
        read(Source("ml-25m", movielens_dir), n_ratings=0, random_state=0)


def test_a_folder_called_synthetic_does_not_pass_for_generated_data(tmp_path: Path) -> None:
    name, _ = read(Source(None, make_data(tmp_path / "synthetic")), n_ratings=0, random_state=0)
    assert name == "local"


def test_synthetic_data_has_the_size_asked_for() -> None:
    name, data = read(Source("synthetic", None), n_ratings=1_500, random_state=3)
    assert (name, len(data.ratings)) == ("synthetic", 1_500)
