"""``artifacts/als.npz`` and its neighbours: the active version's files again, for people and scripts."""

from __future__ import annotations

import shutil
from pathlib import Path

from app.registry.disk import TEMPORARY_PREFIX, remove


def refresh_flat_view(artifacts_dir: Path, version: Path) -> None:
    """Point the links beside CURRENT at a version's files and folders, and remove those that it has not.

    Parameters
    ----------
    version : Path
        Folder of the version, relative to ``artifacts_dir``.
    """
    names = {path.name for path in (artifacts_dir / version).iterdir()}
    for name in names:
        _replace_link(artifacts_dir / name, version / name)
    for path in artifacts_dir.iterdir():
        # A file that only an earlier version had. Other links are not ours: versions/ itself may be one.
        if path.name not in names and path.is_symlink() and path.readlink().parts[:1] == version.parts[:1]:
            path.unlink()


def _replace_link(link: Path, target: Path) -> None:
    """Replace ``link`` by a relative link to ``target`` in one step, by a copy where links are not allowed."""
    temporary = link.with_name(f"{TEMPORARY_PREFIX}{link.name}")
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
        remove(link)  # a copy of ours: a folder cannot be replaced in one step
    temporary.replace(link)


def _names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
