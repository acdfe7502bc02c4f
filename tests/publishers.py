"""Publishers as processes of their own, for tests in which they die, race, or run out of disk.

python -m tests.publishers several FOLDER SEED…  publish models, as soon as standard input has a line
python -m tests.publishers killed FOLDER         die at the 1st, 2nd, 3rd … file operation; check what is left
python -m tests.publishers limited FOLDER        publish with room for ever larger files; check what is left
"""

from __future__ import annotations

import itertools
import json
import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from app.artifacts import MANIFEST, REQUIRED_FILES, LoadedModel, TrainedModel, verify_version
from app.errors import ArtifactError
from app.registry import HISTORY, VERSIONS, current, earlier, load_current, publish
from tests.models import make_model

OLD, NEW, NEXT = (make_model(random_state=seed) for seed in (1, 2, 3))

REFUSED = 7  # exit status of a publisher that raised the right error


def serves(loaded: LoadedModel, model: TrainedModel) -> bool:
    """Tell whether a loaded version is this model, whole."""
    return all(
        np.array_equal(getattr(found, name), getattr(saved, name))
        for found, saved, names in (
            (loaded.factors, model.factors, ("user_factors", "item_factors")),
            (loaded.history, model.history, ("indptr", "item_index", "rating", "timestamp")),
        )
        for name in names
    )


def check_flat_view(folder: Path, version: str | None = None) -> None:
    """Every link leads to a file; with ``version``, to that version's file, for each file that it has."""
    for path in folder.iterdir():
        if path.is_symlink():
            assert path.resolve(strict=True).exists(), path
            assert not path.readlink().is_absolute(), path
    if version:
        for source in (folder / VERSIONS / version).iterdir():
            assert (folder / source.name).resolve() == source.resolve(), source


def check_leftovers(folder: Path) -> None:
    assert not list(folder.rglob(".tmp-*")), list(folder.rglob(".tmp-*"))


def recorded(folder: Path) -> list[tuple[str, str]]:
    """Return (version, why) of each line of HISTORY."""
    lines = (folder / HISTORY).read_text(encoding="utf-8").splitlines()
    return [(version, why) for _time, version, why in (line.split("\t") for line in lines)]


class Killer:
    """Kill this process right before its n-th operation on files of ``folder``."""

    def __init__(self, folder: Path, n: int) -> None:
        self.folder, self.left = str(folder), n
        sys.addaudithook(self.on_event)
        os.fsync = self.on_fsync  # which raises no audit event, as do the calls of open files
        sys.setprofile(self.on_call)

    def on_event(self, event: str, args: tuple[object, ...]) -> None:
        if not event.startswith(("open", "os.", "shutil.", "tempfile.", "fcntl.")) or event.startswith("os.putenv"):
            return
        below = any(isinstance(arg, str | os.PathLike) and os.fspath(arg).startswith(self.folder) for arg in args)
        at_open_folder = (
            event in ("os.remove", "os.rmdir") and args[-1] != -1
        )  # rmtree names files by folder descriptor
        if below or at_open_folder or event.startswith("fcntl."):
            self.count()

    def on_call(self, _frame: object, event: str, function: object) -> None:
        if event == "c_call" and getattr(function, "__name__", "") in ("write", "close", "__exit__"):
            name = getattr(getattr(function, "__self__", None), "name", None)
            # Not within .tmp-version, where one half-written file is like the next.
            if isinstance(name, str | os.PathLike) and Path(name).parent == Path(self.folder):
                self.count()

    def on_fsync(self, _descriptor: int) -> None:
        self.count()  # and no flush: what a killed process has written is not lost, only a dead machine's is

    def count(self) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def in_child(work: Callable[[], object]) -> int:
    """Run work in a fork and return its wait status."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1]


def publish_until_killed(root: Path) -> dict[str, int]:
    os.fsync = lambda _descriptor: None
    base = root / "base"
    old = publish(base, OLD).version
    counts = {"points": 0, "old": 0, "new": 0, "recovered": 0, "leftovers": 0}
    for n in itertools.count(1):
        folder = root / f"killed-{n}"
        shutil.copytree(base, folder, symlinks=True)

        def work(folder: Path = folder, n: int = n) -> None:
            Killer(folder, n)
            publish(folder, NEW)

        status = in_child(work)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0, status
            assert serves(load_current(folder), NEW)
            return counts
        assert os.WTERMSIG(status) == signal.SIGKILL, status
        counts["points"] += 1
        counts["leftovers"] += bool(list(folder.glob(".tmp-*")))
        active = load_current(folder)
        assert serves(active, OLD if active.version == old else NEW)
        counts["old" if active.version == old else "new"] += 1
        for version in (folder / VERSIONS).iterdir():
            verify_version(version)
        check_flat_view(folder)
        assert {path.name for path in folder.iterdir() if path.is_symlink()} >= {*REQUIRED_FILES, MANIFEST}
        counts["recovered"] += publish_after_kill(folder, old, active.version)
        shutil.rmtree(folder)
    raise AssertionError("unreachable")


def publish_after_kill(folder: Path, old: str, active: str) -> bool:
    """Publish once more, check that everything is in order, and tell whether HISTORY had to be completed."""
    newest = publish(folder, NEXT).version
    assert serves(load_current(folder), NEXT)
    check_leftovers(folder)
    check_flat_view(folder, newest)
    assert earlier(folder) == list(dict.fromkeys([active, old]))  # as if nothing had happened
    return (active, "stayed") in recorded(folder)


def publish_with_limits(root: Path) -> dict[str, int]:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that a write fails, as on a full disk
    model = make_model([(user, 1 + user % 97, 5.0) for user in range(1, 500)], factors=16, random_state=2)
    counts = {"refused": 0}
    for limit in itertools.chain([1, 40, 200], itertools.count(1000, 2500)):
        folder = root / f"limit-{limit}"
        old = publish(folder, OLD).version

        def work(folder: Path = folder, limit: int = limit) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            try:
                publish(folder, model)
            except ArtifactError as error:
                os._exit(REFUSED if str(folder) in str(error) and "free space" in str(error) else 1)

        status = os.waitstatus_to_exitcode(in_child(work))
        if status == 0:
            assert serves(load_current(folder), model)
            return counts
        assert status == REFUSED, status
        counts["refused"] += 1
        assert current(folder) == old
        assert serves(load_current(folder), OLD)
        check_leftovers(folder)
        check_flat_view(folder, old)
    raise AssertionError("unreachable")


if __name__ == "__main__":
    command, target = sys.argv[1], Path(sys.argv[2])
    if command == "several":
        sys.stdin.readline()  # so that all of them begin at the same moment
        for seed in sys.argv[3:]:
            print(publish(target, make_model(random_state=int(seed))).version)  # noqa: T201
    else:
        run = publish_until_killed if command == "killed" else publish_with_limits
        print(json.dumps(run(target)))  # noqa: T201
