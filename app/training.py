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
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp

from app import core, evaluation, protocols, registry
from app.als import AlsConfig, Factors, fit_als, uses_gpu
from app.artifacts import LoadedModel, TrainedModel, build_history
from app.console import Screen
from app.datasets.locate import SYNTHETIC, check_dataset, find_local, locate
from app.errors import ArtifactError, ConfigError, NoModelError
from app.protocols import Protocol, RankingTask, Stage

Evaluate = Literal["all", "rated", "validation", "none"]
TASKS: dict[Evaluate, tuple[tuple[Protocol, Stage], ...]] = {
    "all": (("rated", "test"), ("positives", "test")),
    "rated": (("rated", "test"),),
    "validation": (("rated", "validation"), ("positives", "validation")),
    "none": (),
}


@dataclass(frozen=True)
class Options:
    """What one training run was asked to do."""

    config: AlsConfig
    preset: str
    data_dir: Path | None
    dataset: str | None
    synthetic_ratings: int
    min_rating: float
    evaluate: Evaluate
    export_run: Path | None
    refit: bool
    artifacts_dir: Path
    movielens_dir: Path | None
    movielens_url: str
    default_data_dir: Path = Path("data_small")

    def __post_init__(self) -> None:
        uses_gpu(self.config.device)
        check_dataset(self.dataset, self.data_dir)
        if not 0.5 <= self.min_rating <= 5:
            raise ConfigError(f"--min-rating is {self.min_rating:g}; expected 0.5 to 5")
        if not self.refit and ("rated", "test") not in TASKS[self.evaluate]:
            raise ConfigError(f"--no-refit keeps the rated test fit, which --evaluate {self.evaluate} does not make")
        if self.export_run and self.evaluate == "none":
            raise ConfigError("--export-run writes the held-out rankings, which --evaluate none does not make")


@dataclass
class Training:
    """One run in progress: options, screen, and the seconds of each part."""

    options: Options
    screen: Screen
    show_progress: bool
    seconds: dict[str, float] = field(default_factory=dict)

    def run(self) -> dict[str, Any]:
        """Train, evaluate, publish; return what ``--json`` prints."""
        self.require_export_folder()
        dataset = self.load()
        liked = core.positives(dataset.ratings, self.options.min_rating)
        tasks, split = self.split(dataset, liked)
        registry.prepare(self.options.artifacts_dir)  # before the fits, not after them
        fits = self.fit(tasks)
        metrics = self.evaluate(split, tasks, fits)
        model = self.assemble(dataset, liked, tasks, fits, metrics)
        published = self.publish(model)
        return {
            "version": published.version,
            "activated": published.activated,
            "path": str(published.folder),
            "dataset": dataset.name,
            "n_ratings": len(dataset.ratings),
            "n_users": len(model.users),
            "n_items": len(model.items),
            "warnings": [*dataset.warnings, *published.warnings],
            "metrics": model.metrics,
            "seconds": {part: round(seconds, 4) for part, seconds in self.seconds.items()},
        }

    def load(self) -> core.Dataset:
        options, screen = self.options, self.screen
        screen.step(1, "Loading data")
        with self.timed("load"):
            source = locate(
                dataset=options.dataset,
                data_dir=options.data_dir,
                movielens_dir=options.movielens_dir,
                default_dir=options.default_data_dir,
                base_url=options.movielens_url,
                progress=self.show_progress,
            )
            dataset = core.load(source, n_ratings=options.synthetic_ratings, random_state=options.config.random_state)
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

    def split(self, dataset: core.Dataset, liked: pd.DataFrame) -> tuple[list[RankingTask], core.Split | None]:
        self.screen.step(2, "Splitting by time, leaving one out")
        wanted = TASKS[self.options.evaluate]
        if not wanted:
            self.screen.skipped("--evaluate none")
            return [], None
        with self.timed("split"):
            split = core.leave_one_out(liked)
            tasks = [protocols.build_task(dataset.ratings, split, *which) for which in wanted]
        train = f"{len(split.train):,} train positives of {len(split.users):,} users, {len(split.items):,} movies"
        self.screen.done(f"{train}; {tasks[0].n_targets:,} {tasks[0].stage} users")
        return tasks, split

    def fit(self, tasks: list[RankingTask]) -> list[Factors]:
        self.screen.step(3, "Training ALS on what the held-out users had rated before")
        if not tasks:
            self.screen.skipped("--evaluate none")
            return []
        with self.timed("fit"):
            fits = [self.fit_one(task.user_items, f"protocol {task.protocol}") for task in tasks]
        self.screen.done(
            f"{len(fits)} fit{'s'[: len(fits) > 1]}, {_describe_config(self.options)}, {self.seconds['fit']:.2f} s"
        )
        return fits

    def fit_one(self, user_items: sp.csr_matrix, label: str) -> Factors:
        config = self.options.config
        with self.screen.progress(label, config.iterations) as advance:
            return fit_als(user_items, config, on_iteration=advance)

    def evaluate(self, split: core.Split | None, tasks: list[RankingTask], fits: list[Factors]) -> dict[str, Any]:
        self.screen.step(4, "Evaluating")
        if split is None:
            self.screen.skipped("--evaluate none")
            return {"stage": "none", "protocols": {}, "intervals": {}, "definitions": evaluation.DEFINITIONS}
        with self.timed("evaluate"):
            results = [self.evaluate_one(task, factors) for task, factors in zip(tasks, fits, strict=True)]
            metrics = evaluation.describe_results(split, results)
        for result in results:
            self.screen.metrics(f"{result.task.protocol}, {result.task.stage}", result.means, result.task.n_targets)
        rated = results[0]
        low, high = rated.intervals["als"]["recall@10"]
        self.screen.done(
            f"ALS Recall@10 {rated.means['als']['recall@10']:.4f} (95 % interval {low:.3f} to {high:.3f}), "
            f"NDCG@10 {rated.means['als']['ndcg@10']:.4f}"
        )
        if self.options.export_run:
            self.screen.done(f"Wrote qrels.txt and run files to {self.options.export_run}")
        return metrics

    def evaluate_one(self, task: RankingTask, factors: Factors) -> evaluation.TaskResult:
        seed = self.options.config.random_state
        scorers = evaluation.scorers(task, factors, seed)
        with self.screen.progress(f"protocol {task.protocol}", len(scorers)) as advance:
            result = evaluation.evaluate(task, scorers, seed, on_model=advance)
        if self.options.export_run and task.protocol == "rated":
            try:
                evaluation.write_trec(self.options.export_run, task, result.runs)
            except OSError as error:
                raise ArtifactError(f"the rankings cannot be written to {self.options.export_run}: {error}") from error
        return replace(result, runs={})  # the lists of all users are large, and written if they were wanted

    def assemble(
        self,
        dataset: core.Dataset,
        liked: pd.DataFrame,
        tasks: list[RankingTask],
        fits: list[Factors],
        metrics: dict[str, Any],
    ) -> TrainedModel:
        """Make the model to serve: fitted on all positives, or with ``--no-refit`` the rated test fit."""
        self.screen.step(5, "Refitting on all data")
        users = core.IdMap.of(dataset.ratings["user_id"])
        if self.options.refit:
            items = core.IdMap.of(liked["movie_id"])
            user_items = core.build_user_items(liked, users, items)
            with self.timed("refit"):
                factors = self.fit_one(user_items, "all positives")
            self.screen.done(f"{user_items.nnz:,} positives of {len(users):,} users, {len(items):,} movies")
            fitted_on = "all positives"
        else:
            items = tasks[0].items
            user_items, factors = _widen(tasks[0], fits[0], users)
            self.screen.skipped("--no-refit keeps the rated test fit")
            fitted_on = "the rated test fit: positives before each user's held-out one"
        movies = dataset.movies[dataset.movies["movie_id"].isin(items.ids)]
        return TrainedModel(
            users=users,
            items=items,
            factors=factors,
            confidence=user_items * self.options.config.alpha,
            history=build_history(dataset.ratings, users, items),
            movies=movies,
            config={
                "model": "ALS",
                "preset": self.options.preset,
                "als": asdict(self.options.config),
                "min_rating": self.options.min_rating,
                "dataset": dataset.name,
                "fitted_on": fitted_on,
            },
            metrics={**metrics, "served_model": f"fitted on {fitted_on}; {_PROVENANCE[bool(tasks)]}"},
            dataset=dataset.name,
            fingerprint=dataset.fingerprint,
        )

    def publish(self, model: TrainedModel) -> registry.Published:
        options, screen = self.options, self.screen
        screen.step(6, "Publishing")
        with self.timed("publish"):
            published = registry.publish(options.artifacts_dir, model)
        for warning in published.warnings:
            screen.warn(warning)
        screen.done(f"Version {published.version} in {published.folder}")
        if not published.activated:
            screen.announce("NOT ACTIVATED", _NOT_ACTIVATED_NOTICE)
        return published

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[part] = time.perf_counter() - start


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


def _widen(task: RankingTask, factors: Factors, users: core.IdMap) -> tuple[sp.csr_matrix, Factors]:
    """Give a held-out fit a row for every user of the ratings; those it did not learn from get an empty one."""
    rows = users.index(task.users.ids)  # rising, like both id maps
    n_positives = np.zeros(len(users), dtype=np.int64)
    n_positives[rows] = np.diff(task.user_items.indptr)
    indptr = np.concatenate([[0], np.cumsum(n_positives)])
    learned = task.user_items
    user_items = sp.csr_matrix((learned.data, learned.indices, indptr), shape=(len(users), len(task.items)))
    user_factors = np.zeros((len(users), factors.user_factors.shape[1]), dtype=np.float32)
    user_factors[rows] = factors.user_factors
    return user_items, Factors(user_factors, factors.item_factors)


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


def _describe_config(options: Options) -> str:
    config = options.config
    return (
        f"{config.factors} factors, regularization {config.regularization:g}, alpha {config.alpha:g}, "
        f"{config.iterations} iterations"
    )
