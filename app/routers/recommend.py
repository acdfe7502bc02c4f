"""The lists: for users of the training data, and for someone new."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, Request

from app.recommender import Ranking, Recommender
from app.routers.parameters import LIKED_IN_OPENAPI, K, Liked, UserId
from app.routers.problems import responses
from app.routers.serving import recommender_of
from app.schemas import ColdRecommendations, MovieResult, UserRecommendations

router = APIRouter(tags=["recommendations"])

# Both handlers compute on the event loop: a hop to a thread would cost more than the scoring itself.


@router.get(
    "/recommend",
    summary="Movies for a known user",
    responses=responses(HTTPStatus.NOT_FOUND, HTTPStatus.UNPROCESSABLE_ENTITY, HTTPStatus.SERVICE_UNAVAILABLE),
)
async def recommend(request: Request, user_id: UserId, k: K = 10) -> UserRecommendations:
    """Recommend movies that the user has not rated.

    `source` is `als`, or `popular` for a user without positives (ratings of 4 or more). An unknown user is 404.
    """
    recommender = recommender_of(request)
    ranking = recommender.recommend(user_id, k)
    return UserRecommendations(user_id=user_id, k=k, **_describe(recommender, ranking))


@router.get(
    "/recommend_cold",
    summary="Movies for someone new",
    responses=responses(HTTPStatus.UNPROCESSABLE_ENTITY, HTTPStatus.SERVICE_UNAVAILABLE),
    openapi_extra={"parameters": [LIKED_IN_OPENAPI]},
)
async def recommend_cold(request: Request, liked: Liked = [], k: K = 10) -> ColdRecommendations:  # noqa: B006
    """Recommend from a few liked movies, to someone who is not in the training data.

    Ids that are not in the catalogue come back in `ignored`. Without a usable id the list is the popular movies.
    """
    recommender = recommender_of(request)
    ranking = recommender.recommend_cold(liked, k)
    ignored = set(ranking.ignored)
    used = [movie_id for movie_id in liked if movie_id not in ignored]
    return ColdRecommendations(liked=used, ignored=list(ranking.ignored), k=k, **_describe(recommender, ranking))


def _describe(recommender: Recommender, ranking: Ranking) -> dict[str, Any]:
    movies = recommender.model.movies
    results = [
        MovieResult(
            movie_id=movie.movie_id,
            title=movie.title,
            genres=list(movie.genres),
            year=movie.year,
            score=float(f"{score:.7g}"),  # what a float32 holds
        )
        for movie, score in zip((movies[i] for i in ranking.item_indices), ranking.scores.tolist(), strict=True)
    ]
    return {
        "n_results": len(results),
        "version": recommender.model.version,
        "source": ranking.source,
        "results": results,
    }
