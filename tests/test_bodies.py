"""Bodies are made by hand, from pieces of JSON: they must be what Pydantic would make of the schemas all the same."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from app.main import create_app
from app.recommender import ListOptions, Ranking, Recommender
from app.registry import publish
from app.rerank import Dials
from app.routers.bodies import batch_body, found_body, json_members, list_body, movie_body
from app.schemas import (
    BatchRecommendations,
    ColdRecommendations,
    FoundMovies,
    MovieDetails,
    PopularMovies,
    SimilarMovies,
    UserProfile,
    UserRecommendations,
)
from app.settings import Settings
from tests.models import BIG_USER, LIKES_NOTHING, LIKES_ONE, in_memory, make_model, serve, trained

Get = Callable[..., httpx.Response]
SPITEFUL = (
    '"',
    "\\",
    '\\"}],"results":[{"title":"',
    "%d %s %b %(x)s %% %",
    "%.7g",
    "{} {0} {title}",
    "\x01\x1f\x7f\t",
    "line\u2028paragraph\u2029",
    "Ψ|天 🎬 é e\u0301 \u202eright to left",
    '"score":1,"contribution":2',
    "</script><!--",
    "",
    " ",
    "null",
    "\ufeff\ufffe\U0010ffff",
)
_NUMBER = re.compile(rb'"(score|contribution)":[^,}]+')  # inside of a text the quotes would have a backslash


def assert_is_of_schema(body: bytes, schema: type[BaseModel]) -> None:
    """The body is what the schema's model becomes, character by character; numbers that are no integers by value."""
    model = schema.model_validate_json(body, strict=True)
    written = model.model_dump_json(exclude_unset=True).encode()
    assert pairs(body) == pairs(written)  # members in the same order
    assert _NUMBER.sub(b"", body) == _NUMBER.sub(b"", written)


def pairs(body: bytes) -> Any:
    return json.loads(body, object_pairs_hook=list)


# --- every list endpoint, with every option

PERSONAL = (
    *("", "&k=1", "&k=100", "&explain=true", "&explain=true&k=2", "&ranker=false", "&ranker=false&explain=true"),
    *("&novelty=0.5", "&diversity=0.5&explain=true", "&calibrate=1", "&novelty=1&diversity=1&calibrate=1"),
    *("&genre=Drama", "&year_min=1980&year_max=2000", "&exclude=1,2", "&genre=Western&exclude=2"),
)
TURNED = tuple(query for query in PERSONAL if not {"explain", "ranker", "calibrate"} & {*re.findall("[a-z]+", query)})
FOUND = tuple(query for query in TURNED if not {"novelty", "diversity"} & {*re.findall("[a-z]+", query)})
LISTS: dict[str, tuple[type[BaseModel], Sequence[str]]] = {
    "/recommend?user_id=1": (UserRecommendations, PERSONAL),
    "/recommend?user_id=7": (UserRecommendations, PERSONAL),
    "/recommend?user_id=999999&on_unknown=popular": (UserRecommendations, PERSONAL),
    "/recommend_cold?liked=3,404,1": (ColdRecommendations, PERSONAL),
    "/recommend_cold?": (ColdRecommendations, PERSONAL),
    "/similar?movie_id=1": (SimilarMovies, TURNED),
    "/popular?": (PopularMovies, TURNED),
    "/movies?query=%22the%25d": (FoundMovies, FOUND),
}
ASKED = [(f"{path}{query}", schema) for path, (schema, queries) in LISTS.items() for query in queries]


@pytest.fixture(scope="module")
def get(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Get]:
    """A service of the hand-made model, whose titles hold quotes, bars and other alphabets."""
    folder = tmp_path_factory.mktemp("hand-made")
    publish(folder, make_model())
    with serve(create_app(Settings(artifacts_dir=folder))) as request:
        yield request


@pytest.fixture(scope="module")
def get_trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Get]:
    """A service with a second stage, among whose genres is Western, and whose titles are spiteful."""
    folder = tmp_path_factory.mktemp("trained")
    model = trained()[1]
    titles = [
        f"{title} {SPITEFUL[n % len(SPITEFUL)]} {n}"
        for n, title in enumerate(model.movies["title"].str.replace("The ", 'The %d "', regex=False))
    ]
    publish(folder, replace(model, movies=model.movies.assign(title=titles)))
    with serve(create_app(Settings(artifacts_dir=folder))) as request:
        yield request


@pytest.mark.parametrize(("url", "schema"), ASKED)
def test_lists_of_the_hand_made_model_are_of_their_schema(get: Get, url: str, schema: type[BaseModel]) -> None:
    response = get(url)
    assert response.status_code == 200, response.text
    assert_is_of_schema(response.content, schema)


@pytest.mark.parametrize(("url", "schema"), ASKED)
def test_lists_of_two_stages_are_of_their_schema(get_trained: Get, url: str, schema: type[BaseModel]) -> None:
    response = get_trained(url.replace("user_id=7", f"user_id={LIKES_NOTHING}"))
    assert response.status_code == 200, response.text
    assert_is_of_schema(response.content, schema)


BATCHES: tuple[dict[str, Any], ...] = (
    {},
    {"k": 1},
    {"k": 100},
    {"explain": True},
    {"ranker": False},
    {"ranker": False, "explain": True},
    {"novelty": 0.5, "diversity": 0.5, "calibrate": 1, "explain": True},
    {"genre": ["Drama"], "year_min": 1980, "exclude": [1]},
    {"genre": ["Western"], "exclude": [2]},
)


@pytest.mark.parametrize("options", BATCHES)
def test_batches_are_of_their_schema(get: Get, get_trained: Get, options: dict[str, Any]) -> None:
    for request, users in ((get, [1, 7, 999, 9, BIG_USER]), (get_trained, [1, LIKES_NOTHING, 999_999, LIKES_ONE, 2])):
        response = request("/recommend/batch", "POST", json={"user_ids": [*users, *users], **options})
        assert response.status_code == 200, response.text
        assert_is_of_schema(response.content, BatchRecommendations)


def test_movies_and_users_are_of_their_schema(get: Get) -> None:
    for movie_id in (1, 2, 3, 5, 10):
        assert_is_of_schema(get(f"/movies/{movie_id}").content, MovieDetails)
    for user_id in (1, 7, 9, BIG_USER):
        assert_is_of_schema(get(f"/users/{user_id}").content, UserProfile)


def test_only_explained_movies_have_reasons_and_only_through_the_second_stage(get_trained: Get) -> None:
    explained = get_trained("/recommend?user_id=1&explain=true").json()["results"]
    assert {tuple(result)[5:] for result in explained} == {("because", "reasons")}
    by_first = get_trained("/recommend?user_id=1&explain=true&ranker=false").json()["results"]
    assert {tuple(result)[5:] for result in by_first} == {("because",)}
    assert {tuple(result)[5:] for result in get_trained("/recommend?user_id=1").json()["results"]} == {()}


# --- no text can break a body

OPTIONS = (ListOptions(), ListOptions(explain=True), ListOptions(dials=Dials(diversity=0.5)))


def recommender_of(titles: Sequence[str], genre: str = "Drama", imdb_id: str = "") -> Recommender:
    """Return a recommender of six movies with these titles, which repeat."""
    model = make_model()
    movies = model.movies.assign(title=[titles[n % len(titles)] for n in range(len(model.items))])
    return Recommender(in_memory(replace(model, movies=movies.assign(genres=f"{genre}|Other", imdb_id=imdb_id))))


def assert_texts_survive(recommender: Recommender) -> None:
    movies = list(recommender.model.movies)
    every = np.arange(len(movies))
    shown = {"movie_id", "title", "genres", "year"}
    expected = {movie.movie_id: (movie.title, list(movie.genres)) for movie in movies}

    def check(body: bytes, schema: type[BaseModel], lists: Callable[[Any], list[dict[str, Any]]]) -> None:
        assert_is_of_schema(body, schema)
        for result in lists(json.loads(body)):
            assert result.keys() >= shown
            assert (result["title"], result["genres"]) == expected[result["movie_id"]]
            for because in result.get("because", ()):
                assert because["title"] == expected[because["movie_id"]][0]

    for options in OPTIONS:
        body = list_body(b'"user_id":1,"k":9,', recommender, recommender.recommend(1, 9, options))
        check(body, UserRecommendations, lambda answer: answer["results"])
        rankings = recommender.recommend_many([1, 5, 9, 7], 9, options)
        body = batch_body(b'"k":9,', recommender, [1, 5, 9, 7], rankings)
        check(body, BatchRecommendations, lambda answer: [r for entry in answer["results"] for r in entry["results"]])
    query = movies[0].title
    body = found_body(
        json_members({"query": query, "k": 9}) + b",", recommender, every, np.ones(len(every), np.float32)
    )
    check(body, FoundMovies, lambda answer: answer["results"])
    assert json.loads(body)["query"] == query
    for item in every.tolist():
        check(movie_body(recommender, item), MovieDetails, lambda answer: [answer])


@pytest.mark.parametrize("text", SPITEFUL)
def test_spiteful_text_survives(text: str) -> None:
    assert_texts_survive(recommender_of([text, f"{text} (1999)"], genre=text.replace("|", "") or "x", imdb_id=text))


@given(titles=st.lists(st.text(max_size=30), min_size=1, max_size=6))
@settings(max_examples=30, deadline=None)
def test_any_text_survives(titles: list[str]) -> None:
    assert_texts_survive(recommender_of(titles))


@given(texts=st.lists(st.text(st.sampled_from('%"\\dbsg{}()*.7,:'), max_size=12), min_size=1, max_size=6))
@settings(max_examples=30, deadline=None)
def test_no_text_is_taken_for_a_template(texts: list[str]) -> None:
    assert_texts_survive(recommender_of(texts))


# --- numbers


def scored(*scores: float) -> Ranking:
    return Ranking("als", np.arange(len(scores)), np.array(scores, dtype=np.float32))


SCORES = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(scores=st.lists(SCORES, max_size=6))
def test_scores_are_numbers_of_seven_digits(scores: list[float]) -> None:
    recommender = recommender_of(["x"])
    body = list_body(b'"user_id":1,"k":9,', recommender, scored(*scores))
    assert_is_of_schema(body, UserRecommendations)
    found = [result["score"] for result in json.loads(body)["results"]]
    assert found == [float(f"{score:.7g}") for score in scores]
    assert found == pytest.approx(scores, rel=1e-6)
    batch = batch_body(b'"k":9,', recommender, [1], [scored(*scores)])
    assert json.loads(batch)["results"][0]["results"] == json.loads(body)["results"]


def test_ids_of_64_bits_stay_exact() -> None:
    recommender = recommender_of(["x"])
    largest = 2**63 - 1
    body = batch_body(b'"k":9,', recommender, [largest, largest - 1], [None, scored(1.0)])
    assert [entry["user_id"] for entry in json.loads(body)["results"]] == [largest, largest - 1]
    assert [result["movie_id"] for result in json.loads(body)["results"][1]["results"]] == [1]


def test_lists_may_be_empty() -> None:
    recommender = recommender_of(["x"])
    assert_is_of_schema(list_body(b'"user_id":1,"k":9,', recommender, scored()), UserRecommendations)
    cases: list[list[Ranking | None]] = [[None], [scored()], [None, scored()]]
    for rankings in (*cases, [replace(scored(), explanations=()), None]):
        body = batch_body(b'"k":9,', recommender, list(range(1, len(rankings) + 1)), rankings)
        assert_is_of_schema(body, BatchRecommendations)
        assert all(entry["results"] == [] for entry in json.loads(body)["results"])


def test_the_version_is_that_of_the_model(tmp_path: Path) -> None:
    version = publish(tmp_path, make_model()).version
    with serve(create_app(Settings(artifacts_dir=tmp_path))) as get:
        for url in ("/recommend?user_id=1", "/popular", "/movies?query=toy", "/movies/1", "/users/1"):
            assert get(url).json()["version"] == version
