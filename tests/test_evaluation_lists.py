"""Ranked lists: their order, what they leave out, what counts as a hit, and what is exported of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from app import core, evaluation
from app.als import AlsConfig, Factors, learn
from app.core import Split
from app.datasets.movielens import read_movielens
from app.evaluation import BASELINES, Scorer
from app.evaluation import lists as lists_module
from app.evaluation.lists import DEPTH, find_hits, rank
from app.protocols import RankingTask
from app.ranking import PADDING
from tests.tasks import always, cells, in_order, make_task, validation_task

SEED = 42
MODELS = ("als", "item_knn", "ease", "popular", "random")


# Order


def test_list_is_ordered_by_score_then_by_index_and_leaves_out_what_is_removed() -> None:
    seen = cells(2, 5, {1: [2, 4]})
    lists = rank(seen, always(1, 5, 5, 0, 5), depth=5)
    assert lists.tolist() == [[1, 2, 4, 0, 3], [1, 0, 3, PADDING, PADDING]]
    assert lists.dtype == np.int32


def test_lists_are_as_deep_as_asked() -> None:
    nothing = cells(1, 7, {})
    assert rank(nothing, always(*range(7)), depth=3).tolist() == [[6, 5, 4]]
    assert rank(nothing, always(*range(7))).tolist() == [[6, 5, 4, 3, 2, 1, 0] + [PADDING] * (DEPTH - 7)]


def test_list_of_someone_who_has_seen_everything_is_empty() -> None:
    assert rank(cells(2, 2, {0: [0, 1]}), in_order(2), depth=2).tolist() == [[PADDING, PADDING], [0, 1]]


def test_movie_that_is_removed_from_one_list_stays_in_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    # The rows to remove are cut block by block: here the blocks hold two users each.
    monkeypatch.setattr(lists_module, "_BLOCK_CELLS", 6)
    seen = cells(5, 3, {1: [0], 2: [1, 2], 4: [0, 2]})
    assert rank(seen, in_order(3), depth=3).tolist() == [[0, 1, 2], [1, 2, -1], [0, -1, -1], [0, 1, 2], [1, -1, -1]]


@given(st.data())
def test_lists_hold_what_was_not_removed_once_and_in_falling_score(data: st.DataObject) -> None:
    shape = (data.draw(st.integers(1, 5)), data.draw(st.integers(1, 9)))
    depth = data.draw(st.integers(1, 12))
    # Few different values, so that there are ties.
    scores = data.draw(hnp.arrays(np.float32, shape, elements=st.sampled_from([-1.5, 0.0, 0.25, 2.0])))
    is_seen = data.draw(hnp.arrays(np.bool_, shape))
    lists = rank(sp.csr_matrix(is_seen.astype(np.float32)), lambda places: scores[places], depth)
    assert lists.shape == (shape[0], depth)
    for user, ranking in enumerate(lists.tolist()):
        left = [item for item in range(shape[1]) if not is_seen[user, item]]
        best = sorted(left, key=lambda item: (-scores[user, item], item))[:depth]
        assert ranking == best + [PADDING] * (depth - len(best))


# Hits


def test_hits_are_found_for_several_relevant_movies() -> None:
    relevant = cells(3, 6, {0: [5, 1], 1: [0], 2: [2, 3, 4]})
    lists = np.array([[1, 0, 5], [1, 2, 3], [4, 5, 2]], dtype=np.int32)
    assert find_hits(lists, relevant).tolist() == [[True, False, True], [False, False, False], [True, False, True]]


def test_padding_is_no_hit_whatever_the_neighbours_look_for() -> None:
    # As a column, −1 of row 1 is the last item of row 0, which is relevant there.
    relevant = cells(2, 3, {0: [2], 1: [1]})
    lists = np.array([[2, PADDING], [0, PADDING]], dtype=np.int32)
    assert find_hits(lists, relevant).tolist() == [[True, False], [False, False]]


@given(st.data())
def test_hits_are_the_listed_movies_that_are_relevant(data: st.DataObject) -> None:
    n_rows, n_items = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 7))
    is_relevant = data.draw(hnp.arrays(np.bool_, (n_rows, n_items)))
    is_relevant[:, data.draw(st.integers(0, n_items - 1))] = True  # everybody looks for something
    lists = np.array(
        [data.draw(st.permutations([*range(n_items), PADDING, PADDING])) for _ in range(n_rows)], dtype=np.int32
    )
    found = find_hits(lists, sp.csr_matrix(is_relevant.astype(np.float32)))
    expected = [
        [item != PADDING and bool(is_relevant[row, item]) for item in ranking]
        for row, ranking in enumerate(lists.tolist())
    ]
    assert found.tolist() == expected


# Export, by hand


def test_short_lists_are_exported_without_padding(tmp_path: Path) -> None:
    task = make_task(4, [[1], [0]], seen={0: [3], 1: [1, 2, 3]})
    evaluation.write_trec(tmp_path, task, {"als": rank(task.seen, always(1, 2, 3, 4))})
    assert (tmp_path / "qrels.txt").read_text() == "100 0 1001 1\n101 0 1000 1\n"
    assert (tmp_path / "run.als.txt").read_text() == (
        "100 Q0 1002 1 1.0000000000 als\n"
        "100 Q0 1001 2 0.5000000000 als\n"
        "100 Q0 1000 3 0.3333333333 als\n"
        "101 Q0 1000 1 1.0000000000 als\n"
    )


def test_all_relevant_movies_of_the_users_who_are_asked_about_are_exported(tmp_path: Path) -> None:
    # Users 100 to 103 exist, 101 and 103 are asked about.
    task = make_task(3, [[0], [0], [0], [0]])
    some = make_task(3, [[0, 2], [1]], users=task.users, target_users=np.array([1, 3]))
    evaluation.write_trec(tmp_path / "new" / "folder", some, {"popular": rank(some.seen, in_order(3), depth=1)})
    assert (tmp_path / "new" / "folder" / "qrels.txt").read_text() == "101 0 1000 1\n101 0 1002 1\n103 0 1001 1\n"
    assert (tmp_path / "new" / "folder" / "run.popular.txt").read_text() == (
        "101 Q0 1000 1 1.0000000000 popular\n103 Q0 1000 1 1.0000000000 popular\n"
    )


# The real data


@pytest.fixture(scope="module")
def ratings(movielens_dir: Path) -> pd.DataFrame:
    return read_movielens(movielens_dir).ratings


@pytest.fixture(scope="module")
def split(ratings: pd.DataFrame) -> Split:
    return core.leave_one_out(core.positives(ratings))


@pytest.fixture(scope="module")
def task(ratings: pd.DataFrame) -> RankingTask:
    return validation_task(ratings, "rated")


@pytest.fixture(scope="module")
def factors(task: RankingTask) -> Factors:
    return learn(task.positives, AlsConfig(factors=16, iterations=2))


def make_scorer(model: str, task: RankingTask, factors: Factors) -> Scorer:
    return evaluation.als_scorer(task, factors) if model == "als" else BASELINES[model](task, SEED)


@pytest.fixture(scope="module")
def lists(task: RankingTask, factors: Factors) -> dict[str, NDArray[np.int32]]:
    return {model: rank(task.seen, make_scorer(model, task, factors)) for model in MODELS}


@pytest.mark.parametrize("n_rows", [1, 7, 100, 10_000])
@pytest.mark.parametrize("model", MODELS)
def test_size_of_the_blocks_changes_no_rank(
    task: RankingTask,
    factors: Factors,
    lists: dict[str, NDArray[np.int32]],
    monkeypatch: pytest.MonkeyPatch,
    model: str,
    n_rows: int,
) -> None:
    monkeypatch.setattr(lists_module, "_BLOCK_CELLS", n_rows * len(task.items))
    assert (rank(task.seen, make_scorer(model, task, factors)) == lists[model]).all()


@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("model", ["als", "ease"])
def test_number_of_blas_threads_changes_no_rank(
    task: RankingTask, factors: Factors, lists: dict[str, NDArray[np.int32]], model: str, n_threads: int
) -> None:
    with threadpool_limits(n_threads, "blas"):
        assert (rank(task.seen, make_scorer(model, task, factors)) == lists[model]).all()


@pytest.fixture(scope="module")
def exported(task: RankingTask, lists: dict[str, NDArray[np.int32]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The TREC files of protocol ``rated``."""
    folder = tmp_path_factory.mktemp("run")
    evaluation.write_trec(folder, task, lists)
    return folder


def read_run(path: Path) -> list[tuple[int, int, int, float]]:
    """Lines of a TREC run as (user_id, movie_id, rank, score)."""
    lines = [line.split(" ") for line in path.read_text(encoding="ascii").splitlines()]
    assert {(len(fields), fields[1], fields[5]) for fields in lines} == {(6, "Q0", path.name.split(".")[1])}
    return [(int(user), int(movie), int(place), float(score)) for user, _, movie, place, score, _ in lines]


@pytest.mark.parametrize("model", MODELS)
def test_exported_lists_are_100_deep_with_a_strictly_falling_score(exported: Path, split: Split, model: str) -> None:
    lines = read_run(exported / f"run.{model}.txt")
    assert len(lines) == 571 * 100
    blocks = [lines[start : start + 100] for start in range(0, len(lines), 100)]
    for block in blocks:
        assert len({user for user, *_ in block}) == 1
        assert [place for _, _, place, _ in block] == list(range(1, 101))
        scores = np.array([score for *_, score in block], dtype=np.float32)  # some tools read float32
        assert (np.diff(scores) < 0).all()
        assert len({movie for _, movie, *_ in block}) == 100
    assert len({block[0][0] for block in blocks}) == 571
    assert {movie for _, movie, *_ in lines} <= set(split.train["movie_id"])


def test_exported_truths_are_the_held_out_positives_of_the_target_users(exported: Path, split: Split) -> None:
    lines = (exported / "qrels.txt").read_text(encoding="ascii").splitlines()
    targets = split.validation[split.validation["movie_id"].isin(split.train["movie_id"])]
    assert lines == [f"{row.user_id} 0 {row.movie_id} 1" for row in targets.itertuples()]
    assert sorted(path.name for path in exported.iterdir()) == sorted(
        ["qrels.txt", *(f"run.{model}.txt" for model in MODELS)]
    )


@pytest.mark.parametrize("model", MODELS)
def test_exported_lists_hold_nothing_that_was_rated_before_the_target(
    exported: Path, ratings: pd.DataFrame, split: Split, model: str
) -> None:
    target_time = ratings["user_id"].map(split.validation.set_index("user_id")["timestamp"])
    earlier = ratings[ratings["timestamp"] < target_time]
    seen = set(zip(earlier["user_id"].tolist(), earlier["movie_id"].tolist(), strict=True))
    assert len(seen) > 40_000
    assert not seen & {(user, movie) for user, movie, *_ in read_run(exported / f"run.{model}.txt")}


def test_lists_of_the_other_protocols_hold_nothing_that_the_model_learned_from_the_user(ratings: pd.DataFrame) -> None:
    for protocol in ("positives", "temporal"):
        task = validation_task(ratings, protocol)
        learned = task.user_items[task.target_users]
        rows = np.repeat(np.arange(task.n_targets), DEPTH)
        for model in ("item_knn", "popular"):
            items = rank(task.seen, BASELINES[model](task, SEED)).ravel()
            is_listed = sp.csr_matrix(
                (np.ones((items != PADDING).sum()), (rows[items != PADDING], items[items != PADDING])), learned.shape
            )
            assert is_listed.multiply(learned).nnz == 0
