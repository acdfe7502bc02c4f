"""Offline evaluation: rank a task with every model, measure the lists, say how sure the figures are and of whom.

``RankingTask + Scorers ─▶ evaluate ─▶ TaskResult ─▶ metrics.json``. Metrics are computed from the very lists that
``write_trec`` exports, so that anyone can check them with other tools. Only baselines are fitted in this room, and the
models of the cold start.
"""

from __future__ import annotations

from app.evaluation.cold_start import N_FOLDS, measure_cold_start
from app.evaluation.metrics import HEADLINES
from app.evaluation.results import MODEL, RANKER, TaskResult, describe_catalogue, describe_results, evaluate, measure
from app.evaluation.scorers import BASELINES, Scorer, als_scorer, why_skipped
from app.evaluation.trec import write_trec

__all__ = [
    "BASELINES",
    "HEADLINES",
    "MODEL",
    "N_FOLDS",
    "RANKER",
    "Scorer",
    "TaskResult",
    "als_scorer",
    "describe_catalogue",
    "describe_results",
    "evaluate",
    "measure",
    "measure_cold_start",
    "why_skipped",
    "write_trec",
]
