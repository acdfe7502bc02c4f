"""Where the benchmarks find the code and the data, and what settings are chosen on."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
FOLDER = Path(os.environ.get("MOVIELENS_DIR", ROOT / "data_small" / "ml-latest-small")).resolve()
sys.path.insert(0, str(ROOT))

from app import core, protocols  # noqa: E402 - found by the line above
from app.datasets.locate import Source  # noqa: E402
from app.tuning.questions import hide_test  # noqa: E402


def validation_tasks(n_positives: int = 4) -> Iterator[protocols.RankingTask]:
    """Yield the task (protocol ``rated``) of each user's validation positive, of the one before it, and so on.

    One held-out positive of 571 users decides little: settings differ by less than its standard error. Each task is
    made as if nothing had been rated from its positive on; all from the test positive on is dropped first.
    """
    ratings = core.load(Source(None, FOLDER)).ratings
    split = core.leave_one_out(core.positives(ratings))
    for _ in range(n_positives):
        ratings, split = hide_test(ratings, split)
        yield protocols.build_task(ratings, split, "rated", "validation")
        split = core.leave_one_out(pd.concat([split.train, split.validation]).sort_index())
