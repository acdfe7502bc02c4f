"""Which versions there are, what they say of themselves, and how to load one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from app.artifacts import LoadedModel, load_version, read_manifest
from app.errors import ArtifactError, NoModelError, UnknownVersionError
from app.ranker import read_ranker
from app.registry.pointer import CURRENT, VERSION_ID, VERSIONS, current, earlier, once_active, readable_current
from app.stored_ranker import RANKER
from app.trees import is_available
from app.verification import read_json

Loaded = TypeVar("Loaded")


@dataclass(frozen=True)
class Entry:
    """One version in a list: what its files say, unverified.

    ``metrics`` are the means of what the version answers with, under its first protocol; ``promotion`` is the gate's
    verdict, as in ``metrics.json``. ``damage`` says why nothing could be read, else None.
    """

    version: str
    is_active: bool
    is_previous: bool
    trained_at: str | None = None
    dataset: str | None = None
    n_ratings: int | None = None
    n_users: int | None = None
    n_items: int | None = None
    has_ranker: bool = False
    protocol: str | None = None
    stage: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    promotion: dict[str, Any] = field(default_factory=dict)
    damage: str | None = None


def versions(artifacts_dir: Path) -> tuple[Entry, ...]:
    """List all versions, newest first, without verifying their files (``verify`` does)."""
    active = readable_current(artifacts_dir)
    found = published(artifacts_dir)
    previous = next((version for version in earlier(artifacts_dir) if version in found), None)
    return tuple(_describe(artifacts_dir, version, version == active, version == previous) for version in found)


def _describe(artifacts_dir: Path, version: str, is_active: bool, is_previous: bool) -> Entry:
    folder = artifacts_dir / VERSIONS / version
    try:
        manifest, config, metrics = (
            read_manifest(folder),
            read_json(folder / "config.json"),
            read_json(folder / "metrics.json"),
        )
        has_ranker = "ranker" in config
        protocol = next(iter({**metrics.get("protocols", {})}), None)
        means = metrics["protocols"][protocol] if protocol else {}
        return Entry(
            version,
            is_active,
            is_previous,
            trained_at=manifest["trained_at"],
            dataset=manifest["dataset"],
            n_ratings=_stated(config, "n_ratings", int),
            n_users=_stated(manifest, "n_users", int),
            n_items=_stated(manifest, "n_items", int),
            has_ranker=has_ranker,
            protocol=protocol,
            stage=_stated(metrics, "stage", str),
            metrics={name: float(mean) for name, mean in means.get("ranker" if has_ranker else "als", {}).items()},
            promotion={**metrics.get("promotion", {})},
        )
    except (ArtifactError, ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        return Entry(version, is_active, is_previous, damage=str(error))


def _stated(values: dict[str, Any], name: str, kind: type[Loaded]) -> Loaded | None:
    """Return what a file says by some name, None if nothing; TypeError if it is of another kind."""
    value = values.get(name)
    if not isinstance(value, kind | None):
        raise TypeError(f"{name} is {value!r}; expected {kind.__name__}")
    return value


def verify(folder: Path) -> LoadedModel:
    """Load a version folder as a service does that uses its second stage, and so see that it can be served.

    Raises
    ------
    ArtifactError
        If it cannot.
    """
    model = load_version(folder)
    if model.ranker and is_available():
        try:
            read_ranker(model.ranker.text)
        except ArtifactError as error:
            raise ArtifactError(f"{folder / RANKER}: {error}") from error
    return model


def find(artifacts_dir: Path, version: str) -> Path:
    """Return the folder of a version; UnknownVersionError if there is none."""
    folder = artifacts_dir / VERSIONS / version
    if not VERSION_ID.fullmatch(version) or not folder.is_dir():
        raise UnknownVersionError(version)
    return folder


def current_folder(artifacts_dir: Path) -> Path:
    """Return the folder of the active version.

    Raises
    ------
    NoModelError
        If nothing is published.
    ArtifactError
        If CURRENT is damaged, or names a version that is not there.
    """
    version = current(artifacts_dir)
    if version is None and not earlier(artifacts_dir):
        raise NoModelError(f"no model is published in {artifacts_dir}; make one: python train_als.py")
    if version is not None and (folder := artifacts_dir / VERSIONS / version).is_dir():
        return folder
    found = "is missing" if version is None else f"names version {version}, which is not in {artifacts_dir / VERSIONS}"
    raise ArtifactError(
        f"{artifacts_dir / CURRENT} {found}. Go back to an earlier version (python -m app.cli models rollback), "
        "restore it from a copy, or train again (python train_als.py)."
    )


def load_current(artifacts_dir: Path) -> LoadedModel:
    """Verify and map the active version; errors are those of ``current_folder`` and ``load_version``."""
    return load_version(current_folder(artifacts_dir))


def load_intact(artifacts_dir: Path, load: Callable[[Path], Loaded]) -> tuple[Loaded, ArtifactError | None]:
    """Load the active version, or where that is damaged another that was active and is intact.

    That is the one that a rollback would go to; without any the latest that was rolled back from.

    Parameters
    ----------
    load : callable
        Makes a model of a version's folder; raises ArtifactError if that is damaged (``load_version``).

    Returns
    -------
    model
    error : ArtifactError or None
        Why it is not the active one.

    Raises
    ------
    ArtifactError
        What is wrong with the active version, if there is no other; NoModelError if nothing is published.
    """
    try:
        return load(current_folder(artifacts_dir)), None
    except NoModelError:
        raise
    except ArtifactError as error:
        active = readable_current(artifacts_dir)
        for version in dict.fromkeys([*earlier(artifacts_dir), *once_active(artifacts_dir)]):
            if version == active:
                continue
            with contextlib.suppress(ArtifactError, UnknownVersionError):
                return load(find(artifacts_dir, version)), error
        raise


def published(artifacts_dir: Path) -> list[str]:
    """Return the ids of all versions that are there, newest first; other folders are not ours.

    Raises
    ------
    ArtifactError
        If there is something else than a folder, or it cannot be read.
    """
    try:
        names = [path.name for path in (artifacts_dir / VERSIONS).iterdir()]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ArtifactError(f"{artifacts_dir} is no folder of versions that can be read: {error}") from error
    return sorted((name for name in names if VERSION_ID.fullmatch(name)), reverse=True)
