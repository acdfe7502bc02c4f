"""The lists for somebody: a user of the training data, many of them, or someone new."""

from __future__ import annotations

import logging
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from app.errors import UnknownUserError
from app.recommender import PLAIN, Ranking, Recommender
from app.routers.answering import JsonResponse, Order, answering_of, note
from app.routers.bodies import batch_body, json_members, list_body
from app.routers.parameters import ColdQuery, UserQuery
from app.routers.problems import responses
from app.routers.quick import QuickRoute
from app.routers.serving import recommender_of, telemetry_of
from app.schemas import BatchRecommendations, BatchRequest, ColdRecommendations, UserRecommendations

log = logging.getLogger("uvicorn.error")
N_COSTLY = 32  # lists of a batch that are computed in one go: through the second stage, a tenth of a second
quick = APIRouter(tags=["recommendations"], route_class=QuickRoute)
router = APIRouter(tags=["recommendations"])


@quick.get(
    "/recommend",
    summary="Movies for a known user",
    response_model=UserRecommendations,
    responses=responses("unknown-user", "invalid-parameter", "no-model"),
)
async def recommend(request: Request, query: Annotated[UserQuery, Query()]) -> Response:
    """Recommend movies that the user has not rated.

    `source` is `ranker` where the version has a second stage, else `als`, or `popular` for a user without positives
    (ratings of 4 or more). An unknown user is 404, or with `on_unknown=popular` gets the most popular movies.
    """
    options = query.options()

    def compute(recommender: Recommender) -> Ranking:
        try:
            ranking = recommender.recommend(query.user_id, query.k, options)
        except UnknownUserError:
            if query.on_unknown == "error":
                raise
            return recommender.recommend_cold((), query.k, options)
        if ranking.moment is not None:  # with it the list can be made again
            log.debug("user_id=%s version=%s moment=%s", query.user_id, recommender.model.version, ranking.moment)
        return ranking

    def write(recommender: Recommender, ranking: Ranking) -> bytes:
        return list_body(b'"user_id":%d,"k":%d,' % (query.user_id, query.k), recommender, ranking)

    note(request, user_id=query.user_id)
    plain = (query.user_id, query.k) if options is PLAIN else None
    return await answering_of(request).answer(request, Order("recommend", query, options, compute, write, plain))


@quick.get(
    "/recommend_cold",
    summary="Movies for someone new",
    response_model=ColdRecommendations,
    responses=responses("invalid-parameter", "no-model"),
)
async def recommend_cold(request: Request, query: Annotated[ColdQuery, Query()]) -> Response:
    """Recommend from a few liked movies, to someone who is not in the training data.

    Ids that are not in the catalogue come back in `ignored`. Without a usable id the list is the popular movies.
    """
    options = query.options()

    def compute(recommender: Recommender) -> Ranking:
        return recommender.recommend_cold(query.liked, query.k, options)

    def write(recommender: Recommender, ranking: Ranking) -> bytes:
        ignored = set(ranking.ignored)
        used = [movie_id for movie_id in query.liked if movie_id not in ignored]
        head = json_members({"liked": used, "ignored": ranking.ignored, "k": query.k})
        return list_body(head + b",", recommender, ranking)

    order = Order("recommend_cold", query, options, compute, write, n_liked=len(query.liked))
    return await answering_of(request).answer(request, order)


@router.post(
    "/recommend/batch",
    summary="Movies for many known users",
    response_model=BatchRecommendations,
    responses=responses("invalid-parameter", "no-model", "too-large"),
)
async def recommend_batch(request: Request, batch: BatchRequest) -> Response:
    """Recommend to up to 1,000 users at once, in the order in which they are named.

    Each list is what `/recommend` answers with. The first stage scores all users by one product; through the second
    stage each takes its milliseconds. An unknown user is `{"user_id": …, "error": "unknown_user", "results": []}`.
    """
    recommender, telemetry, answering = recommender_of(request), telemetry_of(request), answering_of(request)
    options, user_ids = batch.options(), batch.user_ids
    n_at_a_time = len(user_ids) if recommender.is_quick(options) else N_COSTLY
    rankings: list[Ranking | None] = []
    for start in range(0, len(user_ids), n_at_a_time):  # between them it is others' turn
        block = user_ids[start : start + n_at_a_time]
        rankings += await answering.beside(partial(recommender.recommend_many, block, batch.k, options, answering.pool))
    body = await answering.beside(lambda: batch_body(b'"k":%d,' % batch.k, recommender, user_ids, rankings))
    for ranking in filter(None, rankings):
        telemetry.count_list(ranking.source, ranking.ranker_failed)
    note(request, version=recommender.model.version)
    return JsonResponse(body)
