"""The cache that all workers share, in Redis: never needed for an answer, whatever becomes of it.

``routers ─▶ ResponseCache ─▶ SharedCache ─▶ Redis``. Whoever asks waits at most ``TIMEOUT_SECONDS``, and no error
reaches them. Silence and broken connections say that Redis is gone: it is left alone. A refusal to write, as of a full
Redis, concerns writing alone: it is still read from. This module alone imports ``redis``, which takes 0.1 s.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

from redis.asyncio import Redis
from redis.asyncio.connection import ConnectionPool, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import MaxConnectionsError, RedisError, ResponseError

from app.cache.breaker import Breaker, Ticket
from app.cache.entries import Cached, CacheEvents, CacheKey, Operation, pack, redis_key, unpack
from app.errors import ConfigError

log = logging.getLogger("uvicorn.error")

# For connecting, log-in and answer together. A healthy Redis nearby takes below 1 ms, with TLS and a new connection 10;
# an answer computed without it takes some milliseconds, so that to wait longer would cost more than it can save.
TIMEOUT_SECONDS = 0.05
N_CONNECTIONS = 64  # of each worker; whoever finds all of them busy computes, which is quicker than to queue
LARGEST_BYTES = 1 << 20  # what passes a slow network within the timeout; larger ones would look like an outage

_OPTIONS: dict[str, Any] = {
    "max_connections": N_CONNECTIONS,
    "socket_timeout": None,  # the one deadline around each call counts, and costs one timer instead of three
    "socket_connect_timeout": None,
    "retry": Retry(NoBackoff(), 0),  # it would multiply the deadline, and the breaker retries
    "health_check_interval": 0,  # a PING before a GET would double its cost, and the GET tells as much
    "protocol": 2,  # no greeting to wait for, and any server speaks it
    "driver_info": None,  # nor an introduction
    "decode_responses": False,
}


class SharedCache:
    """Keep answers in Redis for ``seconds``, after which Redis itself removes them.

    Creating it connects to nothing.

    Parameters
    ----------
    url : str
        ``redis://``, ``rediss://`` (TLS) or ``unix://``; it may hold a password, which is never logged.
    seconds : float
        How long an answer lives.

    Raises
    ------
    ConfigError
        If the URL cannot be used.
    """

    def __init__(self, url: str, seconds: float, events: CacheEvents) -> None:
        self._pool = _pool_of(url)
        self._redis = Redis(connection_pool=self._pool)
        self._where = _where(self._pool.connection_kwargs)
        self._milliseconds = max(1, round(seconds * 1000))
        self._events = events
        self._server = Breaker(self._say_gone, self._say_back)
        self._writing = Breaker(self._say_full, self._say_writable)
        events.on_shared_state(True)

    async def get(self, key: CacheKey) -> Cached | None:
        """Return the answer, None if there is none or Redis cannot say."""
        ticket = self._server.admit()
        cached = None if ticket is None else await self._get(key, ticket)
        self._events.on_lookup("shared", cached is not None)
        return cached

    async def put(self, key: CacheKey, cached: Cached) -> None:
        """Keep an answer, if Redis can and it is not larger than ``LARGEST_BYTES``."""
        if len(cached.body) > LARGEST_BYTES or not self._server.is_closed:
            return  # who cannot be read from need not be written to
        server, writing = self._server.admit(), self._writing.admit()
        if server is not None and writing is not None:
            await self._put(key, cached, server, writing)

    async def close(self) -> None:
        """Close the connections."""
        with contextlib.suppress(OSError, RedisError):
            async with asyncio.timeout(TIMEOUT_SECONDS):
                await self._pool.aclose()

    async def _get(self, key: CacheKey, ticket: Ticket) -> Cached | None:
        start = monotonic()
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                if not self._server.is_closed:  # this is the probe, and idle connections may have died with the server
                    await self._pool.disconnect(inuse_connections=False)
                data = await self._redis.get(redis_key(key))
        except MaxConnectionsError:
            self._server.abandoned(ticket)
        except Exception as error:  # whatever it is, it must not cost the answer
            if _is_of_another_type(error):
                self._server.succeeded(ticket)
            else:
                self._count_failure("get", ticket, error, start)
        except BaseException:  # the client went away
            self._server.abandoned(ticket)
            raise
        else:
            self._server.succeeded(ticket)
            return unpack(data) if isinstance(data, bytes) else None
        return None

    async def _put(self, key: CacheKey, cached: Cached, server: Ticket, writing: Ticket) -> None:
        start = monotonic()
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                await self._redis.set(redis_key(key), pack(cached), px=self._milliseconds)
        except MaxConnectionsError:
            self._writing.abandoned(writing)
        except ResponseError as error:  # an answer, even if it is no
            self._events.on_shared_error("put")
            self._server.succeeded(server)
            self._writing.failed(writing, error)
        except Exception as error:  # whatever it is, it must not cost the answer
            self._count_failure("put", server, error, start)
            self._writing.abandoned(writing)
        except BaseException:
            self._writing.abandoned(writing)
            raise
        else:
            self._server.succeeded(server)
            self._writing.succeeded(writing)

    def _count_failure(self, operation: Operation, ticket: Ticket, error: Exception, start: float) -> None:
        self._events.on_shared_error(operation)
        if isinstance(error, TimeoutError) and monotonic() - start > 2 * TIMEOUT_SECONDS:
            self._server.abandoned(ticket)  # this process itself stood still, and needs the cache more than ever
        else:
            self._server.failed(ticket, error)

    def _say_gone(self, error: Exception) -> None:
        log.warning("Redis at %s is left alone, and answers are computed: %s", self._where, _reason(error))
        self._show_state()

    def _say_back(self) -> None:
        log.info("Redis at %s answers again", self._where)
        self._show_state()

    def _say_full(self, error: Exception) -> None:
        log.warning("Redis at %s takes no new answers, and is only read from: %s", self._where, _reason(error))
        self._show_state()

    def _say_writable(self) -> None:
        log.info("Redis at %s takes new answers again", self._where)
        self._show_state()

    def _show_state(self) -> None:
        self._events.on_shared_state(self._server.is_closed and self._writing.is_closed)


def _pool_of(url: str) -> ConnectionPool:
    """Return the pool; nothing that it finds wrong is quoted, for it may be a piece of the password."""
    try:
        options = parse_url(url)
        parts = urlsplit(url)
        if "@" in parts.query + parts.fragment or not (parts.scheme == "unix" or _is_database(parts.path)):
            raise ValueError  # a password that is not percent-encoded, mostly
        pool = ConnectionPool(**{**options, **_OPTIONS})  # ours last: the URL must not turn off what is promised here
        # It finds options that are none, and connects to nothing.
        pool.make_connection()  # type: ignore[no-untyped-call]
    except (ValueError, TypeError, RedisError):
        expected = "redis://[user:password@]host[:port][/database], rediss:// for TLS, or unix://[user:password@]/path"
        remedy = "percent-encode special characters of the password, or unset it to do without Redis"
        raise ConfigError(f"RECS_REDIS_URL cannot be used; expected {expected}; {remedy}") from None
    return pool


def _is_database(path: str) -> bool:
    number = path.removeprefix("/")
    return not number or (number.isascii() and number.isdecimal())


def _where(options: dict[str, Any]) -> str:
    place = options.get("path") or f"{options.get('host', 'localhost')}:{options.get('port', 6379)}"
    return f"{place}, database {options.get('db', 0)}"


def _is_of_another_type(error: Exception) -> bool:
    """Tell whether somebody else keeps a list, say, under our key: that is a miss."""
    return isinstance(error, ResponseError) and str(error).startswith("WRONGTYPE")


def _reason(error: Exception) -> str:
    """Describe an error without what the server said, which may echo the password."""
    if isinstance(error, TimeoutError):
        return f"no answer within {TIMEOUT_SECONDS * 1000:.0f} ms"
    cause = error.__cause__ or error.__context__
    return f"{type(error).__name__} ({cause})" if isinstance(cause, OSError) else type(error).__name__
