"""The catalogue: popular movies, similar ones, movies by title or id, and what is known of a user."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response

from app.profiles import describe_user
from app.recommender import Ranking, Recommender
from app.routers.answering import JsonResponse, Order, answering_of, note
from app.routers.bodies import found_body, json_members, list_body, movie_body
from app.routers.parameters import Id, MovieQuery, PopularQuery, SimilarQuery
from app.routers.problems import responses
from app.routers.quick import QuickRoute
from app.routers.serving import recommender_of
from app.schemas import FoundMovies, GenreShare, ListedMovie, MovieDetails, PopularMovies, SimilarMovies, UserProfile

quick = APIRouter(tags=["catalogue"], route_class=QuickRoute)
router = APIRouter(tags=["catalogue"])

UserIdPath = Annotated[Id, Path(description="A user of the training data.", examples=[1])]
MovieIdPath = Annotated[Id, Path(description="A movie of the catalogue.", examples=[1])]


@quick.get(
    "/similar",
    summary="Movies that the same people like",
    response_model=SimilarMovies,
    responses=responses("unknown-movie", "invalid-parameter", "no-model"),
)
async def similar(request: Request, query: Annotated[SimilarQuery, Query()]) -> Response:
    """List the movies that are nearest to one: the largest cosines of their factors, which are the scores."""
    options = query.options()

    def compute(recommender: Recommender) -> Ranking:
        return recommender.similar(query.movie_id, query.k, options)

    def write(recommender: Recommender, ranking: Ranking) -> bytes:
        return list_body(b'"movie_id":%d,"k":%d,' % (query.movie_id, query.k), recommender, ranking)

    return await answering_of(request).answer(request, Order("similar", query, options, compute, write))


@quick.get(
    "/popular",
    summary="The most popular movies",
    response_model=PopularMovies,
    responses=responses("invalid-parameter", "no-model"),
)
async def popular(request: Request, query: Annotated[PopularQuery, Query()]) -> Response:
    """List the movies with the most positives (ratings of 4 or more), whose number is the score."""
    options = query.options()

    def compute(recommender: Recommender) -> Ranking:
        return recommender.popular(query.k, options)

    def write(recommender: Recommender, ranking: Ranking) -> bytes:
        return list_body(b'"k":%d,' % query.k, recommender, ranking)

    return await answering_of(request).answer(request, Order("popular", query, options, compute, write))


@quick.get(
    "/movies",
    summary="Movies by title",
    response_model=FoundMovies,
    responses=responses("invalid-parameter", "no-model"),
)
async def movies(request: Request, query: Annotated[MovieQuery, Query()]) -> Response:
    """Find movies by title: case, accents and small typing errors do not matter; of equal matches the popular first."""

    def search(recommender: Recommender) -> bytes:
        allowed = recommender.first_stage.allowed(query.filter())
        found = recommender.titles.search(query.query, query.k, allowed)
        return found_body(json_members({"query": query.query, "k": query.k}) + b",", recommender, *found)

    return await answering_of(request).answer_search(request, query, search)


@router.get(
    "/movies/{movie_id}",
    summary="One movie",
    response_model=MovieDetails,
    responses=responses("unknown-movie", "invalid-parameter", "no-model"),
)
async def movie(request: Request, movie_id: MovieIdPath) -> Response:
    """Describe a movie of the catalogue, and how many positives it has."""
    recommender = recommender_of(request)
    note(request, version=recommender.model.version)
    return JsonResponse(movie_body(recommender, recommender.item_of(movie_id)))


@router.get(
    "/users/{user_id}",
    summary="What is known of a user",
    responses=responses("unknown-user", "invalid-parameter", "no-model"),
)
async def user(request: Request, user_id: UserIdPath) -> UserProfile:
    """Tell how many movies a user rated and liked, which they liked last, and their favourite genres.

    A movie shares its weight among its genres; a genre's share is of what the user likes, ratings of 4 or more.
    """
    model = recommender_of(request).model
    note(request, version=model.version, user_id=user_id)
    profile = describe_user(model, user_id)
    return UserProfile(
        user_id=user_id,
        version=model.version,
        n_ratings=profile.n_ratings,
        n_liked=profile.n_liked,
        liked=[ListedMovie.model_validate(movie, from_attributes=True) for movie in profile.liked],
        favourite_genres=[GenreShare(genre=genre, share=round(share, 4)) for genre, share in profile.favourite_genres],
    )
