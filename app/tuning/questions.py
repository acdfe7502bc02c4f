"""What a search is asked and what it is checked on: two validation positives of each user, and nothing of test."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from app import core, protocols
from app.als import AlsConfig
from app.errors import DataError
from app.protocols import RankingTask

# Seeds that a setting's value is averaged over. On ml-latest-small NDCG@20 varies by .002 between seeds, which is also
# what separates the best settings; one seed would be searched for luck.
N_SEEDS = 3


def validation_tasks(ratings: pd.DataFrame, min_rating: float) -> tuple[RankingTask, RankingTask]:
    """Build the task to search on and the one to check on, from ratings without test.

    The first is that of ``--evaluate validation``, protocol ``rated``, in all that a model or a metric of rankings
    reads; only ``gap_seconds`` is not aware of ties with what was dropped. The second asks for each user's positive
    before the validation one, as if nothing from that one on had been rated yet.
    """
    liked = core.positives(ratings, min_rating)
    try:
        visible, split = hide_test(ratings, core.leave_one_out(liked))
        searched = protocols.build_task(visible, split, "rated", "validation", min_rating)
        # By user and time again: a frame's index is the place among all positives.
        earlier = pd.concat([split.train, split.validation]).sort_index()
        visible, split = hide_test(visible, core.leave_one_out(earlier))
        second = protocols.build_task(visible, split, "rated", "validation", min_rating)
    except DataError as error:
        raise DataError(
            "hyper-parameters are searched on one held-out positive of each user and checked on the one before it, "
            "which takes users with at least 4 positives; there are too few. Add ratings, lower --min-rating, or "
            "train without --tune."
        ) from error
    return searched, second


def hide_test(ratings: pd.DataFrame, split: core.Split) -> tuple[pd.DataFrame, core.Split]:
    """Drop each user's test positive, and every rating of the user from the second of the test positive on."""
    test_time = split.test.set_index("user_id")["timestamp"]
    known = ratings["timestamp"] >= ratings["user_id"].map(test_time)  # False for users without a test positive
    return ratings[~known], replace(split, test=split.test.iloc[:0])


def seeds_of(config: AlsConfig, first: int = 0) -> list[int]:
    return [(config.random_state + place) % 2**32 for place in range(first, first + N_SEEDS)]
