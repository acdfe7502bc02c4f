"""The cache in this process: the least recently used answers leave first, by number and by bytes.

``routers ─▶ LocalCache``. It is asked for every list, so a hit must cost next to nothing. Not for several threads: only
the event loop may use it.
"""

from __future__ import annotations

from sys import getsizeof
from time import monotonic

from cachetools import LRUCache

from app.cache.entries import Cached, CacheKey, Part

OVERHEAD_BYTES = 512  # of an entry beside body and key: objects, and places in three tables; 300 to 500 as they grow

_Entry = tuple[float, int, Cached]  # the time until which it lives, on the monotonic clock; its bytes; the answer


class LocalCache:
    """Keep answers for ``seconds``.

    ``cachetools.TTLCache`` would remove what has expired; but it takes 1.6 times as long for a hit, and removes all
    that expires at once within one ``put``, which can stop the event loop for milliseconds. Here it stays until it is
    asked for or is the least recently used; the bounds hold either way.

    Parameters
    ----------
    max_entries : int
        How many answers, at least 1.
    max_bytes : int
        Their bodies, keys and overhead; an answer that is larger alone is not kept.
    seconds : float
        How long an answer lives.
    """

    def __init__(self, max_entries: int, max_bytes: int, seconds: float) -> None:
        self._entries: LRUCache[CacheKey, _Entry] = LRUCache(max_bytes, lambda entry: entry[1])
        self._max_entries = max_entries
        self._seconds = seconds

    def get(self, key: CacheKey) -> Cached | None:
        """Return the answer, None if there is none."""
        try:
            expires, _, cached = self._entries[key]
        except KeyError:
            return None
        if monotonic() < expires:
            return cached
        del self._entries[key]
        return None

    def put(self, key: CacheKey, cached: Cached) -> None:
        """Keep an answer, if it is not too large."""
        n_bytes = len(cached.body) + _bytes_of(key) + OVERHEAD_BYTES
        if n_bytes > self._entries.maxsize:
            return
        if len(self._entries) >= self._max_entries and key not in self._entries:
            self._entries.popitem()
        self._entries[key] = (monotonic() + self._seconds, n_bytes, cached)

    @property
    def n_entries(self) -> int:
        """How many answers it holds, the expired ones among them."""
        return len(self._entries)

    @property
    def n_bytes(self) -> int:
        """Their bodies, keys and overhead."""
        return int(self._entries.currsize)


def _bytes_of(part: Part) -> int:
    """Return what a key takes: one with the ids of a thousand users is larger than many an answer."""
    own = getsizeof(part)
    return own + sum(map(_bytes_of, part)) if isinstance(part, tuple) else own
