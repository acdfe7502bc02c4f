"""The HTTP contract, through the whole application in this process."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.artifacts import MANIFEST
from app.main import create_app
from app.recommender import Recommender
from app.registry import CURRENT, VERSIONS, load_current, publish
from app.serving import Served
from app.settings import Settings
from tests.models import BIG_MOVIE, BIG_USER, MOVIES, make_model, serve

Get = Callable[..., httpx.Response]


@pytest.fixture(scope="module")
def artifacts_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artifacts")
    publish(folder, make_model())
    return folder


@pytest.fixture(scope="module")
def get(artifacts_dir: Path) -> Iterator[Get]:
    with serve(create_app(Settings(artifacts_dir=artifacts_dir))) as request:
        yield request


@pytest.fixture(scope="module")
def openapi(get: Get) -> dict[str, Any]:
    return get("/openapi.json").json()


def assert_problem(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert list(problem)[:4] == ["type", "title", "status", "detail"]
    assert problem["status"] == status
    assert all(isinstance(problem[key], str) and problem[key] for key in ("type", "title", "detail"))
    assert problem.keys() - {"type", "title", "status", "detail", "errors", "version"} == set()
    assert ("errors" in problem) == (status == 422)
    assert ("version" in problem) == problem["type"].endswith(":unknown-user")
    return problem


def assert_invalid(response: httpx.Response, parameter: str) -> str:
    problem = assert_problem(response, 422)
    [error] = problem["errors"]
    assert error.keys() == {"parameter", "in", "detail"}
    assert (error["parameter"], error["in"]) == (parameter, "query")
    assert parameter in problem["detail"]
    assert len(response.content) < 1000  # what was sent is not sent back at length
    return error["detail"]


# --- answers


def test_recommend_answers_as_the_contract_says(get: Get, artifacts_dir: Path) -> None:
    response = get("/recommend?user_id=1&k=2")
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    answer = response.json()
    assert list(answer) == ["user_id", "k", "n_results", "version", "source", "results"]
    model = load_current(artifacts_dir)
    ranking = Recommender(model).recommend(1, 2)
    assert (answer["user_id"], answer["k"], answer["n_results"]) == (1, 2, 2)
    assert (answer["version"], answer["source"]) == (model.version, "als")
    for result, item, score in zip(answer["results"], ranking.item_indices, ranking.scores.tolist(), strict=True):
        assert list(result) == ["movie_id", "title", "genres", "year", "score"]
        movie = model.movies[item]
        assert (result["movie_id"], result["title"], result["year"]) == (movie.movie_id, movie.title, movie.year)
        assert result["genres"] == list(movie.genres)
        assert result["score"] == pytest.approx(score, abs=1e-6)


def test_k_is_10_unless_said_and_short_lists_say_so(get: Get) -> None:
    answer = get("/recommend?user_id=1").json()
    assert answer["k"] == 10
    assert answer["n_results"] == len(answer["results"]) == 3  # six movies, three of them rated


@pytest.mark.parametrize("k", [1, 100])
def test_the_bounds_of_k_are_allowed(get: Get, k: int) -> None:
    assert get(f"/recommend?user_id=1&k={k}").json()["k"] == k
    assert get(f"/recommend_cold?liked=1&k={k}").json()["k"] == k


def test_movies_keep_their_titles_genres_and_years(get: Get) -> None:
    results = {result["movie_id"]: result for result in get("/recommend_cold?k=100").json()["results"]}
    assert results.keys() == {*MOVIES, BIG_MOVIE}
    for movie_id, (title, genres, year, *_) in MOVIES.items():
        assert (results[movie_id]["title"], results[movie_id]["year"]) == (title, year)
        assert results[movie_id]["genres"] == (genres.split("|") if genres else [])


def test_a_user_without_positives_gets_popular_movies(get: Get) -> None:
    answer = get("/recommend?user_id=7&k=2").json()
    assert answer["source"] == "popular"
    assert [(result["movie_id"], result["score"]) for result in answer["results"]] == [(2, 2.0), (5, 1.0)]


def test_ids_of_64_bits_stay_exact(get: Get) -> None:
    assert get(f"/recommend?user_id={BIG_USER}").json()["user_id"] == BIG_USER
    assert_problem(get(f"/recommend?user_id={BIG_USER + 1}"), 404)
    assert get(f"/recommend_cold?liked={BIG_MOVIE}").json()["liked"] == [BIG_MOVIE]
    assert get(f"/recommend_cold?liked={2**63 - 1}").json()["ignored"] == [2**63 - 1]


def test_cold_answers_as_the_contract_says(get: Get, artifacts_dir: Path) -> None:
    answer = get("/recommend_cold?liked=3,404,1,3&k=2").json()
    assert list(answer) == ["liked", "ignored", "k", "n_results", "version", "source", "results"]
    ranking = Recommender(load_current(artifacts_dir)).recommend_cold([3, 1], 2)
    assert (answer["liked"], answer["ignored"], answer["source"]) == ([3, 1], [404], "fold_in")
    assert (answer["k"], answer["n_results"]) == (2, 2)
    assert [result["score"] for result in answer["results"]] == pytest.approx(ranking.scores.tolist(), abs=1e-6)
    assert {1, 3}.isdisjoint(result["movie_id"] for result in answer["results"])


@pytest.mark.parametrize(
    ("query", "ignored"), [("", []), ("?liked=", []), ("?liked=&liked=", []), ("?liked=404", [404])]
)
def test_cold_without_a_usable_movie_gives_popular_ones(get: Get, query: str, ignored: list[int]) -> None:
    answer = get(f"/recommend_cold{query}").json()
    assert (answer["source"], answer["liked"], answer["ignored"]) == ("popular", [], ignored)
    assert [result["movie_id"] for result in answer["results"]] == [1, 2, 3, 5, 10, BIG_MOVIE]


@pytest.mark.parametrize("query", ["liked=1&liked=2", "liked=1%2C2", "liked=1,2&liked=2,1", "liked=01,2"])
def test_liked_may_be_repeated_or_listed(get: Get, query: str) -> None:
    expected = get("/recommend_cold?liked=1,2").json()
    assert get(f"/recommend_cold?{query}").json() == expected
    assert expected["liked"] == [1, 2]


def test_an_unknown_user_is_told_about_cold_start(get: Get, artifacts_dir: Path) -> None:
    problem = assert_problem(get("/recommend?user_id=999"), 404)
    assert problem["version"] == load_current(artifacts_dir).version  # another version may know them
    assert "/recommend_cold" in problem["detail"]
    assert "999" in problem["detail"]


def test_health_describes_the_model(get: Get, artifacts_dir: Path) -> None:
    answer = get("/health").json()
    first = ["status", "model", "n_users", "n_items", "version", "trained_at", "dataset"]
    assert list(answer) == [*first, "ranker", "index", "dials", "reload_error"]
    model = load_current(artifacts_dir)
    assert answer == {
        "status": "ok",
        "model": "ALS",
        "n_users": 5,
        "n_items": 6,
        "version": model.version,
        "trained_at": model.manifest["trained_at"],
        "dataset": "hand-made",
        "ranker": False,
        "index": "exact",
        "dials": {},
        "reload_error": None,
    }


def test_probes_say_alive_and_ready(get: Get) -> None:
    assert (get("/livez").status_code, get("/livez").json()) == (200, {"status": "alive"})
    assert (get("/readyz").status_code, get("/readyz").json()) == (200, {"status": "ready"})


# --- what is refused

NO_WHOLE_NUMBERS = [
    "0",
    "-1",
    "1.0",
    "1_0",
    " 1",
    "1 ",
    "+1",
    "",
    "abc",
    "1e1",
    "0x1",
    "٣",
    "１",
    "²",
    "1\n",
    "\0",
    "1,2",
]


@pytest.mark.parametrize("value", [*NO_WHOLE_NUMBERS, "101", "10000000000", "1" * 10_000])
@pytest.mark.parametrize("path", ["/recommend?user_id=1", "/recommend_cold?liked=1"])
def test_a_bad_k_is_named(get: Get, path: str, value: str) -> None:
    url = httpx.URL(f"http://service{path}").copy_add_param("k", value)
    assert "from 1 to 100" in assert_invalid(get(url), "k")


@pytest.mark.parametrize("value", [*NO_WHOLE_NUMBERS, "1_000", str(2**63), str(10**30), "9" * 10_000, "x" * 10_000])
def test_a_bad_user_id_is_named(get: Get, value: str) -> None:
    assert str(2**63 - 1) in assert_invalid(get("/recommend", params={"user_id": value}), "user_id")


def test_a_missing_user_id_is_named(get: Get) -> None:
    assert_invalid(get("/recommend"), "user_id")
    assert_invalid(get("/recommend?k=5"), "user_id")


def test_every_bad_parameter_is_named(get: Get) -> None:
    problem = assert_problem(get("/recommend?user_id=x&k=0"), 422)
    assert [error["parameter"] for error in problem["errors"]] == ["user_id", "k"]
    problem = assert_problem(get("/recommend_cold?liked=x&k=0"), 422)
    assert {error["parameter"] for error in problem["errors"]} == {"liked", "k"}


@pytest.mark.parametrize(
    ("url", "status", "kind"),
    [
        ("/recommend?user_id=999999", 404, "urn:movie-recommender:problem:unknown-user"),
        ("/recommend?user_id=x", 422, "urn:movie-recommender:problem:invalid-parameter"),
        ("/recommendations", 404, "about:blank"),
    ],
)
def test_the_type_of_a_problem_is_a_contract(get: Get, url: str, status: int, kind: str) -> None:
    assert assert_problem(get(url), status)["type"] == kind


@pytest.mark.parametrize("path", ["/health", "/livez", "/readyz"])
def test_probes_may_ask_with_head(get: Get, path: str) -> None:
    assert get(path, "HEAD").status_code == 200


def test_an_empty_repetition_of_liked_is_nothing(get: Get) -> None:
    assert get("/recommend_cold?liked=1&liked=").json()["liked"] == [1]


@pytest.mark.parametrize(
    "value",
    ["abc", "1,abc", "1,,2", ",1", "1,", ",", "1.0", "1,2.5", "0", "1,-1", "1, 2", "1;2", "[1,2]", "1_0", "٣"],
)
def test_bad_liked_ids_are_named(get: Get, value: str) -> None:
    assert_invalid(get("/recommend_cold", params={"liked": value}), "liked")


@pytest.mark.parametrize("value", [str(2**63), str(10**30), "1" * 10_000, "1," * 5_000], ids=len)
def test_liked_ids_that_are_too_long_are_named(get: Get, value: str) -> None:
    assert_invalid(get("/recommend_cold", params={"liked": value}), "liked")


def test_500_liked_ids_are_allowed_and_501_are_not(get: Get) -> None:
    listed = ",".join(map(str, range(1, 501)))
    assert len(get(f"/recommend_cold?liked={listed}").json()["ignored"]) == 500 - len(MOVIES)
    assert "500" in assert_invalid(get(f"/recommend_cold?liked={listed},501"), "liked")
    assert "500" in assert_invalid(get(f"/recommend_cold?liked={listed}&liked=501"), "liked")


def test_repetitions_count_against_the_limit_as_the_document_says(get: Get) -> None:
    repeated = ",".join(["1,2,3,5,10,404,405,406,407,408"] * 50)
    assert get(f"/recommend_cold?liked={repeated}").json()["liked"] == [1, 2, 3, 5, 10]
    assert "501" in assert_invalid(get(f"/recommend_cold?liked={repeated},1"), "liked")


def test_an_unknown_path_is_a_problem(get: Get) -> None:
    problem = assert_problem(get("/recommendations"), 404)
    assert "/docs" in problem["detail"]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
@pytest.mark.parametrize(
    "path", ["/recommend?user_id=1", "/recommend_cold", "/movies/1", "/users/1", "/health", "/livez", "/readyz"]
)
def test_another_method_is_a_problem_that_keeps_allow(get: Get, method: str, path: str) -> None:
    response = get(path, method)
    assert_problem(response, 405)
    assert response.headers["allow"] == "GET"


# --- without a model, and with faults

MODEL_URLS = (
    *("/health", "/readyz", "/recommend?user_id=1", "/recommend_cold?liked=1", "/recommend_cold"),
    *("/similar?movie_id=1", "/popular", "/movies?query=toy", "/movies/1", "/users/1"),
)


def test_without_a_model_the_service_starts_and_says_how_to_make_one(tmp_path: Path) -> None:
    with serve(create_app(Settings(artifacts_dir=tmp_path / "none"))) as get:
        assert get("/livez").status_code == 200
        assert get("/docs").status_code == 200
        for url in MODEL_URLS:
            problem = assert_problem(get(url), 503)
            assert "python train_als.py" in problem["detail"]
            assert "looks again every 5 s" in problem["detail"]
            assert problem["type"] == "urn:movie-recommender:problem:no-model"
        assert_invalid(get("/recommend?user_id=x"), "user_id")
        assert_invalid(get("/recommend_cold?liked=x"), "liked")


def cut_off(version: Path) -> None:
    path = version / "als.npz"
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-10])


DAMAGES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "als.npz cut off": ("als.npz", cut_off),
    "no manifest": (MANIFEST, lambda version: (version / MANIFEST).unlink()),
    "no users": ("users.npy", lambda version: (version / "users.npy").unlink()),
    "no version": (CURRENT, lambda version: version.rename(version.parent / "elsewhere")),
    "manifest is deep": (MANIFEST, lambda version: replace(version / MANIFEST, "[" * 100_000)),
}


def replace(path: Path, text: str) -> None:
    path.unlink()
    path.write_text(text)


@pytest.mark.parametrize("damage", DAMAGES)
def test_with_a_damaged_model_the_service_starts_and_says_what_is_wrong(tmp_path: Path, damage: str) -> None:
    file, change = DAMAGES[damage]
    change(publish(tmp_path, make_model()).folder)
    with serve(create_app(Settings(artifacts_dir=tmp_path))) as get:
        for url in MODEL_URLS:
            problem = assert_problem(get(url), 503)
            assert file in problem["detail"]
            assert "train_als.py" in problem["detail"]
        assert get("/livez").status_code == 200


def test_what_the_edge_refuses_counts_for_the_endpoint_that_it_was_for(artifacts_dir: Path) -> None:
    many = "&".join(["x=1"] * 2_001)
    with serve(create_app(Settings(artifacts_dir=artifacts_dir))) as get:
        for path in ("/recommend", "/popular", "/health", "/docs", "/movies/1", "/nowhere"):
            assert get(f"{path}?{many}").status_code == 422
        metrics = get("/metrics").text
    counted = re.findall(r'recs_requests_total\{method="GET",route="(.*)",status="422"\} 1.0', metrics)
    assert sorted(counted) == ["/docs", "/health", "/popular", "/recommend"]
    assert 'route="unmatched",status="422"} 2.0' in metrics


def test_a_fault_tells_nothing_about_our_insides(artifacts_dir: Path) -> None:
    class Broken(Recommender):
        def recommend_many(self, *args: object) -> Any:
            raise RuntimeError(f"secret {args}")

        def recommend(self, *args: object) -> Any:
            raise RuntimeError(f"secret {args}")

    app = create_app(Settings(artifacts_dir=artifacts_dir))
    with serve(app) as get:
        app.state.serving.now = Served(Broken(load_current(artifacts_dir)))
        batch = {"user_ids": [1]}
        for response in (
            get("/recommend?user_id=1"),  # together with others, on the event loop
            get("/recommend?user_id=1&year_min=1"),  # alone, on the event loop
            get("/recommend?user_id=1&explain=true"),  # in a thread
            get("/recommend/batch", "POST", json=batch),
        ):
            problem = assert_problem(response, 500)
            assert "secret" not in response.text
            assert "RuntimeError" not in response.text
            assert "log" in problem["detail"]
        assert get("/recommend_cold?liked=1").status_code == 200  # and it goes on serving


# --- documentation


def resolve(document: dict[str, Any], reference: str) -> dict[str, Any]:
    assert reference.startswith("#/")
    for part in reference.removeprefix("#/").split("/"):
        document = document[part]
    return document


def test_every_reference_of_the_openapi_document_resolves(openapi: dict[str, Any]) -> None:
    references = set(re.findall(r'"\$ref": "([^"]+)"', json.dumps(openapi)))
    assert "#/components/schemas/Problem" in references
    for reference in references:
        assert resolve(openapi, reference)["type"] == "object"
    named = {reference.rsplit("/", 1)[1] for reference in references}
    assert openapi["components"]["schemas"].keys() == named  # nothing is described that nobody answers
    assert "HTTPValidationError" not in named


def parameters(openapi: dict[str, Any], path: str) -> dict[str, dict[str, Any]]:
    return {parameter["name"]: parameter for parameter in openapi["paths"][path]["get"]["parameters"]}


FILTERS = {"k", "genre", "year_min", "year_max", "exclude"}
TURNED = {*FILTERS, "novelty", "diversity"}
PERSONAL = {*TURNED, "ranker", "calibrate", "explain"}


def test_parameters_are_documented_with_their_bounds(openapi: dict[str, Any]) -> None:
    assert parameters(openapi, "/recommend").keys() == {"user_id", "on_unknown"} | PERSONAL
    assert parameters(openapi, "/recommend_cold").keys() == {"liked"} | PERSONAL
    assert parameters(openapi, "/similar").keys() == {"movie_id"} | TURNED
    assert parameters(openapi, "/popular").keys() == TURNED
    assert parameters(openapi, "/movies").keys() == {"query"} | FILTERS
    assert parameters(openapi, "/movies/{movie_id}").keys() == {"movie_id"}
    assert parameters(openapi, "/users/{user_id}").keys() == {"user_id"}
    user_id = parameters(openapi, "/recommend")["user_id"]
    assert user_id["required"]
    assert (user_id["schema"]["type"], user_id["schema"]["minimum"]) == ("integer", 1)
    for path in ("/recommend", "/recommend_cold"):
        k = parameters(openapi, path)["k"]
        assert not k["required"]
        found = tuple(k["schema"][key] for key in ("type", "minimum", "maximum", "default"))
        assert found == ("integer", 1, 100, 10)
    liked = parameters(openapi, "/recommend_cold")["liked"]
    assert (liked["in"], liked["style"], liked["explode"], liked["required"]) == ("query", "form", False, False)
    assert (liked["schema"]["type"], liked["schema"]["maxItems"]) == ("array", 500)
    assert (liked["schema"]["items"]["type"], liked["schema"]["items"]["minimum"]) == ("integer", 1)


@pytest.mark.parametrize(
    ("path", "statuses"),
    [
        ("/recommend", {"200", "404", "422", "503"}),
        ("/recommend_cold", {"200", "422", "503"}),
        ("/similar", {"200", "404", "422", "503"}),
        ("/popular", {"200", "422", "503"}),
        ("/movies", {"200", "422", "503"}),
        ("/movies/{movie_id}", {"200", "404", "422", "503"}),
        ("/users/{user_id}", {"200", "404", "422", "503"}),
        ("/recommend/batch", {"200", "413", "422", "503"}),
        ("/health", {"200", "503"}),
        ("/readyz", {"200", "503"}),
        ("/livez", {"200"}),
    ],
)
def test_problems_are_documented_as_problems(openapi: dict[str, Any], path: str, statuses: set[str]) -> None:
    (operation,) = openapi["paths"][path].values()
    responses = operation["responses"]
    limits = {"413", "414", "422", "503"} | ({"408"} if "requestBody" in operation else set())  # anybody may meet
    assert responses.keys() == statuses | limits
    for status in responses.keys() - {"200"}:
        assert responses[status]["content"].keys() == {"application/problem+json"}
        described = responses[status]["content"]["application/problem+json"]
        assert described["schema"] == {"$ref": "#/components/schemas/Problem"}
        assert described["example"]["status"] == int(status)


def test_the_described_problem_is_the_one_that_is_sent(get: Get, openapi: dict[str, Any]) -> None:
    described = openapi["components"]["schemas"]["Problem"]
    sent = get("/recommend?user_id=x").json()
    unknown = get("/recommend?user_id=999").json()
    assert sent.keys() | unknown.keys() == described["properties"].keys()
    assert set(described["required"]) == {"type", "title", "status", "detail"}
    assert sent["errors"][0].keys() == openapi["components"]["schemas"]["ParameterProblem"]["properties"].keys()


def test_every_documented_example_works(get: Get, openapi: dict[str, Any]) -> None:
    for path, operations in openapi["paths"].items():
        if "get" not in operations or "security" in operations["get"]:
            continue
        given = {
            (parameter["in"], parameter["name"]): example_of(parameter)
            for parameter in operations["get"].get("parameters", [])
            if parameter["required"] or "example" in parameter or "examples" in parameter
        }
        query = {name: value for (place, name), value in given.items() if place == "query"}
        in_path = {name: value for (place, name), value in given.items() if place == "path"}
        response = get(path.format(**in_path), params=query)
        assert response.status_code == 200, (path, query, response.text)
        content = operations["get"]["responses"]["200"]["content"]
        if "application/json" not in content:
            assert response.headers["content-type"].partition(";")[0] in content
            continue
        schema = resolve(openapi, content["application/json"]["schema"]["$ref"])
        assert response.json().keys() == schema["properties"].keys()
        if "example" in schema:
            assert response.json().keys() == schema["example"].keys()
    assert get("/recommend_cold", params={"liked": "1,2,3"}).json()["source"] == "fold_in"
    schema = openapi["components"]["schemas"]
    answer = get("/recommend/batch", "POST", json=schema["BatchRequest"]["example"]).json()
    assert answer.keys() == schema["BatchRecommendations"]["example"].keys()


def example_of(parameter: dict[str, Any]) -> str:
    value = parameter["example"] if "example" in parameter else next(iter(parameter["examples"].values()))["value"]
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
def test_the_documentation_needs_no_other_host(get: Get, path: str) -> None:
    page = get(path)
    assert page.headers["content-type"].startswith("text/html")
    assert "http://" not in page.text
    assert "https://" not in page.text
    files = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert any(file.endswith(".js") for file in files)
    for file in files:
        response = get(file)
        assert response.status_code == 200, file
        assert len(response.content) > 100, file


def test_the_front_page_leads_to_the_documentation(get: Get) -> None:
    response = get("/")
    assert response.status_code in (302, 307)
    assert response.headers["location"] == "/docs"
    assert "swagger" in get("/docs").text.lower()


def test_versions_are_named_alike_everywhere(get: Get, artifacts_dir: Path) -> None:
    version = (artifacts_dir / CURRENT).read_text().strip()
    assert (artifacts_dir / VERSIONS / version).is_dir()
    for url in ("/health", "/recommend?user_id=1", "/recommend_cold"):
        assert get(url).json()["version"] == version
