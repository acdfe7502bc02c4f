"""Ranking tasks made by hand, and those of the real data: what the tests of evaluation build on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from app import core
from app.core import IdMap, Positives, build_positives
from app.evaluation import Scorer
from app.history import build_history
from app.protocols import Protocol, RankingTask, build_task, build_temporal_tasks


def frame(*rows: tuple[int, int, float, int]) -> pd.DataFrame:
    """Ratings from (user_id, movie_id, rating, timestamp)."""
    table = pd.DataFrame(rows, columns=["user_id", "movie_id", "rating", "timestamp"])
    return table.astype({"user_id": "int64", "movie_id": "int64", "rating": "float32", "timestamp": "int64"})


def cells(n_rows: int, n_items: int, by_row: Mapping[int, Sequence[int]]) -> sp.csr_matrix:
    """A matrix with ones at the given columns of each row."""
    dense = np.zeros((n_rows, n_items), dtype=np.float32)
    for row, columns in by_row.items():
        dense[row, list(columns)] = 1
    return sp.csr_matrix(dense)


def make_task(
    n_items: int,
    relevant: Sequence[Sequence[int]],
    *,
    learned: Mapping[int, Sequence[int]] | None = None,
    seen: Mapping[int, Sequence[int]] | None = None,
    **columns: Any,
) -> RankingTask:
    """A task with one target user for each entry of ``relevant``; ids are 100 + row and 1000 + column.

    ``learned`` gives by user what they like, oldest first, and ``seen`` what is removed from their ranking. ``columns``
    replace fields of the task.
    """
    n_users = len(relevant)
    users, items = IdMap(np.arange(100, 100 + n_users)), IdMap(np.arange(1000, 1000 + n_items))
    return RankingTask(
        **{
            "protocol": "rated",
            "stage": "validation",
            "users": users,
            "items": items,
            "positives": make_positives(learned or {}, users, items),
            "target_users": np.arange(n_users),
            "relevant": cells(n_users, n_items, dict(enumerate(relevant))),
            "seen": cells(n_users, n_items, seen or {}),
            "n_history": np.full(n_users, 3),
            "gap_seconds": np.full(n_users, 30),
            "n_new": np.zeros(n_users, dtype=np.int64),
            "history": build_history(frame(*_rows(learned or {})), users, items),
            "moments": np.full(n_users, 1_000),
            "known_until": np.full(n_users + 1, 1_000),
            **columns,
        }
    )


def make_positives(learned: Mapping[int, Sequence[int]], users: IdMap, items: IdMap) -> Positives:
    """Positives of five stars, a second apart."""
    return build_positives(frame(*_rows(learned)), users, items)


def _rows(learned: Mapping[int, Sequence[int]]) -> list[tuple[int, int, float, int]]:
    return [(100 + user, 1000 + item, 5.0, t) for user, liked in learned.items() for t, item in enumerate(liked)]


def always(*scores: float) -> Scorer:
    """Give every user the same scores."""
    return lambda places: np.tile(np.array(scores, dtype=np.float32), (len(places), 1))


def in_order(n_items: int) -> Scorer:
    """Rank every user's items by their index."""
    return always(*range(n_items, 0, -1))


def validation_task(ratings: pd.DataFrame, protocol: Protocol) -> RankingTask:
    """A task of the real data. Test is not looked at while hyper-parameters are being chosen."""
    liked = core.positives(ratings)
    if protocol == "temporal":
        return build_temporal_tasks(ratings, core.split_at_moment(liked, "validation"))[0]
    return build_task(ratings, core.leave_one_out(liked), protocol, "validation")
