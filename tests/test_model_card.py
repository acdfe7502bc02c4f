"""The model card: true, complete, valid front matter, and the same bytes for the same model."""

from __future__ import annotations

import copy
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import cache
from itertools import count
from typing import Any

import pytest
import typer
import yaml

from app import evaluation
from app.als import PRESETS, AlsConfig, learn
from app.artifacts import REQUIRED_FILES, TrainedModel
from app.core import Dataset, leave_one_out, positives, split_at_moment
from app.datasets.synthetic import synthesize
from app.evaluation.metrics import HEADLINES
from app.model_card import command_line, interval_text, number, render_model_card, verdict
from app.protocols import build_task, build_temporal_tasks
from app.stored_ranker import RANKER_FILES
from tests.models import make_model
from train_als import cli

CONFIG = AlsConfig(factors=4, iterations=2, num_threads=1)
HOSTILE = '<script>alert("1")</script> | ml\\ \'*#`: [x](y)\n---\x07 é🎬'


@cache
def _measure(split_name: str) -> dict[str, Any]:
    raw = synthesize(4_000, random_state=1)
    dataset = Dataset("small", raw.ratings, raw.movies, raw.fingerprint)
    liked = positives(dataset.ratings)
    if split_name == "temporal":
        split = split_at_moment(liked, "test")
        tasks = list(build_temporal_tasks(dataset.ratings, split))
    else:
        split = leave_one_out(liked)
        tasks = [build_task(dataset.ratings, split, protocol, "test") for protocol in ("rated", "positives")]
    results = []
    for task in tasks:
        baselines = {name: make(task, 0) for name, make in evaluation.BASELINES.items()}
        scorers = {"als": evaluation.als_scorer(task, learn(task.positives, CONFIG)), **baselines}
        catalogue = evaluation.describe_catalogue(task, dataset.movies)
        results.append(evaluation.evaluate(task, scorers, catalogue, random_state=0))
    return {
        **evaluation.describe_results(split, results),
        "cold_start": evaluation.measure_cold_start(liked, CONFIG),
        "convergence": {"loss": [0.5, 0.25, 0.125]},
        "served_model": "fitted on all positives; the metrics are those of the held-out fits",
    }


def evaluated(split_name: str = "leave-one-out", dataset: str = "ml-latest-small") -> TrainedModel:
    """Make a small model with the metrics of a real evaluation."""
    config = {"model": "ALS", "preset": "default", "als": asdict(CONFIG), "min_rating": 4.0, "n_ratings": 4_000}
    return replace(make_model(), dataset=dataset, config=config, metrics=copy.deepcopy(_measure(split_name)))


def without_baselines(model: TrainedModel, kept: tuple[str, ...] = ()) -> TrainedModel:
    """Take baselines out of a model's metrics, as ``--baselines`` does."""

    def trim(values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {name: trim(inner) for name, inner in values.items() if name not in dropped}

    dropped = set(evaluation.BASELINES) - set(kept)
    cold_start = model.metrics["cold_start"]
    return replace(model, metrics={**trim(model.metrics), "cold_start": cold_start})


def with_second_stage(model: TrainedModel) -> TrainedModel:
    """Give a model's first protocol a second stage, with figures that are like no other."""
    metrics, distinct = model.metrics, count(1)

    def change() -> dict[str, Any]:
        value = next(distinct) / 1000
        return {"difference": value, "interval": [value - 0.0002, value + 0.0002]}

    def imitate(of: dict[str, Any]) -> None:
        """Put the ranker beside ALS, a little better."""
        als = of["als"]
        is_mean = {name: isinstance(value, float) for name, value in als.items()}
        of["ranker"] = {name: value + next(distinct) / 1000 if is_mean[name] else value for name, value in als.items()}

    protocol = next(iter(metrics["protocols"]))
    strata = [stratum for kind in metrics["strata"][protocol].values() for stratum in kind.values()]
    parts = ("protocols", "intervals", "recall_by_k", "exposure")
    for of in (
        *(metrics[part][protocol] for part in parts),
        *(s[part] for s in strata for part in ("means", "intervals")),
    ):
        imitate(of)
    for stratum in strata:
        stratum["gains"] = {metric: change() for metric in HEADLINES}
    metrics["gains"] = {protocol: {metric: change() for metric in metrics["intervals"][protocol]["als"]}}
    metrics["second_stage"] = {
        "hyper_parameters": RANKER_CONFIG,
        "trained_on": {"n_stages": 2, "n_requests": 1_234, "n_candidates": 98_765},
        "protocol": protocol,
        "candidates": {"n_mean": 242.44, "recall": {"als": 0.5012, "around": 0.5523, "union": 0.6634}},
        "importance": {
            f"feature_{i}": {
                "definition": f"|x_{i}| < {i}",
                "gain": (i + 1) / 153,
                "ndcg@10_drop": (i - 3) / 7_000,
                "interval": [(i - 4) / 7_000, i / 7_000],
            }
            for i in range(17)
        },
        "dials": {dial: [_step(n, change()) for n in range(11)] for dial in ("novelty", "diversity", "calibrate")},
    }
    return replace(model, config={**model.config, "ranker": RANKER_CONFIG})


RANKER_CONFIG = {"n_stages": 2, "num_iterations": 20, "learning_rate": 0.06}


def _step(n: int, change: dict[str, Any]) -> dict[str, Any]:
    """Return what turning a dial to n tenths does; calibrate takes its measure down, the others take theirs up."""
    means = {"novelty@10": 10 + n / 7, "diversity@10": 0.5 + n / 70, "miscalibration@10": 0.9 - n / 13}
    return {
        "value": n / 10,
        "means": {**means, "ndcg@10": 0.2 - n / 90, "coverage@10": 0.1 + n / 110},
        "changes": {"ndcg@10": change if n else {"difference": 0.0, "interval": None}},
    }


def without_intervals(values: Any) -> Any:
    """Make every interval null, as where there are too few users for one."""
    if isinstance(values, dict):
        return {name: without_intervals(inner) for name, inner in values.items()}
    is_interval = isinstance(values, list) and len(values) == 2
    return None if is_interval else values


def front_matter(card: str) -> dict[str, Any]:
    opening, header, _ = re.split(r"^---$", card, maxsplit=2, flags=re.MULTILINE)
    assert opening == ""
    parsed: dict[str, Any] = yaml.safe_load(header)
    return parsed


def headings(card: str) -> Iterator[tuple[str, str]]:
    """Yield each heading with what stands below it, up to the next one of any level."""
    parts = re.split(r"^(#+ .*)$", card.split("\n---\n", maxsplit=1)[1], flags=re.MULTILINE)
    yield from zip(parts[1::2], parts[2::2], strict=True)


@pytest.mark.parametrize("split_name", ["leave-one-out", "temporal"])
def test_front_matter_holds_unrounded_results_of_every_protocol(split_name: str) -> None:
    model = evaluated(split_name)
    parsed = front_matter(render_model_card(model, has_report=True))
    assert (parsed["license"], parsed["library_name"], parsed["datasets"]) == ("other", "implicit", [model.dataset])
    results = parsed["model-index"][0]["results"]
    assert [result["dataset"]["config"] for result in results] == list(model.metrics["protocols"])
    for result in results:
        assert result["dataset"]["split"] == "test"
        means = model.metrics["protocols"][result["dataset"]["config"]]["als"]
        values = {metric["type"].replace("_at_", "@"): metric["value"] for metric in result["metrics"]}
        assert values == {name: means[name] for name in ("recall@10", "ndcg@10", "recall@20", "ndcg@20")}


def test_tiny_results_are_numbers_in_the_front_matter() -> None:
    model = evaluated()
    model.metrics["protocols"]["rated"]["als"]["recall@10"] = 1e-7
    card = render_model_card(model, has_report=True)
    assert "value: 0.0000001\n" in card
    assert front_matter(card)["model-index"][0]["results"][0]["metrics"][0]["value"] == 1e-7


@pytest.mark.parametrize("name", [HOSTILE, "yes", "1e5", "- x", "{a: b}", "%", "!!python/none", "a: b # c"])
def test_any_name_of_a_data_set_is_text_and_nothing_else(name: str) -> None:
    card = render_model_card(evaluated(dataset=name), has_report=True)
    parsed = front_matter(card)
    assert parsed["datasets"] == [name]
    assert parsed["model-index"][0]["results"][0]["dataset"]["name"] == name
    body = card.split("\n---\n", maxsplit=1)[1]
    assert "<script>" not in body
    assert not re.search(r"(?<!\\)\[x", body)
    assert len(re.findall("^# ", body, flags=re.MULTILINE)) == 1


@pytest.mark.parametrize("split_name", ["leave-one-out", "temporal"])
def test_every_figure_stands_with_its_interval(split_name: str) -> None:
    model = evaluated(split_name)
    metrics, card = model.metrics, render_model_card(model, has_report=True)
    for protocol, means in metrics["protocols"].items():
        block = re.split(r"^##", card.split(f"### Protocol `{protocol}`")[1], flags=re.MULTILINE)[0]
        for name in means:
            for metric in ("recall@10", "ndcg@10", "recall@20", "ndcg@20"):
                interval = metrics["intervals"][protocol][name][metric]
                assert f"{number(means[name][metric])} ({interval_text(interval)})" in block
        for of in metrics["differences"][protocol].values():
            found = of["recall@10"]
            assert f"{number(found['difference'], '+')} ({interval_text(found['interval'])}; " in block
        assert "within the hour" in block
    for of in metrics["cold_start"]["n_liked"].values():
        assert f"| {number(of['means']['als']['recall@10'])} (" in card


def test_every_protocol_says_what_is_within_a_session_and_what_als_gains_there() -> None:
    model = evaluated()

    def stratum(n_users: int, recall: float, gain: float) -> dict[str, Any]:
        return {
            "n_users": n_users,
            "means": {"als": {"recall@10": recall}, "popular": {"recall@10": recall - gain}},
            "intervals": {"als": {"recall@10": [0.1, 0.4]}, "popular": {"recall@10": None}},
            "differences": {"popular": {"recall@10": {"difference": gain, "interval": [gain - 0.02, gain + 0.02]}}},
        }

    model.metrics["strata"]["rated"]["session"] = {
        "within one session": stratum(40, 0.25, 0.05),
        "later": stratum(5, 0.2, 0.0),
    }
    model.metrics["protocols"]["rated"] = {
        name: model.metrics["protocols"]["rated"][name] for name in ("als", "popular")
    }
    card = render_model_card(model, has_report=True)
    assert "40 of 45 users (88.9 %) had rated another movie within the hour" in card
    assert "within one session 0.2500 (40 users); later 0.2000 (5 users)" in card
    assert "+0.0500 (0.0300 to 0.0700; above zero) within one session, 40 users" in card
    assert "+0.0000 (−0.0200 to 0.0200; includes zero) later, 5 users" in card


def test_the_share_of_the_long_tail_is_said_beside_that_of_the_held_out_movies() -> None:
    model = evaluated()
    model.metrics["exposure"]["rated"]["als"]["long tail"] = 0.0123
    model.metrics["exposure"]["rated"]["held out"]["long tail"] = 0.25
    card = render_model_card(model, has_report=True)
    assert "1.2 % of what it recommends" in card
    assert "25.0 % of the held-out movies" in card


def test_without_evaluation_it_says_so_and_shows_no_figure() -> None:
    card = render_model_card(make_model(), has_report=False)
    assert "Nothing was evaluated" in card
    assert "Recall@" not in card
    assert "model-index" not in front_matter(card)
    assert "--evaluate none" in card


def test_generated_data_is_called_generated() -> None:
    card = render_model_card(evaluated(dataset="synthetic"), has_report=True)
    assert "no figure and no recommendation here means anything" in card
    assert "mean nothing" in front_matter(card)["model-index"][0]["results"][0]["dataset"]["name"]
    assert "MovieLens data" not in card


def test_figures_of_validation_users_are_called_flattering() -> None:
    model = evaluated()
    model.metrics["stage"] = "validation"
    assert "flatter" in render_model_card(model, has_report=True)
    assert "flatter" not in render_model_card(evaluated(), has_report=True)


@pytest.mark.parametrize("name", ["ml-latest-small", "ml-32m", "ml-100k"])
def test_models_of_movielens_carry_its_terms_and_citation(name: str) -> None:
    card = render_model_card(evaluated(dataset=name), has_report=True)
    assert "no commercial" in card
    assert "https://doi.org/10.1145/2827872" in card
    assert front_matter(card)["license_link"].startswith("https://")


def test_models_of_other_ratings_leave_the_license_to_their_owner() -> None:
    card = render_model_card(evaluated(dataset="my-ratings"), has_report=True)
    assert "owner" in card
    assert "GroupLens" not in card
    assert "license_link" not in front_matter(card)


@pytest.mark.parametrize("has_report", [True, False])
def test_it_lists_the_files_that_are_there(has_report: bool) -> None:
    card = render_model_card(evaluated(), has_report)
    assert all(name in card for name in REQUIRED_FILES)
    assert ("report/index.html" in card) == has_report
    assert ("--no-report" in card) != has_report


@pytest.mark.parametrize(
    "model",
    [
        make_model(),
        evaluated(),
        evaluated("temporal"),
        without_baselines(evaluated()),
        with_second_stage(evaluated()),
        replace(make_model(), config={**make_model().config, "ranker": RANKER_CONFIG}),
    ],
    ids=["not evaluated", "leave-one-out", "temporal", "no baselines", "second stage", "second stage not evaluated"],
)
def test_no_heading_is_empty(model: TrainedModel) -> None:
    for heading, below in headings(render_model_card(model, has_report=True)):
        assert below.strip(), heading


def test_without_a_second_stage_nothing_is_said_of_one() -> None:
    card = render_model_card(evaluated(), has_report=True).lower()
    assert not [word for word in ("ranker", "second stage", "lightgbm", "learning-to-rank") if word in card]


def section(card: str, heading: str) -> str:
    """Return what stands below a heading of the second level."""
    return card.split(f"\n## {heading}\n", maxsplit=1)[1].split("\n## ", maxsplit=1)[0]


def difference(found: dict[str, Any]) -> str:
    return f"{number(found['difference'], '+')} ({interval_text(found['interval'])}; {verdict(found['interval'])})"


@pytest.mark.parametrize("split_name", ["leave-one-out", "temporal"])
def test_what_the_second_stage_gains_stands_for_all_and_by_session(split_name: str) -> None:
    model = with_second_stage(evaluated(split_name))
    protocol = model.metrics["second_stage"]["protocol"]
    below = section(render_model_card(model, has_report=True), "Second stage")
    strata = model.metrics["strata"][protocol]["session"]
    n_users = sum(of["n_users"] for of in strata.values())
    gains = {"all": (n_users, model.metrics["gains"][protocol])}
    gains |= {name: (of["n_users"], of["gains"]) for name, of in strata.items()}
    for name, (n, of) in gains.items():
        assert f"| {name} | {n:,} | {' | '.join(difference(of[metric]) for metric in HEADLINES)} |" in below
    assert "of the users within one session" in below


def test_the_card_names_the_candidates_the_five_foremost_features_and_the_price_of_the_dials() -> None:
    below = section(render_model_card(with_second_stage(evaluated()), has_report=True), "Second stage")
    assert "98,765 candidates of 1,234 earlier requests" in below
    assert "num_iterations=20 learning_rate=0.06" in below
    assert all(said in below for said in ("242.4 candidates", "66.3 %", "50.1 % among those of ALS", "55.2 % among"))
    assert re.findall(r"^\| `feature_(\d+)` \|", below, flags=re.MULTILINE) == ["16", "15", "14", "13", "12"]
    prices = re.findall(r"At 0\.3, (\w+) changes NDCG@10 by [+−.\d]+ \([^)]+; above zero\)", below)
    assert prices == ["novelty", "diversity", "calibrate"]
    assert "takes novelty@10 from 10.0000 to 10.4286" in below
    assert "takes miscalibration@10 from 0.9000 to 0.6692" in below


def test_definitions_of_features_break_no_table() -> None:
    below = section(render_model_card(with_second_stage(evaluated()), has_report=True), "Second stage")
    rows = [line for line in below.splitlines() if line.startswith("| `feature_")]
    assert [len(re.findall(r"(?<!\\)\|", row)) for row in rows] == [4] * 5


def test_a_second_stage_has_results_tags_and_files_of_its_own() -> None:
    model = with_second_stage(evaluated())
    card = render_model_card(model, has_report=True)
    parsed = front_matter(card)
    assert "learning-to-rank" in parsed["tags"]
    first, second = parsed["model-index"]
    assert [result["dataset"]["config"] for result in first["results"]] == ["rated", "positives"]
    (result,) = second["results"]
    assert second["name"] != first["name"]
    assert all("ranker" in metric["name"] for metric in result["metrics"])
    values = {metric["type"].replace("_at_", "@"): metric["value"] for metric in result["metrics"]}
    assert values == {name: model.metrics["protocols"]["rated"]["ranker"][name] for name in HEADLINES}
    assert all(f"`{name}`" in section(card, "Files") for name in RANKER_FILES)


@pytest.mark.parametrize(
    ("interval", "is_said"), [([-0.01, 0.05], True), ([-0.05, -0.01], True), (None, True), ([0.01, 0.05], False)]
)
def test_gains_that_are_sure_within_a_session_alone_are_a_limit(interval: list[float] | None, is_said: bool) -> None:
    model = with_second_stage(evaluated())
    later = model.metrics["strata"]["rated"]["session"].setdefault(
        "later", copy.deepcopy(model.metrics["strata"]["rated"]["session"]["within one session"])
    )
    for of in later["gains"].values():
        of["interval"] = [0.01, 0.02]
    later["gains"]["ndcg@20"] = {"difference": 0.0321, "interval": interval}
    limits = section(render_model_card(model, has_report=True), "Limits")
    assert ("may be limited to one session" in limits) == is_said
    assert (f"NDCG@20 +0.0321 ({interval_text(interval)}; {verdict(interval)})" in limits) == is_said
    assert "Recall@10 +" not in limits  # which is above zero


def test_sessions_are_said_of_the_second_stage_too() -> None:
    model = with_second_stage(evaluated())
    strata = model.metrics["strata"]["rated"]["session"]
    said = "; ".join(f"{name} {number(of['means']['ranker']['recall@10'])} (" for name, of in strata.items())
    block = render_model_card(model, has_report=True).split("### Protocol `rated`")[1]
    assert f"Recall@10 of ALS + ranker: {said.split(';')[0]}" in block
    assert "ALS + ranker" not in block.split("### Protocol `positives`")[1].split("\n## ")[0]


def test_a_second_stage_that_was_not_evaluated_says_so() -> None:
    model = replace(make_model(), config={**make_model().config, "ranker": RANKER_CONFIG})
    card = render_model_card(model, has_report=False)
    assert "It was not evaluated." in section(card, "Second stage")
    assert len(re.findall("movie-recommender-als", card)) == 0
    assert asked(command_line(model))["ranker"] is True


def test_null_intervals_are_said_to_be_missing() -> None:
    model = with_second_stage(evaluated())
    card = render_model_card(replace(model, metrics=without_intervals(model.metrics)), has_report=True)
    assert "(no interval)" in card
    assert "(no interval; undecided)" in section(card, "Second stage")
    assert "(no interval; undecided)" in card


def test_equal_models_give_equal_bytes() -> None:
    assert render_model_card(evaluated(), True) == render_model_card(evaluated(), True)


def asked(command: str) -> dict[str, Any]:
    """Parse a command line as train_als.py does."""
    python, script, *arguments = shlex.split(command)
    assert (python, script) == ("python", "train_als.py")
    return dict(typer.main.get_command(cli).make_context(script, arguments).params)


@pytest.mark.parametrize("config", [*PRESETS.values(), AlsConfig(regularization=2e-5, alpha=1234.5678, half_life=0.1)])
def test_the_command_line_asks_for_the_same_model(config: AlsConfig) -> None:
    model = replace(evaluated(), config={"als": asdict(config), "min_rating": 3.5})
    params = asked(command_line(model))
    named = ("factors", "regularization", "alpha", "iterations", "grading", "half_life", "random_state")
    assert {name: params[name] for name in named} == {name: getattr(config, name) for name in named}
    assert (params["min_rating"], params["dataset"], params["data_dir"]) == (3.5, "ml-latest-small", None)
    assert (params["split"], params["evaluate"], params["refit"]) == ("leave-one-out", None, True)
    assert params["baselines"] == ",".join(evaluation.BASELINES)


def test_the_command_line_repeats_what_was_evaluated() -> None:
    assert asked(command_line(make_model()))["evaluate"] == "none"
    assert asked(command_line(evaluated("temporal")))["split"] == "temporal"
    assert asked(command_line(with_second_stage(evaluated())))["ranker"] is True
    assert asked(command_line(evaluated()))["ranker"] is False
    assert asked(command_line(without_baselines(evaluated())))["baselines"] == "none"
    assert asked(command_line(without_baselines(evaluated(), ("ease", "popular"))))["baselines"] == "ease,popular"
    model = evaluated()
    model.metrics["protocols"].pop("positives")
    model.config["fitted_on"] = "the rated test fit: positives before each user's held-out one"
    params = asked(command_line(model))
    assert (params["evaluate"], params["refit"]) == ("rated", False)
    assert asked(command_line(replace(model, dataset=HOSTILE)))["data_dir"] is not None
    assert HOSTILE not in command_line(replace(model, dataset=HOSTILE))


@pytest.mark.parametrize(
    ("interval", "said"),
    [
        ([0.1, 0.2], "above zero"),
        ([-0.2, -0.1], "below zero"),
        ([-0.1, 0.1], "includes zero"),
        ([0.0, 0.0], "includes zero"),
        (None, "undecided"),
    ],
)
def test_verdict(interval: list[float] | None, said: str) -> None:
    assert verdict(interval) == said


def test_nothing_rounds_to_minus_zero() -> None:
    assert (number(-0.00001), number(-0.00001, "+"), number(-0.5)) == ("0.0000", "+0.0000", "−0.5000")


def test_writing_a_card_needs_no_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert render_model_card(evaluated(), has_report=False)
