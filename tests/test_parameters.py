"""Parameters of lists: what is taken and refused, what filters leave, and that the documentation says the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.main import create_app
from app.recommender import ListOptions, Ranking, Recommender, load_recommender
from app.registry import load_current, publish
from app.routers.parameters import (
    ColdQuery,
    MovieQuery,
    Parameters,
    PersonalQuery,
    PopularQuery,
    SimilarQuery,
    UserQuery,
    parse_excluded,
    parse_genres,
    parse_id,
    parse_liked,
    parse_query_text,
)
from app.routers.quick import parse_query
from app.schemas import BatchRequest
from app.settings import Settings
from tests.models import LIKES_NOTHING, make_model, serve, trained

Get = Callable[..., httpx.Response]
UNKNOWN = 999_999
KNOWN_GENRES = "expected one of Adventure, Animation, Children, Drama, Film-Noir, Sci-Fi, Western"


@pytest.fixture(scope="module")
def artifacts_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    publish(folder, trained()[1])
    return folder


@pytest.fixture(scope="module")
def get(artifacts_dir: Path) -> Iterator[Get]:
    with serve(create_app(Settings(artifacts_dir=artifacts_dir))) as request:
        yield request


@pytest.fixture(scope="module")
def recommender(artifacts_dir: Path) -> Recommender:
    return load_recommender(load_current(artifacts_dir))


@pytest.fixture(scope="module")
def get_small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Get]:
    """A service of the hand-made model."""
    folder = tmp_path_factory.mktemp("hand-made")
    publish(folder, make_model())
    with serve(create_app(Settings(artifacts_dir=folder))) as request:
        yield request


# --- what filters leave: compared with the whole ranking, from which Python takes what does not fit

PLAIN = ListOptions(ranker=False)
WHOLE_RANKINGS: dict[str, Callable[[Recommender, int], Ranking]] = {
    "/recommend?user_id=1&ranker=false": lambda asked, n: asked.recommend(1, n, PLAIN),
    f"/recommend?user_id={LIKES_NOTHING}": lambda asked, n: asked.recommend(LIKES_NOTHING, n),
    f"/recommend?user_id={UNKNOWN}&on_unknown=popular": lambda asked, n: asked.popular(n),
    "/recommend_cold?liked=1,2,3&ranker=false": lambda asked, n: asked.recommend_cold([1, 2, 3], n, PLAIN),
    "/recommend_cold?": lambda asked, n: asked.popular(n),
    "/similar?movie_id=1": lambda asked, n: asked.similar(1, n),
    "/popular?": lambda asked, n: asked.popular(n),
    "/movies?query=the": lambda asked, n: Ranking("als", *asked.titles.search("the", n)),
}
TURNED = (  # lists whose order depends on which movies are left
    "/recommend?user_id=1",
    "/recommend?user_id=1&explain=true",
    "/recommend?user_id=1&novelty=0.5&diversity=0.5&calibrate=0.5",
    "/recommend?user_id=1&ranker=false&diversity=0.7",
    f"/recommend?user_id={LIKES_NOTHING}&novelty=0.3&explain=true",
    f"/recommend?user_id={UNKNOWN}&on_unknown=popular&novelty=0.3&explain=true",
    "/recommend_cold?liked=1,2,3",
    "/recommend_cold?liked=1,2,3&calibrate=1&explain=true",
    "/similar?movie_id=1&diversity=0.5",
    "/popular?novelty=0.5",
)


@dataclass(frozen=True)
class Wish:
    """Filters as a caller writes them."""

    genres: tuple[str, ...]
    year_min: int | None
    year_max: int | None
    exclude: tuple[int, ...]
    k: int

    def query(self) -> str:
        pairs = [f"genre={genre}" for genre in self.genres]
        pairs += [f"{name}={getattr(self, name)}" for name in ("year_min", "year_max") if getattr(self, name)]
        if self.exclude:
            pairs.append(f"exclude={','.join(map(str, self.exclude))}")
        return "&".join([f"k={self.k}", *pairs])

    def allows(self, movie: Any) -> bool:
        """Tell whether a movie fits, the slow way."""
        if self.genres and not {genre.lower() for genre in self.genres} & {genre.lower() for genre in movie.genres}:
            return False
        if (self.year_min or self.year_max) and movie.year is None:
            return False
        is_in_time = (self.year_min or 0) <= (movie.year or 0) <= (self.year_max or 9999)
        return is_in_time and movie.movie_id not in self.exclude


def genres_of_trained() -> list[str]:
    return sorted({genre for genres in trained()[1].movies["genres"] for genre in genres.split("|") if genre})


@st.composite
def wishes(draw: st.DrawFn) -> Wish:
    written: st.SearchStrategy[Callable[[str], str]] = st.sampled_from([str.title, str.lower, str.upper, str.swapcase])
    genres = draw(st.lists(st.tuples(written, st.sampled_from(genres_of_trained())), max_size=3))
    years = sorted(draw(st.lists(st.integers(1960, 2030), min_size=2, max_size=2)))
    low, high = draw(st.sampled_from([(None, None), (years[0], None), (None, years[1]), tuple(years)]))
    ids = st.one_of(st.sampled_from(trained()[1].items.ids.tolist()), st.integers(1, 2**63 - 1))
    exclude = draw(st.lists(ids, max_size=30))
    names = tuple(write(genre) for write, genre in genres)
    return Wish(names, low, high, tuple(exclude), draw(st.integers(1, 100)))


@pytest.mark.parametrize("path", WHOLE_RANKINGS)
@given(wish=wishes())
@settings(max_examples=25, deadline=None)
def test_filters_come_before_the_best_are_chosen(get: Get, recommender: Recommender, path: str, wish: Wish) -> None:
    movies = recommender.model.movies
    whole = WHOLE_RANKINGS[path](recommender, len(movies))
    best = [movies[item] for item in whole.item_indices.tolist()]
    expected = [movie.movie_id for movie in best if wish.allows(movie)][: wish.k]
    answer = get(f"{path}&{wish.query()}").json()
    assert [result["movie_id"] for result in answer["results"]] == expected
    assert (answer["k"], answer["n_results"]) == (wish.k, len(expected))


@pytest.mark.parametrize("path", TURNED)
@given(wish=wishes())
@settings(max_examples=8, deadline=None)
def test_filtered_lists_are_as_long_as_they_can_be_whatever_orders_them(
    get: Get, recommender: Recommender, path: str, wish: Wish
) -> None:
    movies = recommender.model.movies
    left = {movie.movie_id for movie in movies if wish.allows(movie)} - out_of(path, recommender)
    answer = get(f"{path}&{wish.query()}").json()
    found = [result["movie_id"] for result in answer["results"]]
    assert set(found) <= left
    assert len(found) == len(set(found)) == answer["n_results"] == min(wish.k, len(left))


def out_of(path: str, recommender: Recommender) -> set[int]:
    """Return the movies that a list never holds."""
    if "liked" in path:
        return {1, 2, 3}
    if "movie_id" in path:
        return {1}
    if "user_id" not in path or str(UNKNOWN) in path:
        return set()
    user_id = int(path.partition("user_id=")[2].partition("&")[0])
    model = recommender.model
    return set(model.items.ids[model.history.of(model.users.index_of(user_id)).item_index].tolist())


@pytest.mark.parametrize("path", ["/recommend?user_id=1", "/recommend_cold?liked=1,2,3"])
def test_the_second_stage_orders_what_a_filter_leaves(get: Get, path: str) -> None:
    answer = get(f"{path}&genre=Drama&year_min=1980").json()
    assert answer["source"] == "ranker"
    scores = [result["score"] for result in answer["results"]]
    assert scores == sorted(scores, reverse=True)
    assert answer["n_results"] == 10


def ids(response: httpx.Response) -> list[int]:
    assert response.status_code == 200, response.text
    return [result["movie_id"] for result in response.json()["results"]]


def test_filters_by_hand(get_small: Get) -> None:
    def listed(query: str) -> list[int]:
        return [movie_id for movie_id in ids(get_small(f"/popular?{query}")) if movie_id < 100]

    assert listed("") == [1, 2, 3, 5, 10]
    assert listed("genre=western") == [2]
    assert listed("genre=Western&genre=SCI-FI") == [2, 10]  # any of them
    assert listed("genre=Western&genre=") == [2]
    assert listed("year_min=1995") == [1, 3, 10]  # inclusive; 5 has no year
    assert listed("year_max=1995") == [1, 2]
    assert listed("year_min=1995&year_max=1995") == [1]
    assert listed("year_min=1&year_max=9999") == [1, 2, 3, 10]
    assert listed("exclude=1,404&exclude=3") == [2, 5, 10]
    assert listed("exclude=") == [1, 2, 3, 5, 10]
    assert listed("genre=drama&year_min=1") == []


# --- what is refused

LISTS = (
    "/recommend?user_id=1",
    "/recommend_cold?liked=1",
    "/recommend_cold?",
    f"/recommend?user_id={UNKNOWN}&on_unknown=popular",
    "/similar?movie_id=1",
    "/popular?",
    "/movies?query=toy",
)


def assert_refused(response: httpx.Response, parameter: str, place: str = "query") -> str:
    assert response.status_code == 422, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["type"] == "urn:movie-recommender:problem:invalid-parameter"
    (error,) = problem["errors"]
    assert (error["parameter"], error["in"]) == (parameter, place)
    assert problem["detail"] == f"{parameter}: {error['detail']}"
    assert len(response.content) < 1_500  # what was sent is not sent back at length
    return str(error["detail"])


@pytest.mark.parametrize("path", LISTS)
@pytest.mark.parametrize("genre", ["Westerns", "west", " Western", "x" * 5_000, "%00", "%F0%9F%8E%AC", "Western|Drama"])
def test_an_unknown_genre_is_refused_with_the_known_ones(get_small: Get, path: str, genre: str) -> None:
    assert KNOWN_GENRES in assert_refused(get_small(f"{path}&genre=drama&genre={genre}"), "genre")


@pytest.mark.parametrize("path", LISTS)
@pytest.mark.parametrize("name", ["year_min", "year_max"])
@pytest.mark.parametrize("value", ["0", "-1", "10000", "1995.0", "", "x", " 1995", "1_995", "١٩٩٥", "1" * 5_000])
def test_a_bad_year_is_named(get_small: Get, path: str, name: str, value: str) -> None:
    url = httpx.URL(f"http://service{path}").copy_add_param(name, value)
    assert "from 1 to 9999" in assert_refused(get_small(url), name)


@pytest.mark.parametrize("path", LISTS)
def test_years_between_which_there_is_none_are_refused(get_small: Get, path: str) -> None:
    assert "1996" in assert_refused(get_small(f"{path}&year_min=1996&year_max=1995"), "year_max")


@pytest.mark.parametrize("path", LISTS)
@pytest.mark.parametrize("value", ["x", "1,,2", "1.0", "0", "-1", str(2**63), "1, 2", "1" * 5_000])
def test_bad_excluded_ids_are_named(get_small: Get, path: str, value: str) -> None:
    url = httpx.URL(f"http://service{path}").copy_add_param("exclude", value)
    assert "whole number" in assert_refused(get_small(url), "exclude")


@pytest.mark.parametrize("path", LISTS)
def test_1000_excluded_ids_are_allowed_and_1001_are_not(get_small: Get, path: str) -> None:
    listed = ",".join(str(2**62 + n) for n in range(1_000))
    assert get_small(f"{path}&exclude={listed}").status_code == 200
    assert "1000" in assert_refused(get_small(f"{path}&exclude={listed},1"), "exclude")
    assert "1000" in assert_refused(get_small(f"{path}&exclude={listed}&exclude={2**62}"), "exclude")


@pytest.mark.parametrize("path", LISTS)
def test_20_genres_are_allowed_and_21_are_not(get_small: Get, path: str) -> None:
    many = "&".join(["genre=DRAMA", "genre=drama"] * 10)
    assert get_small(f"{path}&{many}").status_code == 200
    assert "at most 20" in assert_refused(get_small(f"{path}&{many}&genre=drama"), "genre")


@pytest.mark.parametrize("value", ["", "Popular", "error,popular", "none", "true", "x" * 5_000])
def test_on_unknown_is_error_or_popular(get_small: Get, value: str) -> None:
    for user_id in (1, UNKNOWN):
        url = httpx.URL(f"http://service/recommend?user_id={user_id}").copy_add_param("on_unknown", value)
        assert "'error' or 'popular'" in assert_refused(get_small(url), "on_unknown")


# --- unknown users that are answered


@pytest.mark.parametrize(
    "options", ["", "&k=3", "&explain=true", "&novelty=0.5&diversity=0.2&calibrate=1", "&genre=Drama&exclude=1"]
)
def test_unknown_users_get_what_somebody_new_would(get: Get, options: str) -> None:
    answer = get(f"/recommend?user_id={UNKNOWN}&on_unknown=popular{options}")
    assert answer.status_code == 200
    expected = get(f"/recommend_cold?{options[1:]}").json()
    assert answer.json()["user_id"] == UNKNOWN
    assert answer.json()["source"] == "popular"
    same = ("k", "n_results", "version", "source", "results")
    assert [answer.json()[name] for name in same] == [expected[name] for name in same]


def test_known_users_get_their_own_list_whatever_unknown_ones_would(get: Get) -> None:
    for user_id in (1, LIKES_NOTHING):
        expected = get(f"/recommend?user_id={user_id}").json()
        for on_unknown in ("error", "popular"):
            assert get(f"/recommend?user_id={user_id}&on_unknown={on_unknown}").json() == expected


@pytest.mark.parametrize("options", ["", "&on_unknown=error", "&explain=true", "&genre=drama", "&on_unknown=error&k=3"])
def test_unknown_users_are_unknown_unless_said_otherwise(get: Get, options: str) -> None:
    response = get(f"/recommend?user_id={UNKNOWN}{options}")
    assert (response.status_code, response.json()["type"].rpartition(":")[2]) == (404, "unknown-user")


# --- parsers


@given(text=st.one_of(st.integers(-5, 2**64).map(str), st.text(max_size=25)))
def test_ids_are_decimal_digits_and_nothing_else(text: str) -> None:
    is_id = text.isascii() and text.isdigit() and len(text) <= 19 and 1 <= int(text) < 2**63
    if is_id:
        assert parse_id(text) == int(text)
    else:
        with pytest.raises(ValueError, match="expected a whole number from 1 to 9223372036854775807"):
            parse_id(text)


@given(given_ids=st.lists(st.integers(1, 2**63 - 1), max_size=40), cuts=st.sets(st.integers(0, 40)))
def test_ids_may_be_listed_and_repeated_in_any_way(given_ids: list[int], cuts: set[int]) -> None:
    at = [0, *sorted(cut for cut in cuts if 0 < cut < len(given_ids)), len(given_ids)]
    values = [",".join(map(str, given_ids[start:end])) for start, end in pairwise(at)]
    assert parse_liked(values) == tuple(dict.fromkeys(given_ids))
    assert parse_excluded(values) == tuple(sorted(set(given_ids)))


def test_genres_are_the_same_in_any_order_and_case() -> None:
    assert parse_genres(["Drama", "sci-fi", "DRAMA", ""]) == parse_genres(["SCI-FI", "drama"]) == ("drama", "sci-fi")
    assert parse_genres([""]) == ()


@pytest.mark.parametrize("text", ["", " ", "?!", "…", "-()", "x" * 201, "\0", "´"])
def test_a_title_needs_a_letter_or_a_digit_and_an_end(text: str) -> None:
    with pytest.raises(ValueError, match="expected a title or a part of one, up to 200 characters"):
        parse_query_text(text)


@pytest.mark.parametrize("text", ["x" * 200, "2", " the  matrix ", "天", "é?"])
def test_any_text_with_a_letter_or_a_digit_may_be_a_title(text: str) -> None:
    assert parse_query_text(text) == text


# --- keys of the cache


def key_of(model: type[Parameters], query: str) -> tuple[Any, ...]:
    return parse_query(model, query.encode()).key()


@pytest.mark.parametrize(
    ("model", "queries"),
    [
        (UserQuery, ["user_id=1", "user_id=1&k=10", "k=10&user_id=1", "user_id=01&k=010&novelty=0&explain=false"]),
        (UserQuery, ["user_id=1&genre=Drama&genre=War", "user_id=1&genre=WAR&genre=drama&genre=", "genre=x&user_id=1"]),
        (UserQuery, ["user_id=1&exclude=1,2", "user_id=1&exclude=2&exclude=1&exclude=", "user_id=1&exclude=01,2,2"]),
        (UserQuery, ["user_id=1&novelty=0.50", "user_id=1&novelty=.5", "user_id=2&user_id=1&novelty=0.5"]),
        (ColdQuery, ["", "liked=", "liked=&k=10", "ranker=true", "on_unknown=popular"]),
        (ColdQuery, ["liked=1,2", "liked=1&liked=2", "liked=1,2,1&year_min=1990"]),
        (SimilarQuery, ["movie_id=1", "movie_id=1&novelty=0.0"]),
        (PopularQuery, ["", "k=10", "explain=true"]),
    ],
)
def test_the_same_wish_has_one_key(model: type[Parameters], queries: Sequence[str]) -> None:
    first, *others = (key_of(model, query) for query in queries if query not in DIFFERENT)
    assert all(other == first for other in others)
    for query in DIFFERENT & {*queries}:
        assert key_of(model, query) != first


DIFFERENT = {"genre=x&user_id=1", "liked=1,2,1&year_min=1990"}


@given(
    st.lists(
        st.sampled_from(
            [
                *("k=3", "genre=a", "genre=b", "year_min=1990", "year_max=1990", "exclude=1", "exclude=2"),
                *("novelty=1", "diversity=1", "calibrate=1", "explain=true", "ranker=false", "on_unknown=popular"),
            ]
        ),
        unique=True,
        max_size=4,
    )
)
def test_different_wishes_have_different_keys(wished: list[str]) -> None:
    key = key_of(UserQuery, "&".join(["user_id=1", *wished]))
    for left_out in wished:
        fewer = key_of(UserQuery, "&".join(["user_id=1", *(each for each in wished if each != left_out)]))
        assert fewer != key


# --- documentation

MODELS: dict[str, type[Parameters]] = {
    "/recommend": UserQuery,
    "/recommend_cold": ColdQuery,
    "/similar": SimilarQuery,
    "/popular": PopularQuery,
    "/movies": MovieQuery,
}


@pytest.mark.parametrize("path", MODELS)
def test_exactly_what_is_parsed_is_documented(get_small: Get, path: str) -> None:
    fields = MODELS[path].model_fields
    documented = {each["name"]: each for each in get_small("/openapi.json").json()["paths"][path]["get"]["parameters"]}
    assert documented.keys() == fields.keys()
    for name, field in fields.items():
        found = documented[name]
        assert (found["in"], found["required"]) == ("query", field.is_required())
        assert found["description"].endswith(".")
        if not field.is_required():
            default = found["schema"].get("default")
            assert default == (list(field.default) if isinstance(field.default, tuple) else field.default)
        assert "anyOf" not in found["schema"]  # a null cannot be sent
    comma_separated = {name for name, each in documented.items() if each.get("explode") is False}
    assert comma_separated == {"liked", "exclude"} & fields.keys()


def test_filters_are_documented_with_their_bounds(get_small: Get) -> None:
    for path in MODELS:
        parameters = get_small("/openapi.json").json()["paths"][path]["get"]["parameters"]
        schemas = {each["name"]: each["schema"] for each in parameters}
        for name in ("year_min", "year_max"):
            assert {key: schemas[name][key] for key in ("type", "minimum", "maximum")} == {
                "type": "integer",
                "minimum": 1,
                "maximum": 9999,
            }
        assert (schemas["genre"]["type"], schemas["genre"]["items"], schemas["genre"]["maxItems"]) == (
            "array",
            {"type": "string"},
            20,
        )
        assert (schemas["exclude"]["maxItems"], schemas["exclude"]["items"]["minimum"]) == (1_000, 1)


def test_a_batch_takes_the_options_of_a_single_list() -> None:
    assert BatchRequest.model_fields.keys() - {"user_ids"} == PersonalQuery.model_fields.keys()
