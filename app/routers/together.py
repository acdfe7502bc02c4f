"""Requests that are being handled at the same moment are scored by one product.

``Answering ─▶ Together ─▶ recommender``. To score one user means to read the whole matrix of movie factors; to score
sixteen means to read it once, too. Nobody waits for who comes later: what has arrived when the event loop comes round
is answered. The lists are those that each would get alone.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from itertools import groupby

from app.recommender import Ranking, Recommender

_CROWD = 4  # requests a round, on average: then there are rounds of 8 and more, whose product pays
_WEIGHT = 1 / 8  # of the last round in that average: what piles up once, behind a pause of the machine, is no crowd


@dataclass(frozen=True, slots=True)
class _Waiting:
    recommender: Recommender
    user_id: int
    k: int
    answer: asyncio.Future[Ranking | None]


class Together:
    """Collect what is asked during one round of the event loop, and answer it at the end of the round.

    Only where rounds have many requests: to score a few together takes as long as one after the other, and the first
    of them would wait for the last.
    """

    def __init__(self) -> None:
        self._waiting: list[_Waiting] = []
        self._n_asked = 0  # in this round
        self._usual = 0.0  # requests in a round

    def join(self, recommender: Recommender, user_id: int, k: int) -> asyncio.Future[Ranking | None] | None:
        """Recommend to a user by the first stage, without any options.

        Returns
        -------
        Future or None
            Of their list, which is None if the user is unknown; None where the caller is to compute it alone.
        """
        loop = asyncio.get_running_loop()
        self._n_asked += 1
        if self._n_asked == 1:
            loop.call_soon(self._end_round)
        if self._usual < _CROWD:
            return None
        waiting = _Waiting(recommender, user_id, k, loop.create_future())
        self._waiting.append(waiting)
        return waiting.answer

    def _end_round(self) -> None:
        waiting, self._waiting = self._waiting, []
        self._usual += _WEIGHT * (self._n_asked - self._usual)
        self._n_asked = 0
        for _, group in groupby(waiting, key=lambda each: id(each.recommender)):  # two while a version is replaced
            _answer_all(list(group))


def _answer_all(waiting: list[_Waiting]) -> None:
    recommender, k = waiting[0].recommender, max(each.k for each in waiting)
    try:
        rankings = recommender.recommend_many([each.user_id for each in waiting], k)
        answers = [ranking and _cut(ranking, each.k) for each, ranking in zip(waiting, rankings, strict=True)]
    except Exception as error:
        for each in waiting:
            if not each.answer.done():
                each.answer.set_exception(error if not isinstance(error, StopIteration) else RuntimeError(error))
        return
    for each, answer in zip(waiting, answers, strict=True):
        if not each.answer.done():  # its caller has left
            each.answer.set_result(answer)


def _cut(ranking: Ranking, k: int) -> Ranking:
    if len(ranking.item_indices) <= k:
        return ranking
    return replace(ranking, item_indices=ranking.item_indices[:k], scores=ranking.scores[:k])
