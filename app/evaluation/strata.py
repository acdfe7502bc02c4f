"""Who a figure is about: users by history and by how soon they came back, held-out movies by popularity.

A mean over all users hides what it is made of. On MovieLens most held-out movies were rated within a minute of the
one before, so a figure is never shown without saying how it divides by that gap.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from app.protocols import RankingTask

MINUTE, HOUR, DAY = 60, 3_600, 86_400
# Upper end in seconds, inclusive, of the time between the held-out rating and the user's rating before it.
GAPS = {"tie": 0, "≤ 1 min": MINUTE, "≤ 1 h": HOUR, "≤ 1 day": DAY, "longer": None}
NO_GAP = "none before"
WITHIN, LATER, NOTHING_BEFORE = "within one session", "later", "nothing rated before"
HISTORIES = ("short", "middle", "long")

DEFINITIONS = {
    "session": "users by whether they had rated anything within the hour before the held-out movie",
    "gap": "users by the time from their rating of any kind before the held-out one to it; tie: another rating has the "
    "same second; after a split at one moment, from the last rating before the moment to the first held-out one",
    "history": "users by how many movies they had rated before, in thirds of about equal size; equal counts stay "
    "together",
    "popularity": "held-out movies by the share of the catalogue that is more popular; over the users who have one",
}


def session_strata(task: RankingTask) -> dict[str, NDArray[np.bool_]]:
    """Return who of the targets, shape (n_targets,), was asked about within a session; empty strata are left out."""
    before = task.gap_seconds >= 0
    within = before & (task.gap_seconds <= HOUR)
    masks = {WITHIN: within, LATER: before & ~within, NOTHING_BEFORE: ~before}
    return {name: mask for name, mask in masks.items() if mask.any()}


def gap_strata(task: RankingTask) -> dict[str, NDArray[np.bool_]]:
    """Return who of the targets belongs to each stratum of the gap; empty ones are left out."""
    ends = [end for end in GAPS.values() if end is not None]
    stratum = np.searchsorted(ends, task.gap_seconds, side="left")
    masks = {name: (stratum == place) & (task.gap_seconds >= 0) for place, name in enumerate(GAPS)}
    return {name: mask for name, mask in {**masks, NO_GAP: task.gap_seconds < 0}.items() if mask.any()}


def history_strata(task: RankingTask) -> dict[str, NDArray[np.bool_]]:
    """Return who of the targets belongs to each third by number of rated movies; empty thirds are left out."""
    bounds = np.quantile(task.n_history, [1 / 3, 2 / 3], method="lower")
    third = np.searchsorted(bounds, task.n_history, side="left")
    return {name: third == place for place, name in enumerate(HISTORIES) if (third == place).any()}
