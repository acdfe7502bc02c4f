"""Writing so that a crash leaves the old or the new, and one writer at a time."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from app.errors import UnwritableError

TEMPORARY_PREFIX = ".tmp-"
LOCK, OWNER = ".lock", ".lock-owner"
WAIT_SECONDS = 600.0  # for another trainer to write its model


@contextlib.contextmanager
def locked(artifacts_dir: Path, wait_seconds: float) -> Iterator[None]:
    """Hold the lock of a folder; errors of the disk within become ``UnwritableError``.

    The lock is the operating system's and dies with its owner, so a stale one of a dead process holds nobody up.

    Raises
    ------
    UnwritableError
        If the folder cannot be written, or another process that lives holds the lock for longer than ``wait_seconds``.
    """
    path = artifacts_dir / LOCK
    try:
        with FileLock(path, timeout=wait_seconds):
            _sign(artifacts_dir / OWNER)
            yield
    except Timeout as error:
        raise UnwritableError(
            f"{artifacts_dir} is being changed by {_owner(artifacts_dir / OWNER)}, and still was after "
            f"{wait_seconds:g} s. Wait for it to end, or end it if it hangs: its lock goes with it."
        ) from error
    except OSError as error:
        raise UnwritableError(
            f"cannot write to {artifacts_dir}: {error}. What was published before is untouched. "
            "Check free space and permissions, or choose another folder with --artifacts-dir."
        ) from error


def _sign(path: Path) -> None:
    """Say who holds the lock, for whoever waits for it; nothing depends on it."""
    with contextlib.suppress(OSError):
        path.write_text(f"process {os.getpid()} on {socket.gethostname()}\n", encoding="utf-8")


def _owner(path: Path) -> str:
    with contextlib.suppress(OSError, ValueError):
        return path.read_text(encoding="utf-8").strip() or "another process"
    return "another process"


def replace_text(path: Path, text: str) -> None:
    """Replace a file's content in one step, flushed before it is there."""
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{path.name}")
    temporary.write_text(text, encoding="ascii")
    flush(temporary)
    temporary.replace(path)


def flush(path: Path) -> None:
    """Force a file or folder to the disk; Windows cannot open folders, and needs no flush of them."""
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(artifacts_dir: Path) -> None:
    """Remove what a process that died was about to write or to remove; who calls this holds the lock."""
    for path in artifacts_dir.glob(f"{TEMPORARY_PREFIX}*"):
        remove(path)


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        for file in path.rglob("*"):
            if file.is_file():
                file.chmod(0o644)  # Windows refuses to delete read-only files
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
