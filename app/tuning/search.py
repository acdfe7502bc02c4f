"""The search itself: which settings are tried, how each is measured, and what is found in the end."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from app import core
from app.als import AlsConfig, Iteration, learn, side_by_side, weigh_recent
from app.errors import ArtifactError, ConfigError
from app.evaluation import HEADLINES, als_scorer, measure
from app.protocols import RankingTask
from app.tuning.optimism import measure_optimism
from app.tuning.questions import N_SEEDS, seeds_of, validation_tasks
from app.tuning.study import State, best_value, finished_trials, open_study, require_optuna, state_of
from app.wording import hyper_parameters, plain_number

if TYPE_CHECKING:
    import optuna

SETTING = ("factors", "regularization", "alpha", "iterations", "grading", "half_life")  # what is searched
GOAL = "ndcg@20"  # of the metrics the steadiest over seeds and users
OBJECTIVE = f"rated/validation/{GOAL}/v1"  # a new number when values of old studies would no longer compare
STEPS = (3, 5, 8, 10, 12, 15, 20)  # iterations at which a fit is measured
N_RANDOM_TRIALS = 10  # before the sampler models what it has seen
SIGNIFICANT_DIGITS = 3  # of a searched number: a command line for people

Figures = dict[str, float]
Curve = dict[int, Figures]
"""Mean figures by iteration."""


@dataclass(frozen=True)
class TrialReport:
    """What ``on_trial`` is told after each trial.

    ``number`` is the trial's in the study, ``n_done`` of ``n_trials`` are done in this call. ``value`` is NDCG@20 of a
    complete trial, with ``config`` its setting; ``best`` the highest so far in the study, None before the first.
    """

    number: int
    n_done: int
    n_trials: int
    state: State
    config: AlsConfig
    value: float | None
    best: float | None
    seconds: float


@dataclass(frozen=True)
class Tuned:
    """What a search found.

    ``validation`` holds, on the positive that was searched and with its seeds, ``n_users``, ``seeds``, the mean
    figures of ``start`` and ``best``, and their ``gain``: by metric ``difference`` and ``interval``.
    ``second_validation`` holds the same on the positive before it, which the search never scored, with other seeds.
    ``optimism`` is the first gain less the second: what the search gained by fitting the questions it was asked.

    Intervals are 95 % bootstrap intervals over users, paired, given the fitted models. What they cannot say: the second
    positive is of the same users at an earlier moment, with shorter histories, and the search learned from it, though
    it never scored it. So ``optimism`` also holds whatever differs between the two moments, and other users may differ
    more.
    """

    config: AlsConfig
    command: str
    validation: dict[str, Any]
    second_validation: dict[str, Any]
    optimism: dict[str, Any]
    study: str
    n_trials: int
    n_pruned: int
    n_failed: int
    n_earlier: int
    interrupted: bool
    seconds: float
    stored: Path


def tune(
    dataset: core.Dataset,
    start: AlsConfig,
    n_trials: int,
    min_rating: float,
    storage: Path,
    on_trial: Callable[[TrialReport], object] = lambda _report: None,
) -> Tuned:
    """Search for the setting with the highest NDCG@20 on validation, protocol ``rated``, and check it elsewhere.

    The first trial is ``start``, never pruned, so the result is at least as good on what was searched. A trial's value
    is the mean over ``N_SEEDS`` seeds from ``start.random_state``, at whichever of ``STEPS`` is best, which becomes its
    ``iterations``. Its first seed is pruned where it stays below the median of earlier trials. The n-th trial depends
    only on ``start``, the data and the trials before it: a search that was killed goes on as if it had not been.

    Parameters
    ----------
    start : AlsConfig
        The first setting tried; the ranges of the search are widened to hold it.
    n_trials : int
        How many trials to run now, beyond those that ``storage`` already holds of the same question.
    storage : Path
        SQLite file of the study, made if missing. The result is written beside it: ``<storage>.best.json``.
    on_trial : callable
        Called after each trial. Ctrl-C, here or in a fit, ends the search and keeps the trials that are done.

    Raises
    ------
    ConfigError
        If optuna is missing, ``n_trials`` is below 1, ``storage`` is not a study or cannot be opened, or ``start``
        itself cannot be fitted. Any other setting that cannot be fitted counts as a failed trial.
    DataError
        If no user has enough positives for both validation positives.
    ArtifactError
        If the study or the result cannot be written.

    References
    ----------
    Bergstra, Bardenet, Bengio, Kégl, "Algorithms for Hyper-Parameter Optimization" (NeurIPS 2011); Cawley and Talbot,
    "On Over-fitting in Model Selection" (JMLR 2010).
    """
    require_optuna()
    if isinstance(n_trials, bool) or not isinstance(n_trials, int) or n_trials < 1:
        raise ConfigError(f"the number of trials is {n_trials!r}; expected a whole number from 1")
    began = time.perf_counter()
    searched, second = validation_tasks(dataset.ratings, min_rating)
    with open_study(storage, _name_study(dataset, start, min_rating)) as study:
        n_earlier = len(finished_trials(study))
        interrupted = _run(study, searched, start, n_trials, on_trial)
        new = finished_trials(study)[n_earlier:]
        name, best = study.study_name, replace(start, **study.best_trial.user_attrs["setting"])
    validation, second_validation, optimism = measure_optimism(searched, second, start, best)
    tuned = Tuned(
        config=best,
        command=to_command_line(best, min_rating),
        validation=validation,
        second_validation=second_validation,
        optimism=optimism,
        study=name,
        n_trials=len(new),
        n_pruned=sum(state_of(trial) == "pruned" for trial in new),
        n_failed=sum(state_of(trial) == "failed" for trial in new),
        n_earlier=n_earlier,
        interrupted=interrupted,
        seconds=time.perf_counter() - began,
        stored=storage.with_name(f"{storage.name}.best.json"),
    )
    _store(tuned)
    return tuned


def to_command_line(config: AlsConfig, min_rating: float = core.MIN_RATING) -> str:
    """Write the command that trains with a setting; every number is read back as exactly the same."""
    more = [f"--min-rating {plain_number(min_rating)}"] if min_rating != core.MIN_RATING else []
    return " ".join(["python train_als.py", *hyper_parameters(asdict(config)), *more])


def _run(
    study: optuna.Study, task: RankingTask, start: AlsConfig, n_trials: int, on_trial: Callable[[TrialReport], object]
) -> bool:
    """Run trials and report each; tell whether Ctrl-C ended them."""
    began = time.perf_counter()
    try:
        for n_done in range(1, n_trials + 1):
            trial = _run_trial(study, task, start)
            state, seconds = state_of(trial), time.perf_counter() - began
            config = replace(start, **trial.user_attrs["setting"])
            value = trial.value if state == "complete" else None
            on_trial(TrialReport(trial.number, n_done, n_trials, state, config, value, best_value(study), seconds))
    except KeyboardInterrupt:
        if best_value(study) is None:
            raise
        return True
    return False


def _run_trial(study: optuna.Study, task: RankingTask, start: AlsConfig) -> optuna.trial.FrozenTrial:
    """Ask for a setting, measure it and tell its value."""
    import optuna

    # A sampler of its own for each trial, seeded by what is finished: so a resumed search goes on as if it had never
    # ended, where one sampler would draw its first settings again.
    seed = np.random.SeedSequence([start.random_state, len(finished_trials(study))]).generate_state(1)[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # before optuna 5, of multivariate
        study.sampler = optuna.samplers.TPESampler(n_startup_trials=N_RANDOM_TRIALS, multivariate=True, seed=int(seed))
    setting = {name: getattr(start, name) for name in SETTING}
    if setting not in (trial.user_attrs.get("start") for trial in finished_trials(study)):
        study.enqueue_trial(_to_params(start), user_attrs={"start": setting})
    trial = study.ask()
    try:
        return study.tell(trial, _measure(trial, task, start))
    except optuna.TrialPruned:
        return study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    except BaseException:
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
        raise


def _measure(trial: optuna.Trial, task: RankingTask, start: AlsConfig) -> float:
    """Return the mean over seeds at the best iteration, which is stored as the trial's, with its figures."""
    import optuna

    is_start = "start" in trial.user_attrs
    setting = _suggest(trial, start)
    trial.set_user_attr("setting", setting)

    def on_step(iteration: int, figures: Figures) -> None:
        trial.report(figures[GOAL], iteration)
        if not is_start and trial.should_prune():
            raise optuna.TrialPruned

    try:
        curves = _follow_fits(task, replace(start, **setting), {*STEPS, start.iterations}, on_step)
    except ConfigError as error:
        if is_start:
            raise
        trial.set_user_attr("error", str(error))
        raise optuna.TrialPruned from error
    means = {
        step: {name: float(np.mean([curve[step][name] for curve in curves])) for name in HEADLINES}
        for step in curves[0]
    }
    best = max(means, key=lambda step: means[step][GOAL])
    trial.set_user_attr("setting", {**setting, "iterations": best})
    trial.set_user_attr("means", means[best])
    return means[best][GOAL]


def _follow_fits(
    task: RankingTask, config: AlsConfig, steps: set[int], on_step: Callable[[int, Figures], object]
) -> list[Curve]:
    """Fit with each seed, side by side, and return the figures at ``steps``; ``on_step`` is told those of the first."""

    def follow(config: AlsConfig, tell: Callable[[int, Figures], object]) -> Curve:
        curve: Curve = {}

        def watch(iteration: Iteration) -> None:
            if not np.isfinite(iteration.loss):
                raise ConfigError(f"the factors overflow with {config}; use a smaller alpha")
            if iteration.number in steps:
                factors = weigh_recent(iteration.factors(), task.positives, config)
                values = measure(task, als_scorer(task, factors))
                curve[iteration.number] = {name: float(values[name].mean()) for name in HEADLINES}
                tell(iteration.number, curve[iteration.number])

        learn(task.positives, config, watch)
        return curve

    first, *others = seeds_of(config)
    # On the CPU, where fits can run at the same time and be repeated to the bit.
    with side_by_side(N_SEEDS, replace(config, device="cpu")) as (pool, each):
        followed = [pool.submit(follow, replace(each, random_state=seed), lambda *_: None) for seed in others]
        curve = follow(replace(each, random_state=first), on_step)  # SQLite wants the main thread
        return [curve, *(fit.result() for fit in followed)]


def _suggest(trial: optuna.Trial, start: AlsConfig) -> dict[str, Any]:
    """Let the sampler choose a setting, from ranges that hold the start."""

    def draw(name: str, low: float, high: float, log: bool = True) -> float:
        own = getattr(start, name) or low  # no half-life is not in its range
        drawn = trial.suggest_float(name, min(low, own), max(high, own), log=log)
        return float(f"{drawn:.{SIGNIFICANT_DIGITS}g}")

    drawn = {
        "factors": trial.suggest_int("factors", min(32, start.factors), max(128, start.factors), log=True),
        "regularization": draw("regularization", 0.01, 100),
        "alpha": draw("alpha", 1.5, 60),
        "grading": draw("grading", 0, 0.9, log=False),
        "half_life": draw("half_life", 1, 20) if trial.suggest_categorical("recency", [True, False]) else 0.0,
    }
    asked = trial.user_attrs.get("start", drawn)  # the start is not rounded
    return {**asked, "iterations": max(*STEPS, start.iterations)}


def _to_params(config: AlsConfig) -> dict[str, Any]:
    """Return the draws of ``_suggest`` that stand for a setting."""
    names = ["factors", "regularization", "alpha", "grading", *(["half_life"] if config.half_life else [])]
    return {"recency": config.half_life > 0, **{name: getattr(config, name) for name in names}}


def _name_study(dataset: core.Dataset, start: AlsConfig, min_rating: float) -> str:
    """Name the question, so that only trials that answer the same one are resumed."""
    first, *_, last = seeds_of(start)
    return f"{OBJECTIVE}/{dataset.fingerprint[:16]}/min-rating {plain_number(min_rating)}/seeds {first} to {last}"


def _store(tuned: Tuned) -> None:
    """Write the result, replacing an earlier one at once."""
    text = json.dumps({**asdict(tuned), "stored": str(tuned.stored)}, indent=2)
    partial = tuned.stored.with_name(f"{tuned.stored.name}.partial")
    try:
        partial.write_text(text + "\n", encoding="utf-8")
        partial.replace(tuned.stored)
    except OSError as error:
        raise ArtifactError(
            f"the best setting could not be written to {tuned.stored}: {error}. It is: {tuned.command}"
        ) from error
