"""Versions of the model: publish one atomically, know which one is active.

``artifacts.write_version ─▶ publish ─▶ CURRENT ─▶ load_current ─▶ recommender``. A version is immutable once
published; only the pointer CURRENT moves, in one rename. Whatever instant a publisher dies at, CURRENT names a
complete version.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock

from app.artifacts import LoadedModel, TrainedModel, load_version, read_manifest, verify_version, write_version
from app.core import SYNTHETIC
from app.errors import ArtifactError, NoModelError

CURRENT, HISTORY, VERSIONS = "CURRENT", "HISTORY", "versions"
_TEMPORARY_PREFIX = ".tmp-"
_LOCK = ".lock"


def current_version(artifacts_dir: Path) -> str | None:
    """Return the id of the active version, None if nothing is published."""
    try:
        return (artifacts_dir / CURRENT).read_text(encoding="ascii").strip() or None
    except FileNotFoundError:
        return None


def current_manifest(artifacts_dir: Path) -> dict[str, Any] | None:
    """Return the active version's manifest without verifying its files, None if nothing is published."""
    version = current_version(artifacts_dir)
    return None if version is None else read_manifest(artifacts_dir / VERSIONS / version)


def load_current(artifacts_dir: Path) -> LoadedModel:
    """Verify and map the active version.

    Raises
    ------
    NoModelError
        If nothing is published.
    ArtifactError
        If the active version is damaged.
    """
    version = current_version(artifacts_dir)
    if version is None:
        raise NoModelError(f"no model is published in {artifacts_dir}. Make one: python train_als.py")
    return load_version(artifacts_dir / VERSIONS / version)


@dataclass(frozen=True)
class Published:
    """A version that was published: its id, its folder, and whether it is now the active one."""

    version: str
    folder: Path
    activated: bool


def publish(artifacts_dir: Path, model: TrainedModel, why: str = "trained") -> Published:
    """Write a model as a new immutable version and make it the active one.

    A model of synthetic data never becomes active in place of one of real data; it is published beside it.

    The files are written to a temporary folder beside ``versions/``, flushed to the disk, verified, and renamed into
    place; only then does CURRENT move. One publisher works at a time; the lock is the operating system's and dies
    with its owner.

    Parameters
    ----------
    artifacts_dir : Path
        Created if it does not exist.
    why : str
        What HISTORY records; one line.

    Returns
    -------
    Published
        The version id is ``<UTC time>-<digest of the content>``.

    Raises
    ------
    ArtifactError
        If the folder cannot be written, the disk is full, or what was written cannot be read back. The active version
        is untouched then.
    """
    try:
        (artifacts_dir / VERSIONS).mkdir(parents=True, exist_ok=True)
        with FileLock(artifacts_dir / _LOCK):
            _remove_leftovers(artifacts_dir)
            version = _write(artifacts_dir, model)
            activated = _may_activate(artifacts_dir, model.dataset)
            if activated:
                _activate(artifacts_dir, version, why)
    except OSError as error:
        raise ArtifactError(
            f"cannot publish to {artifacts_dir}: {error}. The active version is unchanged. "
            "Check free space and permissions, or choose another folder with --artifacts-dir."
        ) from error
    return Published(version, artifacts_dir / VERSIONS / version, activated)


def _may_activate(artifacts_dir: Path, dataset: str) -> bool:
    if dataset != SYNTHETIC:
        return True
    try:
        active = current_manifest(artifacts_dir)
    except ArtifactError:  # the active version cannot be loaded anyway
        return True
    return active is None or active["dataset"] == SYNTHETIC


def _write(artifacts_dir: Path, model: TrainedModel) -> str:
    """Write, flush and verify a version in a temporary folder, then rename it into place."""
    now = datetime.now(UTC)
    with _temporary_folder(artifacts_dir) as temporary:
        digest = write_version(temporary, model, trained_at=now.isoformat(timespec="seconds"))
        version = f"{now:%Y%m%dT%H%M%SZ}-{digest}"
        for path in temporary.iterdir():
            _flush(path)
            path.chmod(0o444)
        _flush(temporary)
        verify_version(temporary)
        target = artifacts_dir / VERSIONS / version
        if not target.exists():  # the same second and the same content: it is already there
            temporary.chmod(0o755)
            temporary.rename(target)
            _flush(target.parent)
    return version


def _activate(artifacts_dir: Path, version: str, why: str) -> None:
    _replace_text(artifacts_dir / CURRENT, f"{version}\n")
    with (artifacts_dir / HISTORY).open("a", encoding="utf-8") as file:
        file.write(f"{datetime.now(UTC).isoformat(timespec='seconds')}\t{version}\t{why}\n")
        file.flush()
        os.fsync(file.fileno())
    _refresh_flat_view(artifacts_dir, version)


def _refresh_flat_view(artifacts_dir: Path, version: str) -> None:
    """Point ``artifacts/als.npz`` and its like at the active version, for people and scripts."""
    names = {path.name for path in (artifacts_dir / VERSIONS / version).iterdir()}
    for name in names:
        _replace_link(artifacts_dir / name, Path(VERSIONS) / version / name)
    for path in artifacts_dir.iterdir():
        if path.is_symlink() and path.name not in names:  # a file that only an earlier version had
            path.unlink()


def _replace_link(link: Path, target: Path) -> None:
    """Replace ``link`` in one step by a relative link to ``target``, by a copy where links are not allowed."""
    temporary = link.with_name(f"{_TEMPORARY_PREFIX}{link.name}")
    try:
        temporary.symlink_to(target)
    except OSError:
        source = link.parent / target
        (shutil.copytree if source.is_dir() else shutil.copyfile)(source, temporary)
    temporary.replace(link)


def _replace_text(path: Path, text: str) -> None:
    temporary = path.with_name(f"{_TEMPORARY_PREFIX}{path.name}")
    temporary.write_text(text, encoding="ascii")
    _flush(temporary)
    temporary.replace(path)
    _flush(path.parent)


def _flush(path: Path) -> None:
    """Force a file or folder to the disk; Windows cannot open folders, and needs no flush of them."""
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _temporary_folder(artifacts_dir: Path) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix=_TEMPORARY_PREFIX, dir=artifacts_dir))
    try:
        yield folder
    finally:
        _remove(folder)


def _remove_leftovers(artifacts_dir: Path) -> None:
    """Remove what a killed publisher left; we hold the lock, so nobody is still writing it."""
    for path in artifacts_dir.glob(f"{_TEMPORARY_PREFIX}*"):
        _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        for file in path.iterdir():
            file.chmod(0o644)  # Windows refuses to delete read-only files
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
