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

from app.core import UNKNOWN, IdMap, Split, build_user_items
from app.errors import DataError

Protocol = Literal["rated", "positives"]
Stage = Literal["validation", "test"]
STAGES: tuple[Stage, ...] = ("validation", "test")

NEVER = np.iinfo(np.int64).max  # later than every rating: the target time of users who are not asked about


@dataclass(frozen=True)
class RankingTask:
    """One question put to every model: rank the catalogue for each target user.

    Parameters
    ----------
    protocol, stage : str
        ``rated`` or ``positives``; ``validation`` or ``test``.
    users, items : IdMap
        Users of the split; the train catalogue, which is what is ranked.
    user_items : csr_matrix of shape (n_users, n_items), float32
        The positives that models, counts and features may learn from.
    target_users, target_items : ndarray of shape (n_targets,), int64
        Who is asked about, as rows of ``user_items``, and the one held-out movie of each.
    seen : csr_matrix of shape (n_targets, n_items), float32
        Non-zero where a movie is removed from the target user's ranking.
    """

    protocol: Protocol
    stage: Stage
    users: IdMap
    items: IdMap
    user_items: sp.csr_matrix
    target_users: NDArray[np.int64]
    target_items: NDArray[np.int64]
    seen: sp.csr_matrix

    @property
    def n_targets(self) -> int:
        return len(self.target_users)


def build_task(ratings: pd.DataFrame, split: Split, protocol: Protocol, stage: Stage) -> RankingTask:
    """Build the ranking task of one protocol and stage.

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

    Raises
    ------
    DataError
        If no held-out movie is in the catalogue, or no positive is left to learn from.
    """
    targets = getattr(split, stage)
    targets = targets[split.items.index(targets["movie_id"]) != UNKNOWN]
    target_users, target_items = split.users.index(targets["user_id"]), split.items.index(targets["movie_id"])
    target_time = np.full(len(split.users), NEVER, dtype=np.int64)
    target_time[target_users] = targets["timestamp"]
    if protocol == "positives":
        user_items = build_user_items(split.train, split.users, split.items)
        seen = user_items[target_users]
    else:
        learned = split.train if stage == "validation" else pd.concat([split.train, split.validation])
        user_items = build_user_items(_before(learned, split.users, target_time), split.users, split.items)
        history = _before(ratings[ratings["user_id"].isin(split.users.ids)], split.users, target_time)
        seen = build_user_items(history, split.users, split.items)[target_users]
    if len(targets) == 0 or user_items.nnz == 0:
        raise DataError(_nothing_to_ask(protocol, stage, len(targets)))
    return RankingTask(
        protocol, stage, split.users, split.items, user_items, target_users, target_items, _without(seen, target_items)
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


def _without(seen: sp.csr_matrix, target_items: NDArray[np.int64]) -> sp.csr_matrix:
    """Take each row's target out of what is removed from its ranking."""
    own_target = sp.csr_matrix(
        (np.ones(len(target_items), dtype=np.float32), (np.arange(len(target_items)), target_items)), shape=seen.shape
    )
    kept: sp.csr_matrix = (seen - seen.multiply(own_target)).tocsr()
    kept.eliminate_zeros()
    return kept
