"""The catalogue over HTTP: similar and popular movies, search by title, one movie, one user."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.als import Factors
from app.artifacts import LoadedModel
from app.main import create_app
from app.profiles import N_GENRES, N_LIKED
from app.registry import load_current, publish
from app.settings import Settings
from tests.models import BIG_MOVIE, BIG_USER, LIKES_NOTHING, LIKES_ONE, MOVIES, make_model, serve, trained

Get = Callable[..., httpx.Response]
SHOWN = ["movie_id", "title", "genres", "year"]


@pytest.fixture(scope="module")
def get(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Get]:
    """A service of the hand-made model."""
    folder = tmp_path_factory.mktemp("hand-made")
    publish(folder, make_model())
    with serve(create_app(Settings(artifacts_dir=folder))) as request:
        yield request


@pytest.fixture(scope="module")
def trained_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    publish(folder, trained()[1])
    return folder


@pytest.fixture(scope="module")
def get_trained(trained_dir: Path) -> Iterator[Get]:
    with serve(create_app(Settings(artifacts_dir=trained_dir))) as request:
        yield request


@pytest.fixture(scope="module")
def model(trained_dir: Path) -> LoadedModel:
    return load_current(trained_dir)


def assert_problem(response: httpx.Response, status: int, kind: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = response.json()
    assert (problem["status"], problem["type"]) == (status, f"urn:movie-recommender:problem:{kind}")
    assert len(response.content) < 1_000  # what was sent is not sent back at length
    return problem


def assert_invalid(response: httpx.Response, parameter: str, place: str = "query") -> str:
    (error,) = assert_problem(response, 422, "invalid-parameter")["errors"]
    assert (error["parameter"], error["in"]) == (parameter, place)
    return str(error["detail"])


def ids_of(answer: dict[str, Any]) -> list[int]:
    return [result["movie_id"] for result in answer["results"]]


NO_IDS = ["0", "-1", "1.0", "1_0", "x", "+1", "1,2", str(2**63), "9" * 5_000, "٣", "%20", "1e1"]

# --- similar movies


def test_similar_answers_as_the_contract_says(get: Get) -> None:
    answer = get("/similar?movie_id=1&k=2").json()
    assert list(answer) == ["movie_id", "k", "n_results", "version", "source", "results"]
    assert (answer["movie_id"], answer["k"], answer["n_results"], answer["source"]) == (1, 2, 2, "als")
    assert all(list(result) == [*SHOWN, "score"] for result in answer["results"])
    assert get("/similar?movie_id=1").json()["k"] == 10
    assert get("/similar?movie_id=1").json()["n_results"] == 5  # all others


@given(st.sampled_from(trained()[1].items.ids.tolist()), st.integers(1, 100))
@settings(max_examples=60, deadline=None)
def test_similar_movies_are_those_with_the_largest_cosines(
    get_trained: Get, model: LoadedModel, movie_id: int, k: int
) -> None:
    factors = np.asarray(model.factors.item_factors, dtype=np.float64)
    item = model.items.index_of(movie_id)
    lengths = np.linalg.norm(factors, axis=1)
    cosines = factors @ factors[item] / (lengths * lengths[item])
    answer = get_trained(f"/similar?movie_id={movie_id}&k={k}").json()
    found, scores = model.items.index(ids_of(answer)), [result["score"] for result in answer["results"]]
    assert len(found) == len(set(found.tolist())) == k
    assert item not in found
    assert scores == pytest.approx(cosines[found], abs=1e-6)
    assert scores == sorted(scores, reverse=True)
    left = np.setdiff1d(np.arange(len(factors)), [*found, item])
    assert cosines[left].max() <= min(scores) + 1e-6


def test_a_movie_is_never_similar_to_itself(get: Get, get_trained: Get, model: LoadedModel) -> None:
    for movie_id in (*MOVIES, BIG_MOVIE):
        assert movie_id not in ids_of(get(f"/similar?movie_id={movie_id}&k=100").json())
    for movie_id in model.items.ids.tolist()[:30]:
        for options in ("", "&diversity=0.5", "&genre=Drama"):
            assert movie_id not in ids_of(get_trained(f"/similar?movie_id={movie_id}&k=100{options}").json())


def test_twins_have_the_cosine_1_whatever_their_length_and_opposites_minus_1(tmp_path: Path) -> None:
    made = make_model()
    factors = made.factors.item_factors.copy()
    factors[1], factors[2], factors[3] = 3 * factors[0], -factors[0], 0
    publish(tmp_path, replace(made, factors=Factors(made.factors.user_factors, factors)))
    with serve(create_app(Settings(artifacts_dir=tmp_path))) as get:
        scores = {result["movie_id"]: result["score"] for result in get("/similar?movie_id=1").json()["results"]}
        assert (scores[2], scores[3], scores[5]) == (1, -1, 0)
        answer = get("/similar?movie_id=5").json()  # of which nothing was learned
        assert (answer["n_results"], answer["results"]) == (0, [])
        assert get("/similar?movie_id=5&diversity=0.5").json()["results"] == []


@pytest.mark.parametrize("movie_id", [404, 99, BIG_MOVIE + 1, 2**63 - 1])
def test_a_movie_outside_the_catalogue_is_unknown(get: Get, movie_id: int) -> None:
    for url in (f"/similar?movie_id={movie_id}", f"/similar?movie_id={movie_id}&novelty=1", f"/movies/{movie_id}"):
        problem = assert_problem(get(url), 404, "unknown-movie")
        assert str(movie_id) in problem["detail"]
        assert "/movies?query=" in problem["detail"]  # the remedy


@pytest.mark.parametrize("value", [*NO_IDS, ""])
def test_a_bad_movie_id_is_named(get: Get, value: str) -> None:
    assert_invalid(get(f"/similar?movie_id={value}"), "movie_id")


def test_a_missing_movie_id_is_named(get: Get) -> None:
    assert_invalid(get("/similar"), "movie_id")


@pytest.mark.parametrize("path", ["/similar?movie_id=1", "/popular?"])
def test_dials_turn_the_list_of_the_catalogue(get_trained: Get, path: str) -> None:
    plain = ids_of(get_trained(f"{path}&k=10").json())
    for dial in ("novelty", "diversity"):
        turned = ids_of(get_trained(f"{path}&k=10&{dial}=1").json())
        assert len(set(turned)) == 10
        assert turned != plain
        assert ids_of(get_trained(f"{path}&k=10&{dial}=0").json()) == plain
        assert_invalid(get_trained(f"{path}&{dial}=1.1"), dial)


def test_novelty_lists_what_fewer_like(get_trained: Get) -> None:
    def popularity(query: str) -> float:
        return sum(float(result["score"]) for result in get_trained(f"/popular?k=10{query}").json()["results"])

    assert popularity("&novelty=1") < popularity("&novelty=0.7") <= popularity("")


# --- popular movies


def test_popular_answers_as_the_contract_says(get: Get) -> None:
    answer = get("/popular?k=3").json()
    assert list(answer) == ["k", "n_results", "version", "source", "results"]
    assert (answer["k"], answer["n_results"], answer["source"]) == (3, 3, "popular")
    assert [(result["movie_id"], result["score"]) for result in answer["results"]] == [(1, 3), (2, 2), (3, 2)]


def test_equally_popular_movies_stand_in_the_order_of_their_ids(get: Get, get_trained: Get) -> None:
    assert ids_of(get("/popular").json()) == [1, 2, 3, 5, 10, BIG_MOVIE]
    results = get_trained("/popular?k=100").json()["results"]
    order = [(-result["score"], result["movie_id"]) for result in results]
    assert order == sorted(order)
    assert len({result["score"] for result in results}) < 100  # so there are ties


def test_popularity_counts_positives(get_trained: Get) -> None:
    data, _ = trained()
    counted = data.ratings[data.ratings["rating"] >= 4]["movie_id"].value_counts()
    for result in get_trained("/popular?k=100").json()["results"]:
        assert result["score"] == counted[result["movie_id"]]
        assert get_trained(f"/movies/{result['movie_id']}").json()["n_positives"] == result["score"]


# --- search by title


def test_search_answers_as_the_contract_says(get: Get) -> None:
    answer = get("/movies?query=toy%20story&k=3").json()
    assert list(answer) == ["query", "k", "n_results", "version", "results"]
    assert (answer["query"], answer["k"], answer["n_results"]) == ("toy story", 3, 1)
    (result,) = answer["results"]
    assert list(result) == [*SHOWN, "score"]
    assert (result["movie_id"], result["score"]) == (1, 1)


@pytest.mark.parametrize(
    ("query", "movie_id"),
    [
        ("Toy Story", 1),
        ("TOY+STORY", 1),
        ("toy storry", 1),
        ("tyo story", 1),
        ("toy story 1995", 1),
        ("the good the bad and the ugly", 2),
        ("good bad ugly", 2),
        ("amelie", 3),
        ("AMÉLIE", 3),
        ("fabuleux destin", 3),
        ("no year", 5),
        ("天", 5),
        ("na", 10),
    ],
)
def test_titles_are_found_whatever_their_case_accents_and_small_errors(get: Get, query: str, movie_id: int) -> None:
    assert ids_of(get("/movies", params={"query": query}).json())[:1] == [movie_id]


def test_what_nothing_resembles_finds_nothing(get: Get) -> None:
    answer = get("/movies?query=zzzzzzzz").json()
    assert (answer["n_results"], answer["results"]) == (0, [])


def test_a_title_finds_its_movie(get_trained: Get, model: LoadedModel) -> None:
    for movie in list(model.movies)[::40]:
        results = get_trained("/movies", params={"query": movie.title, "k": 100}).json()["results"]
        scores = {result["movie_id"]: result["score"] for result in results}
        assert scores[movie.movie_id] == 1
        assert list(scores.values()) == sorted(scores.values(), reverse=True)


def test_k_cuts_what_was_found(get_trained: Get) -> None:
    every = get_trained("/movies?query=the&k=100").json()["results"]
    assert len(every) == 100
    for k in (1, 10, 99):
        answer = get_trained(f"/movies?query=the&k={k}").json()
        assert (answer["k"], answer["results"]) == (k, every[:k])


@pytest.mark.parametrize("query", ["", "%20", "?!", "...", "-", "%00", "x" * 201, "%F0%9F%8E%AC"])
def test_a_query_without_a_letter_or_too_long_is_refused(get: Get, query: str) -> None:
    assert "200 characters" in assert_invalid(get(f"/movies?query={query}"), "query")


def test_a_missing_query_is_named(get: Get) -> None:
    assert_invalid(get("/movies"), "query")
    assert_invalid(get("/movies?k=3"), "query")


@given(query=st.text(max_size=40))
@settings(max_examples=100, deadline=None)
def test_any_text_is_searched_or_refused(get: Get, query: str) -> None:
    response = get("/movies", params={"query": query})
    assert response.status_code in (200, 422)
    if response.status_code == 200:
        assert response.json()["query"] == query


# --- one movie


def test_a_movie_answers_as_the_contract_says(get: Get) -> None:
    for movie_id, (title, genres, year, imdb_id, tmdb_id) in MOVIES.items():
        answer = get(f"/movies/{movie_id}").json()
        assert list(answer) == [*SHOWN, "imdb_id", "tmdb_id", "n_positives", "version"]
        assert (answer["movie_id"], answer["title"], answer["year"]) == (movie_id, title, year)
        assert answer["genres"] == (genres.split("|") if genres else [])
        assert (answer["imdb_id"], answer["tmdb_id"]) == (imdb_id or None, tmdb_id or None)
    assert [get(f"/movies/{movie_id}").json()["n_positives"] for movie_id in MOVIES] == [3, 2, 2, 1, 1]
    assert get(f"/movies/{BIG_MOVIE}").json()["movie_id"] == BIG_MOVIE


@pytest.mark.parametrize("path", ["/movies/{}", "/users/{}"])
@pytest.mark.parametrize("value", NO_IDS)
def test_a_bad_id_in_the_path_is_named(get: Get, path: str, value: str) -> None:
    name = "movie_id" if "movies" in path else "user_id"
    assert "decimal digits" in assert_invalid(get(path.format(value)), name, "path")


# --- one user


def test_a_user_answers_as_the_contract_says(get: Get) -> None:
    answer = get("/users/1").json()
    assert list(answer) == ["user_id", "version", "n_ratings", "n_liked", "liked", "favourite_genres"]
    assert (answer["user_id"], answer["n_ratings"], answer["n_liked"]) == (1, 3, 2)
    assert [movie["movie_id"] for movie in answer["liked"]] == [2, 1]  # the newest first
    assert all(list(movie) == SHOWN for movie in answer["liked"])
    shares = [(each["genre"], each["share"]) for each in answer["favourite_genres"]]
    assert shares == [("Western", 0.5), ("Adventure", 0.1667), ("Animation", 0.1667), ("Children", 0.1667)]


def test_what_is_outside_the_catalogue_does_not_count(get: Get) -> None:
    assert get("/users/2").json()["n_ratings"] == 2  # and movie 99, which nobody likes


def test_movies_without_a_genre_are_liked_and_leave_the_shares_alone(get: Get) -> None:
    answer = get("/users/9").json()
    assert [movie["movie_id"] for movie in answer["liked"]] == [10, 5, 3, 2]  # movie 3 has no genre
    shares = {each["genre"]: each["share"] for each in answer["favourite_genres"]}
    assert shares == {"Western": 0.3333, "Drama": 0.3333, "Film-Noir": 0.1667, "Sci-Fi": 0.1667}


def test_who_likes_nothing_has_no_favourites(get: Get, get_trained: Get) -> None:
    for answer in (get("/users/7").json(), get_trained(f"/users/{LIKES_NOTHING}").json()):
        assert (answer["n_ratings"], answer["n_liked"]) == (2, 0)
        assert (answer["liked"], answer["favourite_genres"]) == ([], [])
    assert get(f"/users/{BIG_USER}").json()["user_id"] == BIG_USER


def test_users_of_the_trained_model_are_described_by_their_ratings(get_trained: Get, model: LoadedModel) -> None:
    ratings = trained()[0].ratings
    ratings = ratings[ratings["movie_id"].isin(model.items.ids)]
    for user_id in [*model.users.ids.tolist()[:40], LIKES_ONE]:
        theirs = ratings[ratings["user_id"] == user_id]
        liked = theirs[theirs["rating"] >= 4]
        answer = get_trained(f"/users/{user_id}").json()
        assert (answer["n_ratings"], answer["n_liked"]) == (len(theirs), len(liked))
        newest = liked.sort_values("timestamp", kind="stable")["movie_id"].tolist()[::-1][:N_LIKED]
        assert [movie["movie_id"] for movie in answer["liked"]] == newest
        shares = [each["share"] for each in answer["favourite_genres"]]
        assert shares == sorted(shares, reverse=True)
        assert len(shares) <= N_GENRES
        assert all(0 < share <= 1 for share in shares)
        assert sum(shares) <= 1 + N_GENRES * 0.00005  # four digits each


def test_an_unknown_user_is_told_about_cold_start(get: Get) -> None:
    problem = assert_problem(get("/users/999"), 404, "unknown-user")
    assert problem["version"] == get("/health").json()["version"]
    assert "/recommend_cold" in problem["detail"]


@pytest.mark.parametrize("path", ["/users", "/users/", "/movies/", "/users/1/2", "/movies/1/2", "/users/1/"])
def test_other_paths_are_none_of_these(get: Get, path: str) -> None:
    assert get(path).status_code in (307, 404)


def test_no_id_stands_in_the_routes_of_the_metrics(get: Get) -> None:
    for url in ("/users/1", "/users/999", "/users/x", "/movies/1", "/movies/404"):
        get(url)
    text = get("/metrics").text
    assert 'route="/users/{user_id}",status="200"' in text
    assert 'route="/movies/{movie_id}",status="404"' in text
    assert not any(f'route="{path}"' in text for path in ("/users/1", "/users/999", "/movies/404"))
