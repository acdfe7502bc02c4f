"""Lists for many users at once: each is what its user would get alone, and only what the contract says is taken."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from app.main import create_app
from app.recommender import Ranking, Recommender
from app.registry import publish
from app.settings import Settings
from tests.models import BIG_USER, LIKES_NOTHING, LIKES_ONE, in_memory, make_model, serve, trained

Get = Callable[..., httpx.Response]
PATH = "/recommend/batch"
UNKNOWN = 999_999


@pytest.fixture(scope="module")
def trained_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    publish(folder, trained()[1])
    return folder


@pytest.fixture(scope="module")
def get(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Get]:
    """A service of the hand-made model."""
    folder = tmp_path_factory.mktemp("hand-made")
    publish(folder, make_model())
    with serve(create_app(Settings(artifacts_dir=folder))) as request:
        yield request


@pytest.fixture(scope="module")
def get_trained(trained_dir: Path) -> Iterator[Get]:
    with serve(create_app(Settings(artifacts_dir=trained_dir))) as request:
        yield request


def ask(get: Get, body: object, **options: Any) -> httpx.Response:
    return get(PATH, "POST", json=body, **options)


def ask_raw(get: Get, text: str | bytes, content_type: str | None = "application/json") -> httpx.Response:
    headers = {"content-type": content_type} if content_type else {}
    return get(PATH, "POST", content=text, headers=headers)


# --- answers


def test_a_batch_answers_as_the_contract_says(get: Get) -> None:
    response = ask(get, {"user_ids": [9, UNKNOWN, 1], "k": 2})
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    answer = response.json()
    assert list(answer) == ["k", "version", "results"]
    assert (answer["k"], answer["version"]) == (2, get("/health").json()["version"])
    known, unknown, other = answer["results"]
    assert list(known) == ["user_id", "source", "results"]
    assert (known["user_id"], known["source"], len(known["results"])) == (9, "als", 2)
    assert list(known["results"][0]) == ["movie_id", "title", "genres", "year", "score"]
    assert list(unknown.items()) == [("user_id", UNKNOWN), ("error", "unknown_user"), ("results", [])]
    assert other["user_id"] == 1


def test_the_order_is_that_of_the_request_and_repetitions_are_answered(get: Get) -> None:
    asked = [9, 1, UNKNOWN, 9, 7, UNKNOWN, BIG_USER, 1, 2**63 - 1]
    entries = ask(get, {"user_ids": asked}).json()["results"]
    assert [entry["user_id"] for entry in entries] == asked
    assert entries[0] == entries[3]
    assert [entry.get("error") for entry in entries] == [
        None if user_id in (1, 7, 9, BIG_USER) else "unknown_user" for user_id in asked
    ]


def test_users_without_positives_get_popular_movies(get: Get) -> None:
    entries = ask(get, {"user_ids": [1, 7], "k": 2}).json()["results"]
    assert [entry["source"] for entry in entries] == ["als", "popular"]
    assert [(each["movie_id"], each["score"]) for each in entries[1]["results"]] == [(2, 2), (5, 1)]


def test_nobody_known_is_an_answer(get: Get) -> None:
    for options in ({}, {"explain": True}, {"novelty": 0.5}):
        answer = ask(get, {"user_ids": [UNKNOWN, UNKNOWN + 1], **options})
        assert answer.status_code == 200
        assert [entry["results"] for entry in answer.json()["results"]] == [[], []]


def test_a_list_may_be_empty(get: Get) -> None:
    entries = ask(get, {"user_ids": [1, 9], "genre": ["Animation"], "exclude": [1]}).json()["results"]
    assert [(entry["source"], entry["results"]) for entry in entries] == [("als", []), ("als", [])]


# --- the same as one by one


def query_of(options: dict[str, Any]) -> str:
    """Write a batch's options as /recommend takes them."""
    pairs: list[tuple[str, str]] = []
    for name, value in options.items():
        if name == "exclude":
            pairs.append((name, ",".join(map(str, value))))
        else:
            pairs += [(name, str(each).lower()) for each in (value if isinstance(value, list) else [value])]
    return "&".join(f"{name}={value}" for name, value in pairs)


def assert_same_as_alone(get: Get, user_ids: list[int], options: dict[str, Any]) -> None:
    answer = ask(get, {"user_ids": user_ids, **options}).json()
    for user_id, entry in zip(user_ids, answer["results"], strict=True):
        alone = get(f"/recommend?user_id={user_id}&{query_of(options)}")
        if alone.status_code == 404:
            assert entry == {"user_id": user_id, "error": "unknown_user", "results": []}
        else:
            expected = {name: alone.json()[name] for name in ("user_id", "source", "results")}
            assert list(entry.items()) == list(expected.items())  # scores to the last digit
            assert (answer["k"], answer["version"]) == (alone.json()["k"], alone.json()["version"])


def dials() -> st.SearchStrategy[float]:
    return st.sampled_from([0.0, 0.25, 1.0])


def filters(movie_ids: list[int], genres: list[str]) -> dict[str, st.SearchStrategy[Any]]:
    return {
        "k": st.integers(1, 100),
        "genre": st.lists(st.sampled_from(genres), max_size=2),
        "year_min": st.integers(1900, 1995),
        "year_max": st.integers(1995, 2030),
        "exclude": st.lists(st.sampled_from([*movie_ids, 2**63 - 1]), max_size=5),
    }


HAND_MADE = filters([1, 2, 3, 5, 10], ["drama", "Western", "Sci-Fi"])


@given(
    user_ids=st.lists(st.sampled_from([1, 2, 7, 9, BIG_USER, UNKNOWN]), min_size=1, max_size=12),
    options=st.fixed_dictionaries(
        {}, optional={**HAND_MADE, "novelty": dials(), "diversity": dials(), "calibrate": dials()}
    ),
    explain=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_each_list_is_what_its_user_gets_alone(
    get: Get, user_ids: list[int], options: dict[str, Any], explain: bool
) -> None:
    assert_same_as_alone(get, user_ids, {**options, "explain": explain})


KNOWN = [1, 2, 3, 50, 113, 117, LIKES_NOTHING, LIKES_ONE]
TRAINED = filters([1, 2, 3, 62, 102], ["drama", "War", "Comedy"])


@given(
    user_ids=st.lists(st.sampled_from([*KNOWN, UNKNOWN]), min_size=1, max_size=20),
    options=st.fixed_dictionaries({"ranker": st.just(False)}, optional=TRAINED),
)
@settings(max_examples=30, deadline=None)
def test_each_trained_list_is_what_its_user_gets_alone(
    get_trained: Get, user_ids: list[int], options: dict[str, Any]
) -> None:
    assert_same_as_alone(get_trained, user_ids, options)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"k": 100},
        {"explain": True, "k": 3},
        {"novelty": 0.3, "diversity": 0.5, "calibrate": 1},
        {"genre": ["Drama", "war"], "year_min": 1980, "exclude": [1, 62]},
        {"genre": ["Comedy"], "explain": True, "diversity": 0.5},
        {"ranker": False, "explain": True},
        {"ranker": False, "calibrate": 0.5},
    ],
)
def test_each_list_through_the_second_stage_is_what_its_user_gets_alone(
    get_trained: Get, options: dict[str, Any]
) -> None:
    assert_same_as_alone(get_trained, [*KNOWN, UNKNOWN, 1], options)
    sources = {
        entry["user_id"]: entry.get("source") for entry in ask(get_trained, {"user_ids": KNOWN}).json()["results"]
    }
    assert (sources[1], sources[LIKES_NOTHING], sources[LIKES_ONE]) == ("ranker", "popular", "ranker")


def test_many_users_get_what_each_would_alone(get_trained: Get) -> None:
    """More than one product takes at a time, and two threads."""
    users = trained()[1].users.ids.tolist()
    asked = (users * 9)[:1_000]
    answer = ask(get_trained, {"user_ids": asked, "k": 5, "ranker": False}).json()
    alone = {user: get_trained(f"/recommend?user_id={user}&k=5&ranker=false").json()["results"] for user in users}
    assert [entry["results"] for entry in answer["results"]] == [alone[user] for user in asked]


# --- what is refused


def assert_refused(response: httpx.Response, parameter: str) -> str:
    assert response.status_code == 422, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["type"] == "urn:movie-recommender:problem:invalid-parameter"
    (error,) = problem["errors"]
    assert (error["parameter"], error["in"]) == (parameter, "body")
    assert problem["detail"] == f"{parameter}: {error['detail']}"
    assert len(response.content) < 1_500  # what was sent is not sent back at length
    return str(error["detail"])


def test_1000_users_are_allowed_and_1001_are_not(get: Get) -> None:
    many = list(range(1, 1_001))
    entries = ask(get, {"user_ids": many}).json()["results"]
    assert [entry["user_id"] for entry in entries] == many
    assert "1000" in assert_refused(ask(get, {"user_ids": [*many, 1]}), "user_ids")
    assert "1000" in assert_refused(ask(get, {"user_ids": [1] * 1_001}), "user_ids")


NO_IDS = ["true", '"1"', "1.0", "1e0", "null", "0", "-1", str(2**63), "1.5", "[1]", "{}", '""', "NaN", "1" * 100]


@pytest.mark.parametrize("text", NO_IDS)
def test_bad_user_ids_are_named(get: Get, text: str) -> None:
    assert "entry 1" in assert_refused(ask_raw(get, f'{{"user_ids":[1,{text},2,{text}]}}'), "user_ids")


@pytest.mark.parametrize("text", NO_IDS)
def test_bad_excluded_ids_of_a_batch_are_named(get: Get, text: str) -> None:
    assert "entry 0" in assert_refused(ask_raw(get, f'{{"user_ids":[1],"exclude":[{text}]}}'), "exclude")


@pytest.mark.parametrize("text", ["null", "1", '"1,2"', "{}", "true", "[]"])
def test_user_ids_are_a_list_with_somebody_in_it(get: Get, text: str) -> None:
    assert_refused(ask_raw(get, f'{{"user_ids":{text}}}'), "user_ids")


def test_missing_user_ids_are_named(get: Get) -> None:
    assert_refused(ask(get, {}), "user_ids")
    assert_refused(ask(get, {"k": 3}), "user_ids")


def test_a_thousand_bad_ids_are_one_problem(get: Get) -> None:
    assert "entry 0" in assert_refused(ask(get, {"user_ids": ["x" * 500] * 1_000}), "user_ids")


BAD_OPTIONS: dict[str, list[Any]] = {
    "k": [0, 101, -1, "10", 10.0, True, None, [10], 10**30],
    "genre": ["Drama", None, 1, [1], [None], ["Drama"] * 21, [["Drama"]], {}],
    "year_min": [0, 10_000, "1990", 1990.0, True, []],
    "year_max": [0, 10_000, "1990", 1990.0, True, []],
    "exclude": ["1,2", None, 1, [1] * 1_001],
    "novelty": [-0.1, 1.1, "0.5", None, True, [0.5]],
    "diversity": [2, "1", False],
    "calibrate": [1.0000001, "x", {}],
    "explain": ["true", 1, 0, None, "yes", []],
    "ranker": ["false", 1, 0, None, 0.0],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD_OPTIONS.items() for value in values])
def test_bad_options_are_named(get: Get, name: str, value: object) -> None:
    assert_refused(ask(get, {"user_ids": [1], name: value}), name)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e400"])
@pytest.mark.parametrize("dial", ["novelty", "diversity", "calibrate"])
def test_dials_are_numbers(get: Get, dial: str, value: str) -> None:
    assert_refused(ask_raw(get, f'{{"user_ids":[1],"{dial}":{value}}}'), dial)


@pytest.mark.parametrize("value", [0, 1, 0.3, 1e-3])
def test_numbers_from_0_to_1_are_dials(get: Get, value: float) -> None:
    assert ask(get, {"user_ids": [1], "novelty": value, "diversity": value, "calibrate": value}).status_code == 200


def test_the_limits_of_options_are_allowed(get: Get) -> None:
    ids, genres = list(range(2**62, 2**62 + 1_000)), ["Drama", "western"] * 10
    answer = ask(get, {"user_ids": [1], "k": 100, "exclude": ids, "genre": genres, "year_min": 1, "year_max": 9999})
    assert answer.status_code == 200
    assert ask(get, {"user_ids": [1], "year_min": None, "year_max": None}).status_code == 200  # none is a bound


def test_what_can_be_said_of_no_list_is_refused(get: Get) -> None:
    for name in ("user_id", "on_unknown", "liked", "K", "userIds", "explain ", ""):
        assert_refused(ask(get, {"user_ids": [1], name: 1}), name)
    assert_refused(ask(get, {"user_ids": [1], "x" * 100_000: 1}), "x" * 40)


def test_years_between_which_there_is_none_are_refused(get: Get) -> None:
    assert "1996" in assert_refused(ask(get, {"user_ids": [1], "year_min": 1996, "year_max": 1995}), "year_max")
    assert ask(get, {"user_ids": [1], "year_min": 1995, "year_max": 1995}).status_code == 200


def test_an_unknown_genre_is_refused_with_the_known_ones(get: Get) -> None:
    for options in ({}, {"explain": True}):
        found = assert_refused(ask(get, {"user_ids": [1, UNKNOWN], "genre": ["drama", "Westerns"], **options}), "genre")
        assert found.startswith("expected one of Adventure, Animation, ")


def test_every_bad_member_is_named_once(get: Get) -> None:
    problem = ask(get, {"user_ids": [0, "x"], "k": 0, "genre": [1, 2], "explain": 1, "more": 1}).json()
    assert [error["parameter"] for error in problem["errors"]] == ["user_ids", "k", "genre", "explain", "more"]


@pytest.mark.parametrize("text", ["[1,2]", "1", "null", '"x"', "[]", "true"])
def test_a_body_that_is_no_object_is_refused(get: Get, text: str) -> None:
    assert_refused(ask_raw(get, text), "body")


@pytest.mark.parametrize(
    "text", ["{", '{"user_ids":[1]', "{'user_ids':[1]}", "user_ids=1", "{} {}", '{"user_ids":[1],}']
)
def test_a_body_that_is_no_json_is_refused(get: Get, text: str) -> None:
    assert "JSON" in assert_refused(ask_raw(get, text), "body")


def test_a_missing_body_is_refused(get: Get) -> None:
    assert_refused(get(PATH, "POST"), "body")


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/x-www-form-urlencoded", "x", ""])
def test_a_body_that_is_not_said_to_be_json_is_refused(get: Get, content_type: str | None) -> None:
    response = ask_raw(get, '{"user_ids":[1]}', content_type)
    assert "Content-Type: application/json" in assert_refused(response, "body")


@pytest.mark.parametrize(
    "content_type", ["application/json", "application/json; charset=utf-8", "application/vnd.x+json"]
)
def test_json_may_be_named_in_several_ways(get: Get, content_type: str) -> None:
    assert ask_raw(get, '{"user_ids":[1]}', content_type).status_code == 200


@pytest.mark.parametrize(
    "text", [b"\xff\xfe", b'{"user_ids":[1],"\xff":1}', "[" * 100_000, '{"user_ids":[' + "1" * 5_000 + "]}"]
)
def test_a_body_that_nobody_can_read_is_a_problem(get: Get, text: str | bytes) -> None:
    response = ask_raw(get, text)
    assert response.status_code in (400, 422)
    assert response.headers["content-type"] == "application/problem+json"
    assert len(response.content) < 500


@pytest.mark.parametrize("text", ['{"user_ids":[1],"\\ud800":1}', '{"user_ids":[1],"genre":["\\ud800"]}'])
def test_text_that_is_no_unicode_is_refused(get: Get, text: str) -> None:
    response = ask_raw(get, text)
    assert (response.status_code, response.json()["status"]) == (422, 422)


def test_a_body_that_is_too_large_is_refused(get: Get) -> None:
    largest = 2**20
    body = json.dumps({"user_ids": [1]}).ljust(largest)
    assert ask_raw(get, body).status_code == 200
    response = ask_raw(get, body + " ")
    assert (response.status_code, response.json()["type"].rpartition(":")[2]) == (413, "too-large")


def test_the_largest_batch_is_within_the_limits_of_a_body(get: Get) -> None:
    ids = list(range(2**63 - 1_000, 2**63))
    assert ask(get, {"user_ids": ids, "exclude": ids, "genre": ["drama"] * 20}).status_code == 200


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH"])
def test_a_batch_is_posted(get: Get, method: str) -> None:
    response = get(PATH, method)
    assert (response.status_code, response.headers["allow"]) == (405, "POST")
    assert response.headers["content-type"] == "application/problem+json"


def test_parameters_in_the_query_are_nothing(get: Get) -> None:
    assert get(f"{PATH}?k=3", "POST", json={"user_ids": [1]}).json()["k"] == 10


# --- what operators see


def test_each_list_of_a_batch_is_counted(trained_dir: Path) -> None:
    with serve(create_app(Settings(artifacts_dir=trained_dir))) as get:
        ask(get, {"user_ids": [1, 1, UNKNOWN, LIKES_NOTHING]})
        ask(get, {"user_ids": [1, 2], "ranker": False})
        ask(get, {"user_ids": [1], "k": 0})
        samples = [s for family in text_string_to_metric_families(get("/metrics").text) for s in family.samples]
        lists = {s.labels["source"]: s.value for s in samples if s.name == "recs_lists_total"}
        assert lists == {"ranker": 2, "popular": 1, "als": 2}
        (n_posted,) = (
            s.value
            for s in samples
            if s.name == "recs_requests_total" and s.labels == {"route": PATH, "method": "POST", "status": "200"}
        )
        assert n_posted == 2


def test_lists_that_the_first_stage_stood_in_for_are_counted(
    trained_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: object) -> None:
        raise FloatingPointError("secret")

    with serve(create_app(Settings(artifacts_dir=trained_dir))) as get:
        monkeypatch.setattr("app.ranker.Ranker.score", fail)
        answer = ask(get, {"user_ids": [1, LIKES_NOTHING, UNKNOWN, 2]})
        assert [entry.get("source") for entry in answer.json()["results"]] == ["als", "popular", None, "als"]
        assert "recs_ranker_fallbacks_total 2.0" in get("/metrics").text


def test_a_batch_is_answered_by_the_version_of_the_moment(tmp_path: Path) -> None:
    publish(tmp_path, make_model())
    app = create_app(Settings(artifacts_dir=tmp_path))
    with serve(app) as get:
        before = ask(get, {"user_ids": [1]}).json()
        publish(tmp_path, make_model(random_state=1))
        app.state.serving.check()
        after = ask(get, {"user_ids": [1]}).json()
    assert before["version"] != after["version"]
    assert before["results"] != after["results"]


# --- what it may cost


def test_a_thousand_users_without_positives_take_no_memory_for_it() -> None:
    """Their factor is zero, so that all movies are as good: to score each again would take gigabytes."""
    recommender = Recommender(in_memory(trained()[1]))
    alone = recommender.recommend(LIKES_NOTHING, 10)
    tracemalloc.start()
    rankings = recommender.recommend_many([LIKES_NOTHING] * 1_000, 10)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20e6
    for ranking in rankings:
        assert ranking is not None
        assert (ranking.source, ranking.item_indices.tolist()) == ("popular", alone.item_indices.tolist())


def test_a_body_of_thousands_of_unknown_members_is_refused_in_few_words(get: Get) -> None:
    response = ask(get, {"user_ids": [1], **{f"a{place}": 0 for place in range(50_000)}})
    assert response.status_code == 422
    assert "at most 30 members, got 50001" in response.json()["detail"]
    assert len(response.content) < 1_000


def test_others_take_turns_with_a_long_batch(get_trained: Get, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch through the second stage is computed a few lists at a time."""
    sizes = []
    recommend_many = Recommender.recommend_many

    def watch(self: Recommender, user_ids: list[int], *wanted: Any) -> list[Ranking | None]:
        sizes.append(len(user_ids))
        return recommend_many(self, user_ids, *wanted)

    monkeypatch.setattr(Recommender, "recommend_many", watch)
    user_ids = [*range(1, 51)]
    answer = ask(get_trained, {"user_ids": user_ids, "k": 2}).json()
    assert [entry["user_id"] for entry in answer["results"]] == user_ids
    assert sizes == [32, 18]
    sizes.clear()
    ask(get_trained, {"user_ids": user_ids, "k": 2, "ranker": False})
    assert sizes == [50]
