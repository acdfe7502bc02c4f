"""Versions of the model: publish one atomically, know which one is active.

``artifacts.write_version ─▶ publish ─▶ CURRENT ─▶ load_current ─▶ recommender``. A version is immutable once
published; only the pointer CURRENT moves, in one rename. Whatever instant a publisher dies at, CURRENT names a
complete version.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from filelock import FileLock

from app.artifacts import LoadedModel, TrainedModel, load_version, verify_version, write_version
from app.datasets.locate import SYNTHETIC
from app.errors import ArtifactError, NoModelError

CURRENT, HISTORY, VERSIONS = "CURRENT", "HISTORY", "versions"
_TEMPORARY_PREFIX = ".tmp-"
_LOCK = ".lock"
_VERSION_ID = re.compile(r"[0-9]{8}T[0-9]{6}Z-[0-9a-f]{8}")


def current_version(artifacts_dir: Path) -> str | None:
    """Return the id of the active version, None if nothing is published.

    Raises
    ------
    ArtifactError
        If CURRENT cannot be read, or holds something else than the id of a version.
    """
    path = artifacts_dir / CURRENT
    try:
        version = path.read_text(encoding="ascii").strip()
        if not _VERSION_ID.fullmatch(version):
            raise ValueError(f"holds {version[:40]!r}")
    except FileNotFoundError:
        return None
    except (ValueError, OSError) as error:
        raise ArtifactError(
            f"{path}: {error}; expected one line, the id of a version. Train again (python train_als.py), or write "
            f"the name of a folder of {artifacts_dir / VERSIONS} into it."
        ) from error
    return version


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
        raise NoModelError(f"no model is published in {artifacts_dir}; make one: python train_als.py")
    folder = artifacts_dir / VERSIONS / version
    if not folder.is_dir():
        raise ArtifactError(
            f"{artifacts_dir / CURRENT} names version {version}, which is not in {artifacts_dir / VERSIONS}. "
            "Train again (python train_als.py), or restore its folder from a copy."
        )
    return load_version(folder)


@dataclass(frozen=True)
class Published:
    """A version that was published: its id, its folder, and whether it is now the active one.

    ``warnings`` say what could not be done after CURRENT had moved: the next publisher makes up for it.
    """

    version: str
    folder: Path
    activated: bool
    warnings: tuple[str, ...] = ()


def prepare(artifacts_dir: Path) -> None:
    """Create the folder that versions go to, and see that it can be written; ArtifactError if not."""
    try:
        (artifacts_dir / VERSIONS).mkdir(parents=True, exist_ok=True)
        with FileLock(artifacts_dir / _LOCK):
            pass
    except OSError as error:
        raise _unwritable(artifacts_dir, error) from error


def publish(artifacts_dir: Path, model: TrainedModel, why: str = "trained") -> Published:
    """Write a model as a new immutable version and make it the active one.

    A model of synthetic data never becomes active in place of one of real data; it is published beside it.

    The files are written to a temporary folder beside ``versions/``, flushed to the disk, loaded as the service would,
    and renamed into place; only then does CURRENT move. What an earlier publisher that died left undone is finished
    first. One publisher works at a time; the lock is the operating system's and dies with its owner.

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
        If the folder cannot be written, the disk is full, or what was written cannot be loaded. What was published
        before is untouched then.
    """
    prepare(artifacts_dir)
    try:
        with FileLock(artifacts_dir / _LOCK):
            warnings = _finish_interrupted(artifacts_dir)
            try:
                version = _write(artifacts_dir, model)
                activated = _may_activate(artifacts_dir, model.dataset)
                if activated:
                    _replace_text(artifacts_dir / CURRENT, f"{version}\n")
                    warnings += _follow(artifacts_dir, version, why)
            finally:
                with contextlib.suppress(OSError):  # the next publisher tries again
                    _remove_leftovers(artifacts_dir)
    except OSError as error:
        raise _unwritable(artifacts_dir, error) from error
    return Published(version, artifacts_dir / VERSIONS / version, activated, warnings)


def _unwritable(artifacts_dir: Path, error: OSError) -> ArtifactError:
    return ArtifactError(
        f"cannot publish to {artifacts_dir}: {error}. What was published before is untouched. "
        "Check free space and permissions, or choose another folder with --artifacts-dir."
    )


def _may_activate(artifacts_dir: Path, dataset: str) -> bool:
    """Tell whether a model may become active: a synthetic one only where no intact version of real data ever was."""
    if dataset != SYNTHETIC:
        return True
    once_active = {line.split("\t")[1] for line in _read_history(artifacts_dir).splitlines() if line.count("\t") >= 2}
    return not any(_is_intact_and_real(artifacts_dir / VERSIONS / version) for version in once_active)


def _is_intact_and_real(folder: Path) -> bool:
    try:
        return bool(verify_version(folder)["dataset"] != SYNTHETIC)
    except ArtifactError:
        return False  # nobody can load it, so there is nothing to replace


def _write(artifacts_dir: Path, model: TrainedModel) -> str:
    """Write, flush and load a version in a temporary folder, then rename it into place."""
    now = datetime.now(UTC)
    temporary = artifacts_dir / f"{_TEMPORARY_PREFIX}version"
    temporary.mkdir()
    digest = write_version(temporary, model, trained_at=now.isoformat(timespec="seconds"))
    version = _unused_name(artifacts_dir, now, digest)
    for path in temporary.rglob("*"):
        _flush(path)
        if path.is_file():
            path.chmod(0o444)
    # A version's name states its content, so it is loaded under a name that ends like the final one.
    temporary = temporary.rename(artifacts_dir / f"{_TEMPORARY_PREFIX}{version}")
    _flush(temporary)
    load_version(temporary)
    temporary.rename(artifacts_dir / VERSIONS / version)
    _flush(artifacts_dir / VERSIONS)
    return version


def _unused_name(artifacts_dir: Path, moment: datetime, digest: str) -> str:
    """Name a version; equal content within a second, perhaps of a version that is damaged, gets a later second."""
    while (artifacts_dir / VERSIONS / (name := f"{moment:%Y%m%dT%H%M%SZ}-{digest}")).exists():
        moment += timedelta(seconds=1)
    return name


def _follow(artifacts_dir: Path, version: str, why: str | None) -> tuple[str, ...]:
    """Bring HISTORY and the flat view in line with CURRENT, which has moved already: failing here undoes nothing."""
    try:
        _flush(artifacts_dir)
        if why is not None:
            _record(artifacts_dir, version, why)
        _refresh_flat_view(artifacts_dir, version)
    except OSError as error:
        return (f"{version} is active, but HISTORY or the links beside CURRENT could not be brought in line: {error}",)
    return ()


def _finish_interrupted(artifacts_dir: Path) -> tuple[str, ...]:
    """Remove, record and link what a publisher that died left behind; we hold the lock, so nobody is still at it."""
    _remove_leftovers(artifacts_dir)
    try:
        version = current_version(artifacts_dir)
    except ArtifactError:
        return ()  # nothing can be said about what is active; publishing puts it right
    if version is None or not (artifacts_dir / VERSIONS / version).is_dir():
        return ()
    last = _read_history(artifacts_dir).splitlines()[-1:]
    recorded = bool(last) and version in last[0].split("\t")
    return _follow(artifacts_dir, version, None if recorded else "recovered")


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
    except FileNotFoundError:
        return ""


def _refresh_flat_view(artifacts_dir: Path, version: str) -> None:
    """Point ``artifacts/als.npz``, ``report`` and their like at the active version, for people and scripts."""
    names = {path.name for path in (artifacts_dir / VERSIONS / version).iterdir()}
    for name in names:
        _replace_link(artifacts_dir / name, Path(VERSIONS) / version / name)
    for path in artifacts_dir.iterdir():
        # A file that only an earlier version had. Other links are not ours: versions/ itself may be one.
        if path.name not in names and path.is_symlink() and path.readlink().parts[:1] == (VERSIONS,):
            path.unlink()


def _replace_link(link: Path, target: Path) -> None:
    """Replace ``link`` by a relative link to ``target`` in one step, by a copy where links are not allowed."""
    temporary = link.with_name(f"{_TEMPORARY_PREFIX}{link.name}")
    original = link.parent / target
    try:
        temporary.symlink_to(target, target_is_directory=original.is_dir())
    except OSError:
        if original.is_dir():
            shutil.copytree(original, temporary, copy_function=shutil.copyfile)
        else:
            shutil.copyfile(original, temporary)
    if original.is_dir() and link.is_dir() and not link.is_symlink():
        if not _names(link) <= _names(original):
            raise FileExistsError(f"{link} is a folder of somebody's own, which is left as it is")
        _remove(link)  # a copy of ours: a folder cannot be replaced in one step
    temporary.replace(link)


def _names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def _replace_text(path: Path, text: str) -> None:
    temporary = path.with_name(f"{_TEMPORARY_PREFIX}{path.name}")
    temporary.write_text(text, encoding="ascii")
    _flush(temporary)
    temporary.replace(path)


def _flush(path: Path) -> None:
    """Force a file or folder to the disk; Windows cannot open folders, and needs no flush of them."""
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_leftovers(artifacts_dir: Path) -> None:
    for path in artifacts_dir.glob(f"{_TEMPORARY_PREFIX}*"):
        _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        for file in path.rglob("*"):
            if file.is_file():
                file.chmod(0o644)  # Windows refuses to delete read-only files
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
