"""What the cache keeps, under which key, and what it tells of its work.

A key holds everything that an answer depends on: the model version, the endpoint, the sequence number of the user's
history, and the normalised parameters. So nothing is ever out of date under its key, and nothing needs a flush when the
version changes, is rolled back, or the user rates. What goes into a key is the routers' business.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from hashlib import blake2b
from typing import Literal, Protocol, TypeAlias

from app import __version__

Part: TypeAlias = "str | int | float | bool | bytes | tuple[Part, ...] | None"
CacheKey: TypeAlias = tuple[str, str, int, *tuple[Part, ...]]  # version, endpoint, sequence, then the parameters

Level = Literal["local", "shared"]
Operation = Literal["get", "put"]

_DIGEST_BYTES = 16  # 128 bits: two of 10^12 answers share a digest with a probability of 10^-15
_HEADER = re.compile(rb"([a-z_]{1,32}) ([0-9]{1,12})\n")


@dataclass(frozen=True, slots=True)
class Cached:
    """One answer: the response's bytes, and what ordered its list, which metrics count; lower-case letters and _."""

    body: bytes
    source: str


class CacheEvents(Protocol):
    """Who is told what the cache does, in order to count it."""

    def on_lookup(self, level: Level, hit: bool) -> None:
        """A level was asked; also while Redis is left alone, which is a miss."""

    def on_shared_state(self, up: bool) -> None:
        """Redis is wholly in use (told at the start, too), or it is left alone, or at least not written to."""

    def on_shared_error(self, operation: Operation) -> None:
        """Redis was asked, and failed or refused."""


class IgnoreEvents:
    """Count nothing."""

    def on_lookup(self, level: Level, hit: bool) -> None: ...
    def on_shared_state(self, up: bool) -> None: ...
    def on_shared_error(self, operation: Operation) -> None: ...


def canonical(key: tuple[Part, ...]) -> bytes:
    """Encode a key so that different keys differ, the same on every run: as a Python literal in ASCII."""
    return ascii(key).encode()


def redis_key(key: CacheKey) -> str:
    """Return ``recs:<version>:<digest>``, the digest also over this program's version, which shapes the body."""
    digest = blake2b(canonical((__version__, key)), digest_size=_DIGEST_BYTES)
    return f"recs:{key[0]}:{digest.hexdigest()}"


def pack(cached: Cached) -> bytes:
    """Return ``<source> <length of body>\\n<body>``, what Redis stores."""
    return b"%s %d\n%s" % (cached.source.encode(), len(cached.body), cached.body)


def unpack(data: bytes) -> Cached | None:
    """Undo ``pack``; None for anything else, which somebody else has put there."""
    header = _HEADER.match(data)
    if header is None or int(header[2]) != len(data) - header.end():
        return None
    return Cached(data[header.end() :], header[1].decode())
