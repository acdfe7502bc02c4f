"""All lists in a file: the recommender's to the bit, in every format; the old file where a run does not end well."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from itertools import groupby
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import Result
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import csv
from typer.testing import CliRunner

from app import batch, registry
from app.artifacts import TrainedModel
from app.batch import write_lists
from app.cli import cli
from app.errors import ConfigError, UnknownGenreError, UnwritableError
from app.filters import Filter
from app.recommender import PLAIN, ListOptions, Recommender, load_recommender
from tests.models import BIG_USER, LIKES_NOTHING, in_memory, make_model, trained

ROOT = Path(__file__).parents[1]
FORMATS = ("parquet", "csv", "jsonl")
OLD = b"what was there before"
FIRST = ListOptions(ranker=False)
List = tuple[str, list[int], list[np.float32]]  # source, movie ids, scores


@cache
def small() -> Recommender:
    return Recommender(in_memory(make_model()))


@cache
def two_stages() -> Recommender:
    return load_recommender(in_memory(trained()[1]))


def crowd(n_users: int, n_items: int = 40) -> TrainedModel:
    """A model of many users, each of whom has rated one movie."""
    return make_model([(user + 1, user % n_items + 1, 5.0) for user in range(n_users)])


def expected(recommender: Recommender, k: int, options: ListOptions = PLAIN) -> dict[int, List]:
    """Ask for the list of each user alone."""
    found = {}
    for user_id in recommender.model.users.ids.tolist():
        ranking = recommender.recommend(user_id, k, options)
        ids = recommender.model.items.ids[ranking.item_indices].tolist()
        found[user_id] = (ranking.source, ids, list(ranking.scores))
    return found


def read(path: Path) -> dict[int, List]:
    """Read the lists of a file as somebody else would, its order and its ranks checked."""
    if path.suffix == ".jsonl":
        lists = {}
        for line in path.read_text(encoding="utf-8").splitlines():
            of = json.loads(line)
            assert of.keys() == {"user_id", "source", "results"}
            assert all(result.keys() == {"movie_id", "score"} for result in of["results"])
            ids = [result["movie_id"] for result in of["results"]]
            lists[of["user_id"]] = (of["source"], ids, [np.float32(result["score"]) for result in of["results"]])
    else:
        lists = read_table(pq.read_table(path) if path.suffix == ".parquet" else csv.read_csv(path))
    assert list(lists) == sorted(lists)
    return lists


def read_table(table: pa.Table) -> dict[int, List]:
    assert table.column_names == ["user_id", "rank", "movie_id", "score", "source"]
    lists = {}
    for user_id, rows in groupby(table.to_pylist(), key=lambda row: row["user_id"]):
        listed = list(rows)
        assert user_id not in lists
        assert [row["rank"] for row in listed] == list(range(1, len(listed) + 1))
        (source,) = {row["source"] for row in listed}
        lists[user_id] = (source, [row["movie_id"] for row in listed], [np.float32(row["score"]) for row in listed])
    return lists


def filled(lists: dict[int, List]) -> dict[int, List]:
    """Leave out empty lists, of which a table has no row."""
    return {user_id: of for user_id, of in lists.items() if of[1]}


def check_same(recommender: Recommender, folder: Path, k: int, options: ListOptions = PLAIN) -> dict[int, List]:
    """Check that every format holds what each user would get alone; returns that."""
    alone = expected(recommender, k, options)
    for suffix in FORMATS:
        out = folder / f"lists.{suffix}"
        written = write_lists(recommender, out, k, options)
        assert read(out) == (alone if suffix == "jsonl" else filled(alone)), suffix
        sources = [source for source, _, _ in alone.values()]
        assert written.sources == {source: sources.count(source) for source in sorted(set(sources))}
        assert (written.n_users, written.n_movies) == (len(alone), sum(len(ids) for _, ids, _ in alone.values()))
        assert (written.n_failed, written.n_bytes) == (0, out.stat().st_size)
    assert {path.name for path in folder.iterdir()} == {f"lists.{suffix}" for suffix in FORMATS}
    return alone


# --- the lists


def test_lists_by_hand(tmp_path: Path) -> None:
    alone = check_same(small(), tmp_path, 3)
    assert alone[7] == ("popular", [2, 5, 10], [2, 1, 1])  # who likes nothing and has rated the two others
    assert BIG_USER in alone
    assert (tmp_path / "lists.csv").read_text().splitlines()[0] == "user_id,rank,movie_id,score,source"
    assert "7,1,2,2,popular" in (tmp_path / "lists.csv").read_text().splitlines()
    line = '{"user_id":7,"source":"popular","results":[{"movie_id":2,"score":2},{"movie_id":5,"score":1},'
    assert line + '{"movie_id":10,"score":1}]}' in (tmp_path / "lists.jsonl").read_text().splitlines()


@pytest.mark.parametrize("k", [1, 10, 10**19])
@pytest.mark.parametrize("options", [PLAIN, FIRST], ids=["two stages", "first stage"])
def test_lists_are_those_that_each_user_gets_alone(tmp_path: Path, k: int, options: ListOptions) -> None:
    alone = check_same(two_stages(), tmp_path, min(k, 1_000) if options.ranker else k, options)
    assert alone[LIKES_NOTHING][0] == "popular"
    assert {source for source, _, _ in alone.values()} == {"popular", "ranker" if options.ranker else "als"}


@settings(max_examples=25, deadline=None)
@given(
    data=st.data(),
    k=st.integers(1, 12),
    n_block=st.integers(1, 9),
    ratings=st.dictionaries(
        st.tuples(st.integers(1, 2**63 - 1) | st.integers(1, 6), st.integers(1, 9)),
        st.sampled_from([1.0, 3.5, 4.0, 5.0]),
        max_size=30,
    ),
)
def test_any_lists_are_those_that_each_user_gets_alone(
    data: st.DataObject,
    k: int,
    n_block: int,
    ratings: dict[tuple[int, int], float],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    liked = {(1, 1): 5.0, **ratings, (1, 2): 5.0}
    recommender = Recommender(in_memory(make_model([(*pair, rating) for pair, rating in liked.items()])))
    excluded = data.draw(st.lists(st.sampled_from(recommender.model.items.ids.tolist()), max_size=3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch, "_BLOCK_USERS", n_block)
        patch.setattr(batch, "_ROW_GROUP", 3 * n_block)
        options = ListOptions(filter=Filter(exclude=tuple(excluded)))
        check_same(recommender, tmp_path_factory.mktemp("lists"), k, options)


@pytest.mark.parametrize(
    "wanted",
    [Filter(("drama", "War")), Filter(year_min=1990, year_max=2000), Filter(exclude=(1, 2, 3, 999_999))],
    ids=["genres", "years", "excluded"],
)
def test_filters_are_those_of_single_lists(tmp_path: Path, wanted: Filter) -> None:
    with_all = expected(two_stages(), 5, FIRST)
    assert check_same(two_stages(), tmp_path, 5, replace(FIRST, filter=wanted)) != with_all


def test_users_for_whom_nothing_is_left_have_a_line_but_no_row(tmp_path: Path) -> None:
    recommender = Recommender(in_memory(make_model([(1, 1, 5.0), (1, 2, 5.0), (2, 1, 5.0)])))
    alone = check_same(recommender, tmp_path, 3)
    assert [len(ids) for _, ids, _ in alone.values()] == [0, 1]
    assert '{"user_id":1,"source":"als","results":[]}\n' in (tmp_path / "lists.jsonl").read_text()


def test_nothing_left_for_anybody_is_a_file_without_rows(tmp_path: Path) -> None:
    check_same(small(), tmp_path, 3, ListOptions(filter=Filter(exclude=tuple(small().model.items.ids.tolist()))))
    assert pq.read_table(tmp_path / "lists.parquet").num_rows == 0


@pytest.mark.parametrize("suffix", FORMATS)
def test_the_same_model_makes_the_same_bytes(tmp_path: Path, suffix: str) -> None:
    files = [tmp_path / f"{name}.{suffix}" for name in "ab"]
    for out in files:
        write_lists(two_stages(), out, 10, FIRST)
    assert files[0].read_bytes() == files[1].read_bytes()


def test_users_are_counted_while_their_lists_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "_BLOCK_USERS", 2)
    counts: list[int] = []
    write_lists(small(), tmp_path / "lists.csv", 3, on_users=counts.append)
    assert counts == [2, 2, 1]


# --- Parquet


def test_parquet_has_narrow_types_and_says_where_it_is_from(tmp_path: Path) -> None:
    write_lists(small(), tmp_path / "lists.parquet", 3)
    schema = pq.read_schema(tmp_path / "lists.parquet")
    types = {field.name: str(field.type) for field in schema}
    assert types.pop("source").startswith("dictionary<values=string, indices=int8")
    assert types == {"user_id": "int64", "rank": "int32", "movie_id": "int64", "score": "float"}
    assert not any(field.nullable for field in schema)
    assert schema.metadata[b"version"] == b"in memory"
    assert schema.metadata[b"k"] == b"3"


def test_row_groups_are_of_about_one_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "_ROW_GROUP", 1_000)
    monkeypatch.setattr(batch, "_BLOCK_USERS", 30)
    write_lists(Recommender(in_memory(crowd(700))), tmp_path / "lists.parquet", 10)
    file = pq.ParquetFile(tmp_path / "lists.parquet").metadata
    sizes = [file.row_group(i).num_rows for i in range(file.num_row_groups)]
    assert sum(sizes) == 7_000
    assert all(1_000 <= size < 1_300 for size in sizes[:-1])
    assert 0 < sizes[-1] < 1_300


# --- memory


@pytest.mark.parametrize("suffix", FORMATS)
def test_memory_does_not_grow_with_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    monkeypatch.setattr(batch, "_BLOCK_USERS", 50)
    monkeypatch.setattr(batch, "_ROW_GROUP", 2_000)
    peaks = [measure_peak(n_users, tmp_path / f"lists.{suffix}") for n_users in (2_000, 20_000)]
    assert peaks[1] < peaks[0] + 400_000  # the lists of the others are 2 MB and more


def measure_peak(n_users: int, out: Path) -> int:
    """Return how many bytes are allocated at most, by Python, numpy and pyarrow, while lists are written."""
    recommender = Recommender(in_memory(crowd(n_users, 10)))
    write_lists(Recommender(in_memory(crowd(100, 10))), out, 8)  # what is loaded or kept once
    arrow: list[int] = []
    tracemalloc.start()
    try:
        write_lists(recommender, out, 8, on_users=lambda _n: arrow.append(pa.total_allocated_bytes()))
        return tracemalloc.get_traced_memory()[1] + max(arrow)
    finally:
        tracemalloc.stop()


# --- what cannot be


@pytest.mark.parametrize(
    ("name", "k", "said"),
    [
        ("lists.csv", 0, "k is 0; expected"),
        ("lists.csv", -3, "k is -3; expected"),
        ("lists.txt", 1, r"'\.txt'; expected one of \.parquet, \.csv, \.jsonl"),
        ("lists", 1, "''; expected one of"),
        ("lists.csv.gz", 1, r"'\.gz'; expected one of"),
        (".csv", 1, "''; expected one of"),
        ("nowhere/lists.csv", 1, "nowhere is no folder"),
        ("file/lists.csv", 1, "file is no folder"),
        ("folder.csv", 1, "is a folder; expected the name of a file"),
    ],
)
def test_a_request_that_cannot_be_met_is_refused_before_any_work(tmp_path: Path, name: str, k: int, said: str) -> None:
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=said):
        write_lists(small(), tmp_path / name, k)
    assert {path.name for path in tmp_path.iterdir()} == {"folder.csv", "file"}


def test_an_unknown_genre_leaves_what_was_there(tmp_path: Path) -> None:
    with pytest.raises(UnknownGenreError, match="Western"):
        write_lists(small(), put_old(tmp_path / "lists.csv"), 3, ListOptions(filter=Filter(("Opera",))))
    check_untouched(tmp_path / "lists.csv")


def put_old(out: Path) -> Path:
    out.write_bytes(OLD)
    return out


def check_untouched(out: Path) -> None:
    assert out.read_bytes() == OLD
    assert list(out.parent.iterdir()) == [out]


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, OSError])
def test_a_run_that_fails_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, error: type[BaseException]
) -> None:
    monkeypatch.setattr(batch, "_BLOCK_USERS", 1)
    counts: list[int] = []

    def fail_at_last(n_users: int) -> None:
        counts.append(n_users)
        if len(counts) == 3:
            raise error

    with pytest.raises(UnwritableError if error is OSError else error):
        write_lists(small(), put_old(tmp_path / f"lists.{suffix}"), 3, on_users=fail_at_last)
    check_untouched(tmp_path / f"lists.{suffix}")


def test_a_file_that_cannot_be_made_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UnwritableError, match=r"cannot write .* as it was.* --out"):
        write_lists(small(), tmp_path / f"{'x' * 250}.csv", 3)
    assert list(tmp_path.iterdir()) == []


def test_two_runs_at_once_do_not_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "_BLOCK_USERS", 2)
    out = tmp_path / "lists.jsonl"
    write_lists(small(), out, 3, on_users=lambda _n: write_lists(two_stages(), out, 2, FIRST))
    assert read(out) == expected(small(), 3)
    assert list(tmp_path.iterdir()) == [out]


def test_the_target_of_a_link_is_replaced_and_the_link_stays(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    link = tmp_path / "lists.csv"
    link.symlink_to(put_old(tmp_path / "there" / "dated.csv"))
    write_lists(small(), link, 3)
    assert link.is_symlink()
    assert read(tmp_path / "there" / "dated.csv") == expected(small(), 3)
    assert len(list((tmp_path / "there").iterdir())) == 1


# --- the command


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COLUMNS", "200")
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RECS_ARTIFACTS_DIR", str(tmp_path / "artifacts"))
    return tmp_path / "artifacts"


def run(*arguments: object, status: int = 0) -> Result:
    result = CliRunner().invoke(cli, ["batch", *map(str, arguments)])
    assert result.exit_code == status, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


def test_the_command_writes_the_lists_of_the_active_version_and_says_so(folder: Path, tmp_path: Path) -> None:
    registry.publish(folder, make_model(random_state=1))
    version = registry.publish(folder, make_model()).version
    out = tmp_path / "lists.parquet"
    result = run("--out", out, "--k", 3)
    assert read(out) == expected(small(), 3)
    assert pq.read_schema(out).metadata[b"version"] == version.encode()
    assert result.stdout.startswith("5 users (4 by als, 1 by popular), ")
    n_movies = pq.read_table(out).num_rows
    for words in (f" {n_movies} movies listed in ", " users/s: ", f"{out}, ", " MiB\n"):
        assert words in result.stdout, words
    assert result.stdout.count("\n") == 1
    assert result.stderr == ""  # no bar where nobody looks


def test_a_version_is_named_as_ever(folder: Path, tmp_path: Path) -> None:
    other, _ = (registry.publish(folder, make_model(random_state=seed)).version for seed in (1, 2))
    out = tmp_path / "lists.jsonl"
    for name in (other, other[-8:]):
        run("--out", out, "--version", name)
        assert read(out) == expected(Recommender(in_memory(make_model(random_state=1))), 10)


def test_the_second_stage_answers_unless_it_is_not_wanted(folder: Path, tmp_path: Path) -> None:
    registry.publish(folder, trained()[1])
    out = tmp_path / "lists.csv"
    assert " by ranker" in run("--out", out, "--k", 4).stdout
    assert read(out) == expected(two_stages(), 4)
    assert " by als" in run("--out", out, "--k", 4, "--no-ranker").stdout
    assert read(out) == expected(two_stages(), 4, FIRST)


def test_filters_are_options(folder: Path, tmp_path: Path) -> None:
    registry.publish(folder, trained()[1])
    out = tmp_path / "lists.csv"
    narrow = ("--genre", "drama", "--genre", "War", "--year-min", 1980, "--year-max", 2010)
    run("--out", out, "--no-ranker", *narrow, "--exclude", 1, "--exclude", 2)
    assert read(out) == expected(
        two_stages(), 10, ListOptions(False, filter=Filter(("drama", "War"), 1980, 2010, (1, 2)))
    )


def test_a_bar_counts_users_on_a_terminal(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry.publish(folder, make_model())
    monkeypatch.setattr(batch, "_BLOCK_USERS", 1)
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    result = run("--out", tmp_path / "lists.csv")
    assert "5/5" in result.stderr
    assert " users/s" in result.stderr
    assert "5/5" not in result.stdout


@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        (("--out", "lists.csv", "--version", "x"), 2, "there is no version 'x'"),
        (("--out", "lists.csv", "--version", ""), 2, "there is no version ''"),
        (("--out", "lists.csv", "--k", 0), 2, "k is 0; expected"),
        (("--out", "lists.csv", "--k", "many"), 2, "--k"),
        (("--out", "lists.csv", "--genre", "Opera"), 2, "got 'Opera'"),
        (("--out", "lists.csv", "--year-min", 2000, "--year-max", 1990), 2, "--year-min is 2000; expected"),
        (("--out", "lists.csv", "--year-min", 0), 2, "--year-min"),
        (("--out", "lists.txt"), 2, "'.txt'"),
        (("--out", "nowhere/lists.csv"), 2, "nowhere is no folder"),
        (("--out", f"{'x' * 250}.csv"), 1, "cannot write"),
        ((), 2, "--out"),
    ],
    ids=str,
)
def test_bad_input_is_said_on_standard_error(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[object, ...], status: int, said: str
) -> None:
    registry.publish(folder, make_model())
    monkeypatch.chdir(tmp_path)
    result = run(*options, status=status)
    assert said in result.stderr
    assert result.stdout == ""
    assert {path.name for path in tmp_path.iterdir()} == {"artifacts"}


@pytest.mark.usefixtures("folder")
def test_without_a_model_nothing_is_written(tmp_path: Path) -> None:
    assert "python train_als.py" in run("--out", tmp_path / "lists.csv", status=1).stderr
    assert "'.txt'" in run("--out", tmp_path / "lists.txt", status=2).stderr  # which is found out first
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_version_is_not_answered_from(folder: Path, tmp_path: Path) -> None:
    path = registry.publish(folder, make_model()).folder / "als.npz"
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1])
    assert "als.npz" in run("--out", tmp_path / "lists.csv", status=1).stderr
    assert not (tmp_path / "lists.csv").exists()


def test_a_second_stage_that_cannot_be_loaded_is_warned_of(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.publish(folder, trained()[1])
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    out = tmp_path / "lists.csv"
    result = run("--out", out, "--k", 4)
    assert read(out) == expected(two_stages(), 4, FIRST)
    n_failed = len(two_stages().model.users) - 1  # LIKES_NOTHING has the popular list anyway
    without, failed = result.stderr.splitlines()
    assert "without its second stage" in without
    assert failed == f"Warning: the second stage failed for {n_failed} users, whose lists are of the first"


def test_a_second_stage_that_fails_for_everybody_is_warned_of_once(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        def rank(self, _context: object) -> object:
            raise RuntimeError("no trees today")

    registry.publish(folder, trained()[1])
    broken = replace(two_stages(), ranker=Broken())  # type: ignore[arg-type]
    monkeypatch.setattr("app.cli.load", lambda *_: broken)
    result = run("--out", tmp_path / "lists.csv", "--k", 4)
    assert read(tmp_path / "lists.csv") == expected(two_stages(), 4, FIRST)
    once, counted = result.stderr.splitlines()
    assert once.startswith("Warning: The second stage of in memory failed")
    assert once.endswith("(RuntimeError: no trees today)")
    assert "failed for " in counted


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_full_disk_leaves_what_was_there(folder: Path, tmp_path: Path, suffix: str) -> None:
    registry.publish(folder, crowd(2_000))
    (tmp_path / "out").mkdir()
    out = put_old(tmp_path / "out" / f"lists.{suffix}")
    with files_of_at_most(5_000):
        result = run("--out", out, status=1)
    assert result.stderr.startswith(f"Error: cannot write {out}: ")
    assert "File too large" in result.stderr
    assert "it is as it was" in result.stderr
    check_untouched(out)


@contextmanager
def files_of_at_most(n_bytes: int) -> Iterator[None]:
    """Let writing fail as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# --- the process


@pytest.fixture(scope="module")
def long_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Artifacts of a model whose lists take some seconds to write."""
    folder = tmp_path_factory.mktemp("long") / "artifacts"
    registry.publish(folder, crowd(25_000, 150))
    return folder


def command(artifacts_dir: Path, out: Path, k: int) -> list[str]:
    options = ["--artifacts-dir", str(artifacts_dir), "--out", str(out), "--k", str(k)]
    return [sys.executable, "-W", "error", "-m", "app.cli", "batch", *options]


def end_in_the_middle(artifacts_dir: Path, out: Path, how: signal.Signals) -> int:
    """Start the command, and end it when it has begun to write."""
    with subprocess.Popen(command(artifacts_dir, out, 150), cwd=ROOT, stderr=subprocess.PIPE) as process:
        until = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < until and not any(map(size_of, leftovers(out))):
            time.sleep(0.005)
        process.send_signal(how)
        _, said = process.communicate(timeout=60)
    assert b"Traceback" not in said
    return process.returncode


def leftovers(out: Path) -> list[Path]:
    return list(out.parent.glob(".tmp-*"))


def size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


@pytest.mark.parametrize("suffix", FORMATS)
def test_ctrl_c_leaves_what_was_there(long_run: Path, tmp_path: Path, suffix: str) -> None:
    out = put_old(tmp_path / f"lists.{suffix}")
    assert end_in_the_middle(long_run, out, signal.SIGINT) == 130
    check_untouched(out)


def test_a_killed_run_leaves_what_was_there_and_does_not_hinder_the_next(long_run: Path, tmp_path: Path) -> None:
    out = put_old(tmp_path / "lists.csv")
    assert end_in_the_middle(long_run, out, signal.SIGKILL) == -signal.SIGKILL
    assert out.read_bytes() == OLD
    assert len(leftovers(out)) == 1
    subprocess.run(command(long_run, out, 1), cwd=ROOT, check=True, capture_output=True, timeout=60)
    assert len(read(out)) == 25_000


@pytest.mark.parametrize(("imported", "loads"), [("app.cli", False), ("app.batch", False), ("app.cli, pyarrow", True)])
def test_pyarrow_is_not_loaded_until_lists_are_written(imported: str, loads: bool) -> None:
    check = f"import sys, {imported}; sys.exit(int('pyarrow' in sys.modules))"
    assert subprocess.run([sys.executable, "-c", check], cwd=ROOT, timeout=60).returncode == loads
