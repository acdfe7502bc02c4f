"""From a request to the bytes of its answer: the cache first, then the recommender, on the event loop or beside it.

``endpoints ─▶ Answering ─▶ cache, recommender``. What is wished, an endpoint says by an ``Order``; when, where and
whether it is computed is decided here.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import anyio.to_thread
from fastapi import Request, Response

from app.cache import Cached, CacheKey, ResponseCache
from app.recommender import ListOptions, Ranking, Recommender
from app.routers.parameters import Parameters
from app.routers.serving import recommender_of
from app.routers.together import Together
from app.telemetry import Telemetry
from app.threads import count_cores

NO_HISTORY = 0  # sequence number of a history that nothing was added to since training
Make = Callable[[Recommender], tuple[Cached, bool]]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Order:
    """A list that somebody wishes.

    Parameters
    ----------
    endpoint : str
        Its name in the key of the cache.
    parameters : Parameters
        Everything else that the answer depends on.
    options : ListOptions
    compute, write : callable
        Make the list, and the body of the answer.
    plain : (int, int), optional
        User id and k where nothing else is wished: such lists may be made together.
    n_liked : int
        How many movies are to be folded in for it.
    """

    endpoint: str
    parameters: Parameters
    options: ListOptions
    compute: Callable[[Recommender], Ranking]
    write: Callable[[Recommender, Ranking], bytes]
    plain: tuple[int, int] | None = None
    n_liked: int = 0

    def make(self, recommender: Recommender) -> tuple[Cached, bool]:
        """Return the answer, and whether the first stage stood in for the second."""
        return self.put_down(recommender, self.compute(recommender))

    def put_down(self, recommender: Recommender, ranking: Ranking) -> tuple[Cached, bool]:
        return Cached(self.write(recommender, ranking), ranking.source), ranking.ranker_failed


class Answering:
    """How lists are answered by one application.

    Only so many costly lists are computed at a time as there are cores: more threads would only take the interpreter
    from the event loop, and with it from the answers that take microseconds.
    """

    def __init__(self, cache: ResponseCache, telemetry: Telemetry) -> None:
        self._cache = cache
        self._telemetry = telemetry
        self._together = Together()
        self._beside = anyio.CapacityLimiter(count_cores())
        self.pool = ThreadPoolExecutor(count_cores())  # of batches; who answers on the event loop must not wait for it

    async def answer(self, request: Request, order: Order) -> Response:
        """Answer with one list."""
        recommender = recommender_of(request)
        key = _key_of(recommender, order.endpoint, order.parameters)
        found, level, failed = self._cache.local_get(key), "local", False
        if found is None and recommender.is_quick(order.options, order.n_liked):
            found, level, failed = await self._find_quickly(recommender, key, order)
        elif found is None:
            found, level, failed = await self._find(recommender, key, order.make)
        self._telemetry.count_list(found.source, failed)
        note(request, version=recommender.model.version, source=found.source, cache=level)
        return JsonResponse(found.body)

    async def answer_search(
        self, request: Request, parameters: Parameters, search: Callable[[Recommender], bytes]
    ) -> Response:
        """Answer with what was found by title, which is no recommendation and not counted as one."""
        recommender = recommender_of(request)
        key = _key_of(recommender, "movies", parameters)
        found, level = self._cache.local_get(key), "local"
        if found is None:
            found, level, _ = await self._find(recommender, key, lambda model: (Cached(search(model), "title"), False))
        note(request, version=recommender.model.version, cache=level)
        return JsonResponse(found.body)

    async def _find_quickly(self, recommender: Recommender, key: CacheKey, order: Order) -> tuple[Cached, str, bool]:
        """Compute an answer that Redis would take longer to tell."""
        joined = self._together.join(recommender, *order.plain) if order.plain else None
        ranking = await joined if joined else None
        made, failed = order.put_down(recommender, ranking) if ranking else order.make(recommender)
        if not failed:  # what stands in for the second stage is no answer to keep
            self._cache.local_put(key, made)
        return made, "miss", failed

    async def _find(self, recommender: Recommender, key: CacheKey, make: Make) -> tuple[Cached, str, bool]:
        """Find an answer that takes milliseconds: in Redis, or in a thread."""
        if (found := await self._cache.get(key)) is not None:
            return found, "shared", False
        made, failed = await self.beside(lambda: make(recommender))
        if not failed:
            await self._cache.put(key, made)
        return made, "miss", failed

    async def beside(self, compute: Callable[[], T]) -> T:
        """Compute in a thread, when it is its turn."""
        return await anyio.to_thread.run_sync(compute, limiter=self._beside)


def _key_of(recommender: Recommender, endpoint: str, parameters: Parameters) -> CacheKey:
    return (recommender.model.version, endpoint, NO_HISTORY, *parameters.key())


class JsonResponse(Response):
    """An answer that is JSON already, with the headers that Starlette would look up one by one."""

    def __init__(self, body: bytes) -> None:
        self.status_code, self.body, self.background = 200, body, None
        self.raw_headers = [(b"content-length", b"%d" % len(body)), (b"content-type", b"application/json")]


def note(request: Request, **notes: object) -> None:
    """Tell the log what a request was answered with."""
    request.scope.setdefault("recs", {}).update(notes)


def answering_of(request: Request) -> Answering:
    """Return how this application answers."""
    answering: Answering = request.app.state.answering
    return answering
