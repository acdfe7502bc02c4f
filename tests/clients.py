"""Clients that ask a running service without pause, and what each version answers offline."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import httpx

from app.artifacts import load_version
from app.recommender import Recommender
from app.registry import VERSIONS
from tests.servers import client_of

REQUESTS_PER_CONNECTION = 50  # so that they come to each of several workers

List = tuple[tuple[int, float], ...]  # movie_id and score


class Question(NamedTuple):
    user_id: int
    k: int

    def path(self) -> str:
        return f"/recommend?user_id={self.user_id}&k={self.k}"


class Answer(NamedTuple):
    question: Question
    version: str
    results: List


@cache
def _recommender(folder: Path) -> Recommender:
    return Recommender(load_version(folder))


@cache
def offline(artifacts_dir: Path, version: str, question: Question) -> List:
    """Return what a version answers, without any server."""
    recommender = _recommender(artifacts_dir / VERSIONS / version)
    ranking = recommender.recommend(*question)
    movie_ids = recommender.model.items.ids[ranking.item_indices].tolist()
    return tuple(zip(movie_ids, (float(f"{score:.7g}") for score in ranking.scores.tolist()), strict=True))


def ask(client: httpx.Client, question: Question) -> Answer:
    response = client.get(question.path())
    assert response.status_code == 200, response.text
    answer = response.json()
    return Answer(question, answer["version"], tuple((each["movie_id"], each["score"]) for each in answer["results"]))


def belongs_together(artifacts_dir: Path, answer: Answer) -> bool:
    return answer.results == offline(artifacts_dir, answer.version, answer.question)


class Clients:
    """Threads that ask without pause as long as a ``with`` block lasts, each over a connection that it keeps a while.

    ``answers`` counts what came back, ``failures`` are the requests that failed.
    """

    def __init__(self, url: str, questions: Sequence[Question], n_clients: int = 1, pause_seconds: float = 0) -> None:
        self.url, self.questions, self.pause_seconds = url, questions, pause_seconds
        self.answers: Counter[Answer] = Counter()
        self.failures: list[str] = []
        self._done = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(n,)) for n in range(n_clients)]

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()

    def _run(self, n: int) -> None:
        found: list[Answer] = []
        questions = itertools.cycle([*self.questions[n:], *self.questions[:n]])
        while not self._done.is_set():
            with client_of(self.url) as client:
                for _ in range(REQUESTS_PER_CONNECTION):
                    try:
                        found.append(ask(client, next(questions)))
                    except Exception as error:
                        self.failures.append(repr(error))
                    if self._done.wait(self.pause_seconds):
                        break
        self.answers.update(found)

    def versions(self, artifacts_dir: Path) -> Counter[str]:
        """Check every answer, and return how often each version answered."""
        assert self.failures == [], self.failures[:5]
        wrong = [answer for answer in self.answers if not belongs_together(artifacts_dir, answer)]
        assert wrong == [], wrong[:5]
        seen: Counter[str] = Counter()
        for answer, n in self.answers.items():
            seen[answer.version] += n
        return seen
