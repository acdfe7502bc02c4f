"""The response cache: the bytes of earlier answers, in this process and, if a URL is set, in a Redis shared by all.

``routers ─▶ local_get ─▶ (for costly answers) get ─▶ compute ─▶ put``. In this process a hit takes half a microsecond,
from Redis as long as the first stage computes, or longer. So quick answers use ``local_get`` and ``local_put`` alone.
What is quick, and what makes up a key, the routers know; nothing here computes an answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from app.cache.entries import Cached, CacheEvents, CacheKey, IgnoreEvents, Level, Operation, Part
from app.cache.local import LocalCache

if TYPE_CHECKING:
    from app.cache.shared import SharedCache

__all__ = ["MAX_BYTES", "CacheEvents", "CacheKey", "Cached", "Level", "Operation", "Part", "ResponseCache"]

MAX_BYTES = 64 << 20  # of each process: 25,000 lists of ten movies


class ResponseCache:
    """Keep answers in this process, and share them through Redis.

    Only the event loop may use it. Creating it connects to nothing.

    Parameters
    ----------
    max_entries : int
        How many answers this process keeps; 0 for none, which leaves Redis as it is.
    seconds : float
        How long an answer lives, in either place.
    redis_url : str, optional
        Where the shared answers are; without it there are none.
    events : CacheEvents
        Who counts.
    max_bytes : int
        Of the answers that this process keeps, with an overhead each.

    Raises
    ------
    ConfigError
        If the URL cannot be used; the message does not quote it.
    """

    def __init__(
        self,
        max_entries: int,
        seconds: float,
        redis_url: str | None = None,
        events: CacheEvents | None = None,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        events = events or IgnoreEvents()
        self._on_lookup = events.on_lookup
        self._local = LocalCache(max_entries, max_bytes, seconds) if max_entries else None
        self._shared = _share(redis_url, seconds, events) if redis_url else None

    def local_get(self, key: CacheKey) -> Cached | None:
        """Return the answer if this process has it."""
        if self._local is None:
            return None
        cached = self._local.get(key)
        self._on_lookup("local", cached is not None)
        return cached

    def local_put(self, key: CacheKey, cached: Cached) -> None:
        """Keep an answer in this process."""
        if self._local is not None:
            self._local.put(key, cached)

    async def get(self, key: CacheKey) -> Cached | None:
        """Return the answer if Redis has it, and keep it in this process; never raises, waits at most 50 ms."""
        if self._shared is None:
            return None
        cached = await self._shared.get(key)
        if cached is not None:
            self.local_put(key, cached)
        return cached

    async def put(self, key: CacheKey, cached: Cached) -> None:
        """Keep an answer in both places; never raises, waits at most 50 ms."""
        self.local_put(key, cached)
        if self._shared is not None:
            await self._shared.put(key, cached)

    async def close(self) -> None:
        """Close the connections to Redis."""
        if self._shared is not None:
            await self._shared.close()


def _share(url: str, seconds: float, events: CacheEvents) -> SharedCache:
    from app.cache.shared import SharedCache  # imports redis, which takes 0.1 s that only those pay who use it

    return SharedCache(url, seconds, events)
