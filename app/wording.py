"""The words for figures that report, model card and screen share: numbers, verdicts, sessions, command lines.

Everything is taken from the model and its metrics, without clock or machine, so equal models give equal words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from app.als import PRESETS
from app.artifacts import MANIFEST, TrainedModel
from app.candidates import N_FROM_ALS, N_FROM_AROUND
from app.datasets.locate import DATASETS, SYNTHETIC
from app.evaluation import BASELINES
from app.evaluation.results import MODEL, RANKER
from app.evaluation.strata import WITHIN
from app.plots import label

PROTOCOLS = {
    "rated": "What the service would have answered just before the user rated the held-out movie, one of their last "
    "positives: models know what came before it, and all that the user had rated is removed from the ranking.",
    "positives": "The same held-out movies, to be comparable with published figures: models know the train positives "
    "alone, and only the user's own are removed from the ranking.",
    "temporal": "Models know what was rated before one moment. Held out is every positive from then on, of the users "
    "who had one before.",
    "temporal_new_users": "The same moment, for users who had no positive before it. No model knows them, so ALS gives "
    "them the popular order.",
}
OF_USERS = "Intervals are 95 % bootstrap intervals over users, given the training seed: another seed moves them too."


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def number(value: float, sign: str = "") -> str:
    return f"{value:{sign}z.4f}".replace("-", "−")


def count(n_users: int) -> str:
    return f"{n_users:,} user{'s'[: n_users != 1]}"


def interval_text(interval: Sequence[float] | None) -> str:
    return f"{number(interval[0])} to {number(interval[1])}" if interval else "no interval"


def verdict(interval: Sequence[float] | None) -> str:
    """Say in words where the interval of a difference lies."""
    if interval is None:
        return "undecided"
    if interval[0] > 0:
        return "above zero"
    return "below zero" if interval[1] < 0 else "includes zero"


def by_session(metrics: Mapping[str, Any], protocol: str) -> dict[str, Any]:
    """Return the strata of users by whether they were asked about within one session; empty if not measured."""
    strata: dict[str, Any] = metrics.get("strata", {}).get(protocol, {}).get("session", {})
    return strata


def session_counts(metrics: Mapping[str, Any], protocol: str) -> tuple[int, int]:
    """Return how many users there are, and how many of them within one session."""
    strata = by_session(metrics, protocol)
    return sum(of["n_users"] for of in strata.values()), strata.get(WITHIN, {"n_users": 0})["n_users"]


def session_sentence(metrics: Mapping[str, Any], protocol: str) -> str:
    """Say how much of a protocol's figures is within one session; no result is shown without it."""
    strata = by_session(metrics, protocol)
    if not strata:
        return "How much of this is within one session was not measured."
    n_users, n_within = session_counts(metrics, protocol)
    has_ranker = all(RANKER in of["means"] for of in strata.values())
    beside = f" Recall@10 of {label(RANKER)}: {_recalls(strata, RANKER)}." if has_ranker else ""
    return (
        f"{n_within:,} of {count(n_users)} ({percent(n_within / n_users)}) had rated another movie within the hour "
        f"before what was held out, that is within one session. Recall@10 of ALS: {_recalls(strata, MODEL)}.{beside}"
    )


def _recalls(strata: Mapping[str, Any], model: str) -> str:
    return "; ".join(
        f"{name} {number(of['means'][model]['recall@10'])} ({count(of['n_users'])})" for name, of in strata.items()
    )


def reminder(metrics: Mapping[str, Any], protocol: str) -> str:
    """Say it again, shortly, below a picture."""
    n_users, n_within = session_counts(metrics, protocol)
    return f"{percent(n_within / n_users)} of the users within one session." if n_users else ""


def has_second_stage(model: TrainedModel) -> bool:
    return "ranker" in model.config


def second_stage_sentences(metrics: Mapping[str, Any]) -> str:
    """Say what the second stage is, and what the one that was measured had learned from."""
    found = (
        f"For each request {N_FROM_ALS} movies of ALS and the {N_FROM_AROUND} most often rated around the user's last "
        "ratings become candidates; trees of LightGBM (the library lightgbm) put them in the order of how likely each "
        "is the next that the user likes, by what was rated just before, content, and time."
    )
    if "second_stage" not in metrics:
        return f"{found} It was not evaluated."
    learned = metrics["second_stage"]["trained_on"]
    return (
        f"{found} What was measured had learned from {learned['n_candidates']:,} candidates of "
        f"{learned['n_requests']:,} earlier requests, in {learned['n_stages']} stages back from the held-out movies."
    )


def candidates_sentence(second_stage: Mapping[str, Any]) -> str:
    """Say how many movies the second stage chooses from, and how many of the held-out ones are among them."""
    recall = {source: percent(share) for source, share in second_stage["candidates"]["recall"].items()}
    return (
        f"Among the {second_stage['candidates']['n_mean']:.1f} candidates of a request are {recall['union']} of the "
        f"held-out movies: {recall['als']} among those of ALS, {recall['around']} among those rated around the last "
        "ratings. The second stage can find no other."
    )


DIALS = {"novelty": "novelty@10", "diversity": "diversity@10", "calibrate": "miscalibration@10"}
"""What each dial of re-ranking is there to move."""


def dial_sentence(second_stage: Mapping[str, Any], dial: str, value: float = 0.3) -> str:
    """Say what a dial brings and what it costs."""
    steps = {step["value"]: step for step in second_stage["dials"][dial]}
    before, after, metric = steps[0.0]["means"], steps[value]["means"], DIALS[dial]
    cost = steps[value]["changes"]["ndcg@10"]
    share = cost["difference"] / before["ndcg@10"] if before["ndcg@10"] > 0 else 0.0
    return (
        f"At {value:g}, {dial} changes NDCG@10 by {number(cost['difference'], '+')} "
        f"({interval_text(cost['interval'])}; {verdict(cost['interval'])}), that is by {100 * share:+z.1f} %, "
        f"and takes {metric} from {number(before[metric])} to {number(after[metric])}."
    ).replace("by -", "by −")


def metric_label(metric: str) -> str:
    return metric.replace("ndcg", "NDCG").replace("recall@", "Recall@").replace("_", " ")


def cold_start_sentence(measured: Mapping[str, Any]) -> str:
    """Say how much of the cold start's figures is within one session."""
    parts = (f"{n}: {percent(of['n_within_session'] / of['n_users'])}" for n, of in measured.items())
    return f"Within an hour of their last like came to the movie to be found, by number of likes: {', '.join(parts)}."


def stage_notes(model: TrainedModel) -> list[str]:
    """Return what must be known before any figure is read."""
    notes = []
    if model.dataset == SYNTHETIC:
        notes.append(
            "The ratings are generated. Everything works, but no figure and no recommendation here means anything."
        )
    if not model.metrics.get("protocols"):
        notes.append("Nothing was evaluated (--evaluate none), so nothing says how good this model is.")
    elif model.metrics.get("stage") == "validation":
        notes.append(
            "These figures are of the validation users, on whom hyper-parameters are chosen: they flatter the model. "
            "The final figures are those of the test users."
        )
    return notes


def command_line(model: TrainedModel, has_report: bool = True) -> str:
    """Return the command that trains this model again; FOLDER stands for data that cannot be had by its name."""
    als, metrics = model.config["als"], model.metrics
    options = [f"--dataset {model.dataset}" if model.dataset in DATASETS else "--data-dir FOLDER"]
    if model.dataset == SYNTHETIC:
        options.append(f"--synthetic-ratings {model.config['n_ratings']}")
    preset = model.config.get("preset", "default")
    if preset != "default" and preset in PRESETS:
        options.append(f"--preset {preset}")
    options += hyper_parameters(als)
    options.append(f"--min-rating {plain_number(model.config['min_rating'])}")
    if has_second_stage(model):
        options.append("--ranker")
    if als.get("device", "cpu") != "cpu":
        options.append(f"--device {als['device']}")
    if model.config.get("fitted_on", "all positives") != "all positives":
        options.append("--no-refit")
    return " ".join(["python train_als.py", *options, *_evaluation_options(metrics), *["--no-report"][has_report:]])


def _evaluation_options(metrics: Mapping[str, Any]) -> list[str]:
    protocols = metrics.get("protocols", {})
    if not protocols:
        return ["--evaluate none"]
    options = ["--split temporal"] if metrics.get("split", {}).get("name") == "temporal" else []
    if metrics.get("stage") == "validation":
        options.append("--evaluate validation")
    elif list(protocols) == ["rated"]:
        options.append("--evaluate rated")
    present = [name for name in BASELINES if any(name in means for means in protocols.values())]
    if len(present) < len(BASELINES):
        options.append(f"--baselines {','.join(present) or 'none'}")
    return options


def hyper_parameters(als: Mapping[str, Any]) -> list[str]:
    """Return the options that state a setting; every number is read back as exactly the same."""
    named = ("factors", "regularization", "alpha", "iterations", "grading", "half_life", "random_state")
    return [f"--{name.replace('_', '-')} {plain_number(als[name])}" for name in named]


def plain_number(value: float) -> str:
    """Write a number in decimals, so that it is read back as exactly the same."""
    return str(value) if isinstance(value, int) else np.format_float_positional(value, trim="-")


def reproduce_notes(model: TrainedModel) -> list[str]:
    """Return what the command line needs beside itself."""
    notes = [f"It needs the same ratings: their fingerprint (SHA-256) is {model.fingerprint}."]
    if model.config["als"].get("device", "cpu") == "cpu":
        notes.append("Equal data, seed and library versions give equal bits on processors of the same kind.")
    else:
        notes.append("A fit on a GPU is not repeatable to the bit.")
    notes.append(f"config.json names the machine, {MANIFEST} the library versions and the time.")
    return notes
