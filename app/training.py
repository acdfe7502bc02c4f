"""The offline half as one run: load, split, fit, evaluate, refit on everything, publish.

``train_als.py ─▶ Training.run ─▶ registry.publish``. It composes the rooms below and tells the screen what it does;
which options there are and what an error means for the exit status is the command line's matter.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from app import core, evaluation, features, protocols, ranker_metrics, registry, second_stage, tuning
from app.als import Factors, Iteration, confidence, learn, side_by_side
from app.artifacts import LoadedModel, TrainedModel
from app.console import Screen
from app.datasets.locate import SYNTHETIC, find_local, locate
from app.errors import ArtifactError, ConfigError, NoModelError
from app.history import build_history, widen_rows
from app.machine import describe_machine
from app.model_card import render_model_card
from app.options import TASKS, Options
from app.protocols import RankingTask
from app.ranker import RankerConfig
from app.report import can_plot, render_report
from app.wording import DIALS

AnySplit = core.Split | core.TemporalSplit
RANKER = RankerConfig()
STUDY = "tuning.sqlite3"  # of --tune, in the folder of artifacts, unless --study names another


@dataclass
class Training:
    """One run in progress: options, screen, and the seconds of each part."""

    options: Options
    screen: Screen
    show_progress: bool
    seconds: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def run(self) -> dict[str, Any]:
        """Train, evaluate, publish; return what ``--json`` prints."""
        self.require_export_folder()
        dataset = self.load()
        liked = core.positives(dataset.ratings, self.options.min_rating)
        tasks, split = self.split(dataset, liked)
        registry.prepare(self.options.artifacts_dir)  # before the fits, not after them
        fits = self.fit(tasks)
        held_out = self.train_ranker(dataset, tasks, fits) if self.options.ranker else None
        metrics = self.evaluate(dataset, liked, split, tasks, fits, held_out)
        model = self.document(self.assemble(dataset, liked, tasks, fits, metrics, held_out))
        published = self.publish(model)
        return {
            "version": published.version,
            "activated": published.activated,
            "path": str(published.folder),
            "dataset": dataset.name,
            "n_ratings": len(dataset.ratings),
            "n_users": len(model.users),
            "n_items": len(model.items),
            "warnings": [*self.warnings, *dataset.warnings, *published.warnings],
            "metrics": model.metrics,
            "seconds": {part: round(seconds, 4) for part, seconds in self.seconds.items()},
        }

    def load(self) -> core.Dataset:
        options, screen = self.options, self.screen
        screen.step("Loading data")
        with self.timed("load"):
            source = locate(
                dataset=options.dataset,
                data_dir=options.data_dir,
                movielens_dir=options.movielens_dir,
                default_dir=options.default_data_dir,
                base_url=options.movielens_url,
                progress=self.show_progress,
            )
            dataset = core.load(
                source,
                n_ratings=options.synthetic_ratings,
                random_state=options.config.random_state,
                with_tags=options.ranker,
            )
        if dataset.is_synthetic:
            screen.announce("SYNTHETIC DATA", _SYNTHETIC_NOTICE)
        for warning in dataset.warnings:
            screen.warn(warning)
        screen.done(f"Loaded {len(dataset.ratings):,} ratings, {len(dataset.movies):,} movies ({dataset.name})")
        return dataset

    def require_export_folder(self) -> None:
        if self.options.export_run:
            try:
                self.options.export_run.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=self.options.export_run):
                    pass
            except OSError as error:
                raise ConfigError(f"--export-run names no folder that can be written: {error}") from error

    def split(self, dataset: core.Dataset, liked: pd.DataFrame) -> tuple[list[RankingTask], AnySplit | None]:
        options = self.options
        by_time = options.split == "temporal"
        self.screen.step("Splitting at one moment" if by_time else "Splitting by time, leaving one out")
        if options.evaluate == "none":
            self.screen.skipped("--evaluate none")
            return [], None
        split: AnySplit
        with self.timed("split"):
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
        self.screen.done(f"{train}; {tasks[0].n_targets:,} {tasks[0].stage} users")
        return tasks, split

    def fit(self, tasks: list[RankingTask]) -> list[Factors]:
        """Fit for each task; tasks with the same positives share a fit."""
        self.screen.step("Training ALS on what the held-out users had rated before")
        if not tasks:
            self.screen.skipped("--evaluate none")
            return []
        config = self.options.config
        different = {id(task.positives): task.positives for task in tasks}
        n_iterations = len(different) * config.iterations
        with (
            self.timed("fit"),
            self.screen.progress("held-out fits", n_iterations) as advance,
            side_by_side(len(different), config) as (pool, each),
        ):
            learned = pool.map(lambda positives: learn(positives, each, lambda _: advance()), different.values())
            fits = dict(zip(different, learned, strict=True))
        self.screen.done(
            f"{len(fits)} fit{'s'[: len(fits) > 1]}, {_describe_config(self.options)}, {self.seconds['fit']:.2f} s"
        )
        return [fits[id(task.positives)] for task in tasks]

    def train_ranker(
        self, dataset: core.Dataset, tasks: list[RankingTask], fits: list[Factors]
    ) -> second_stage.HeldOutRanker | None:
        """Train the second stage for the first task: the only protocol of its split that knows when somebody asks."""
        self.screen.step("Training the ranker on earlier requests")
        if not tasks:
            self.screen.skipped("--evaluate none")
            return None
        learner = self.learner(dataset, tasks[0].users, tasks[0].items)
        with self.timed("ranker"), self.screen.progress("stages", RANKER.n_stages + 1) as advance:
            held_out = second_stage.train_held_out(learner, tasks[0], fits[0], RANKER, advance)
        n_rows = sum(len(stage.labels) for stage in held_out.stages)
        self.screen.done(
            f"{n_rows:,} candidates in {len(held_out.stages)} stages, {len(features.FEATURES)} features, "
            f"{self.seconds['ranker']:.1f} s"
        )
        return held_out

    def learner(self, dataset: core.Dataset, users: core.IdMap, items: core.IdMap) -> second_stage.Learner:
        return second_stage.Learner(dataset, users, items, self.options.config, self.options.min_rating)

    def evaluate(
        self,
        dataset: core.Dataset,
        liked: pd.DataFrame,
        split: AnySplit | None,
        tasks: list[RankingTask],
        fits: list[Factors],
        held_out: second_stage.HeldOutRanker | None,
    ) -> dict[str, Any]:
        self.screen.step("Evaluating beside the baselines")
        if split is None:
            self.screen.skipped("--evaluate none")
            return {"stage": "none", "protocols": {}, "intervals": {}}
        results = []
        for task, factors in zip(tasks, fits, strict=True):
            scorers = {evaluation.MODEL: evaluation.als_scorer(task, factors)}
            if held_out and task is held_out.task:
                scorers[evaluation.RANKER] = second_stage.ranker_scorer(held_out)
            scorers |= self.make_baselines(task)
            results.append(self.evaluate_one(dataset, task, scorers))
            self.screen.result(results[-1])
        metrics = evaluation.describe_results(split, results)
        if held_out:
            metrics["second_stage"] = self.describe_ranker(dataset, held_out)
            metrics["definitions"] |= ranker_metrics.METRIC_DEFINITIONS
        if self.options.evaluate == "all" and self.options.split == "leave-one-out":
            metrics["cold_start"] = self.measure_cold_start(liked)
        if self.options.export_run:
            self.screen.done(f"Wrote qrels.txt and run files to {self.options.export_run}")
        return metrics

    def describe_ranker(self, dataset: core.Dataset, held_out: second_stage.HeldOutRanker) -> dict[str, Any]:
        seed = self.options.config.random_state
        catalogue = evaluation.describe_catalogue(held_out.task, dataset.movies)
        n_parts = len(features.FEATURES) + len(DIALS) * len(ranker_metrics.STEPS)
        with self.timed("importance_and_dials"), self.screen.progress("importance and dials", n_parts) as advance:
            described = ranker_metrics.describe_ranker(held_out, RANKER, seed, advance)
            described["dials"] = ranker_metrics.measure_dials(held_out, catalogue, seed, advance)
        self.screen.ranker(described)
        return described

    def make_baselines(self, task: RankingTask) -> dict[str, evaluation.Scorer]:
        """Fit the baselines; to users without positives all that learn give the popular order: these are left out."""
        learns_nothing = task.protocol == "temporal_new_users"
        wanted = [name for name in self.options.baselines if not learns_nothing or name in ("popular", "random")]
        scorers = {}
        with self.timed("baselines"), self.screen.progress("baselines", len(wanted)) as advance:
            for baseline in wanted:
                if reason := evaluation.why_skipped(baseline, task):
                    self.warn(f"protocol {task.protocol}: baseline skipped: {reason}")
                else:
                    scorers[baseline] = evaluation.BASELINES[baseline](task, self.options.config.random_state)
                advance()
        return scorers

    def evaluate_one(
        self, dataset: core.Dataset, task: RankingTask, scorers: dict[str, evaluation.Scorer]
    ) -> evaluation.TaskResult:
        with self.timed("evaluate"), self.screen.progress(f"protocol {task.protocol}", len(scorers)) as advance:
            catalogue = evaluation.describe_catalogue(task, dataset.movies)
            result = evaluation.evaluate(task, scorers, catalogue, self.options.config.random_state, advance)
        if self.options.export_run and task.protocol in ("rated", "temporal"):
            try:
                evaluation.write_trec(self.options.export_run, task, result.lists)
            except OSError as error:
                raise ArtifactError(f"the rankings cannot be written to {self.options.export_run}: {error}") from error
        return replace(result, lists={})  # the lists of all users are large, and written if they were wanted

    def measure_cold_start(self, liked: pd.DataFrame) -> dict[str, Any]:
        with self.timed("cold_start"), self.screen.progress("cold start", evaluation.N_FOLDS) as advance:
            measured = evaluation.measure_cold_start(liked, self.options.config, self.options.min_rating, advance)
        self.screen.cold_start(measured)
        return measured

    def assemble(
        self,
        dataset: core.Dataset,
        liked: pd.DataFrame,
        tasks: list[RankingTask],
        fits: list[Factors],
        metrics: dict[str, Any],
        held_out: second_stage.HeldOutRanker | None,
    ) -> TrainedModel:
        """Make the model to serve: fitted on all positives, or with ``--no-refit`` the rated test fit."""
        self.screen.step("Refitting on all data")
        options = self.options
        users = core.IdMap.of(dataset.ratings["user_id"])
        losses: list[float] = []
        if options.refit:
            items = core.IdMap.of(liked["movie_id"])
            positives = core.build_positives(liked, users, items, options.min_rating)
            history = build_history(dataset.ratings, users, items)
            with self.timed("refit"), self.screen.progress("all positives", options.config.iterations) as advance:

                def on_iteration(iteration: Iteration) -> None:
                    losses.append(iteration.loss)
                    advance()

                factors = learn(positives, options.config, on_iteration)
            self.screen.done(f"{positives.user_items.nnz:,} positives of {len(users):,} users, {len(items):,} movies")
            fitted_on = "all positives"
        else:
            items = tasks[0].items
            positives, factors = _widen(tasks[0], fits[0], users)
            history = widen_rows(tasks[0].history, users.index(tasks[0].users.ids), len(users))
            self.screen.skipped("--no-refit keeps the rated test fit")
            fitted_on = "the rated test fit: positives before each user's held-out one"
        ranker = None
        if options.ranker:
            with self.timed("refit_ranker"):
                learner = self.learner(dataset, users, items)
                ranker = second_stage.served_ranker(
                    learner, history, factors, positives, RANKER, held_out, options.refit
                )
        movies = dataset.movies[dataset.movies["movie_id"].isin(items.ids)]
        return TrainedModel(
            users=users,
            items=items,
            factors=factors,
            confidence=positives.with_values(confidence(positives, options.config)),
            history=build_history(dataset.ratings, users, items),
            movies=movies,
            config={
                "model": "ALS",
                "preset": options.preset,
                "als": asdict(options.config),
                "min_rating": options.min_rating,
                "dataset": dataset.name,
                "n_ratings": len(dataset.ratings),
                "fitted_on": fitted_on,
                "machine": describe_machine(options.config.num_threads),
                **({"ranker": asdict(RANKER)} if ranker else {}),
            },
            metrics={
                **metrics,
                "convergence": {"loss": losses},
                "served_model": f"fitted on {fitted_on}; {_PROVENANCE[bool(tasks)]}",
            },
            dataset=dataset.name,
            fingerprint=dataset.fingerprint,
            ranker=ranker,
        )

    def search(self) -> tuning.Tuned:
        """Search hyper-parameters on validation (``--tune``) and show what was found; nothing is published."""
        options = self.options
        n_trials = options.tune or 0
        dataset = self.load()
        self.screen.step(f"Searching hyper-parameters on validation, {n_trials} trials")
        storage = options.study or options.artifacts_dir / STUDY
        with self.screen.progress("trials", n_trials) as advance:
            tuned = tuning.tune(
                dataset, options.config, n_trials, options.min_rating, storage, lambda trial: advance(_describe(trial))
            )
        self.screen.tuned(tuned)
        return tuned

    def document(self, model: TrainedModel) -> TrainedModel:
        """Add the model card, and the report if it is wanted and can be drawn."""
        documents = {}
        with self.timed("report"):
            if self.options.report and not can_plot():
                self.warn("no report: matplotlib is not installed; pip install -r requirements.txt, or use --no-report")
            elif self.options.report:
                try:
                    documents["report/index.html"] = render_report(model)
                except Exception as error:  # whatever a broken matplotlib raises: pictures must not cost the model
                    self.warn(f"no report: it could not be drawn ({type(error).__name__}: {error})")
            documents["MODEL_CARD.md"] = render_model_card(model, has_report="report/index.html" in documents)
        return replace(model, documents=documents)

    def warn(self, text: str) -> None:
        self.warnings.append(text)
        self.screen.warn(text)

    def publish(self, model: TrainedModel) -> registry.Published:
        options, screen = self.options, self.screen
        screen.step("Publishing")
        with self.timed("publish"):
            published = registry.publish(options.artifacts_dir, model)
        for warning in published.warnings:
            screen.warn(warning)
        screen.done(f"Version {published.version} in {published.folder}")
        parts = ", ".join(f"{part.replace('_', ' ')} {seconds:.2f}" for part, seconds in self.seconds.items())
        screen.done(f"{sum(self.seconds.values()):.1f} s in all: {parts}")
        if not published.activated:
            screen.announce("NOT ACTIVATED", _NOT_ACTIVATED_NOTICE)
        return published

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start


def find_up_to_date(options: Options, screen: Screen) -> LoadedModel | None:
    """Return the active model if ``--if-needed`` has nothing to do, else None.

    A new one is needed where none is active, where it is damaged or not of the data set that is insisted on, and where
    it is synthetic although real data is on this machine by now. A folder that was named must hold ratings in any case.
    """
    found = options.dataset != SYNTHETIC and find_local(
        data_dir=options.data_dir, movielens_dir=options.movielens_dir, default_dir=options.default_data_dir
    )
    try:
        model = registry.load_current(options.artifacts_dir)
    except NoModelError:
        return None
    except ArtifactError as error:
        screen.warn(str(error))
        return None
    dataset = model.manifest["dataset"]
    if options.dataset is not None:
        return model if dataset == options.dataset else None
    return None if dataset == SYNTHETIC and found else model


def _widen(task: RankingTask, factors: Factors, users: core.IdMap) -> tuple[core.Positives, Factors]:
    """Give a held-out fit a row for every user of the ratings; those it did not learn from get an empty one."""
    rows = users.index(task.users.ids)  # rising, like both id maps
    n_positives = np.zeros(len(users), dtype=np.int64)
    n_positives[rows] = np.diff(task.user_items.indptr)
    indptr = np.concatenate([[0], np.cumsum(n_positives)])
    learned = task.user_items
    user_items = sp.csr_matrix((learned.data, learned.indices, indptr), shape=(len(users), len(task.items)))
    user_factors = np.zeros((len(users), factors.user_factors.shape[1]), dtype=np.float32)
    user_factors[rows] = factors.user_factors
    return replace(task.positives, user_items=user_items), Factors(user_factors, factors.item_factors)


_PROVENANCE = {True: "the metrics are those of the held-out fits", False: "not evaluated"}
_SYNTHETIC_NOTICE = (
    "These ratings are generated, because that was asked for, or because MovieLens is neither on this machine nor "
    "could be downloaded. Everything works, but no recommendation means anything. For real ones, unpack "
    "ml-latest-small.zip from https://grouplens.org/datasets/movielens/ and run: python train_als.py --data-dir FOLDER"
)
_NOT_ACTIVATED_NOTICE = (
    "A version trained on real data has been active here, and a synthetic one does not replace it; it stands beside "
    "it. If no version is active now, train on real data, or write the real version's name into CURRENT. To try the "
    "synthetic model, train into another folder: python train_als.py --dataset synthetic --artifacts-dir FOLDER"
)


def _describe(trial: tuning.TrialReport) -> str:
    return "trials" if trial.best is None else f"trials, best NDCG@20 {trial.best:.4f}"


def _describe_config(options: Options) -> str:
    config = options.config
    recency = f", half-life {config.half_life:g}" if config.half_life else ""
    return (
        f"{config.factors} factors, regularization {config.regularization:g}, alpha {config.alpha:g}, "
        f"{config.iterations} iterations, grading {config.grading:g}{recency}"
    )
