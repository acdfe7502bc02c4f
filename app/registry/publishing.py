"""Write a model as a new version, and remove old ones."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from app.artifacts import TrainedModel, verify_version, write_version
from app.errors import ArtifactError, ConfigError, UnwritableError
from app.registry.disk import TEMPORARY_PREFIX, WAIT_SECONDS, flush, locked, remove, remove_leftovers
from app.registry.listing import published, verify
from app.registry.pointer import VERSIONS, current, earlier, finish_interrupted, move, readable_current

_TIME = "%Y%m%dT%H%M%SZ"
KEEP = 5  # newest versions that pruning leaves


@dataclass(frozen=True)
class Published:
    """A version that was published: its id, its folder, and whether it is now the active one.

    ``warnings`` say what could not be done after CURRENT had moved: the next publisher makes up for it.
    """

    version: str
    folder: Path
    activated: bool
    warnings: tuple[str, ...] = ()


def prepare(artifacts_dir: Path, wait_seconds: float = WAIT_SECONDS) -> None:
    """Create the folder that versions go to, and see that it can be written; UnwritableError if not."""
    try:
        (artifacts_dir / VERSIONS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UnwritableError(
            f"cannot write to {artifacts_dir}: {error}. Check permissions, or choose another folder with "
            "--artifacts-dir."
        ) from error
    with locked(artifacts_dir, wait_seconds):
        pass


def publish(
    artifacts_dir: Path,
    model: TrainedModel,
    why: str = "trained",
    *,
    may_activate: Callable[[str | None], bool] = lambda _active: True,
    wait_seconds: float = WAIT_SECONDS,
) -> Published:
    """Write a model as a new immutable version, and make it the active one.

    The files are written to a temporary folder beside ``versions/``, flushed to the disk, loaded as the service would,
    and renamed into place; only then does CURRENT move. What an earlier publisher that died left undone is finished
    first.

    Parameters
    ----------
    artifacts_dir : Path
        Created if it does not exist.
    why : str
        What HISTORY records; one line.
    may_activate : callable
        Asked, while the lock is held, whether the version may take the place of the active one, which it is given;
        None if there is none.
    wait_seconds : float
        How long to wait for another publisher.

    Returns
    -------
    Published
        The version id is ``<UTC time>-<digest of the content>``.

    Raises
    ------
    UnwritableError
        If the folder cannot be written, or the disk is full. What was published before is untouched then.
    ArtifactError
        If what was written cannot be loaded.
    """
    prepare(artifacts_dir, wait_seconds)
    with locked(artifacts_dir, wait_seconds):
        warnings = finish_interrupted(artifacts_dir)
        try:
            version = _write(artifacts_dir, model)
            activated = may_activate(readable_current(artifacts_dir))
            if activated:
                warnings += move(artifacts_dir, version, why)
        finally:
            with contextlib.suppress(OSError):  # the next publisher tries again
                remove_leftovers(artifacts_dir)
    return Published(version, artifacts_dir / VERSIONS / version, activated, warnings)


def _write(artifacts_dir: Path, model: TrainedModel) -> str:
    """Write, flush and load a version in a temporary folder, then rename it into place."""
    now = datetime.now(UTC)
    temporary = artifacts_dir / f"{TEMPORARY_PREFIX}version"
    temporary.mkdir()
    digest = write_version(temporary, model, trained_at=now.isoformat(timespec="seconds"))
    version = _unused_name(artifacts_dir, now, digest)
    for path in temporary.rglob("*"):
        flush(path)
        if path.is_file():
            path.chmod(0o444)
    # A version's name states its content, so it is loaded under a name that ends like the final one.
    temporary = temporary.rename(artifacts_dir / f"{TEMPORARY_PREFIX}{version}")
    flush(temporary)
    verify(temporary)
    temporary.rename(artifacts_dir / VERSIONS / version)
    flush(artifacts_dir / VERSIONS)
    return version


def _unused_name(artifacts_dir: Path, moment: datetime, digest: str) -> str:
    """Name a version so that it is the newest by name, too, whatever was published within this second."""
    for newest in published(artifacts_dir)[:1]:
        with contextlib.suppress(ValueError, OverflowError):  # a name that somebody made up
            moment = max(moment, datetime.strptime(newest[:16], _TIME).replace(tzinfo=UTC) + timedelta(seconds=1))
    return f"{moment:{_TIME}}-{digest}"


def prune(artifacts_dir: Path, keep: int = KEEP, wait_seconds: float = WAIT_SECONDS) -> tuple[str, ...]:
    """Remove old versions, but never one of the ``keep`` newest, the active one, or what a rollback would go to.

    A version is renamed out of ``versions/`` before its files go, so that nobody finds half of one. A service that
    still has it open keeps its files until it lets go of them.

    Returns
    -------
    tuple of str
        What was removed, newest first.

    Raises
    ------
    ConfigError
        If ``keep`` is less than 1.
    ArtifactError
        If CURRENT cannot be read, so that nobody can say what must stay.
    """
    if keep < 1:
        raise ConfigError(f"keep is {keep}; expected a whole number of versions, at least 1")
    if not published(artifacts_dir):
        return ()
    with locked(artifacts_dir, wait_seconds):
        finish_interrupted(artifacts_dir)
        found = published(artifacts_dir)
        needed = {*found[:keep], current(artifacts_dir), *_until_intact(artifacts_dir, found)}
        removed = tuple(version for version in found if version not in needed)
        for version in removed:
            leaving = (artifacts_dir / VERSIONS / version).rename(artifacts_dir / f"{TEMPORARY_PREFIX}{version}")
            remove(leaving)
    return removed


def _until_intact(artifacts_dir: Path, found: list[str]) -> Iterator[str]:
    """Yield the previous version, and where that is damaged those before it up to the one that a rollback goes to."""
    for version in earlier(artifacts_dir):
        if version in found:
            yield version
            with contextlib.suppress(ArtifactError):
                verify_version(artifacts_dir / VERSIONS / version)
                return
