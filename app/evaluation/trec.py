"""Rankings and truths as TREC files, for other tools to score."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from app.evaluation.results import MODEL, RANKER
from app.evaluation.scorers import BASELINES
from app.protocols import RankingTask
from app.ranking import PADDING


def write_trec(folder: Path, task: RankingTask, lists: Mapping[str, NDArray[np.int32]]) -> None:
    """Write truths and rankings as TREC files: ``qrels.txt`` and ``run.<model>.txt``.

    Ids are user_id and movie_id. The score column is 1/rank: strictly falling, so that no tool can reorder ties.

    Parameters
    ----------
    lists : mapping of str to ndarray of shape (n_targets, depth), int32
        By model: item indices, best first, −1 where none was left.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for model in (MODEL, RANKER, *BASELINES):  # rankings of an earlier run would not belong to these truths
        (folder / f"run.{model}.txt").unlink(missing_ok=True)
    user_ids, movie_ids = task.users.ids[task.target_users], task.items.ids
    rows = np.repeat(np.arange(task.n_targets), np.diff(task.relevant.indptr))
    qrels = [
        f"{user} 0 {movie} 1\n" for user, movie in zip(user_ids[rows], movie_ids[task.relevant.indices], strict=True)
    ]
    (folder / "qrels.txt").write_text("".join(qrels), encoding="ascii")
    for model, items in lists.items():
        with (folder / f"run.{model}.txt").open("w", encoding="ascii") as file:
            for user, ranked in zip(user_ids, items, strict=True):
                file.writelines(
                    f"{user} Q0 {movie} {place} {1.0 / place:.10f} {model}\n"
                    for place, movie in enumerate(movie_ids[ranked[ranked != PADDING]], start=1)
                )
