"""The measured part of a training run: split, fit on what was known then, evaluate beside the baselines.

``training ─▶ split, fit, train_ranker, evaluate ─▶ metrics.json``. What is measured here is never what is served,
unless ``--no-refit`` says so.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pandas as pd

from app import core, evaluation, features, protocols, ranker_metrics, second_stage
from app.als import Factors, learn, side_by_side
from app.errors import ArtifactError
from app.evaluation.comparison import HeldOut
from app.options import TASKS, Options
from app.protocols import RankingTask
from app.run import RANKER, Run
from app.wording import DIALS

AnySplit = core.Split | core.TemporalSplit


def split(run: Run, dataset: core.Dataset, liked: pd.DataFrame) -> tuple[list[RankingTask], AnySplit | None]:
    options = run.options
    by_time = options.split == "temporal"
    run.screen.step("Splitting at one moment" if by_time else "Splitting by time, leaving one out")
    if options.evaluate == "none":
        run.screen.skipped("--evaluate none")
        return [], None
    split: AnySplit
    with run.timed("split"):
        if by_time:
            split = core.split_at_moment(liked, "validation" if options.evaluate == "validation" else "test")
            tasks = list(protocols.build_temporal_tasks(dataset.ratings, split, options.min_rating))
        else:
            split = core.leave_one_out(liked)
            tasks = [
                protocols.build_task(dataset.ratings, split, *which, options.min_rating)
                for which in TASKS[options.evaluate]
            ]
    train = f"{len(split.train):,} train positives of {len(split.users):,} users, {len(split.items):,} movies"
    run.screen.done(f"{train}; {tasks[0].n_targets:,} {tasks[0].stage} users")
    return tasks, split


def fit(run: Run, tasks: list[RankingTask]) -> list[Factors]:
    """Fit for each task; tasks with the same positives share a fit."""
    run.screen.step("Training ALS on what the held-out users had rated before")
    if not tasks:
        run.screen.skipped("--evaluate none")
        return []
    config = run.options.config
    different = {id(task.positives): task.positives for task in tasks}
    n_iterations = len(different) * config.iterations
    with (
        run.timed("fit"),
        run.screen.progress("held-out fits", n_iterations) as advance,
        side_by_side(len(different), config) as (pool, each),
    ):
        learned = pool.map(lambda positives: learn(positives, each, lambda _: advance()), different.values())
        fits = dict(zip(different, learned, strict=True))
    run.screen.done(
        f"{len(fits)} fit{'s'[: len(fits) > 1]}, {_describe_config(run.options)}, {run.seconds['fit']:.2f} s"
    )
    return [fits[id(task.positives)] for task in tasks]


def train_ranker(
    run: Run, dataset: core.Dataset, tasks: list[RankingTask], fits: list[Factors]
) -> second_stage.HeldOutRanker | None:
    """Train the second stage for the first task: the only protocol of its split that knows when somebody asks."""
    run.screen.step("Training the ranker on earlier requests")
    if not tasks:
        run.screen.skipped("--evaluate none")
        return None
    learner = run.learner(dataset, tasks[0].users, tasks[0].items)
    with run.timed("ranker"), run.screen.progress("stages", RANKER.n_stages + 1) as advance:
        held_out = second_stage.train_held_out(learner, tasks[0], fits[0], RANKER, advance)
    n_rows = sum(len(stage.labels) for stage in held_out.stages)
    run.screen.done(
        f"{n_rows:,} candidates in {len(held_out.stages)} stages, {len(features.FEATURES)} features, "
        f"{run.seconds['ranker']:.1f} s"
    )
    return held_out


def evaluate(
    run: Run,
    dataset: core.Dataset,
    liked: pd.DataFrame,
    split: AnySplit | None,
    tasks: list[RankingTask],
    fits: list[Factors],
    held_out: second_stage.HeldOutRanker | None,
) -> tuple[dict[str, Any], HeldOut | None]:
    """Measure every model on every task; return ``metrics.json``, and the lists of what would be served."""
    run.screen.step("Evaluating beside the baselines")
    if split is None:
        run.screen.skipped("--evaluate none")
        return {"stage": "none", "protocols": {}, "intervals": {}}, None
    results = []
    for task, factors in zip(tasks, fits, strict=True):
        scorers = {evaluation.MODEL: evaluation.als_scorer(task, factors)}
        if held_out and task is held_out.task:
            scorers[evaluation.RANKER] = second_stage.ranker_scorer(held_out)
        scorers |= _make_baselines(run, task)
        results.append(_evaluate_one(run, dataset, task, scorers))
        run.screen.result(results[-1])
    metrics = evaluation.describe_results(split, results)
    if held_out:
        metrics["second_stage"] = _describe_ranker(run, dataset, held_out)
        metrics["definitions"] |= ranker_metrics.METRIC_DEFINITIONS
    if run.options.evaluate == "all" and run.options.split == "leave-one-out":
        metrics["cold_start"] = _measure_cold_start(run, liked)
    if run.options.export_run:
        run.screen.done(f"Wrote qrels.txt and run files to {run.options.export_run}")
    served = evaluation.RANKER if held_out else evaluation.MODEL
    return metrics, HeldOut(tasks[0], results[0].lists[served])


def _describe_ranker(run: Run, dataset: core.Dataset, held_out: second_stage.HeldOutRanker) -> dict[str, Any]:
    seed = run.options.config.random_state
    catalogue = evaluation.describe_catalogue(held_out.task, dataset.movies)
    n_parts = len(features.FEATURES) + len(DIALS) * len(ranker_metrics.STEPS)
    with run.timed("importance_and_dials"), run.screen.progress("importance and dials", n_parts) as advance:
        described = ranker_metrics.describe_ranker(held_out, RANKER, seed, advance)
        described["dials"] = ranker_metrics.measure_dials(held_out, catalogue, seed, advance)
    run.screen.ranker(described)
    return described


def _make_baselines(run: Run, task: RankingTask) -> dict[str, evaluation.Scorer]:
    """Fit the baselines; to users without positives all that learn give the popular order: these are left out."""
    learns_nothing = task.protocol == "temporal_new_users"
    wanted = [name for name in run.options.baselines if not learns_nothing or name in ("popular", "random")]
    scorers = {}
    with run.timed("baselines"), run.screen.progress("baselines", len(wanted)) as advance:
        for baseline in wanted:
            if reason := evaluation.why_skipped(baseline, task):
                run.warn(f"protocol {task.protocol}: baseline skipped: {reason}")
            else:
                scorers[baseline] = evaluation.BASELINES[baseline](task, run.options.config.random_state)
            advance()
    return scorers


def _evaluate_one(
    run: Run, dataset: core.Dataset, task: RankingTask, scorers: dict[str, evaluation.Scorer]
) -> evaluation.TaskResult:
    with run.timed("evaluate"), run.screen.progress(f"protocol {task.protocol}", len(scorers)) as advance:
        catalogue = evaluation.describe_catalogue(task, dataset.movies)
        result = evaluation.evaluate(task, scorers, catalogue, run.options.config.random_state, advance)
    if run.options.export_run and task.protocol in ("rated", "temporal"):
        try:
            evaluation.write_trec(run.options.export_run, task, result.lists)
        except OSError as error:
            raise ArtifactError(f"the rankings cannot be written to {run.options.export_run}: {error}") from error
    served = {name: lists for name, lists in result.lists.items() if name in (evaluation.MODEL, evaluation.RANKER)}
    return replace(result, lists=served)  # the lists of all users are large, and written if they were wanted


def _measure_cold_start(run: Run, liked: pd.DataFrame) -> dict[str, Any]:
    with run.timed("cold_start"), run.screen.progress("cold start", evaluation.N_FOLDS) as advance:
        measured = evaluation.measure_cold_start(liked, run.options.config, run.options.min_rating, advance)
    run.screen.cold_start(measured)
    return measured


def _describe_config(options: Options) -> str:
    config = options.config
    recency = f", half-life {config.half_life:g}" if config.half_life else ""
    return (
        f"{config.factors} factors, regularization {config.regularization:g}, alpha {config.alpha:g}, "
        f"{config.iterations} iterations, grading {config.grading:g}{recency}"
    )
