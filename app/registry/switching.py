"""Make another version the active one: a chosen one, or the one before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from app.errors import ArtifactError, UnknownVersionError, VersionRefusedError
from app.registry.disk import locked
from app.registry.listing import find, verify
from app.registry.pointer import ROLLED_BACK, earlier, finish_interrupted, move, readable_current

WAIT_SECONDS = 60.0  # for a trainer that is just publishing


@dataclass(frozen=True)
class Switched:
    """The version that is active now, and the one that was before; None if nobody could say.

    ``warnings`` say what was passed over, or could not be done after CURRENT had moved.
    """

    version: str
    replaced: str | None
    warnings: tuple[str, ...] = ()


def activate(
    artifacts_dir: Path,
    version: str,
    why: str = "activated",
    wait_seconds: float = WAIT_SECONDS,
    load: Callable[[Path], object] = verify,
) -> Switched:
    """Verify a version and make it the active one. Nothing is recorded where it is that already.

    Parameters
    ----------
    load : callable
        What the version's folder must stand; raises ArtifactError if it does not. A service also lets it answer.

    Raises
    ------
    UnknownVersionError
        If there is no such version.
    VersionRefusedError
        If it is damaged.
    UnwritableError
        If the folder cannot be written, or another process holds its lock for longer than ``wait_seconds``.
    """
    find(artifacts_dir, version)
    with locked(artifacts_dir, wait_seconds):
        warnings = finish_interrupted(artifacts_dir)
        try:
            load(find(artifacts_dir, version))
        except ArtifactError as error:
            raise VersionRefusedError(f"{version} was not activated: {error}") from error
        replaced = readable_current(artifacts_dir)
        if replaced != version:
            warnings += move(artifacts_dir, version, why)
    return Switched(version, replaced, warnings)


def rollback(
    artifacts_dir: Path, wait_seconds: float = WAIT_SECONDS, load: Callable[[Path], object] = verify
) -> Switched:
    """Make active what was active before the current version; again, and it goes further back.

    Versions that are damaged or were removed since are passed over. ``load`` is as for ``activate``.

    Raises
    ------
    VersionRefusedError
        If no earlier version is left that is intact.
    UnwritableError
        If the folder cannot be written, or another process holds its lock for longer than ``wait_seconds``.
    """
    if not artifacts_dir.is_dir():  # which the lock would create
        raise VersionRefusedError(f"nothing to roll back to: there is no folder {artifacts_dir}")
    with locked(artifacts_dir, wait_seconds):
        warnings = finish_interrupted(artifacts_dir)
        replaced = readable_current(artifacts_dir)
        passed_over = []
        for version in earlier(artifacts_dir):
            try:
                load(find(artifacts_dir, version))
            except (ArtifactError, UnknownVersionError) as error:
                passed_over.append(f"{version} was passed over: {error}")
                continue
            return Switched(version, replaced, (*warnings, *passed_over, *move(artifacts_dir, version, ROLLED_BACK)))
    raise VersionRefusedError(
        " ".join(
            [f"nothing to roll back to: no version was active before {replaced} that is still intact.", *passed_over]
        )
    )
