"""Publishers as processes of their own, for tests in which they die, race, or run out of disk.

python -m tests.publishers several FOLDER SEED…  publish models, as soon as standard input has a line
python -m tests.publishers told FOLDER           for each line "N SEED" publish, and die at the N-th file operation
python -m tests.publishers killed FOLDER         die at the 1st, 2nd, 3rd … file operation; check what is left
python -m tests.publishers limited FOLDER        publish with room for ever larger files; check what is left
python -m tests.publishers full FOLDER           FOLDER is a small disk: fill it, use it, make room; check what is left
"""

from __future__ import annotations

import contextlib
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
from app.errors import ArtifactError, UnwritableError
from app.registry import (
    HISTORY,
    VERSIONS,
    activate,
    current,
    earlier,
    load_current,
    prune,
    publish,
    rollback,
)
from tests.killer import Killer
from tests.models import make_model

OLD, NEW, NEXT = (make_model(random_state=seed) for seed in (1, 2, 3))

BIG = make_model([(user, 1 + user % 97, 5.0) for user in range(1, 500)], factors=16, random_state=2)

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
    counts = {"refused": 0}
    for limit in itertools.chain([1, 40, 200], itertools.count(1000, 2500)):
        folder = root / f"limit-{limit}"
        old = publish(folder, OLD).version

        def work(folder: Path = folder, limit: int = limit) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            try:
                publish(folder, BIG)
            except ArtifactError as error:
                os._exit(REFUSED if str(folder) in str(error) and "free space" in str(error) else 1)

        status = os.waitstatus_to_exitcode(in_child(work))
        if status == 0:
            assert serves(load_current(folder), BIG)
            return counts
        assert status == REFUSED, status
        counts["refused"] += 1
        assert current(folder) == old
        assert serves(load_current(folder), OLD)
        check_leftovers(folder)
        check_flat_view(folder, old)
    raise AssertionError("unreachable")


def publish_as_told(folder: Path) -> None:
    os.fsync = lambda _descriptor: None
    print("ready", flush=True)  # noqa: T201
    for line in sys.stdin:
        n, seed = map(int, line.split())

        def work(n: int = n, seed: int = seed) -> None:
            Killer(folder, n)
            publish(folder, make_model(random_state=seed))

        print(os.waitstatus_to_exitcode(in_child(work)), flush=True)  # noqa: T201


def use_full_disk(folder: Path) -> dict[str, int]:
    """Publish on a disk that is filled up, with ever more room; switch and prune on one that has none."""
    versions = [publish(folder, model).version for model in (NEXT, NEW, OLD)]
    active = versions[-1]

    def check(refused: Callable[[], object]) -> None:
        said = ""
        try:
            refused()
        except UnwritableError as error:
            said = str(error)
        assert str(folder) in said, said
        assert "free space" in said, said
        assert current(folder) == active
        assert earlier(folder) == [versions[1], versions[0]]
        assert serves(load_current(folder), OLD)
        check_flat_view(folder)

    counts = {"refused": 0}
    for room in itertools.count(0, 8192):
        fill(folder / "ballast", room)
        if room == 0:
            check(lambda: activate(folder, versions[0]))
            check(lambda: rollback(folder))
            assert prune(folder, keep=3) == ()  # there is nothing to remove, but it could be done
        try:
            published = publish(folder, BIG)
        except UnwritableError:
            counts["refused"] += 1
            check(lambda: publish(folder, BIG))
            check_leftovers(folder)
        else:
            break
    assert serves(load_current(folder), BIG)
    fill(folder / "ballast", 0)
    # What is in the way goes, even where there is no room to do anything else.
    newest = max([*versions, published.version])  # in name, where all are of one second
    assert set(prune(folder, keep=1)) == {*versions[:2]} - {newest} != set()
    assert current(folder) == published.version
    assert rollback(folder).version == active
    check_flat_view(folder, active)
    return counts


def fill(ballast: Path, room: int) -> None:
    """Leave so much room on a disk."""
    ballast.unlink(missing_ok=True)
    with ballast.open("wb", buffering=0) as file:
        with contextlib.suppress(OSError):
            while file.write(bytes(4096)):
                pass
        file.truncate(max(file.tell() - room, 0))


if __name__ == "__main__":
    command, target = sys.argv[1], Path(sys.argv[2])
    if command == "several":
        sys.stdin.readline()  # so that all of them begin at the same moment
        for seed in sys.argv[3:]:
            print(publish(target, make_model(random_state=int(seed))).version)  # noqa: T201
    elif command == "told":
        publish_as_told(target)
    else:
        run = {"killed": publish_until_killed, "limited": publish_with_limits, "full": use_full_disk}[command]
        print(json.dumps(run(target)))  # noqa: T201
