"""Downloading from a real local server: what is put in place, what each failure says, and what a killed run leaves."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread

import pytest

from app.datasets.download import download
from app.errors import DataError, DownloadError

NAME = "ml-test"
FILES = {
    "ratings.csv": "userId,movieId,rating,timestamp\n1,1,4.0,5\n",
    "movies.csv": "movieId,title,genres\n1,Toy Story (1995),Comedy\n",
    "links.csv": "movieId,imdbId,tmdbId\n1,0114709,862\n",
    "tags.csv": "userId,movieId,tag,timestamp\n",
    "README.txt": "read me\n",
}

Answer = Callable[["Handler", int], None]


class Handler(BaseHTTPRequestHandler):
    """Answers each GET by the server's function, which is told how many requests came before."""

    server: Server

    def do_GET(self) -> None:
        number = len(self.server.paths)
        self.server.paths.append(self.path)
        self.server.answer(self, number)

    def send(self, body: bytes, status: int = 200, length: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


class Server(ThreadingHTTPServer):
    daemon_threads = True
    answer: Answer
    paths: list[str]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/datasets"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server whose answer the test sets; proxies of the machine are not asked for it."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Server(("127.0.0.1", 0), Handler) as server:
        server.paths = []
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def make_zip(files: dict[str, str]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return buffer.getvalue()


GOOD_ZIP = make_zip({f"{NAME}/{name}": text for name, text in FILES.items()})


def serve(body: bytes) -> Answer:
    return lambda handler, _: handler.send(body)


def fetch(server: Server, target: Path, **options: object) -> None:
    download(NAME, target, server.url, **{"progress": False, "retries": 0, **options})  # type: ignore[arg-type]


def left_in(folder: Path) -> list[str]:
    """What a run left in a folder, its lock file aside."""
    return sorted(path.name for path in folder.iterdir() if path.name != ".download-lock")


def refusal(server: Server, target: Path, **options: object) -> str:
    """Return the error's message, after checking what every failed download has in common."""
    with pytest.raises(DownloadError) as caught:
        fetch(server, target, **options)
    message = str(caught.value)
    assert message.startswith(f"{server.url}/{NAME}.zip could not be downloaded to {target}: ")
    assert message.endswith("download the file by hand, unpack it and pass the folder with --data-dir")
    assert "\n" not in message
    assert not target.exists()
    assert left_in(target.parent) == []
    return message


@pytest.mark.parametrize("top", ["", f"{NAME}/", "./"], ids=["at the top", "in a folder", "in ./"])
def test_the_files_of_the_archive_are_put_in_place(server: Server, tmp_path: Path, top: str) -> None:
    server.answer = serve(make_zip({top + name: text for name, text in FILES.items()}))
    fetch(server, tmp_path / "data" / NAME)
    assert {path.name: path.read_text() for path in (tmp_path / "data" / NAME).iterdir()} == FILES
    assert left_in(tmp_path / "data") == [NAME]
    assert server.paths == [f"/datasets/{NAME}.zip"]


def test_only_known_files_are_unpacked_and_none_outside_the_folder(server: Server, tmp_path: Path) -> None:
    extra = {
        "../evil.txt": "x",
        "/abs.txt": "x",
        f"{NAME}/more.exe": "x",
        "other/movies.csv": "x",
        "a/b/links.csv": "x",
    }
    traversal = {"../ratings.csv": "x", "__MACOSX/._ratings.csv": "x"}
    server.answer = serve(make_zip({f"{NAME}/{name}": text for name, text in FILES.items()} | extra | traversal))
    fetch(server, tmp_path / NAME)
    assert {path.name: path.read_text() for path in (tmp_path / NAME).iterdir()} == FILES
    assert left_in(tmp_path) == [NAME]


def test_an_empty_target_folder_is_filled(server: Server, tmp_path: Path) -> None:
    server.answer = serve(GOOD_ZIP)
    (tmp_path / NAME).mkdir()
    fetch(server, tmp_path / NAME)
    assert (tmp_path / NAME / "ratings.csv").is_file()


def test_data_that_is_there_already_is_used_without_asking(server: Server, tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir()
    (tmp_path / NAME / "ratings.csv").write_text("mine")
    fetch(server, tmp_path / NAME)
    assert (tmp_path / NAME / "ratings.csv").read_text() == "mine"
    assert server.paths == []


def test_a_target_with_other_files_is_refused_before_asking(server: Server, tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir()
    (tmp_path / NAME / "movies.csv").touch()
    with pytest.raises(DataError, match=r"holds no ratings\.csv, so the download cannot be put there; move") as caught:
        fetch(server, tmp_path / NAME)
    assert not isinstance(caught.value, DownloadError)
    assert server.paths == []


def test_nothing_is_printed_unless_progress_is_wanted(
    server: Server, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    server.answer = serve(GOOD_ZIP)
    fetch(server, tmp_path / "quiet")
    assert capfd.readouterr() == ("", "")
    fetch(server, tmp_path / "shown", progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "100%" in err


def test_a_server_that_recovers_is_asked_again(server: Server, tmp_path: Path) -> None:
    def answer(handler: Handler, number: int) -> None:
        handler.send(GOOD_ZIP if number else b"busy", 200 if number else 503)

    server.answer = answer
    fetch(server, tmp_path / NAME, retries=1)
    assert (tmp_path / NAME / "ratings.csv").is_file()
    assert len(server.paths) == 2


def test_a_body_that_breaks_off_once_is_asked_for_again(server: Server, tmp_path: Path) -> None:
    def answer(handler: Handler, number: int) -> None:
        handler.send(GOOD_ZIP if number else GOOD_ZIP[:300], length=len(GOOD_ZIP))
        handler.close_connection = True

    server.answer = answer
    fetch(server, tmp_path / NAME, retries=1)
    assert (tmp_path / NAME / "movies.csv").read_text() == FILES["movies.csv"]
    assert len(server.paths) == 2


@pytest.mark.parametrize("status", [404, 403, 500])
def test_a_refusal_by_the_server_is_reported(server: Server, tmp_path: Path, status: int) -> None:
    server.answer = lambda handler, _: handler.send(b"no", status)
    assert f": {status} " in refusal(server, tmp_path / NAME)


def test_a_server_that_never_recovers_is_given_up_after_the_retries(server: Server, tmp_path: Path) -> None:
    server.answer = lambda handler, _: handler.send(b"no", 503)
    assert ": 503 " in refusal(server, tmp_path / NAME, retries=2)
    assert len(server.paths) == 3


def test_a_body_that_always_breaks_off_is_reported(server: Server, tmp_path: Path) -> None:
    def answer(handler: Handler, _: int) -> None:
        handler.send(GOOD_ZIP[:300], length=len(GOOD_ZIP))
        handler.close_connection = True

    server.answer = answer
    assert "IncompleteRead" in refusal(server, tmp_path / NAME)


def test_a_server_that_hangs_is_given_up(server: Server, tmp_path: Path) -> None:
    leave = Event()
    server.answer = lambda *_: leave.wait(20) and None  # type: ignore[func-returns-value]
    try:
        assert "timed out" in refusal(server, tmp_path / NAME, timeout=(0.2, 0.2))
    finally:
        leave.set()


def corrupt(archive: bytes) -> bytes:
    """Change a rating inside the archive, so that its checksum no longer fits."""
    return archive.replace(b"1,1,4.0,5", b"1,1,5.0,5")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"<html>Please log in</html>", "not a complete zip file, it begins with b'<html>Please log in</html>'"),
        (b"", "not a complete zip file, it begins with b''"),
        (GOOD_ZIP[:-40], "not a complete zip file"),
        (corrupt(GOOD_ZIP), "Bad CRC-32 for file 'ml-test/ratings.csv'"),
        (make_zip({"ml-test/movies.csv": ""}), "the archive holds no ratings.csv and no movies.csv"),
        (make_zip({"ml-test/ratings.csv": ""}), "the archive holds no movies.csv"),
        (make_zip({"a/b/ratings.csv": "", "a/b/movies.csv": ""}), "the archive holds no ratings.csv"),
    ],
    ids=["html", "empty", "cut", "corrupt", "no ratings", "no movies", "too deep"],
)
def test_an_archive_that_cannot_be_used_is_reported(server: Server, tmp_path: Path, body: bytes, reason: str) -> None:
    server.answer = serve(body)
    assert reason in refusal(server, tmp_path / NAME)
    assert len(server.paths) == 1


@pytest.mark.parametrize(
    ("base_url", "reason"),
    [
        ("http://127.0.0.1:9", "Connection refused"),
        ("http://no-such-host.invalid/x", "no-such-host.invalid"),
        ("no-scheme.example/x", "No scheme supplied"),
        ("ftp://127.0.0.1/x", "No connection adapters were found"),
        ("http://[broken/x", "[broken"),
    ],
)
def test_what_cannot_be_reached_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base_url: str, reason: str
) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    with pytest.raises(DownloadError) as caught:
        download(NAME, tmp_path / NAME, base_url, progress=False, retries=0)
    assert reason in str(caught.value)
    assert f"{base_url}/{NAME}.zip" in str(caught.value)
    assert left_in(tmp_path) == []


def test_a_place_that_cannot_be_written_is_reported(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DownloadError, match=r"Not a directory|File exists"):
        fetch(server, tmp_path / "file" / NAME)


def run_python(code: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    root = Path(__file__).parents[1]
    return subprocess.Popen(command, cwd=root, text=True, stderr=subprocess.PIPE)


def test_a_full_disk_is_reported_and_leaves_nothing(server: Server, tmp_path: Path) -> None:
    """A limit on file size stands in for the disk: the operating system refuses the write in the same way."""
    server.answer = serve(make_zip({f"{NAME}/{name}": text for name, text in FILES.items()} | {"pad": "x" * 500_000}))
    child = run_python(
        """
        import resource, sys
        from pathlib import Path
        from app.datasets.download import download
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        download("ml-test", Path(sys.argv[1]), sys.argv[2], progress=False)
        """,
        tmp_path / NAME,
        server.url,
    )
    _, err = child.communicate(timeout=20)
    assert f"DownloadError: {server.url}/{NAME}.zip could not be downloaded" in err
    assert "File too large" in err
    assert left_in(tmp_path) == []


def test_a_killed_run_leaves_no_data_and_the_next_one_cleans_up(server: Server, tmp_path: Path) -> None:
    underway, leave = Event(), Event()

    def answer(handler: Handler, number: int) -> None:
        if number:
            return handler.send(GOOD_ZIP)
        handler.send(GOOD_ZIP[:200], length=len(GOOD_ZIP))
        underway.set()
        leave.wait(30)
        return None

    server.answer = answer
    child = run_python(
        """
        import sys
        from pathlib import Path
        from app.datasets.download import download
        download("ml-test", Path(sys.argv[1]), sys.argv[2], progress=False)
        """,
        tmp_path / NAME,
        server.url,
    )
    try:
        assert underway.wait(20)
        child.send_signal(signal.SIGKILL)
        child.communicate(timeout=20)
    finally:
        leave.set()
    assert left_in(tmp_path) == [f".download-{NAME}"]
    fetch(server, tmp_path / NAME)
    assert left_in(tmp_path) == [NAME]
    assert {path.name: path.read_text() for path in (tmp_path / NAME).iterdir()} == FILES


def test_of_two_runs_at_once_the_second_finds_the_data_in_place(server: Server, tmp_path: Path) -> None:
    server.answer = serve(GOOD_ZIP)
    failures: list[BaseException] = []

    def run() -> None:
        try:
            fetch(server, tmp_path / NAME)
        except DataError as error:
            failures.append(error)

    threads = [Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(server.paths) == 1
    assert left_in(tmp_path) == [NAME]
    assert {path.name: path.read_text() for path in (tmp_path / NAME).iterdir()} == FILES
