"""The HTTP contract of lists by both stages, and what the service says of itself to operators."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families

from app.artifacts import load_version
from app.main import create_app
from app.reasons import N_BECAUSE, N_REASONS
from app.recommender import ListOptions, Ranking, Recommender, load_recommender
from app.registry import CURRENT, VERSIONS, load_current, publish
from app.rerank import Dials
from app.settings import Settings
from tests.models import LIKES_NOTHING, forge, serve, trained

ROOT = Path(__file__).parents[1]
Get = Callable[..., httpx.Response]
DIALS = ("novelty", "diversity", "calibrate")
FLAGS = ("ranker", "explain")
PATHS = ("/recommend?user_id=1", "/recommend_cold?liked=1,2,3")
MEASURED = {  # as in metrics.json, where there is more
    "diversity": [
        {"value": value, "changes": {"ndcg@10": {"difference": difference, "interval": [-0.1, 0.1]}}}
        for value, difference in ((0.0, 0.0), (0.1, -0.0012345678), (1.0, -0.05))
    ],
    "novelty": [{"value": 0.3, "changes": {"ndcg@10": {"difference": 0.00004, "interval": [0.0, 0.1]}}}],
}


@pytest.fixture(scope="module")
def artifacts_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artifacts")
    _, model = trained()
    publish(folder, replace(model, metrics={**model.metrics, "second_stage": {"dials": MEASURED}}))
    return folder


@pytest.fixture(scope="module")
def unreadable_dir(artifacts_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A version with right checksums whose trees LightGBM cannot read."""
    folder = tmp_path_factory.mktemp("unreadable")
    (folder / VERSIONS).mkdir()
    (version,) = (artifacts_dir / VERSIONS).iterdir()
    forged = forge(version, folder / VERSIONS, lambda copy: (copy / "ranker" / "model.txt").write_text("no trees"))
    (folder / CURRENT).write_text(f"{forged.name}\n")
    return folder


@pytest.fixture(scope="module")
def plain_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A version without a second stage."""
    folder = tmp_path_factory.mktemp("plain")
    publish(folder, replace(trained()[1], ranker=None))
    return folder


def app_of(artifacts_dir: Path) -> FastAPI:
    return create_app(Settings(artifacts_dir=artifacts_dir))


@pytest.fixture(scope="module")
def get(artifacts_dir: Path) -> Iterator[Get]:
    with serve(app_of(artifacts_dir)) as request:
        yield request


@pytest.fixture(scope="module")
def recommender(artifacts_dir: Path) -> Recommender:
    return load_recommender(load_current(artifacts_dir))


def assert_answers(answer: dict[str, Any], ranking: Ranking, recommender: Recommender) -> None:
    model = recommender.model
    assert (answer["source"], answer["version"]) == (ranking.source, model.version)
    assert [result["movie_id"] for result in answer["results"]] == model.items.ids[ranking.item_indices].tolist()
    assert [result["score"] for result in answer["results"]] == pytest.approx(ranking.scores.tolist(), rel=1e-6)


# --- parameters

OPTIONS: dict[str, ListOptions] = {
    "": ListOptions(),
    "&ranker=true": ListOptions(),
    "&ranker=false": ListOptions(ranker=False),
    "&novelty=0.7": ListOptions(dials=Dials(novelty=0.7)),
    "&diversity=1": ListOptions(dials=Dials(diversity=1.0)),
    "&calibrate=.25": ListOptions(dials=Dials(calibrate=0.25)),
    "&novelty=0&diversity=0.0&calibrate=0": ListOptions(),
    "&novelty=0.2&diversity=0.3&calibrate=0.4": ListOptions(dials=Dials(0.2, 0.3, 0.4)),
    "&ranker=false&novelty=1.0": ListOptions(ranker=False, dials=Dials(novelty=1.0)),
    "&explain=true": ListOptions(explain=True),
    "&explain=false": ListOptions(),
    "&explain=true&ranker=false&diversity=0.5": ListOptions(False, Dials(diversity=0.5), True),
}


@pytest.mark.parametrize("query", OPTIONS)
def test_options_are_those_of_the_recommender(get: Get, recommender: Recommender, query: str) -> None:
    options = OPTIONS[query]
    answer = get(f"/recommend?user_id=1&k=7{query}").json()
    assert_answers(answer, recommender.recommend(1, 7, options), recommender)
    assert answer["source"] == ("ranker" if options.ranker else "als")
    answer = get(f"/recommend_cold?liked=3,1,2&k=7{query}").json()
    assert_answers(answer, recommender.recommend_cold([1, 2, 3], 7, options), recommender)
    assert answer["source"] == ("ranker" if options.ranker else "fold_in")


def test_lists_without_positives_are_popular_whatever_is_wished(get: Get, recommender: Recommender) -> None:
    query = "ranker=true&novelty=0.5&diversity=0.5&calibrate=0.5&explain=true&k=5"
    options = ListOptions(dials=Dials(0.5, 0.5, 0.5), explain=True)
    answer = get(f"/recommend?user_id={LIKES_NOTHING}&{query}").json()
    assert answer["source"] == "popular"
    assert_answers(answer, recommender.recommend(LIKES_NOTHING, 5, options), recommender)
    answer = get(f"/recommend_cold?{query}").json()
    assert_answers(answer, recommender.recommend_cold([], 5, options), recommender)


NO_DIALS = [
    "1.1",
    "-0.1",
    "2",
    "nan",
    "NaN",
    "inf",
    "-inf",
    "1e+1",
    "1E1",
    "1e",
    "e-1",
    "",
    " ",
    " 0.1",
    "0.1 ",
    "+0.1",
    "-0",
    "0,1",
]
NO_DIALS += ["1.", ".", "0x1", "0_1", "٠.١", "½", "true", "0.1.1", "0." + "1" * 1_000, "1.00000001", "1000", "\0"]
NO_FLAGS = ["1", "0", "yes", "no", "on", "off", "True", "TRUE", "False", "t", "", " true", "true ", "null", "1.0", "\0"]


@pytest.mark.parametrize("value", NO_DIALS)
@pytest.mark.parametrize("dial", DIALS)
@pytest.mark.parametrize("path", PATHS)
def test_a_bad_dial_is_named(get: Get, path: str, dial: str, value: str) -> None:
    assert "from 0 to 1" in assert_invalid(get(with_parameter(path, dial, value)), dial)


@pytest.mark.parametrize("value", NO_FLAGS)
@pytest.mark.parametrize("flag", FLAGS)
@pytest.mark.parametrize("path", PATHS)
def test_a_bad_flag_is_named(get: Get, path: str, flag: str, value: str) -> None:
    assert "true or false" in assert_invalid(get(with_parameter(path, flag, value)), flag)


def with_parameter(path: str, name: str, value: str) -> httpx.URL:
    return httpx.URL(f"http://service{path}").copy_add_param(name, value)


def assert_invalid(response: httpx.Response, parameter: str) -> str:
    assert response.status_code == 422, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert (problem["status"], problem["type"]) == (422, "urn:movie-recommender:problem:invalid-parameter")
    (error,) = problem["errors"]
    assert (error["parameter"], error["in"]) == (parameter, "query")
    assert len(response.content) < 1_000  # what was sent is not sent back at length
    return str(error["detail"])


@pytest.mark.parametrize("value", ["0", "1", "0.5", ".5", "1.0", "1.000", "0.12345678901234567", "00.5"])
def test_plain_decimals_from_0_to_1_are_dials(get: Get, value: str) -> None:
    for dial in DIALS:
        assert get(f"/recommend?user_id=1&k=1&{dial}={value}").status_code == 200, dial


def test_every_bad_option_is_named(get: Get) -> None:
    problem = get("/recommend?user_id=1&ranker=1&novelty=x&diversity=2&calibrate=-1&explain=yes").json()
    assert [error["parameter"] for error in problem["errors"]] == [*DIALS, "explain", "ranker"]


# --- reasons


@pytest.mark.parametrize("path", PATHS)
def test_reasons_are_given_where_they_are_asked_for(get: Get, recommender: Recommender, path: str) -> None:
    model = recommender.model
    answer = get(f"{path}&k=8&explain=true").json()
    options = ListOptions(explain=True)
    ranking = (
        recommender.recommend(1, 8, options) if "user_id" in path else recommender.recommend_cold([1, 2, 3], 8, options)
    )
    assert ranking.explanations is not None
    for result, why in zip(answer["results"], ranking.explanations, strict=True):
        assert list(result) == ["movie_id", "title", "genres", "year", "score", "because", "reasons"]
        assert result["reasons"] == list(why.reasons)
        assert len(result["reasons"]) <= N_REASONS
        assert 0 < len(result["because"]) <= N_BECAUSE
        for because, (item, part) in zip(result["because"], why.because, strict=True):
            assert list(because) == ["movie_id", "title", "contribution"]
            assert (because["movie_id"], because["title"]) == (model.movies[item].movie_id, model.movies[item].title)
            assert because["contribution"] == pytest.approx(part, rel=1e-6)
    assert any(result["reasons"] for result in answer["results"])


@pytest.mark.parametrize("path", PATHS)
def test_the_first_stage_says_because_and_no_more(get: Get, path: str) -> None:
    for result in get(f"{path}&explain=true&ranker=false").json()["results"]:
        assert list(result)[-2:] == ["score", "because"]
        assert result["because"]


def test_popular_movies_come_from_no_liked_one(get: Get) -> None:
    for path in (f"/recommend?user_id={LIKES_NOTHING}", "/recommend_cold?liked="):
        for result in get(f"{path}&explain=true").json()["results"]:
            assert list(result)[-2:] == ["score", "because"]
            assert result["because"] == []


@pytest.mark.parametrize("query", ["", "&explain=false", "&ranker=false", "&novelty=0.5"])
@pytest.mark.parametrize("path", PATHS)
def test_nothing_is_explained_unasked(get: Get, path: str, query: str) -> None:
    for result in get(f"{path}{query}").json()["results"]:
        assert list(result) == ["movie_id", "title", "genres", "year", "score"]


def test_reasons_do_not_change_the_list(get: Get) -> None:
    for path in PATHS:
        plain, explained = get(path).json(), get(f"{path}&explain=true").json()
        for result in explained["results"]:
            del result["because"], result["reasons"]
        assert plain == explained


# --- documentation


def test_options_are_documented_with_their_bounds_and_defaults(get: Get) -> None:
    document = get("/openapi.json").json()
    for path in ("/recommend", "/recommend_cold"):
        described = {each["name"]: each for each in document["paths"][path]["get"]["parameters"]}
        for name in (*DIALS, *FLAGS):
            assert not described[name]["required"]
            assert described[name]["in"] == "query"
            assert described[name]["description"].endswith(".")
        for dial in DIALS:
            found = tuple(described[dial]["schema"][key] for key in ("type", "minimum", "maximum", "default"))
            assert found == ("number", 0, 1, 0.0)
        assert (described["ranker"]["schema"]["type"], described["ranker"]["schema"]["default"]) == ("boolean", True)
        assert (described["explain"]["schema"]["type"], described["explain"]["schema"]["default"]) == ("boolean", False)


def test_answers_are_documented(get: Get) -> None:
    document = get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    result = get("/recommend?user_id=1&k=1&explain=true").json()["results"][0]
    assert schemas["MovieResult"]["properties"].keys() == result.keys()
    assert schemas["Because"]["properties"].keys() == result["because"][0].keys()
    assert {"because", "reasons"}.isdisjoint(schemas["MovieResult"]["required"])
    assert schemas["UserRecommendations"]["properties"]["source"]["enum"] == ["als", "fold_in", "ranker", "popular"]
    assert {"ranker", "dials"} <= set(schemas["Health"]["required"])
    assert document["paths"]["/metrics"]["get"]["responses"]["200"]["content"].keys() == {"text/plain"}


# --- what operators see


def test_health_tells_of_the_second_stage_and_what_its_dials_cost(get: Get, plain_dir: Path) -> None:
    answer = get("/health").json()
    assert answer["ranker"] is True
    assert answer["dials"] == {"diversity": {"0": 0.0, "0.1": -0.0012, "1": -0.05}, "novelty": {"0.3": 0.0}}
    with serve(app_of(plain_dir)) as get_plain:
        answer = get_plain("/health").json()
        assert (answer["ranker"], answer["dials"]) == (False, {})


def test_health_does_not_claim_a_second_stage_that_cannot_be_read(unreadable_dir: Path) -> None:
    with serve(app_of(unreadable_dir)) as get:
        answer = get("/health").json()
        assert (answer["status"], answer["ranker"]) == ("ok", False)
        assert get("/readyz").status_code == 200


FAMILIES = {
    *("recs_requests", "recs_request_seconds", "recs_requests_in_flight", "recs_refusals", "recs_disconnects"),
    *("recs_lists", "recs_ranker_fallbacks", "recs_cache_lookups", "recs_redis_up", "recs_redis_errors"),
    *("recs_reloads", "recs_reload_failing", "recs_serving", "recs_model_age_seconds", "process_start_time_seconds"),
}
LABELS = {"source", "result", "version", "route", "method", "status", "le", "level", "reason", "operation"}


def counts(get: Get) -> dict[str, float]:
    """Read the counters from /metrics: lists by source, and fallbacks."""
    response = get("/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    families = {family.name: family for family in text_string_to_metric_families(response.text)}
    assert families.keys() == FAMILIES
    assert {families[name].type for name in ("recs_lists", "recs_ranker_fallbacks")} == {"counter"}
    assert all(family.documentation.endswith(".") for family in families.values())
    lists = {
        sample.labels["source"]: sample.value
        for sample in families["recs_lists"].samples
        if sample.name == "recs_lists_total"
    }
    (fallbacks,) = (
        sample.value
        for sample in families["recs_ranker_fallbacks"].samples
        if sample.name == "recs_ranker_fallbacks_total"
    )
    return {**lists, "fallbacks": fallbacks}


def test_lists_are_counted_by_what_ordered_them(artifacts_dir: Path) -> None:
    with serve(app_of(artifacts_dir)) as get:
        assert counts(get) == {"fallbacks": 0}
        for n in range(3):
            assert get(f"/recommend?user_id={n + 1}").status_code == 200
        for query in ("liked=1", "liked=2,3&explain=true&diversity=0.5"):
            get(f"/recommend_cold?{query}")
        get("/recommend?user_id=1&ranker=false")
        get("/recommend_cold?liked=1&ranker=false")
        get("/recommend_cold")
        get(f"/recommend?user_id={LIKES_NOTHING}")
        assert counts(get) == {"ranker": 5, "als": 1, "fold_in": 1, "popular": 2, "fallbacks": 0}


def test_what_is_no_list_is_not_counted(artifacts_dir: Path) -> None:
    with serve(app_of(artifacts_dir)) as get:
        assert get("/recommend?user_id=999999").status_code == 404
        assert get("/recommend?user_id=1&novelty=2").status_code == 422
        for path in ("/health", "/livez", "/readyz", "/metrics", "/docs"):
            assert get(path).status_code == 200
        assert counts(get) == {"fallbacks": 0}


def test_applications_in_one_process_count_by_themselves(artifacts_dir: Path, plain_dir: Path) -> None:
    with serve(app_of(artifacts_dir)) as get, serve(app_of(plain_dir)) as get_plain:
        get("/recommend?user_id=1")
        get_plain("/recommend?user_id=1")
        get_plain("/recommend?user_id=2")
        assert counts(get) == {"ranker": 1, "fallbacks": 0}
        assert counts(get_plain) == {"als": 2, "fallbacks": 0}


def test_no_user_stands_in_the_metrics(artifacts_dir: Path) -> None:
    with serve(app_of(artifacts_dir)) as get:
        user_ids = (LIKES_NOTHING, 113, 117)
        for user_id in user_ids:
            get(f"/recommend?user_id={user_id}&explain=true")
            get(f"/users/{user_id}")
        for sample in (s for family in text_string_to_metric_families(get("/metrics").text) for s in family.samples):
            assert set(sample.labels) <= LABELS
            if "source" in sample.labels:
                assert sample.labels["source"] in {"als", "fold_in", "ranker", "popular"}
            assert sample.labels.get("route", "/recommend") in {"/recommend", "/users/{user_id}", "/metrics"}
            values = {value for name, value in sample.labels.items() if name not in ("le", "version", "status")}
            assert not any(str(user_id) in value for value in values for user_id in user_ids)
        assert str(LIKES_NOTHING) not in get("/metrics").text


def test_without_a_model_there_are_metrics_all_the_same(tmp_path: Path) -> None:
    with serve(app_of(tmp_path / "none")) as get:
        assert get("/recommend?user_id=1").status_code == 503
        assert counts(get) == {"fallbacks": 0}


# --- a second stage that fails


def test_unreadable_trees_cost_no_answer_and_every_fallback_is_counted(
    unreadable_dir: Path, recommender: Recommender
) -> None:
    first_stage = ListOptions(ranker=False)
    with serve(app_of(unreadable_dir)) as get:
        for n, user_id in enumerate((1, 2, 50, 116), start=1):
            response = get(f"/recommend?user_id={user_id}")
            assert response.status_code == 200
            expected = recommender.recommend(user_id, 10, first_stage)
            assert response.json()["source"] == "als"
            assert [each["movie_id"] for each in response.json()["results"]] == ids_of(recommender, expected)
            assert counts(get) == {"als": n, "fallbacks": n}
        answer = get("/recommend_cold?liked=1,2&explain=true&novelty=0.3").json()
        assert answer["source"] == "fold_in"
        assert all("reasons" not in result for result in answer["results"])
        assert counts(get) == {"als": 4, "fold_in": 1, "fallbacks": 5}
        get("/recommend?user_id=1&ranker=false")  # did not ask for it
        get("/recommend_cold")  # has nothing to rank
        assert counts(get) == {"als": 5, "fold_in": 1, "popular": 1, "fallbacks": 5}


def ids_of(recommender: Recommender, ranking: Ranking) -> list[int]:
    return recommender.model.items.ids[ranking.item_indices].tolist()


def test_a_fault_while_ranking_costs_no_answer(artifacts_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: object) -> None:
        raise FloatingPointError("secret")

    with serve(app_of(artifacts_dir)) as get:
        monkeypatch.setattr("app.ranker.Ranker.score", fail)
        for path, source in zip(PATHS, ("als", "fold_in"), strict=True):
            response = get(path)
            assert response.status_code == 200
            assert response.json()["source"] == source
            assert "secret" not in response.text
        assert counts(get) == {"als": 1, "fold_in": 1, "fallbacks": 2}
        monkeypatch.undo()
        assert get(PATHS[0]).json()["source"] == "ranker"  # the next one is answered as ever
        assert counts(get)["fallbacks"] == 2


# --- as a process of its own

SCRIPT = """
import asyncio, json, sys
import httpx
from app.main import app

async def run():
    async with app.router.lifespan_context(app):
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as client:
            for path in ("/recommend?user_id=1&explain=true&novelty=0.5", "/recommend_cold?liked=1,2"):
                response = await client.get(path)
                response.raise_for_status()
            return (await client.get("/recommend?user_id=1&k=3")).json()

answer = asyncio.run(run())
print(json.dumps({"answer": answer, "modules": sorted({name.partition(".")[0] for name in sys.modules})}))
"""


def run_service(artifacts_dir: Path) -> tuple[dict[str, Any], set[str]]:
    """Start the service, let it answer, and return an answer and the top-level modules that it loaded."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT],
        cwd=ROOT,
        env={**os.environ, "RECS_ARTIFACTS_DIR": str(artifacts_dir)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    return printed["answer"], set(printed["modules"])


OFFLINE = {"matplotlib", "implicit", "pooch", "tqdm", "pytest"}


def test_a_service_without_a_second_stage_loads_no_lightgbm(plain_dir: Path) -> None:
    answer, loaded = run_service(plain_dir)
    assert answer["source"] == "als"
    assert {"numpy", "fastapi", "app"} <= loaded
    assert loaded.isdisjoint({"lightgbm", "pandas", *OFFLINE})


def test_a_service_with_a_second_stage_loads_lightgbm(artifacts_dir: Path, recommender: Recommender) -> None:
    answer, loaded = run_service(artifacts_dir)
    assert "lightgbm" in loaded
    assert loaded.isdisjoint(OFFLINE)
    assert_answers(answer, recommender.recommend(1, 3), recommender)  # the same in every process


def test_a_service_that_cannot_read_its_trees_serves_in_a_process_of_its_own(unreadable_dir: Path) -> None:
    answer, _ = run_service(unreadable_dir)
    assert answer["source"] == "als"
    (version,) = (unreadable_dir / VERSIONS).iterdir()
    assert answer["version"] == load_version(version).version
