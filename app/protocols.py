"""The evaluation protocols: what a model may learn from, what it must rank, and what is the right answer.

``core.Split ─▶ RankingTask ─▶ evaluation``. A task is data only; nothing here scores. Catalogue and targets are the
same in both protocols, so that their figures differ only by what the model knew.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray

from app.core import (
    MIN_RATING,
    UNKNOWN,
    IdMap,
    Positives,
    Split,
    Stage,
    TemporalSplit,
    build_positives,
    build_user_items,
)
from app.errors import DataError
from app.history import UserRows, build_history

Protocol = Literal["rated", "positives", "temporal", "temporal_new_users"]
LeaveOneOut = Literal["rated", "positives"]
LEAVE_ONE_OUT: tuple[LeaveOneOut, ...] = ("rated", "positives")

NEVER = np.iinfo(np.int64).max  # later than every rating: the target time of users who are not asked about


@dataclass(frozen=True)
class Requests:
    """Who asks when, knowing what, and which movies would have been right: what a second stage learns from.

    Parameters
    ----------
    history : UserRows
        What may be known of every user, n_users rows.
    users : ndarray of shape (n_requests,), int64
        Who asks, as rows of ``history``; each at most once.
    moments : ndarray of shape (n_requests,), int64
        When, in seconds since 1970; everything in the user's row of ``history`` is strictly older, save under the
        protocol ``positives``, which knows the train positives whatever their time.
    relevant : csr_matrix of shape (n_requests, n_items), float32
        Non-zero at the movies to be found.
    known_until : ndarray of shape (n_users + 1,), int64
        From which moment on nothing of a user is known, tags included; the last is for users without a row. ``NEVER``
        where there is no such moment.
    """

    history: UserRows
    users: NDArray[np.int64]
    moments: NDArray[np.int64]
    relevant: sp.csr_matrix
    known_until: NDArray[np.int64]


@dataclass(frozen=True)
class RankingTask:
    """One question put to every model: rank the catalogue for each target user.

    Parameters
    ----------
    protocol, stage : str
        Which question this is; ``validation`` or ``test``.
    users, items : IdMap
        Users of the split; the train catalogue, which is what is ranked.
    positives : Positives
        What models, counts and features may learn from, (n_users, n_items).
    target_users : ndarray of shape (n_targets,), int64
        Who is asked about, as rows of ``positives``.
    relevant : csr_matrix of shape (n_targets, n_items), float32
        Non-zero at the held-out movies of each target user, of which there is at least one.
    seen : csr_matrix of shape (n_targets, n_items), float32
        Non-zero where a movie is removed from the target user's ranking.
    n_history : ndarray of shape (n_targets,), int64
        How many movies the user had rated, in or outside the catalogue, before the held-out one, or the moment.
    gap_seconds : ndarray of shape (n_targets,), int64
        From the user's rating before the held-out one to that one, 0 where another has the same second; after a split
        at one moment from the last rating before the moment to the first held-out one. −1 where there is none.
    n_new : ndarray of shape (n_targets,), int64
        How many held-out movies of the user are outside the catalogue, where no model can find them.
    history : UserRows
        What models may know of every user: the ratings of any kind behind ``positives``, of movies of the catalogue.
    moments : ndarray of shape (n_targets,), int64
        When each target user asks, in seconds since 1970.
    known_until : ndarray of shape (n_users + 1,), int64
        As in ``Requests``; users who are not asked about have a held-out movie, too.
    """

    protocol: Protocol
    stage: Stage
    users: IdMap
    items: IdMap
    positives: Positives
    target_users: NDArray[np.int64]
    relevant: sp.csr_matrix
    seen: sp.csr_matrix
    n_history: NDArray[np.int64]
    gap_seconds: NDArray[np.int64]
    n_new: NDArray[np.int64]
    history: UserRows
    moments: NDArray[np.int64]
    known_until: NDArray[np.int64]

    @property
    def requests(self) -> Requests:
        return Requests(self.history, self.target_users, self.moments, self.relevant, self.known_until)

    @property
    def n_targets(self) -> int:
        return len(self.target_users)

    @property
    def user_items(self) -> sp.csr_matrix:
        """The positives as ones, csr_matrix of shape (n_users, n_items)."""
        return self.positives.user_items


def build_task(
    ratings: pd.DataFrame, split: Split, protocol: LeaveOneOut, stage: Stage, min_rating: float = MIN_RATING
) -> RankingTask:
    """Build the ranking task of a leave-one-out protocol and stage.

    ``positives``: models learn from train, and the user's train positives are removed from the ranking. ``rated``:
    what the service would have answered just before the target was rated. Models learn from all positives before the
    held-out one (train, for test also validation), less each target user's own rows at or after that user's target
    time; every movie that the user rated strictly before that time is removed from the ranking, the target aside.

    Parameters
    ----------
    ratings : DataFrame
        All ratings, positive or not (``Dataset.ratings``).
    split : Split
        From ``core.leave_one_out``.
    min_rating : float
        Least rating that counts as a positive, the bottom of the scale of their grades.

    Raises
    ------
    DataError
        If no held-out movie is in the catalogue, or no positive is left to learn from.
    """
    targets = getattr(split, stage)
    known_until = np.full(len(split.users) + 1, NEVER, dtype=np.int64)
    known_until[split.users.index(targets["user_id"])] = targets["timestamp"]
    targets = targets[split.items.index(targets["movie_id"]) != UNKNOWN]
    target_users = split.users.index(targets["user_id"])
    target_time = np.full(len(split.users), NEVER, dtype=np.int64)
    target_time[target_users] = targets["timestamp"]
    relevant = build_user_items(targets, split.users, split.items)[target_users]
    rated = ratings[ratings["user_id"].isin(split.users.ids)]
    if protocol == "positives":
        positives = build_positives(split.train, split.users, split.items, min_rating)
        seen, known = positives.user_items[target_users], split.train
    else:
        learned = split.train if stage == "validation" else pd.concat([split.train, split.validation])
        learned = _before(learned, split.users, target_time)
        positives = build_positives(learned, split.users, split.items, min_rating)
        known = _before(rated, split.users, target_time)
        seen = build_user_items(known, split.users, split.items)[target_users]
    if len(targets) == 0 or positives.user_items.nnz == 0:
        raise DataError(_nothing_to_ask(protocol, stage, len(targets)))
    return RankingTask(
        protocol=protocol,
        stage=stage,
        users=split.users,
        items=split.items,
        positives=positives,
        target_users=target_users,
        relevant=relevant,
        seen=_without(seen, relevant),
        n_history=_count_before(rated, split.users, target_time)[target_users],
        gap_seconds=_gaps(rated, split.users, target_time)[target_users],
        n_new=np.zeros(len(targets), dtype=np.int64),
        history=_without_later_positives(build_history(known, split.users, split.items), positives, min_rating),
        moments=target_time[target_users],
        known_until=known_until,
    )


def _without_later_positives(history: UserRows, positives: Positives, min_rating: float) -> UserRows:
    """Drop positives that are not learned from: the held-out ones of users who are not asked about."""
    is_learned = np.asarray(positives.user_items[history.user_index, history.item_index]).ravel() > 0
    return history.where((history.rating < min_rating) | is_learned)


def step_back(history: UserRows, n_items: int, min_rating: float = MIN_RATING) -> Requests:
    """Return the requests that were made just before each user's last known positive, and what was known by then.

    All users step back at once: nothing of theirs from that second on is left. Step by step this gives earlier and
    earlier requests whose answers are known, without a look at anything held out.

    Parameters
    ----------
    history : UserRows
        What may be known of every user.
    """
    user = history.user_index
    is_positive = np.flatnonzero(history.rating >= min_rating)
    last = np.full(len(history.indptr) - 1, -1, dtype=np.int64)
    last[user[is_positive]] = is_positive  # of repeated places the last one stays
    users = np.flatnonzero(last >= 0)
    moment = np.full(len(last), NEVER, dtype=np.int64)
    moment[users] = history.timestamp[last[users]]
    found = (np.ones(len(users), dtype=np.float32), (np.arange(len(users)), history.item_index[last[users]]))
    relevant = sp.csr_matrix(found, shape=(len(users), n_items))
    known_until = np.append(moment, NEVER)
    return Requests(history.where(history.timestamp < moment[user]), users, moment[users], relevant, known_until)


def build_temporal_tasks(
    ratings: pd.DataFrame, split: TemporalSplit, min_rating: float = MIN_RATING
) -> tuple[RankingTask, ...]:
    """Build the ranking tasks of a split at one moment: of users with positives before it, and of new users.

    Models learn from all positives before the moment. A user's held-out movies are the positives from then on, and
    every movie that the user had rated before is removed from the ranking. Held-out movies that nobody had liked before
    are not in the catalogue; ``n_new`` counts them. Users none of whose held-out movies are in the catalogue are left
    out, and ``temporal_new_users`` is left out where there are none.

    Raises
    ------
    DataError
        If no user with positives before the moment has a held-out movie of the catalogue.
    """
    positives = build_positives(split.train, split.users, split.items, min_rating)
    relevant = build_user_items(split.held_out, split.users, split.items)
    is_target, is_new_user = np.diff(relevant.indptr) > 0, np.diff(positives.user_items.indptr) == 0
    if not (is_target & ~is_new_user).any():
        raise DataError(
            f"temporal, {split.stage}: no user with positives before the moment ({split.moment}) has a later one in "
            "the catalogue, so nothing can be measured. Use --split leave-one-out."
        )
    moment = np.full(len(split.users), split.moment, dtype=np.int64)
    rated = ratings[ratings["user_id"].isin(split.users.ids)]
    known = _before(rated, split.users, moment)
    seen = build_user_items(known, split.users, split.items)
    history = build_history(known, split.users, split.items)
    first_held_out = _first_time(split.held_out, split.users)
    n_history = _count_before(rated, split.users, moment)
    gap_seconds = np.where(n_history > 0, first_held_out - _last_before(rated, split.users, moment), -1)
    n_held_out = np.bincount(split.users.index(split.held_out["user_id"]), minlength=len(split.users))
    groups: dict[Protocol, NDArray[np.int64]] = {
        "temporal": np.flatnonzero(is_target & ~is_new_user),
        "temporal_new_users": np.flatnonzero(is_target & is_new_user),
    }
    return tuple(
        RankingTask(
            protocol=protocol,
            stage=split.stage,
            users=split.users,
            items=split.items,
            positives=positives,
            target_users=group,
            relevant=relevant[group],
            seen=_without(seen[group], relevant[group]),
            n_history=n_history[group],
            gap_seconds=gap_seconds[group],
            n_new=n_held_out[group] - np.diff(relevant.indptr)[group],
            history=history,
            moments=moment[group],
            known_until=np.full(len(split.users) + 1, split.moment, dtype=np.int64),
        )
        for protocol, group in groups.items()
        if len(group)
    )


def _nothing_to_ask(protocol: Protocol, stage: Stage, n_targets: int) -> str:
    """Say why a task would be empty, and what to do about it."""
    reason = (
        "no positive is older than its user's held-out one (are the timestamps all alike?)"
        if n_targets
        else "none of the held-out movies occurs in the train catalogue"
    )
    return (
        f"protocol {protocol}, {stage}: {reason}, so nothing can be measured. "
        "Add ratings, or train without evaluation: --evaluate none."
    )


def _before(rows: pd.DataFrame, users: IdMap, target_time: NDArray[np.int64]) -> pd.DataFrame:
    """Keep the rows that are strictly older than the target time of their user."""
    return rows[rows["timestamp"].to_numpy() < target_time[users.index(rows["user_id"])]]


def _count_before(ratings: pd.DataFrame, users: IdMap, target_time: NDArray[np.int64]) -> NDArray[np.int64]:
    """Count each user's ratings that are strictly older than the user's target time."""
    return np.bincount(users.index(_before(ratings, users, target_time)["user_id"]), minlength=len(users))


def _gaps(ratings: pd.DataFrame, users: IdMap, target_time: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the seconds from each user's rating before the target to the target's time; −1 without one.

    Only the target itself was rated at the target time, unless there is a second rating of that time: a tie.
    """
    rows = users.index(ratings["user_id"])
    n_at_target = np.bincount(rows[ratings["timestamp"].to_numpy() == target_time[rows]], minlength=len(users))
    last = _last_before(ratings, users, target_time)
    gap = np.where(last == -NEVER, -1, target_time - last)
    return np.where(n_at_target > 1, 0, gap)


def _last_before(ratings: pd.DataFrame, users: IdMap, target_time: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the time of each user's last rating that is strictly older than the target time; −NEVER without one."""
    last = np.full(len(users), -NEVER, dtype=np.int64)
    earlier = _before(ratings, users, target_time)
    np.maximum.at(last, users.index(earlier["user_id"]), earlier["timestamp"].to_numpy())
    return last


def _first_time(rows: pd.DataFrame, users: IdMap) -> NDArray[np.int64]:
    first = np.full(len(users), NEVER, dtype=np.int64)
    np.minimum.at(first, users.index(rows["user_id"]), rows["timestamp"].to_numpy())
    return first


def _without(seen: sp.csr_matrix, relevant: sp.csr_matrix) -> sp.csr_matrix:
    """Take the held-out movies out of what is removed from each ranking."""
    kept: sp.csr_matrix = (seen - seen.multiply(relevant)).tocsr()
    kept.eliminate_zeros()
    return kept
