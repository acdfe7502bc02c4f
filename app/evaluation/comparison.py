"""Is one model worse than another? Two models' lists for the same users, set against each other.

``HeldOut × 2 ─▶ compare ─▶ Comparison ─▶ promotion``. Whether that decides anything is not this module's matter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.evaluation.lists import find_hits
from app.evaluation.metrics import catalogue_metrics, ranking_metrics
from app.evaluation.strata import history_strata
from app.protocols import RankingTask

TOP = 10  # of the lists that are compared
METRICS = (f"ndcg@{TOP}", f"recall@{TOP}")
COVERAGE = f"coverage@{TOP}"
LEVEL = 0.05  # of all comparisons together
ALL_USERS = "all users"
N_RESAMPLES = 9_999
MANY = 5_000  # changed users, above which the mean is as good as normal
_SIGNS_AT_ONCE = 1 << 22
_ROUNDING = 1e-10  # of the sum of all changes: sums of equal ones differ by less

DEFINITION = (
    "The candidate's held-out run beside the active version's configuration fitted anew on the same split, paired over "
    f"users: one-sided sign-flip permutation test of the mean difference ({N_RESAMPLES:,} resamples, or all if there "
    f"are fewer; its normal limit for more than {MANY:,} changed users), Holm-corrected over all comparisons; refused "
    f"where a corrected p is below {LEVEL}."
)


@dataclass(frozen=True)
class HeldOut:
    """A task, and the lists of a model that knows no more than the task allows.

    ``lists`` of shape (n_targets, depth), int32, hold item indices, best first, −1 where none was left.
    """

    task: RankingTask
    lists: NDArray[np.int32]

    @property
    def coverage(self) -> float:
        """Return the share of the catalogue among the first 10 of all lists."""
        return catalogue_metrics(self.lists, len(self.task.items), (TOP,))[COVERAGE]

    def measure(self) -> dict[str, NDArray[np.float64]]:
        """Measure each user's list."""
        hits = find_hits(self.lists, self.task.relevant)
        return ranking_metrics(hits, np.diff(self.task.relevant.indptr), (TOP,))


@dataclass(frozen=True)
class Comparison:
    """One metric of the candidate less that of the active configuration, over the same users.

    ``p_value`` is the probability of a difference at least as bad if the two were alike; ``p_holm`` is that, corrected
    for all comparisons of the gate.
    """

    metric: str
    users: str
    n_users: int
    candidate: float
    active: float
    difference: float
    p_value: float
    p_holm: float

    @property
    def is_worse(self) -> bool:
        """Whether the candidate is significantly worse."""
        return self.p_holm < LEVEL


def compare(candidate: HeldOut, active: HeldOut, random_state: int) -> tuple[Comparison, ...]:
    """Compare two models on the same task, for all users and for those with short, middle and long histories.

    H₀ is that the candidate is not worse; its alternative, that the mean difference is below 0. Users for whom a metric
    is undefined are left out of it.

    References
    ----------
    Smucker, Allan, Carterette, "A Comparison of Statistical Significance Tests for Information Retrieval Evaluation"
    (CIKM 2007); Holm, "A Simple Sequentially Rejective Multiple Test Procedure" (Scand. J. Statistics, 1979).
    """
    groups = {ALL_USERS: np.ones(candidate.task.n_targets, dtype=np.bool_)}
    groups |= {f"users with {name} histories": mask for name, mask in history_strata(candidate.task).items()}
    values = candidate.measure(), active.measure()
    found = []
    for metric in METRICS:
        of_candidate, of_active = (of[metric] for of in values)
        difference = of_candidate - of_active
        for users, mask in groups.items():
            asked = mask & ~np.isnan(difference)
            if asked.any():
                p = p_worse(difference[asked], random_state)
                found.append((metric, users, int(asked.sum()), of_candidate[asked].mean(), of_active[asked].mean(), p))
    corrected = holm([p for *_, p in found])
    return tuple(
        Comparison(metric, users, n, float(one), float(other), float(one - other), p, p_holm)
        for (metric, users, n, one, other, p), p_holm in zip(found, corrected, strict=True)
    )


def p_worse(differences: NDArray[np.float64], random_state: int) -> float:
    """Return the one-sided p of a mean difference below 0, by flipping signs; 1 where nothing differs.

    p = P(Σ_u s_u d_u ≤ Σ_u d_u) over independent signs s_u = ±1: all of them, or ``N_RESAMPLES`` and the observed ones.
    Users whose figures are the same change no sum, whatever their sign, and are left out.
    """
    changed = differences[differences != 0]
    n, total = len(changed), float(changed.sum())
    if n == 0:
        return 1.0
    if n > MANY:
        return 0.5 * math.erfc(-total / math.sqrt(2 * float(np.square(changed).sum())))
    as_bad = total + _ROUNDING * np.abs(changed).sum()

    def count(flipped: NDArray[np.integer[Any]]) -> int:
        return int(np.count_nonzero(total - 2 * (flipped @ changed) <= as_bad))

    if (n_all := 1 << n) <= N_RESAMPLES:
        return count(np.arange(n_all)[:, None] >> np.arange(n) & 1) / n_all
    rng = np.random.default_rng(random_state)
    blocks = np.array_split(np.arange(N_RESAMPLES), N_RESAMPLES * n // _SIGNS_AT_ONCE + 1)
    n_as_bad = sum(count(rng.integers(2, size=(len(block), n), dtype=np.int8)) for block in blocks)
    return (n_as_bad + 1) / (N_RESAMPLES + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p-values: max over those up to each of (m − rank)·p, rank from 0, at most 1."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1.0)
    return [float(value) for value in adjusted]
