"""The report: what evaluation found, as one HTML page with pictures and all their numbers.

``TrainedModel ─▶ render_report ─▶ artifacts`` (report/index.html). The page needs no other file, no network and no
script. No result stands there without saying how much of it is within one session. Equal models give equal bytes: it
knows neither clock nor machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from importlib.util import find_spec
from typing import Any

from app.artifacts import TrainedModel
from app.evaluation.metrics import HEADLINES
from app.evaluation.results import MODEL, RANKER
from app.page import (
    write_caption,
    write_details,
    write_difference,
    write_estimate,
    write_figure,
    write_page,
    write_session,
    write_table,
)
from app.plots import draw_curves, draw_estimates, draw_scatter, draw_shares, draw_strata, label
from app.ranker_report import write_second_stage
from app.wording import (
    OF_USERS,
    PROTOCOLS,
    by_session,
    cold_start_sentence,
    command_line,
    has_second_stage,
    interval_text,
    metric_label,
    number,
    percent,
    reminder,
    reproduce_notes,
    stage_notes,
)

_DRAWN = ("recall@10", "ndcg@10")  # of the metrics, those with a picture


def can_plot() -> bool:
    """Tell whether matplotlib is installed, without importing it."""
    return find_spec("matplotlib") is not None


def render_report(model: TrainedModel) -> str:
    """Write the report; needs matplotlib.

    Returns
    -------
    str
        The whole of report/index.html.
    """
    metrics = model.metrics
    sections = [("about", "What this is", _about(model))]
    sections += [(name, f"Protocol {name}", _protocol(metrics, name)) for name in metrics.get("protocols", {})]
    sections += [
        ("second-stage", "Second stage", write_second_stage(model)),
        ("cold-start", "Cold start", _cold_start(metrics)),
        ("convergence", "Convergence", _convergence(metrics)),
        ("definitions", "Definitions", _definitions(metrics)),
        ("reproduce", "How to reproduce", _reproduce(model)),
    ]
    return write_page(f"Movie Recommender: ALS on {model.dataset}", sections)


def _about(model: TrainedModel) -> str:
    als, metrics = model.config["als"], model.metrics
    second = ", and a second stage that puts its best movies in order" if has_second_stage(model) else ""
    found = f"{len(model.users):,} users, {len(model.items):,} movies, {model.confidence.nnz:,} positives"
    parts = [
        *(f'<p class="notice"><strong>{escape(note)}</strong></p>' for note in stage_notes(model)),
        f"<p>A model of {escape(model.dataset)}: {found}, {als['factors']} factors{second}. "
        f"It is {escape(metrics.get('served_model', 'not evaluated'))}.</p>",
    ]
    for protocol in list(metrics.get("protocols", {}))[:1]:
        parts.append(_headline(metrics, protocol))
        parts.append(write_session(metrics, protocol))
        parts.append(f"<p>{OF_USERS} Stage: {escape(metrics['stage'])}. {escape(_split(metrics))}</p>")
    return "\n".join(parts)


def _split(metrics: Mapping[str, Any]) -> str:
    split = metrics.get("split", {})
    counts = [f"{split[name]:,} {text}" for name, text in _SPLIT_WORDS.items() if name in split]
    return f"Split: {split['name']}, {', '.join(counts)}." if counts else ""


_SPLIT_WORDS = {"n_train": "train positives", "n_users": "users", "n_items": "movies in the train catalogue"}


def _headline(metrics: Mapping[str, Any], protocol: str) -> str:
    means, intervals = metrics["protocols"][protocol], metrics["intervals"][protocol]
    boxes = [
        f"<div><dt>{metric_label(metric)}</dt><dd>{number(means[MODEL][metric])} "
        f"<small>{interval_text(intervals[MODEL][metric])}</small></dd>"
        + "".join(
            f"<dd><small>{escape(label(other))}: {number(means[other][metric])}</small></dd>"
            for other in (RANKER, "popular")
            if other in means
        )
        + "</div>"
        for metric in HEADLINES
    ]
    return f'<p>ALS, protocol {escape(protocol)}:</p>\n<dl class="headline">{"".join(boxes)}</dl>'


def _by_session(metrics: Mapping[str, Any], protocol: str) -> str:
    strata = by_session(metrics, protocol)
    return _stratum_tables(strata) if strata else ""


def _protocol(metrics: Mapping[str, Any], protocol: str) -> str:
    parts = [
        f"<p>{escape(PROTOCOLS.get(protocol, ''))}</p>",
        write_session(metrics, protocol),
        _by_session(metrics, protocol),
        _accuracy(metrics, protocol),
        _differences(metrics, protocol),
        _recall_by_k(metrics, protocol),
        *(_strata(metrics, protocol, kind) for kind in metrics.get("strata", {}).get(protocol, {}) if kind in _KINDS),
        _coverage(metrics, protocol),
        _exposure(metrics, protocol),
    ]
    return "\n".join(part for part in parts if part)


def _accuracy(metrics: Mapping[str, Any], protocol: str) -> str:
    means, intervals = metrics["protocols"][protocol], metrics["intervals"][protocol]
    estimates = {
        metric_label(metric): {model: (means[model][metric], intervals[model][metric]) for model in means}
        for metric in _DRAWN
    }
    title = f"Recall@10 and NDCG@10 of each model with intervals, protocol {protocol}"
    headlines = [
        (label(model), [write_estimate(means[model][metric], intervals[model][metric]) for metric in HEADLINES])
        for model in means
    ]
    every = [
        (
            metric_label(metric),
            [write_estimate(of[metric], intervals[model].get(metric, ())) for model, of in means.items()],
        )
        for metric in means[MODEL]
    ]
    return (
        "<h3>Against the baselines</h3>"
        + write_figure(
            draw_estimates(f"{protocol}-accuracy", title, estimates), write_caption(metrics, protocol, title), OF_USERS
        )
        + write_table(("model", *map(metric_label, HEADLINES)), headlines)
        + write_details("All metrics", write_table(("metric", *map(label, means)), every))
    )


def _differences(metrics: Mapping[str, Any], protocol: str) -> str:
    differences = metrics.get("differences", {}).get(protocol, {})
    if not differences:
        return ""
    headlines = [
        (label(model), [write_difference(of[metric]) for metric in HEADLINES]) for model, of in differences.items()
    ]
    names = next(iter(differences.values()))
    every = [(metric_label(metric), [write_difference(of[metric]) for of in differences.values()]) for metric in names]
    return (
        "<h3>ALS less each baseline</h3><p>Paired, over the same users. Where the interval includes zero, the "
        f"difference may be chance. {reminder(metrics, protocol)}</p>"
        + write_table(("baseline", *map(metric_label, HEADLINES)), headlines)
        + write_details("All metrics", write_table(("metric", *map(label, differences)), every))
    )


def _recall_by_k(metrics: Mapping[str, Any], protocol: str) -> str:
    curves = metrics.get("recall_by_k", {}).get(protocol, {})
    if not curves:
        return ""
    title = f"Recall of the first k by k, protocol {protocol}"
    points = {model: {int(k): (value, None) for k, value in curve.items()} for model, curve in curves.items()}
    rows = [(f"Recall@{k}", [number(curve[k]) for curve in curves.values()]) for k in curves[MODEL]]
    svg = draw_curves(f"{protocol}-recall", title, ("k, logarithmic", "Recall@k"), points, log=True)
    table = write_details("The numbers", write_table(("", *map(label, curves)), rows))
    return f"<h3>Recall by k</h3>{write_figure(svg, write_caption(metrics, protocol, title))}{table}"


_KINDS = {
    "gap": "By how soon they came back",
    "history": "By how much they had rated",
    "popularity": "By popularity of the held-out movie",
}


def _strata(metrics: Mapping[str, Any], protocol: str, kind: str) -> str:
    strata = metrics["strata"][protocol][kind]
    found = {stratum: _stratum_estimates(of, "recall@10") for stratum, of in strata.items()}
    title = f"Recall@10 by {kind}, protocol {protocol}"
    svg = draw_strata(f"{protocol}-{kind}", title, "Recall@10", found)
    means = metrics.get("definitions", {}).get("strata", {}).get(kind, "")
    return (
        f"<h3>{_KINDS[kind]}</h3><p>Strata: {escape(means)}.</p>"
        + write_figure(svg, write_caption(metrics, protocol, title))
        + _stratum_tables(strata)
    )


def _stratum_estimates(stratum: Mapping[str, Any], metric: str) -> dict[str, tuple[float, Sequence[float] | None]]:
    intervals = stratum["intervals"]
    return {model: (means[metric], intervals[model][metric]) for model, means in stratum["means"].items()}


def _stratum_tables(strata: Mapping[str, Any]) -> str:
    first, *others = (_stratum_table(strata, metric) for metric in HEADLINES)
    return first + write_details("The other metrics", "".join(others))


def _stratum_table(strata: Mapping[str, Any], metric: str) -> str:
    models = next(iter(strata.values()))["means"]
    rows = [
        (name, [f"{of['n_users']:,}", *(write_estimate(*found) for found in _stratum_estimates(of, metric).values())])
        for name, of in strata.items()
    ]
    return write_table((metric_label(metric), "users", *map(label, models)), rows)


def _coverage(metrics: Mapping[str, Any], protocol: str) -> str:
    means, intervals = metrics["protocols"][protocol], metrics["intervals"][protocol]
    title = f"Recall@10 against coverage@10 of each model, protocol {protocol}"
    points = {model: (100 * of["coverage@10"], of["recall@10"]) for model, of in means.items()}
    rows = [
        (label(model), [percent(of["coverage@10"]), write_estimate(of["recall@10"], intervals[model]["recall@10"])])
        for model, of in means.items()
    ]
    svg = draw_scatter(f"{protocol}-coverage", title, ("coverage@10, % of the catalogue", "Recall@10"), points)
    table = write_table(("model", "coverage@10", "Recall@10"), rows)
    return f"<h3>Coverage and accuracy</h3>{write_figure(svg, write_caption(metrics, protocol, title))}{table}"


def _exposure(metrics: Mapping[str, Any], protocol: str) -> str:
    shares = metrics.get("exposure", {}).get(protocol, {})
    if not shares:
        return ""
    title = f"Popularity of the first 10 of each model and of the held-out movies, protocol {protocol}"
    rows = [(label(model), [percent(share) for share in of.values()]) for model, of in shares.items()]
    bands = next(iter(shares.values()))
    svg = draw_shares(f"{protocol}-exposure", title, "share of the first 10, %", shares)
    caption = f"{write_caption(metrics, protocol, title)} Bands: share of the catalogue, most popular first."
    return f"<h3>Popularity of what is recommended</h3>{write_figure(svg, caption)}{write_table(('', *bands), rows)}"


def _cold_start(metrics: Mapping[str, Any]) -> str:
    measured = metrics.get("cold_start", {}).get("n_liked", {})
    if not measured:
        return ""
    models = next(iter(measured.values()))["means"]
    found = {n: _stratum_estimates(of, "recall@10") for n, of in measured.items()}
    curves = {model: {int(n): estimates[model] for n, estimates in found.items()} for model in models}
    title = "Recall@10 of users whom the model has never seen, by the number of movies that they like"
    svg = draw_curves("cold-start-recall", title, ("movies liked", "Recall@10"), curves)
    compared = [
        (f"{n}, ALS less {label(baseline)}", [write_difference(of[metric]) for metric in HEADLINES])
        for n, at in measured.items()
        for baseline, of in at["differences"].items()
    ]
    return (
        f"<p>Here, {escape(metrics['cold_start']['definition'])}.</p>"
        + write_figure(svg, f"{title}. {cold_start_sentence(measured)}", OF_USERS)
        + "".join(_stratum_table(measured, metric) for metric in _DRAWN)
        + write_details("Differences", write_table(("movies liked", *map(metric_label, HEADLINES)), compared))
    )


def _convergence(metrics: Mapping[str, Any]) -> str:
    losses = metrics.get("convergence", {}).get("loss", [])
    if not losses:
        return ""
    title = "Loss by iteration of the fit that is served, divided by the sum of all confidences"
    curve: dict[int, tuple[float, Sequence[float] | None]] = {i: (loss, None) for i, loss in enumerate(losses, 1)}
    svg = draw_curves("loss", title, ("iteration", "loss"), {MODEL: curve}, from_zero=False)
    rows = [(str(i), [f"{loss:.6f}"]) for i, loss in enumerate(losses, 1)]
    caption = f"{title}. It says whether the fit has settled, not how good it is."
    return write_figure(svg, caption) + write_details("The numbers", write_table(("iteration", "loss"), rows))


def _definitions(metrics: Mapping[str, Any]) -> str:
    definitions = metrics.get("definitions", {})
    named = {name: text for name, text in definitions.items() if isinstance(text, str)}
    named |= {f"strata by {name}": text for name, text in definitions.get("strata", {}).items()}
    terms = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in named.items())
    return f"<dl>{terms}</dl>" if terms else ""


def _reproduce(model: TrainedModel) -> str:
    notes = " ".join(reproduce_notes(model))
    return f"<pre>{escape(command_line(model))}</pre><p>{escape(notes)}</p>"
