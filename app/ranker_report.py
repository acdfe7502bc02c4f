"""The report's section on the second stage: what it gains, what it chooses from and by, and what its dials cost.

``metrics["second_stage"], metrics["gains"] ─▶ write_second_stage ─▶ report``. Like all of the report, it says of every
result how much is within one session. Without a second stage it is empty.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from app.artifacts import TrainedModel
from app.candidates import N_FROM_ALS, N_FROM_AROUND
from app.evaluation.metrics import HEADLINES
from app.evaluation.results import RANKER
from app.page import (
    write_caption,
    write_details,
    write_difference,
    write_estimate,
    write_figure,
    write_session,
    write_table,
)
from app.plots import draw_bars, draw_tradeoff, label
from app.wording import (
    DIALS,
    by_session,
    dial_sentence,
    has_second_stage,
    metric_label,
    number,
    percent,
    reminder,
    second_stage_sentences,
    session_counts,
)

_N_DRAWN = 15  # of the features, those with a bar
_DIVISIONS = {"gap": "By how soon they came back", "popularity": "By popularity of the held-out movie"}
_BROUGHT = {
    "novelty": "rarer movies, that is a higher novelty@10",
    "diversity": "movies that differ from each other, that is a higher diversity@10",
    "calibrate": "genres mixed as in what the user likes, that is a lower miscalibration@10",
}


def write_second_stage(model: TrainedModel) -> str:
    """Write the section's content; empty where the model has no second stage."""
    if not has_second_stage(model):
        return ""
    metrics = model.metrics
    parts = [f"<p>{escape(second_stage_sentences(metrics))}</p>"]
    if found := metrics.get("second_stage"):
        protocol = found["protocol"]
        parts += [
            write_session(metrics, protocol),
            _gains(metrics, protocol),
            _candidates(metrics, protocol),
            _importance(metrics, protocol),
            _dials(metrics, protocol),
        ]
    return "\n".join(part for part in parts if part)


def _gains(metrics: Mapping[str, Any], protocol: str) -> str:
    gains = metrics.get("gains", {}).get(protocol)
    if not gains:
        return ""
    n_users, _ = session_counts(metrics, protocol)
    everybody = ("all", [f"{n_users:,}" if n_users else "", *(write_difference(gains[metric]) for metric in HEADLINES)])
    every = [(metric_label(metric), [write_difference(of)]) for metric, of in gains.items()]
    return (
        f"<h3>What it gains over ALS</h3><p>{label(RANKER)} less ALS, protocol {escape(protocol)}. Paired, over the "
        f"same users. Where the interval includes zero, the difference may be chance. {reminder(metrics, protocol)}</p>"
        + _gains_table("session", [everybody, *_gains_rows(by_session(metrics, protocol))])
        + "".join(_division(metrics, protocol, kind) for kind in _DIVISIONS)
        + write_details("All metrics", write_table(("metric", f"{label(RANKER)} less ALS"), every))
    )


def _division(metrics: Mapping[str, Any], protocol: str, kind: str) -> str:
    rows = _gains_rows(metrics.get("strata", {}).get(protocol, {}).get(kind, {}))
    meaning = metrics.get("definitions", {}).get("strata", {}).get(kind, "")
    return f"<h4>{_DIVISIONS[kind]}</h4><p>Strata: {escape(meaning)}.</p>{_gains_table(kind, rows)}" if rows else ""


def _gains_rows(strata: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    return [
        (name, [f"{of['n_users']:,}", *(write_difference(of["gains"][metric]) for metric in HEADLINES)])
        for name, of in strata.items()
        if of.get("gains")
    ]


def _gains_table(header: str, rows: list[tuple[str, list[str]]]) -> str:
    return write_table((header, "users", *map(metric_label, HEADLINES)), rows)


_SOURCES = {
    "als": f"ALS, its first {N_FROM_ALS}",
    "around": f"rated around the last ratings, the first {N_FROM_AROUND}",
    "union": "both together",
}


def _candidates(metrics: Mapping[str, Any], protocol: str) -> str:
    candidates = metrics["second_stage"]["candidates"]
    rows = [(_SOURCES.get(source, source), [percent(share)]) for source, share in candidates["recall"].items()]
    return (
        f"<h3>What it chooses from</h3><p>{candidates['n_mean']:.1f} candidates a request, in the mean of those that "
        "have any. A held-out movie that is not among them cannot be found, however well they are put in order. "
        f"{reminder(metrics, protocol)}</p>" + write_table(("source of candidates", "held-out movies among them"), rows)
    )


_TABLES = (
    "around(a, b): how closely before or after a, within 20 places, users rate b; after(a, b): how often within 5 "
    "places after it; together(a, b): cosine of who rated the two."
)


def _importance(metrics: Mapping[str, Any], protocol: str) -> str:
    importance = metrics["second_stage"]["importance"]
    by_gain = sorted(importance.items(), key=lambda named: -named[1]["gain"])
    drawn = dict(by_gain[:_N_DRAWN])
    title = f"The {len(drawn)} features with the largest gain, and what NDCG@10 loses by permuting each"
    bars = {
        "gain, %": {name: (100 * of["gain"], None) for name, of in drawn.items()},
        "NDCG@10 drop": {name: (of["ndcg@10_drop"], of["interval"]) for name, of in drawn.items()},
    }
    rows = [
        (
            name,
            [
                escape(of["definition"]),
                percent(of["gain"]).replace(" ", "&nbsp;"),
                write_estimate(of["ndcg@10_drop"], of["interval"]),
            ],
        )
        for name, of in by_gain
    ]
    table = write_table(("feature", "definition", "gain", "NDCG@10 drop"), rows)
    return (
        "<h3>What it goes by</h3><p>Gain: the share of the training loss that splits on the feature took away. NDCG@10 "
        "drop: what is lost when the feature's values are permuted over all candidates. Correlated features share what "
        "they know: permuting one alone may cost nothing, since the others still say it.</p>"
        + write_figure(
            draw_bars("second-stage-importance", title, bars, RANKER), write_caption(metrics, protocol, title)
        )
        + write_details(f"All {len(rows)} features", f"<p>{_TABLES}</p>{table}")
    )


def _dials(metrics: Mapping[str, Any], protocol: str) -> str:
    dials = metrics["second_stage"].get("dials")
    if not dials:
        return ""
    return (
        "<h3>What the dials cost</h3><p>A request may turn the list by a dial from 0, which leaves the ranker's order, "
        f"to 1. Measured one at a time, on the ranker's candidates. {reminder(metrics, protocol)}</p>"
        + "".join(_dial(metrics, protocol, dial) for dial in dials)
    )


def _dial(metrics: Mapping[str, Any], protocol: str, dial: str) -> str:
    steps, metric = metrics["second_stage"]["dials"][dial], DIALS[dial]
    title = f"NDCG@10 against {metric} while {dial} is turned from 0 to 1"
    points = {step["value"]: (step["means"][metric], step["means"]["ndcg@10"]) for step in steps}
    svg = draw_tradeoff(f"second-stage-{dial}", title, (metric, "NDCG@10"), points, RANKER)
    table = write_table(
        (dial, "NDCG@10", "its change", metric, "coverage@10"), map(_dial_row, steps, [metric] * len(steps))
    )
    said = f"Meant to bring {_BROUGHT[dial]}. {dial_sentence(metrics['second_stage'], dial)}"
    return (
        f"<h4>{dial.capitalize()}</h4><p>{escape(said)}</p>"
        + write_figure(svg, write_caption(metrics, protocol, title), "Numbers beside points are values of the dial.")
        + write_details("The numbers", table)
    )


def _dial_row(step: Mapping[str, Any], metric: str) -> tuple[str, list[str]]:
    means = step["means"]
    change = write_difference(step["changes"]["ndcg@10"]) if step["value"] else "none"
    return f"{step['value']:g}", [
        number(means["ndcg@10"]),
        change,
        number(means[metric]),
        percent(means["coverage@10"]),
    ]
