"""CURRENT, which names the active version, and HISTORY, which records how it came to be that.

CURRENT alone says what is active. HISTORY has one line for each move, ``time, version, why`` with tabs between, written
before CURRENT moves: so of a process that died between the two it is known what it was about to do. The next one that
changes anything adds that it did not come to it.
"""

from __future__ import annotations

import os
import re
from datetime import UTC, datetime
from pathlib import Path

from app.errors import ArtifactError
from app.registry.disk import flush, remove_leftovers, replace_text
from app.registry.flat_view import refresh_flat_view

CURRENT, HISTORY, VERSIONS = "CURRENT", "HISTORY", "versions"
ROLLED_BACK = "rolled back"
NOT_MOVED = "stayed"  # the line before did not come true
RECOVERED = "recovered"  # somebody else moved CURRENT
VERSION_ID = re.compile(r"[0-9]{8}T[0-9]{6}Z-[0-9a-f]{8}")


def current(artifacts_dir: Path) -> str | None:
    """Return the id of the active version, None if there is none.

    Raises
    ------
    ArtifactError
        If CURRENT cannot be read, or holds something else than the id of a version.
    """
    path = artifacts_dir / CURRENT
    try:
        version = path.read_text(encoding="ascii").strip()
        if not VERSION_ID.fullmatch(version):
            raise ValueError(f"holds {version[:40]!r}")
    except FileNotFoundError:
        return None
    except (ValueError, OSError) as error:
        raise ArtifactError(
            f"{path}: {error}; expected one line, the id of a version. Go back to the last good version (python -m "
            "app.cli models rollback), or train again (python train_als.py)."
        ) from error
    return version


def readable_current(artifacts_dir: Path) -> str | None:
    """Return the id of the active version, None also where CURRENT is damaged."""
    try:
        return current(artifacts_dir)
    except ArtifactError:
        return None


def earlier(artifacts_dir: Path) -> list[str]:
    """Return the versions that a rollback would go to, the nearest first, whether they are still there or not.

    A rollback takes back every activation after the one that it goes to, so that the next goes further back.
    """
    trail, before = _trail(artifacts_dir)
    active = readable_current(artifacts_dir)
    if trail[-1:] != [active] and before[-1:] == [active]:
        trail = before
    return [version for version in reversed(trail) if version != active]


def once_active(artifacts_dir: Path) -> list[str]:
    """Return every version that was ever active, the latest first, rolled back or not."""
    moved: list[str] = []
    for version, why in _moves(artifacts_dir):
        if why == NOT_MOVED:
            del moved[-1:]
        moved.append(version)
    return list(dict.fromkeys(reversed(moved)))


def _trail(artifacts_dir: Path) -> tuple[list[str], list[str]]:
    """Return the versions to walk back through, oldest first: as of the last line of HISTORY, and of the one before."""
    trail: list[str] = []
    added: list[str] = []  # by the last line, and what that cut off
    cut: list[str] = []
    for version, why in _moves(artifacts_dir):
        if why == NOT_MOVED:
            trail = _undo(trail, added, cut)
            added, cut = [], []
        elif why == ROLLED_BACK and version in trail:
            place = len(trail) - trail[::-1].index(version)
            added, cut = [], trail[place:]
            del trail[place:]
        else:
            added, cut = [version] if trail[-1:] != [version] else [], []
            trail += added
    return trail, _undo(trail, added, cut)


def _undo(trail: list[str], added: list[str], cut: list[str]) -> list[str]:
    return [*trail[: len(trail) - len(added)], *cut]


def _moves(artifacts_dir: Path) -> list[tuple[str, str]]:
    """Return version and reason of every whole line of HISTORY, oldest first."""
    lines = [line.split("\t") for line in _read_history(artifacts_dir).splitlines()]
    return [(line[1], line[2]) for line in lines if len(line) == 3 and VERSION_ID.fullmatch(line[1])]


def move(artifacts_dir: Path, version: str, why: str) -> tuple[str, ...]:
    """Make a version the active one; returns warnings of what could not follow. Who calls this holds the lock."""
    _record(artifacts_dir, version, why)
    replace_text(artifacts_dir / CURRENT, f"{version}\n")
    return _follow(artifacts_dir, version)


def _follow(artifacts_dir: Path, version: str) -> tuple[str, ...]:
    """Bring the flat view in line with CURRENT, which has moved already: failing here undoes nothing."""
    try:
        flush(artifacts_dir)
        refresh_flat_view(artifacts_dir, Path(VERSIONS) / version)
    except OSError as error:
        return (f"{version} is active, but the links beside CURRENT could not be brought in line: {error}",)
    return ()


def finish_interrupted(artifacts_dir: Path) -> tuple[str, ...]:
    """Remove, record and link what a process that died left behind; we hold the lock, so nobody is still at it."""
    remove_leftovers(artifacts_dir)
    version = readable_current(artifacts_dir)
    if version is None or not (artifacts_dir / VERSIONS / version).is_dir():
        return ()  # nothing can be said about what is active; the next move puts it right
    trail, before = _trail(artifacts_dir)
    if trail[-1:] != [version]:
        _record(artifacts_dir, version, NOT_MOVED if before[-1:] == [version] else RECOVERED)
    return _follow(artifacts_dir, version)


def _record(artifacts_dir: Path, version: str, why: str) -> None:
    """Append a line to HISTORY, on a new line even if the last writer died within one."""
    history = _read_history(artifacts_dir)
    start = "\n" if history and not history.endswith("\n") else ""
    with (artifacts_dir / HISTORY).open("a", encoding="utf-8", newline="\n") as file:
        file.write(f"{start}{datetime.now(UTC).isoformat(timespec='seconds')}\t{version}\t{why}\n")
        file.flush()
        os.fsync(file.fileno())


def _read_history(artifacts_dir: Path) -> str:
    try:
        return (artifacts_dir / HISTORY).read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return ""
