"""What a worker process serves from: the active version, followed without a restart.

``registry.CURRENT ─▶ Serving ─▶ routers``. A new version is loaded, verified and warmed beside the old one; then one
reference moves. Requests in flight hold the recommender that they began with, so they end on the old version, whose
files are let go of with its last request. One that cannot be loaded is refused, and the old one goes on serving.

Each worker process has its own, so several follow one after another within ``reload_seconds``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from app import registry
from app.artifacts import load_version
from app.errors import ArtifactError, NoModelError
from app.recommender import ListOptions, Recommender, load_recommender
from app.rerank import Dials
from app.stored_ranker import RANKER
from app.telemetry import Telemetry

log = logging.getLogger("uvicorn.error")

_WARM_UP = (ListOptions(), ListOptions(ranker=False), ListOptions(dials=Dials(0.1, 0.1, 0.1), explain=True))
_N_LIKED = 3  # movies that the warm-up folds in
_RETRY_SECONDS = 300.0  # what was refused for want of memory, say, is intact and will not change


@dataclass(frozen=True)
class ReloadError:
    """Why what is served is not the active version, and since when (ISO 8601, UTC)."""

    reason: str
    since: str


@dataclass(frozen=True)
class Served:
    """What requests are answered from at one moment; ``recommender`` is None where there is no model."""

    recommender: Recommender | None = None
    error: ReloadError | None = None


class Serving:
    """Follow CURRENT, and hold what is served as ``now``: one reference, which requests take once.

    Parameters
    ----------
    artifacts_dir : Path
        Folder of the registry.
    reload_seconds : float
        How often ``watch`` looks whether CURRENT has moved; 0 for never.
    """

    def __init__(self, artifacts_dir: Path, reload_seconds: float, telemetry: Telemetry) -> None:
        self.artifacts_dir = artifacts_dir
        self.reload_seconds = reload_seconds
        self.now = Served()
        self._telemetry = telemetry
        self._seen: object = None
        self._one_at_a_time = threading.Lock()

    def start(self) -> None:
        """Load the active version, or where it is damaged the nearest earlier one that is intact.

        Where none is, a version whose second stage alone cannot be used is served by its first stage.
        """
        self._seen = self._fingerprint()
        self._begin()

    def _begin(self) -> None:
        """Serve the best that there is, where nothing is served yet."""
        try:
            recommender, refused = self._load_first()
        except Exception as error:  # whatever it is, the next look may find things mended
            reason = _reason_of(error)
            if not self._is_known(reason):
                text = "Serving without a model, looked for in %s: %s"
                log.error(text, self.artifacts_dir.resolve(), reason, exc_info=_unexpected(error))
                self._show(Served(error=_since_now(reason)))
            return
        if refused:
            log.error("Serving the earlier version %s: %s", recommender.model.version, refused)
            self._telemetry.count_reload("refused")
        self._show(Served(recommender, _since_now(str(refused)) if refused else None))

    def _load_first(self) -> tuple[Recommender, ArtifactError | None]:
        try:
            return registry.load_intact(self.artifacts_dir, load_warm)
        except NoModelError:
            raise
        except ArtifactError:
            return registry.load_intact(self.artifacts_dir, lambda folder: load_warm(folder, strict=False))

    async def watch(self) -> None:
        """Look for a new version every ``reload_seconds``, off the event loop, until cancelled."""
        while self.reload_seconds > 0:
            await asyncio.sleep(self.reload_seconds)
            try:
                await asyncio.to_thread(self.check)
            except Exception:  # whatever happens, the next look may find things mended
                log.exception("Looking for a new version failed")

    def check(self, *, again: bool = False) -> None:
        """Follow CURRENT if it has moved since the last look, or if what was refused has changed.

        ``again`` tries what was refused also where nothing has changed.
        """
        with self._one_at_a_time:
            fingerprint = self._fingerprint()
            if fingerprint != self._seen or (again and self.now.error):
                self._seen = fingerprint
                if self.now.recommender:
                    self._follow(self.now.recommender)
                else:
                    self._begin()

    def _follow(self, served: Recommender) -> None:
        """Go from what is served to the active version."""
        pointer = _stat(self.artifacts_dir / registry.CURRENT)
        try:
            folder = registry.current_folder(self.artifacts_dir)
            if folder.name != served.model.version:
                served = load_warm(folder)
                self._telemetry.count_reload("loaded")
        except Exception as error:
            # What CURRENT has left meanwhile may have been removed: the next look finds what it names now.
            if _stat(self.artifacts_dir / registry.CURRENT) == pointer:
                self._refuse(error)
            return
        self._show(Served(served))

    def _refuse(self, error: Exception) -> None:
        """Go on with what is served, and say once why it is not the active version."""
        reason = _reason_of(error)
        if self._is_known(reason):
            return
        log.error("Refused a new version, and going on as before: %s", reason, exc_info=_unexpected(error))
        self._telemetry.count_reload("refused")
        self._show(replace(self.now, error=_since_now(reason)))

    def _is_known(self, reason: str) -> bool:
        return self.now.error is not None and self.now.error.reason == reason

    def _show(self, served: Served) -> None:
        before, self.now = self.now, served
        model = served.recommender.model if served.recommender else None
        self._telemetry.show_serving(
            model.version if model else None,
            failing=served.error is not None,
            trained_at=model.manifest["trained_at"] if model else None,
        )
        if model and served.recommender is not before.recommender:
            n_users, n_items, dataset = len(model.users), len(model.items), model.manifest["dataset"]
            log.info("Serving %s: %s users, %s movies, trained on %s", model.version, n_users, n_items, dataset)

    def _fingerprint(self) -> object:
        """Return what changes when CURRENT moves, and, while something is refused, when its files do or time passes."""
        pointer = _stat(self.artifacts_dir / registry.CURRENT)
        if self.now.error is None:
            return pointer
        files = None
        version = registry.readable_current(self.artifacts_dir)
        if version is not None:
            with contextlib.suppress(OSError):  # it is just being removed
                folder = self.artifacts_dir / registry.VERSIONS / version
                files = [_stat(path) for path in sorted(folder.rglob("*"))]
        return pointer, files, time.monotonic() // _RETRY_SECONDS


def load_warm(folder: Path, *, strict: bool = True) -> Recommender:
    """Load a version as it is served, and ask it a few things, so that its first request is as fast as any.

    Parameters
    ----------
    strict : bool
        Whether a second stage that cannot be used is damage; if not, the first stage answers. A machine without
        LightGBM can use none, which is no damage.

    Raises
    ------
    ArtifactError
        If it is damaged, or does not answer.
    """
    model = load_version(folder)
    try:
        recommender = load_recommender(model, strict=strict)
    except ArtifactError as error:
        raise ArtifactError(f"{folder / RANKER}: {error}") from error
    try:
        _warm_up(recommender)
    except Exception as error:
        found = f"{type(error).__name__}: {error}"
        raise ArtifactError(f"{folder} does not answer ({found}); train again (python train_als.py)") from error
    return recommender


def _warm_up(recommender: Recommender) -> None:
    ids, liked = recommender.model.users.ids, recommender.model.items.ids[:_N_LIKED].tolist()
    for options in _WARM_UP:
        for user_id in {int(ids[0]), int(ids[len(ids) // 2]), int(ids[-1])}:
            answer = recommender.recommend(user_id, 10, options)
            if answer.ranker_failed and recommender.ranker:
                raise RuntimeError("its second stage failed")
        recommender.recommend_cold(liked, 10, options)
    recommender.similar(liked[0], 10)
    recommender.titles.search("the", 1)


def _reason_of(error: Exception) -> str:
    return str(error) if isinstance(error, ArtifactError) else f"{type(error).__name__}: {error}"


def _unexpected(error: Exception) -> Exception | None:
    """Return an error whose traceback belongs in the log: one that no damage explains."""
    return None if isinstance(error, ArtifactError) else error


def _since_now(reason: str) -> ReloadError:
    return ReloadError(reason, datetime.now(UTC).isoformat(timespec="seconds"))


def _stat(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size
