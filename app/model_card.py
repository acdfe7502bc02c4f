"""The model card: what a model is, what it is good for, how good it is, and where it fails, as MODEL_CARD.md.

``TrainedModel ─▶ render_model_card ─▶ artifacts``. Markdown with the front matter that Hugging Face reads. Everything
is taken from the model itself, without clock or machine, so equal models give equal bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from app.artifacts import MANIFEST, TrainedModel
from app.data_terms import is_movielens, license_name, license_text, terms_url
from app.datasets.locate import SYNTHETIC
from app.evaluation.metrics import BANDS, HEADLINES, LONG_TAIL_SHARE
from app.evaluation.results import MODEL, RANKER
from app.evaluation.strata import LATER
from app.markdown import escape, quote, table
from app.plots import label
from app.wording import (
    OF_USERS,
    PROTOCOLS,
    by_session,
    candidates_sentence,
    cold_start_sentence,
    command_line,
    count,
    dial_sentence,
    has_second_stage,
    hyper_parameters,
    interval_text,
    metric_label,
    number,
    percent,
    plain_number,
    reminder,
    reproduce_notes,
    second_stage_sentences,
    session_counts,
    session_sentence,
    stage_notes,
    verdict,
)


def render_model_card(model: TrainedModel, has_report: bool) -> str:
    """Write the model card.

    Parameters
    ----------
    has_report : bool
        Whether ``report/index.html`` stands beside it.

    Returns
    -------
    str
        The whole of MODEL_CARD.md: front matter and Markdown.

    References
    ----------
    Mitchell et al., "Model Cards for Model Reporting" (FAT* 2019); https://huggingface.co/docs/hub/model-cards
    """
    sections = (
        _front_matter(model),
        f"# Movie Recommender: ALS on {escape(model.dataset)}",
        *(f"> **{note}**" for note in stage_notes(model)),
        _in_short(model),
        _what_it_is(model),
        _USE,
        _training_data(model),
        _evaluation(model.metrics),
        _second_stage(model),
        _promotion(model.metrics),
        _limits(model),
        _how_to_reproduce(model, has_report),
        _files(has_report, has_second_stage(model)),
    )
    return "\n\n".join(section for section in sections if section) + "\n"


def _in_short(model: TrainedModel) -> str:
    said = [
        "Recommends movies to the users of the ratings that it was trained on, and to new ones from what they like."
    ]
    for protocol, means in list(model.metrics.get("protocols", {}).items())[:1]:
        found = _estimate(means, model.metrics["intervals"][protocol], MODEL, "recall@10")
        beside = f", most popular {number(means['popular']['recall@10'])}" if "popular" in means else ""
        if RANKER in means:
            second = _estimate(means, model.metrics["intervals"][protocol], RANKER, "recall@10")
            beside = f" by ALS alone, {second} by {label(RANKER)}{beside}"
        said.append(f"Recall@10 {found}{beside}, protocol `{protocol}`. {session_sentence(model.metrics, protocol)}")
    return " ".join(said)


def _front_matter(model: TrainedModel) -> str:
    lines = ["---", "license: other", f"license_name: {license_name(model.dataset)}"]
    if is_movielens(model.dataset):
        lines.append(f"license_link: {terms_url(model.dataset)}")
    lines += ["library_name: implicit", "tags:"]
    tags = ["recommendation", "collaborative-filtering", "implicit-feedback", "als"]
    tags += ["learning-to-rank", "lightgbm"] if has_second_stage(model) else []
    lines += [f"- {tag}" for tag in tags]
    lines += ["datasets:", f"- {quote(model.dataset)}"]
    lines += ["metrics:", *(f"- {metric.replace('@', '_at_')}" for metric in HEADLINES)]
    if protocols := model.metrics.get("protocols"):
        lines += ["model-index:", "- name: movie-recommender-als", "  results:"]
        for protocol, means in protocols.items():
            lines += _result(model, protocol, means[MODEL])
        ranked = {protocol: means[RANKER] for protocol, means in protocols.items() if RANKER in means}
        lines += ["- name: movie-recommender-als-ranker", "  results:"] if ranked else []
        for protocol, means in ranked.items():
            lines += _result(model, protocol, means, f", {label(RANKER)}")
    return "\n".join([*lines, "---"])


def _result(model: TrainedModel, protocol: str, means: Mapping[str, float], of: str = "") -> list[str]:
    """Return one entry of the model-index; ``of`` is what the metrics' names add."""
    name = "generated ratings, whose figures mean nothing" if model.dataset == SYNTHETIC else model.dataset
    lines = [
        "  - task:",
        "      type: recommendation",
        "      name: Top-k recommendation",
        "    dataset:",
        f"      type: {quote(model.dataset)}",
        f"      name: {quote(name)}",
        f"      config: {quote(protocol)}",
        f"      split: {quote(model.metrics['stage'])}",
        "    metrics:",
    ]
    for metric in HEADLINES:
        lines += [
            f"    - type: {metric.replace('@', '_at_')}",
            f"      name: {quote(f'{metric_label(metric)}, protocol {protocol}{of}')}",
            f"      value: {np.format_float_positional(means[metric], trim='0')}",  # YAML 1.1 reads 1e-05 as text
        ]
    return lines


def _what_it_is(model: TrainedModel) -> str:
    als = model.config["als"]
    liked = f"rated {model.config['min_rating']:g} or more"
    grade = (
        "g is the grade of the rating, larger for a higher one" if als["grading"] else "g is 1: ratings are not graded"
    )
    recency = (
        "After the fit each user's factor is solved once more, so that recent positives count most: the weight of a "
        f"positive halves with every {als['half_life']:g} later ones. New users are solved in the same way from what "
        "they like."
        if als["half_life"]
        else "Positives count alike, however old they are."
    )
    return f"""## What it is

Collaborative filtering by alternating least squares (ALS) on implicit feedback. Each user and each movie gets a
factor of {als["factors"]} numbers; the score of a movie for a user is the product of the two. The fit minimises, over
all pairs of user and movie, the sum of c · (p − score)², plus λ times the squared length of all factors. p is 1 for a
positive ({liked}) and 0 for every other pair. c is alpha · g for a positive and 1 for every other pair;
{grade}. λ is `regularization`.

{recency}

Hyper-parameters: `{" ".join(hyper_parameters(als))}`."""


_USE = """## Use

Meant for: learning about recommenders, comparing methods, and recommending movies where a wrong one costs nothing.

Not meant for: decisions about people, other things than the movies it was trained on, or any claim about how users
would react. Recommendations tell something about their users, so they are as private as the ratings."""


def _training_data(model: TrainedModel) -> str:
    generated = " The ratings are generated; nobody gave them." if model.dataset == SYNTHETIC else ""
    return f"""## Training data

{
        table(
            ("", ""),
            [
                ("data set", escape(model.dataset)),
                ("fingerprint (SHA-256)", f"`{escape(model.fingerprint)}`"),
                ("users", f"{len(model.users):,}"),
                ("movies with a positive", f"{len(model.items):,}"),
                ("positives", f"{model.confidence.nnz:,}"),
            ],
        )
    }

The model is {escape(model.metrics.get("served_model", "not evaluated"))}.{
        generated
    } Nothing is known about who the users are."""


def _evaluation(metrics: Mapping[str, Any]) -> str:
    protocols = metrics.get("protocols", {})
    if not protocols:
        return ""
    blocks = ["## Evaluation", f"{OF_USERS} The whole catalogue is ranked. Stage: {metrics['stage']}."]
    for protocol, means in protocols.items():
        blocks += [f"### Protocol `{protocol}`", PROTOCOLS.get(protocol, ""), session_sentence(metrics, protocol)]
        intervals, differences = metrics["intervals"][protocol], metrics.get("differences", {}).get(protocol, {})
        values = [(label(model), *(_estimate(means, intervals, model, m) for m in HEADLINES)) for model in means]
        blocks.append(table(("model", *map(metric_label, HEADLINES)), values))
        compared = [(label(model), *(_difference(of[m]) for m in HEADLINES)) for model, of in differences.items()]
        if compared:
            blocks.append(table(("ALS less the baseline, paired", *map(metric_label, HEADLINES)), compared))
        if strata := by_session(metrics, protocol):
            rows = [
                (name, f"{of['n_users']:,}", *(_estimate(of["means"], of["intervals"], m, "recall@10") for m in means))
                for name, of in strata.items()
            ]
            blocks.append(table(("Recall@10 by session", "users", *map(label, means)), rows))
    return "\n\n".join([*filter(None, blocks), *_cold_start(metrics)])


def _estimate(means: Mapping[str, Any], intervals: Mapping[str, Any], model: str, metric: str) -> str:
    return f"{number(means[model][metric])} ({interval_text(intervals[model][metric])})"


def _difference(found: Mapping[str, Any]) -> str:
    return f"{number(found['difference'], '+')} ({interval_text(found['interval'])}; {verdict(found['interval'])})"


def _cold_start(metrics: Mapping[str, Any]) -> list[str]:
    measured = metrics.get("cold_start", {}).get("n_liked", {})
    if not measured:
        return []
    models = list(next(iter(measured.values()))["means"])
    rows = [
        (n, f"{of['n_users']:,}", *(_estimate(of["means"], of["intervals"], model, "recall@10") for model in models))
        for n, of in measured.items()
    ]
    return [
        "### Cold start",
        "Recall@10 for users whom the model has never seen, from the first movies that they like. "
        + cold_start_sentence(measured),
        table(("likes", "users", *map(label, models)), rows),
    ]


def _second_stage(model: TrainedModel) -> str:
    if not has_second_stage(model):
        return ""
    settings = " ".join(f"{name}={plain_number(value)}" for name, value in model.config["ranker"].items())
    blocks = ["## Second stage", second_stage_sentences(model.metrics), f"Hyper-parameters: `{settings}`."]
    if found := model.metrics.get("second_stage"):
        protocol = found["protocol"]
        blocks += [*_gains(model.metrics, protocol), candidates_sentence(found), *_features(found["importance"])]
        costs = " ".join(dial_sentence(found, dial) for dial in found.get("dials", {}))
        blocks += [f"What re-ranking costs, one dial at a time. {costs}"] if costs else []
    return "\n\n".join(blocks)


def _gains(metrics: Mapping[str, Any], protocol: str) -> Iterable[str]:
    gains = metrics.get("gains", {}).get(protocol)
    if not gains:
        return
    n_users, _ = session_counts(metrics, protocol)
    strata = by_session(metrics, protocol)
    rows = [
        (name, n, *(_difference(of[metric]) for metric in HEADLINES))
        for name, n, of in (
            ("all", f"{n_users:,}" if n_users else "", gains),
            *((name, f"{of['n_users']:,}", of["gains"]) for name, of in strata.items() if of.get("gains")),
        )
    ]
    yield f"What it gains over ALS, protocol `{protocol}`. {reminder(metrics, protocol)}".rstrip()
    yield table((f"{label(RANKER)} less ALS, paired", "users", *map(metric_label, HEADLINES)), rows)


def _features(importance: Mapping[str, Any]) -> Iterable[str]:
    most = sorted(importance.items(), key=lambda named: -named[1]["gain"])[:_N_FEATURES]
    yield f"Of its {len(importance)} features, those with the largest gain, their share of what training gained:"
    yield table(
        ("feature", "definition", "gain"),
        [(f"`{name}`", escape(of["definition"]), percent(of["gain"])) for name, of in most],
    )


_N_FEATURES = 5


def _promotion(metrics: Mapping[str, Any]) -> str:
    """Say what the promotion gate decided; whether the version is active may have changed since."""
    verdict = metrics.get("promotion")
    if not verdict:
        return ""
    decided = "let it become active" if verdict["activate"] else "did not let it become active"
    blocks = [
        f"## Promotion\n\nWhen it was trained (`--promote {verdict['promote']}`) the promotion gate {decided}:",
        "\n".join(f"- {escape(reason)}" for reason in verdict["reasons"]),
    ]
    if verdict["comparisons"]:
        header = ("metric", "users", "n", "this model", f"as {verdict['against']} is made", "difference", "p, Holm")
        rows = [
            (
                metric_label(of["metric"]),
                of["users"],
                f"{of['n_users']:,}",
                number(of["candidate"]),
                number(of["active"]),
                f"{of['difference']:+.4f}",
                f"{of['p_holm']:.2g}",
            )
            for of in verdict["comparisons"]
        ]
        blocks += [table(header, rows), verdict["definition"]]
    return "\n\n".join(blocks)


def _limits(model: TrainedModel) -> str:
    points = []
    if protocols := model.metrics.get("protocols"):
        protocol = next(iter(protocols))
        points = [*_session_limit(model.metrics, protocol), *_popularity_limit(model.metrics, protocol)]
        points += _second_stage_limit(model.metrics, protocol)
        points.append("All figures are offline: they count what users did without these recommendations.")
    points.append("A user without positives gets the popular movies that they have not rated.")
    listed = "\n".join(f"- {point}" for point in points)
    return f"## Limits\n\n{listed}\n\n## License\n\n{license_text(model.dataset)}"


def _session_limit(metrics: Mapping[str, Any], protocol: str) -> Iterable[str]:
    yield session_sentence(metrics, protocol)
    gains = [
        f"{_difference(of['differences']['popular']['recall@10'])} {name}, {count(of['n_users'])}"
        for name, of in by_session(metrics, protocol).items()
        if "popular" in of["differences"]
    ]
    if gains:
        yield f"What ALS gains in Recall@10 over the most popular movies: {'; '.join(gains)}."


def _second_stage_limit(metrics: Mapping[str, Any], protocol: str) -> Iterable[str]:
    later = by_session(metrics, protocol).get(LATER, {})
    gains = {metric: of for metric, of in later.get("gains", {}).items() if verdict(of["interval"]) != "above zero"}
    if gains:
        listed = "; ".join(f"{metric_label(metric)} {_difference(of)}" for metric, of in gains.items())
        yield (
            "What the second stage gains over ALS may be limited to one session: for the "
            f"{count(later['n_users'])} who came later it is not above zero for sure: {listed}."
        )


def _popularity_limit(metrics: Mapping[str, Any], protocol: str) -> Iterable[str]:
    exposure, tail = metrics.get("exposure", {}).get(protocol, {}), list(BANDS)[-1]
    if MODEL in exposure and "held out" in exposure:
        subject = "ALS" if RANKER in exposure else "it"
        yield (
            f"Popularity: {percent(exposure[MODEL][tail])} of what {subject} recommends (first 10) is long tail, "
            f"against {percent(exposure['held out'][tail])} of the held-out movies. Long tail is what is outside the "
            f"most popular {100 * LONG_TAIL_SHARE:.0f} % of movies; Recall@10 of the held-out movies there is "
            f"{number(metrics['protocols'][protocol][MODEL]['recall_long_tail@10'])}."
            + _tail_of_ranker(metrics, protocol)
        )


def _tail_of_ranker(metrics: Mapping[str, Any], protocol: str) -> str:
    shares = metrics["exposure"][protocol].get(RANKER)
    if not shares:
        return ""
    recall = number(metrics["protocols"][protocol][RANKER]["recall_long_tail@10"])
    return f" Of {label(RANKER)} it is {percent(shares[list(BANDS)[-1]])}, and Recall@10 there {recall}."


def _how_to_reproduce(model: TrainedModel, has_report: bool) -> str:
    notes = " ".join(map(escape, reproduce_notes(model)))
    return f"## How to reproduce\n\n```\n{command_line(model, has_report)}\n```\n\n{notes}"


_CONTENTS = {
    "als.npz": "user_factors and item_factors, float32",
    "users.npy, items.npy": "ids; row i of a factor matrix belongs to id i",
    "X_users_items.npz": "positives as a CSR matrix, values are confidence",
    "history.npz": "everything that each user rated, oldest first",
    "movie_map.csv": "titles, genres, years and ids of the movies",
    "movies.npz": "the same, as the service maps them",
    "metrics.json": "every figure, unrounded, with intervals and definitions",
    "config.json": "hyper-parameters and the machine",
    "ranker/model.txt": "the second stage's trees, as LightGBM's text",
    "ranker/tables.npz": "what its features are computed from",
    "ranker/ranker.json": "its features with their definitions, and its hyper-parameters",
    MANIFEST: "checksums, data set, library versions, time",
    "report/index.html": "the figures as pictures and tables",
}


def _files(has_report: bool, has_ranker: bool) -> str:
    absent = [folder for folder, is_there in (("report/", has_report), ("ranker/", has_ranker)) if not is_there]
    rows = [(f"`{name}`", text) for name, text in _CONTENTS.items() if not name.startswith(tuple(absent))]
    return f"## Files\n\n{table(('file', 'content'), rows)}"
