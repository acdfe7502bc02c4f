"""The bytes of answers with lists of movies: what Pydantic would make of ``schemas``, in a tenth of the time.

What a list shows of a movie is JSON already (``Movies.cards_of``); around it only numbers are formatted. A test holds
that every body is what its schema says, character by character but for the digits of numbers.
"""

from __future__ import annotations

import json
from functools import cache
from itertools import chain, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.movies import Movies
from app.reasons import Explanation
from app.recommender import Ranking, Recommender

_PART = 50  # users
# A score has the seven digits that of a float32 are certain. %b takes bytes.
_RESULT = b'{%b,"score":%.7g}'


def list_body(head: bytes, recommender: Recommender, ranking: Ranking) -> bytes:
    """Return the body of one list.

    Parameters
    ----------
    head : bytes
        What the answer repeats of the request, as JSON members with a comma at their end.
    """
    movies = recommender.model.movies
    results = _results(movies, ranking) if ranking.explanations is None else _explained(movies, ranking)
    return b'{%b"n_results":%d,"version":"%b","source":"%b","results":[%b]}' % (
        head,
        len(ranking.item_indices),
        recommender.model.version.encode(),
        ranking.source.encode(),
        results,
    )


def batch_body(head: bytes, recommender: Recommender, user_ids: list[int], rankings: list[Ranking | None]) -> bytes:
    """Return the body of several users' lists, in the order of ``user_ids``; None stands for an unknown user."""
    movies = recommender.model.movies
    if any(ranking and ranking.explanations is not None for ranking in rankings):
        entries = [_entry(movies, *each) for each in zip(user_ids, rankings, strict=True)]
        results = b",".join(entries)
    else:  # in parts: while one is formatted, no other thread may work
        starts = range(0, len(user_ids), _PART)
        parts = [_entries(movies, user_ids[at : at + _PART], rankings[at : at + _PART]) for at in starts]
        results = b",".join(parts)
    return b'{%b"version":"%b","results":[%b]}' % (head, recommender.model.version.encode(), results)


_UNKNOWN = b'{"user_id":%d,"error":"unknown_user","results":[]}'
_KNOWN = b'{"user_id":%d,"source":"%b","results":[%b]}'


def _entry(movies: Movies, user_id: int, ranking: Ranking | None) -> bytes:
    if ranking is None:
        return _UNKNOWN % user_id
    results = _results(movies, ranking) if ranking.explanations is None else _explained(movies, ranking)
    return _KNOWN % (user_id, ranking.source.encode(), results)


def _entries(movies: Movies, user_ids: list[int], rankings: list[Ranking | None]) -> bytes:
    """Return all entries: to fill one template for all of them takes half as long as one for each."""
    known = [ranking for ranking in rankings if ranking is not None]
    items = [item for ranking in known for item in ranking.item_indices.tolist()]
    cards = iter(movies.cards_of(np.array(items, dtype=np.int64)))
    templates: list[bytes] = []
    values: list[Any] = []
    for user_id, ranking in zip(user_ids, rankings, strict=True):
        values.append(user_id)
        if ranking is None:
            templates.append(_UNKNOWN)
            continue
        scores = ranking.scores.tolist()
        templates.append(_template(ranking.source, len(scores)))
        values.extend(chain.from_iterable(zip(islice(cards, len(scores)), scores, strict=True)))
    return b",".join(templates) % tuple(values)


@cache
def _template(source: str, n_results: int) -> bytes:
    """Return an entry with places for the user and for each movie."""
    results = b",".join([_RESULT] * n_results)
    return b'{"user_id":%%d,"source":"%b","results":[%b]}' % (source.encode(), results)


def found_body(head: bytes, recommender: Recommender, items: NDArray[np.int64], scores: NDArray[np.float32]) -> bytes:
    """Return the body of what was found by title."""
    results = _format(_RESULT, recommender.model.movies.cards_of(items), scores)
    version = recommender.model.version.encode()
    return b'{%b"n_results":%d,"version":"%b","results":[%b]}' % (head, len(items), version, results)


def movie_body(recommender: Recommender, item: int) -> bytes:
    """Return the body that describes one movie."""
    movies = recommender.model.movies
    movie, (card,) = movies[item], movies.cards_of(np.array([item]))
    more = {
        "imdb_id": movie.imdb_id or None,
        "tmdb_id": movie.tmdb_id or None,
        "n_positives": int(movies.popularity[item]),
        "version": recommender.model.version,
    }
    return b"{%b,%b}" % (card, json_members(more))


def _results(movies: Movies, ranking: Ranking) -> bytes:
    return _format(_RESULT, movies.cards_of(ranking.item_indices), ranking.scores)


def _format(template: bytes, cards: list[bytes], scores: NDArray[np.float32]) -> bytes:
    """Fill one template with all cards and scores, which is one call instead of many."""
    values: list[Any] = [None] * (2 * len(cards))
    values[::2], values[1::2] = cards, scores.tolist()
    return b",".join([template] * len(cards)) % tuple(values)


def _explained(movies: Movies, ranking: Ranking) -> bytes:
    assert ranking.explanations is not None
    shown = zip(movies.cards_of(ranking.item_indices), ranking.scores.tolist(), ranking.explanations, strict=True)
    return b",".join(
        b'{%b,"score":%.7g,%b}' % (card, score, _why(movies, explanation, has_reasons=ranking.source == "ranker"))
        for card, score, explanation in shown
    )


def _why(movies: Movies, explanation: Explanation, *, has_reasons: bool) -> bytes:
    because = [
        {"movie_id": movies[item].movie_id, "title": movies[item].title, "contribution": float(f"{part:.7g}")}
        for item, part in explanation.because
    ]
    members = {"because": because} | ({"reasons": explanation.reasons} if has_reasons else {})
    return json_members(members)


def json_members(values: dict[str, Any]) -> bytes:
    """Return members of a JSON object, without its braces."""
    return json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode()[1:-1]
