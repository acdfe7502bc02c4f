"""The offline half as one run: load, split, fit, evaluate, refit on everything, publish.

``train_als.py ─▶ Training.run ─▶ registry.publish``. It composes the rooms below and tells the screen what it does;
which options there are and what an error means for the exit status is the command line's matter.
"""

from __future__ import annotations

import tempfile
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from app import core, held_out_run, promotion, registry, second_stage, tuning
from app.als import Factors, Iteration, confidence, learn
from app.artifacts import LoadedModel, TrainedModel
from app.console import Screen
from app.datasets.locate import SYNTHETIC, find_local, locate
from app.errors import ArtifactError, ConfigError, NoModelError, UnknownVersionError
from app.evaluation.comparison import HeldOut
from app.history import build_history, widen_rows
from app.machine import describe_machine
from app.model_card import render_model_card
from app.options import Options
from app.promotion import Candidate, Incumbent, Verdict
from app.protocols import RankingTask
from app.report import can_plot, render_report
from app.run import RANKER, Run

STUDY = "tuning.sqlite3"  # of --tune, in the folder of artifacts, unless --study names another


@dataclass(frozen=True)
class Rival:
    """What was active when the run began: its id, None if nobody could say, and what to compare with."""

    active: str | None
    incumbent: Incumbent | None


@dataclass
class Training(Run):
    """One run from ratings to a published version."""

    def run(self) -> dict[str, Any]:
        """Train, evaluate, publish; return what ``--json`` prints."""
        self.require_export_folder()
        rival = self.find_rival()
        dataset = self.load(with_tags=self.options.ranker or bool(rival.incumbent and rival.incumbent.ranker))
        liked = core.positives(dataset.ratings, self.options.min_rating)
        tasks, split = held_out_run.split(self, dataset, liked)
        registry.prepare(self.options.artifacts_dir)  # before the fits, not after them
        fits = held_out_run.fit(self, tasks)
        held_out = held_out_run.train_ranker(self, dataset, tasks, fits) if self.options.ranker else None
        metrics, measured = held_out_run.evaluate(self, dataset, liked, split, tasks, fits, held_out)
        model = self.assemble(dataset, liked, tasks, fits, metrics, held_out)
        verdict = self.judge(dataset, model, measured, rival)
        model = self.document(replace(model, metrics={**model.metrics, "promotion": verdict.to_dict()}))
        published = self.publish(model, verdict, rival)
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

    def find_rival(self) -> Rival:
        """Find what this run's model would take the place of; of what is damaged, what it still says of itself."""
        folder = self.options.artifacts_dir
        active = registry.readable_current(folder)
        for version in dict.fromkeys([active, *registry.earlier(folder), *registry.once_active(folder)]):
            if version is not None:
                with suppress(ArtifactError, UnknownVersionError):
                    incumbent = Incumbent.read(registry.find(folder, version))
                    if version != active or not incumbent.is_intact:
                        self.warn(f"the active version is damaged; compared with what {version} says of itself")
                    return Rival(active, incumbent)
        return Rival(active, None)

    def load(self, *, with_tags: bool) -> core.Dataset:
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
                with_tags=with_tags,
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

    def judge(self, dataset: core.Dataset, model: TrainedModel, measured: HeldOut | None, rival: Rival) -> Verdict:
        """Ask the promotion gate whether the model may take the place of the active version."""
        options = self.options
        self.screen.step("Comparing with the active version")
        candidate = Candidate(
            dataset=dataset.name,
            als=options.config,
            ranker=RANKER if options.ranker else None,
            min_rating=options.min_rating,
            factors=model.factors,
            held_out=measured,
            n_ratings=len(dataset.ratings),
        )
        with self.timed("gate"):
            seed = options.config.random_state
            verdict = promotion.judge(options.promote, candidate, rival.incumbent, dataset, seed)
        active = registry.readable_current(options.artifacts_dir)
        if verdict.activate and not self.may_replace(active, rival):
            verdict = replace(verdict, activate=False, reasons=(_overtaken(active),))
        self.screen.verdict(verdict)
        return verdict

    def search(self) -> tuning.Tuned:
        """Search hyper-parameters on validation (``--tune``) and show what was found; nothing is published."""
        options = self.options
        n_trials = options.tune or 0
        dataset = self.load(with_tags=False)
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

    def publish(self, model: TrainedModel, verdict: Verdict, rival: Rival) -> registry.Published:
        """Publish a version, make it active if it may be, and remove old ones."""
        options, screen = self.options, self.screen
        screen.step("Publishing")
        with self.timed("publish"):
            published = registry.publish(
                options.artifacts_dir,
                model,
                may_activate=lambda active: verdict.activate and self.may_replace(active, rival),
            )
            removed = self.prune()
        for warning in published.warnings:
            screen.warn(warning)
        screen.done(f"Version {published.version} in {published.folder}")
        if removed:
            screen.done(f"Removed {', '.join(removed)} (--keep {options.keep})")
        parts = ", ".join(f"{part.replace('_', ' ')} {seconds:.2f}" for part, seconds in self.seconds.items())
        screen.done(f"{sum(self.seconds.values()):.1f} s in all: {parts}")
        if not published.activated and options.promote != "never":
            overtaken = (_overtaken(registry.readable_current(options.artifacts_dir)),)
            reasons = overtaken if verdict.activate else verdict.reasons
            screen.not_activated(published.version, reasons, verdict.against, options.artifacts_dir)
        return published

    def may_replace(self, active: str | None, rival: Rival) -> bool:
        """Tell whether what is active now is what the verdict is about."""
        return self.options.promote == "always" or active == rival.active

    def prune(self) -> tuple[str, ...]:
        try:
            return registry.prune(self.options.artifacts_dir, self.options.keep)
        except ArtifactError as error:
            self.warn(f"no old version was removed: {error}")
            return ()


def _overtaken(active: str | None) -> str:
    return f"{active or 'another version'} became active while this one was trained"


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


def _describe(trial: tuning.TrialReport) -> str:
    return "trials" if trial.best is None else f"trials, best NDCG@20 {trial.best:.4f}"
