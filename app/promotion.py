"""The promotion gate: whether a newly trained model may take the place of the active one.

``training ─▶ judge ─▶ Verdict ─▶ metrics.json, registry.publish``. The candidate's held-out run is compared with the
active version's *configuration*, fitted anew on the same held-out split: the served factors have seen the targets, so
their figures would be too good. What is known to be broken is refused without any comparison.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from app import second_stage
from app.als import AlsConfig, Factors, learn
from app.artifacts import read_manifest, verify_version
from app.core import Dataset
from app.datasets.locate import SYNTHETIC
from app.errors import ArtifactError, ConfigError
from app.evaluation import MODEL, RANKER, als_scorer
from app.evaluation.comparison import COVERAGE, DEFINITION, TOP, Comparison, HeldOut, compare
from app.evaluation.lists import rank
from app.protocols import RankingTask
from app.ranker import RankerConfig
from app.ranking import top_k
from app.verification import damaged, read_json

Promote = Literal["always", "auto", "never"]
N_SAMPLE = 100  # of the lists that must not all be the same
FEW = 10  # users, or movies: fewer may well be all alike
COLLAPSED = 0.5  # of the active version's coverage, and of its ratings


@dataclass(frozen=True)
class Incumbent:
    """What the active version is, as far as a successor must know: how it was made, and what it said of itself.

    ``ranker`` is None where it has no second stage. ``is_intact`` tells whether a service could load it: of one that is
    damaged only what it says of itself is used, so that no other takes its place unseen.
    """

    version: str
    dataset: str
    als: AlsConfig
    ranker: RankerConfig | None
    min_rating: float
    metrics: Mapping[str, Any]
    n_ratings: int | None = None
    is_intact: bool = True

    @classmethod
    def read(cls, folder: Path) -> Incumbent:
        """Read what a version says of itself, whether its arrays are damaged or not.

        Raises
        ------
        ArtifactError
            If that cannot be read.
        """
        manifest, config, metrics = (
            read_manifest(folder),
            read_json(folder / "config.json"),
            read_json(folder / "metrics.json"),
        )
        try:
            ranker = None
            if "ranker" in config:
                ranker = RankerConfig.of(config["ranker"])
            als, min_rating, n_ratings = AlsConfig.of(config["als"]), float(config["min_rating"]), config["n_ratings"]
        except (ArithmeticError, ConfigError, KeyError, TypeError, ValueError) as error:
            raise damaged(folder / "config.json", repr(error), "the settings of a model") from error
        return cls(folder.name, manifest["dataset"], als, ranker, min_rating, metrics, n_ratings, _is_intact(folder))

    def same_configuration(self, als: AlsConfig, ranker: RankerConfig | None) -> bool:
        """Tell whether a fit would have the same result: neither threads nor device are part of what is learned."""
        return ranker == self.ranker and replace(als, num_threads=0, device="cpu") == replace(
            self.als, num_threads=0, device="cpu"
        )


def _is_intact(folder: Path) -> bool:
    try:
        verify_version(folder)
    except ArtifactError:
        return False
    return True


@dataclass(frozen=True)
class Candidate:
    """What the gate looks at: the model to be served, and how it would have done before its last ratings.

    Parameters
    ----------
    factors : Factors
        Those that would be served.
    held_out : HeldOut, optional
        None if it was not evaluated.
    """

    dataset: str
    als: AlsConfig
    ranker: RankerConfig | None
    min_rating: float
    factors: Factors
    held_out: HeldOut | None = None
    n_ratings: int | None = None


@dataclass(frozen=True)
class Verdict:
    """What the gate decided: ``reasons`` are sentences, ``against`` is the version that was active then."""

    promote: Promote
    activate: bool
    reasons: tuple[str, ...]
    against: str | None = None
    comparisons: tuple[Comparison, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return what ``metrics.json`` holds."""
        listed = [{**asdict(of), "is_worse": of.is_worse} for of in self.comparisons]
        return {**asdict(self), "reasons": list(self.reasons), "comparisons": listed, "definition": DEFINITION}


def judge(
    promote: Promote, candidate: Candidate, incumbent: Incumbent | None, dataset: Dataset, random_state: int
) -> Verdict:
    """Decide whether a candidate may become active.

    ``auto`` refuses one that is broken, is of other data than the active version, was not evaluated, or is
    significantly worse on any of the comparisons. ``always`` and ``never`` decide by themselves; ``never`` compares all
    the same, so that somebody can decide by hand.

    Parameters
    ----------
    dataset : Dataset
        What the active configuration is fitted on, as far as the candidate's task allows it.
    random_state : int
        Seed of the permutations.
    """
    against = incumbent.version if incumbent else None
    faults = find_faults(candidate.factors)
    if promote == "always":
        return Verdict(promote, True, ("--promote always was asked for", *faults), against)
    comparisons: tuple[Comparison, ...] = ()
    refusals: list[str] = []
    passed = "no version was active"
    if incumbent:
        comparisons, refusals, passed = _set_against(candidate, incumbent, dataset, random_state)
    reasons = (*faults, *refusals) or (passed,)
    if promote == "never":
        return Verdict(promote, False, ("--promote never was asked for", *reasons), against, comparisons)
    return Verdict(promote, not (faults or refusals), reasons, against, comparisons)


def _set_against(
    candidate: Candidate, incumbent: Incumbent, dataset: Dataset, random_state: int
) -> tuple[tuple[Comparison, ...], list[str], str]:
    """Return the comparisons, why the candidate is refused, and what is to be said where it is not."""
    version = incumbent.version
    if reason := _why_not_comparable(candidate, incumbent):
        return (), [reason], ""
    if incumbent.dataset == SYNTHETIC != candidate.dataset:
        return (), [], f"ratings of {candidate.dataset} take the place of synthetic ones"
    if candidate.held_out is None:
        return (), [], f"the active version {version} is damaged, and was trained on {incumbent.dataset}, too"
    refusals = _find_loss(candidate, incumbent)
    if incumbent.same_configuration(candidate.als, candidate.ranker):
        refusals += _find_collapse(candidate.held_out, incumbent, None)
        return (), refusals, f"it has the configuration of {version}, so there is nothing to compare"
    try:
        refitted = refit(incumbent, candidate.als, dataset, candidate.held_out.task)
    except Exception as error:  # too few ratings for its ranker, no LightGBM: this must not cost the new model
        refusals.append(
            f"the configuration of {version} could not be fitted on the same split, so there is nothing to compare "
            f"with ({type(error).__name__}: {error})"
        )
        return (), [*refusals, *_find_collapse(candidate.held_out, incumbent, None)], ""
    comparisons = compare(candidate.held_out, refitted, random_state)
    refusals += _find_collapse(candidate.held_out, incumbent, refitted.coverage)
    refusals += _describe_worse(comparisons, incumbent)
    return comparisons, refusals, f"it is not significantly worse than the configuration of {version}"


def _why_not_comparable(candidate: Candidate, incumbent: Incumbent) -> str | None:
    active = f"the active version {incumbent.version}"
    if candidate.dataset != incumbent.dataset != SYNTHETIC:
        return f"it was trained on {candidate.dataset}, and {active} on {incumbent.dataset}"
    if candidate.held_out is None:  # what nobody can serve is no rival
        return f"it was not evaluated, so it cannot be compared with {active}" if incumbent.is_intact else None
    if candidate.min_rating != incumbent.min_rating and candidate.dataset == incumbent.dataset:
        return (
            f"its positives are ratings of {candidate.min_rating:g} or more, and those of {active} "
            f"{incumbent.min_rating:g} or more, so their figures cannot be compared"
        )
    return None


def _find_loss(candidate: Candidate, incumbent: Incumbent) -> list[str]:
    """Notice that the data was cut short: with the same settings nothing else would."""
    now, before = candidate.n_ratings, incumbent.n_ratings
    if now is None or before is None or now >= COLLAPSED * before:
        return []
    return [f"it was trained on {now:,} ratings, less than half of the {before:,} of {incumbent.version}"]


def _describe_worse(comparisons: Sequence[Comparison], incumbent: Incumbent) -> list[str]:
    return [
        f"{of.metric} of {of.users} ({of.n_users:,}) is significantly worse: {of.candidate:.4f}, and {of.active:.4f} "
        f"with the configuration of {incumbent.version}; difference {of.difference:+.4f}, p {of.p_holm:.2g} "
        "(Holm-corrected)"
        for of in comparisons
        if of.is_worse
    ]


def refit(incumbent: Incumbent, resources: AlsConfig, dataset: Dataset, task: RankingTask) -> HeldOut:
    """Fit the active version's configuration, its seed included, to what a task lets models learn.

    Parameters
    ----------
    resources : AlsConfig
        Threads and device to fit with.
    """
    als = replace(incumbent.als, num_threads=resources.num_threads, device=resources.device)
    factors = learn(task.positives, als)
    scorer = als_scorer(task, factors)
    if incumbent.ranker:
        learner = second_stage.Learner(dataset, task.users, task.items, als, incumbent.min_rating)
        scorer = second_stage.ranker_scorer(second_stage.train_held_out(learner, task, factors, incumbent.ranker))
    return HeldOut(task, rank(task.seen, scorer, depth=TOP))


def find_faults(factors: Factors) -> tuple[str, ...]:
    """Return what is broken about factors, whatever their figures: sentences, none if nothing is."""
    faults = []
    for name, array in vars(factors).items():
        if not np.isfinite(array).all():
            return (f"{name} hold NaN or infinity",)
        rows = array[array.any(axis=1)]  # users without positives have the factor 0
        if _is_constant(rows):
            faults.append(f"{name} are all the same")
    lists = sample_lists(factors)
    if not faults and len(lists) >= FEW and lists.shape[1] == TOP and (lists == lists[0]).all():
        faults.append(f"the first {TOP} movies of {len(lists)} users are all the same")
    return tuple(faults)


def _is_constant(rows: NDArray[np.float32]) -> bool:
    """Tell whether all rows are the same, or, of few that may well be, all values; or there is no row."""
    first = rows[:1] if len(rows) >= FEW else rows[:1, :1]
    return rows.size != 1 and bool((rows == first).all())


def sample_lists(factors: Factors) -> NDArray[np.integer[Any]]:
    """Return the first movies of a fixed sample of users with positives, nothing removed, (n_sample, ≤ TOP)."""
    n_items = len(factors.item_factors)
    known = np.flatnonzero(factors.user_factors.any(axis=1))
    sample = known[np.unique(np.linspace(0, len(known) - 1, min(N_SAMPLE, len(known))).astype(np.int64))]
    with np.errstate(over="ignore"):  # scores beyond float32 are infinite, and all alike
        scores = (factors.user_factors[sample].astype(np.float64) @ factors.item_factors.T).astype(np.float32)
    return top_k(scores, min(TOP, n_items))


def _find_collapse(held_out: HeldOut, incumbent: Incumbent, refitted: float | None) -> list[str]:
    """Compare coverage with what the active configuration has on this split, and with what its version stated."""
    found = held_out.coverage
    stated = _stated_coverage(incumbent, held_out.task)
    return [
        f"its lists show {found:.2%} of the catalogue, less than half of the {other:.2%} {whose}"
        for other, whose in (
            (refitted, f"of the configuration of {incumbent.version} on the same split"),
            (stated, f"that {incumbent.version} states of its own held-out run"),
        )
        if other is not None and found < COLLAPSED * other
    ]


def _stated_coverage(incumbent: Incumbent, task: RankingTask) -> float | None:
    if incumbent.metrics.get("stage") != task.stage:
        return None
    of_models = incumbent.metrics.get("protocols", {}).get(task.protocol, {})
    means = of_models.get(RANKER if incumbent.ranker else MODEL, {})
    found = means.get(COVERAGE)
    return float(found) if found is not None else None
