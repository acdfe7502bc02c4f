"""The lists: for users of the training data, and for someone new."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool

from app.reasons import Explanation
from app.recommender import ListOptions, Ranking, Recommender
from app.routers.parameters import LIKED_IN_OPENAPI, K, Liked, Options, UserId
from app.routers.problems import responses
from app.routers.serving import recommender_of, telemetry_of
from app.schemas import Because, ColdRecommendations, MovieResult, UserRecommendations

router = APIRouter(tags=["recommendations"])
log = logging.getLogger("uvicorn.error")


@router.get(
    "/recommend",
    summary="Movies for a known user",
    responses=responses("unknown-user", "invalid-parameter", "no-model"),
    response_model_exclude_unset=True,
)
async def recommend(request: Request, user_id: UserId, options: Options, k: K = 10) -> UserRecommendations:
    """Recommend movies that the user has not rated.

    `source` is `ranker` where the version has a second stage, else `als`, or `popular` for a user without positives
    (ratings of 4 or more). An unknown user is 404.
    """
    recommender = recommender_of(request)
    ranking = await _answer(request, recommender, options, lambda: recommender.recommend(user_id, k, options))
    log.debug("user_id=%s version=%s moment=%s", user_id, recommender.model.version, ranking.moment)
    return UserRecommendations(user_id=user_id, k=k, **_describe(recommender, ranking))


@router.get(
    "/recommend_cold",
    summary="Movies for someone new",
    responses=responses("invalid-parameter", "no-model"),
    response_model_exclude_unset=True,
    openapi_extra={"parameters": [LIKED_IN_OPENAPI]},
)
async def recommend_cold(
    request: Request,
    options: Options,
    liked: Liked = [],  # noqa: B006
    k: K = 10,
) -> ColdRecommendations:
    """Recommend from a few liked movies, to someone who is not in the training data.

    Ids that are not in the catalogue come back in `ignored`. Without a usable id the list is the popular movies.
    """
    recommender = recommender_of(request)
    ranking = await _answer(request, recommender, options, lambda: recommender.recommend_cold(liked, k, options))
    log.debug("liked=%s version=%s moment=%s", liked, recommender.model.version, ranking.moment)
    ignored = set(ranking.ignored)
    used = [movie_id for movie_id in liked if movie_id not in ignored]
    return ColdRecommendations(liked=used, ignored=list(ranking.ignored), k=k, **_describe(recommender, ranking))


async def _answer(
    request: Request, recommender: Recommender, options: ListOptions, answer: Callable[[], Ranking]
) -> Ranking:
    """Compute a list: on the event loop where a hop to a thread would cost more, else in a thread."""
    ranking = answer() if recommender.is_quick(options) else await run_in_threadpool(answer)
    telemetry_of(request).count_list(ranking.source, ranking.ranker_failed)
    return ranking


def _describe(recommender: Recommender, ranking: Ranking) -> dict[str, Any]:
    movies = recommender.model.movies
    results = [
        MovieResult(
            movie_id=movie.movie_id,
            title=movie.title,
            genres=list(movie.genres),
            year=movie.year,
            score=_shorten(score),
            **why,
        )
        for movie, score, why in zip(
            (movies[i] for i in ranking.item_indices), ranking.scores.tolist(), _whys(recommender, ranking), strict=True
        )
    ]
    return {
        "n_results": len(results),
        "version": recommender.model.version,
        "source": ranking.source,
        "results": results,
    }


def _whys(recommender: Recommender, ranking: Ranking) -> list[dict[str, Any]]:
    """Return what each result says of its reasons: nothing, unless they were asked for."""
    if ranking.explanations is None:
        return [{}] * len(ranking.item_indices)
    return [_why(recommender, ranking, explanation) for explanation in ranking.explanations]


def _why(recommender: Recommender, ranking: Ranking, explanation: Explanation) -> dict[str, Any]:
    liked = ((recommender.model.movies[item], part) for item, part in explanation.because)
    because = [
        Because(movie_id=movie.movie_id, title=movie.title, contribution=_shorten(part)) for movie, part in liked
    ]
    reasons = {"reasons": list(explanation.reasons)} if ranking.source == "ranker" else {}
    return {"because": because, **reasons}


def _shorten(score: float) -> float:
    """Round to what a float32 holds."""
    return float(f"{score:.7g}")
