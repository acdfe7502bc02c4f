"""Rankings, their measures and what is written of them: by hand, and against other people's tools."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ir_measures
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from ir_measures import P, R, nDCG
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from app import core, evaluation
from app.als import PRESETS, Factors, fit_als
from app.core import IdMap, Split
from app.datasets.movielens import read_movielens
from app.evaluation import CUTOFFS, DEFINITIONS, DEPTH, TaskResult, intervals, measure, rank, ranking_metrics
from app.protocols import Protocol, RankingTask, build_task
from app.ranking import PADDING

SEED = 42


def make_task(
    n_items: int,
    target_items: list[int],
    learned: dict[int, list[int]] | None = None,
    seen: dict[int, list[int]] | None = None,
) -> RankingTask:
    """A task of one target per user; ``learned`` and ``seen`` list items by user. Ids are 100 + row, 1000 + column."""
    shape = (len(target_items), n_items)
    matrices = []
    for by_user in (learned or {}, seen or {}):
        dense = np.zeros(shape, dtype=np.float32)
        for user, items in by_user.items():
            dense[user, items] = 1
        matrices.append(sp.csr_matrix(dense))
    return RankingTask(
        protocol="rated",
        stage="test",
        users=IdMap(np.arange(100, 100 + shape[0])),
        items=IdMap(np.arange(1000, 1000 + n_items)),
        user_items=matrices[0],
        target_users=np.arange(shape[0]),
        target_items=np.array(target_items),
        seen=matrices[1],
    )


def always(*scores: float) -> evaluation.Scorer:
    """Give every user the same scores."""
    return lambda places: np.tile(np.array(scores, dtype=np.float32), (len(places), 1))


def hits_at(*ranks: int, depth: int = 30) -> NDArray[np.bool_]:
    """A list whose relevant movies stand at the given ranks, from 1."""
    return np.isin(np.arange(1, depth + 1), ranks)[None, :]


# Measures by hand


def gain(*ranks: int) -> float:
    """Σ 1/log2(rank + 1), written out."""
    return sum(1 / math.log2(place + 1) for place in ranks)


@pytest.mark.parametrize(
    ("ranks", "n_relevant", "expected"),
    [
        ((1,), 1, {"recall@5": 1, "precision@5": 1 / 5, "ndcg@5": 1, "recall@20": 1, "ndcg@20": 1}),
        ((3,), 1, {"recall@5": 1, "ndcg@5": 1 / 2, "ndcg@10": 1 / 2, "ndcg@20": 1 / 2}),
        ((5,), 1, {"recall@5": 1, "precision@5": 1 / 5, "ndcg@5": 1 / math.log2(6)}),
        ((6,), 1, {"recall@5": 0, "precision@5": 0, "ndcg@5": 0, "recall@10": 1, "ndcg@10": 1 / math.log2(7)}),
        ((10,), 1, {"recall@10": 1, "precision@10": 1 / 10, "ndcg@10": 1 / math.log2(11)}),
        ((11,), 1, {"recall@10": 0, "ndcg@10": 0, "recall@20": 1, "precision@20": 1 / 20, "ndcg@20": gain(11)}),
        ((21,), 1, {"recall@20": 0, "precision@20": 0, "ndcg@20": 0}),
        # Three relevant, found at 1, 3 and 7; the best order has them at 1, 2 and 3.
        ((1, 3, 7), 3, {"recall@5": 2 / 3, "precision@5": 2 / 5, "ndcg@5": 1.5 / (1.5 + 1 / math.log2(3))}),
        ((1, 3, 7), 3, {"recall@10": 1, "precision@10": 3 / 10, "ndcg@10": (1.5 + 1 / 3) / (1.5 + 1 / math.log2(3))}),
        # More relevant than places: the best order fills the k places, recall still counts all of them.
        ((1, 2, 3, 4, 5), 12, {"recall@5": 5 / 12, "precision@5": 1, "ndcg@5": 1}),
        ((1, 2, 3, 4, 5), 12, {"recall@10": 5 / 12, "ndcg@10": gain(1, 2, 3, 4, 5) / gain(*range(1, 11))}),
        # Two relevant, one never found.
        ((2,), 2, {"recall@20": 1 / 2, "precision@20": 1 / 20, "ndcg@20": (1 / math.log2(3)) / (1 + 1 / math.log2(3))}),
        ((), 4, {f"{name}@{k}": 0 for name in ("recall", "precision", "ndcg") for k in CUTOFFS}),
    ],
)  # fmt: skip
def test_metrics_are_what_the_definitions_say(
    ranks: tuple[int, ...], n_relevant: int, expected: dict[str, float]
) -> None:
    found = ranking_metrics(hits_at(*ranks), np.array([n_relevant]))
    assert sorted(found) == sorted(f"{name}@{k}" for name in ("recall", "precision", "ndcg") for k in (5, 10, 20))
    for name, value in expected.items():
        assert found[name].tolist() == pytest.approx([value], abs=1e-15), name


def test_precision_divides_by_k_where_fewer_than_k_movies_are_left() -> None:
    task = make_task(4, target_items=[2], seen={0: [0]})
    run = rank(task, always(9, 3, 2, 1))
    assert run.items[0, :4].tolist() == [1, 2, 3, PADDING]
    found = measure(run, task)
    assert [found[name][0] for name in ("recall@5", "precision@5", "precision@20")] == [1, 1 / 5, 1 / 20]
    assert found["ndcg@10"][0] == pytest.approx(1 / math.log2(3))


def test_each_user_is_measured_by_their_own_target() -> None:
    task = make_task(30, target_items=[0, 7, 29])
    found = measure(rank(task, always(*range(30, 0, -1))), task)
    assert found["recall@5"].tolist() == [1, 0, 0]
    assert found["recall@10"].tolist() == [1, 1, 0]
    assert found["ndcg@20"].tolist() == pytest.approx([1, 1 / math.log2(9), 0])


def test_definition_stands_for_every_metric() -> None:
    for name in ranking_metrics(hits_at(1), np.array([1])):
        assert f"{name.split('@')[0]}@k" in DEFINITIONS


# Rankings


def test_list_is_ordered_by_score_then_by_id_and_leaves_out_what_was_seen() -> None:
    task = make_task(5, target_items=[1, 1], seen={1: [2, 4]})
    run = rank(task, always(1, 5, 5, 0, 5), depth=5)
    assert run.items.tolist() == [[1, 2, 4, 0, 3], [1, 0, 3, PADDING, PADDING]]


def test_als_scores_are_dot_products_of_the_user_s_and_the_item_s_factor() -> None:
    task = make_task(3, target_items=[0, 0], learned={0: [1], 1: [2]})
    factors = Factors(
        user_factors=np.array([[1, 0], [0, 2]], dtype=np.float32),
        item_factors=np.array([[1, 4], [2, 5], [3, 6]], dtype=np.float32),
    )
    scores = evaluation.als_scorer(task, factors)(np.array([0, 1]))
    assert scores.tolist() == [[1, 2, 3], [8, 10, 12]]
    assert scores.dtype == np.float32


def test_user_without_positives_gets_the_popular_order_under_als() -> None:
    task = make_task(4, target_items=[0, 0, 0, 0], learned={0: [3, 1], 2: [3], 3: [3, 1, 0]})
    factors = Factors(np.ones((4, 1), dtype=np.float32), np.array([[4], [3], [2], [1]], dtype=np.float32))
    lists = rank(task, evaluation.als_scorer(task, factors), depth=4).items
    assert lists[1].tolist() == [3, 1, 0, 2]  # 3 positives, 2, 1, 0
    assert lists[[0, 2, 3]].tolist() == [[0, 1, 2, 3]] * 3


def test_popularity_counts_the_positives_that_the_task_may_learn_from() -> None:
    task = make_task(3, target_items=[0, 0, 1], learned={0: [2], 1: [2, 1]})
    assert evaluation.popular_scorer(task)(np.array([0, 2])).tolist() == [[0, 1, 2], [0, 1, 2]]


@pytest.mark.parametrize(("n_seen", "floor"), [(0, 10 / 50), (10, 10 / 40)])
def test_random_finds_the_target_as_often_as_chance_does(n_seen: int, floor: float) -> None:
    n_users = 4_000
    rng = np.random.default_rng(1)
    drawn = rng.permuted(np.tile(np.arange(50), (n_users, 1)), axis=1)
    seen = {user: drawn[user, 1 : 1 + n_seen].tolist() for user in range(n_users)}
    task = make_task(50, target_items=drawn[:, 0].tolist(), seen=seen)
    recall = measure(rank(task, evaluation.random_scorer(task, SEED), depth=20), task)["recall@10"].mean()
    assert abs(recall - floor) < 4 * math.sqrt(floor * (1 - floor) / n_users)


def test_random_is_seeded() -> None:
    task = make_task(50, target_items=[0] * 20)
    first, again, other = (rank(task, evaluation.random_scorer(task, seed)).items.tolist() for seed in (1, 1, 2))
    assert first == again != other


# Intervals


def some_metrics(n_users: int, share: float = 0.3) -> dict[str, NDArray[np.float64]]:
    hits = (np.arange(n_users) < share * n_users).astype(np.float64)
    return {"recall@10": hits, "ndcg@10": hits * np.linspace(0.3, 1, n_users)}


def test_interval_is_seeded() -> None:
    metrics = some_metrics(200)
    assert intervals(metrics, 1) == intervals(metrics, 1) != intervals(metrics, 2)


def test_interval_contains_the_mean_and_shrinks_with_more_users() -> None:
    widths = []
    for n_users in (50, 200, 800):
        metrics = some_metrics(n_users)
        found = intervals(metrics, SEED)
        assert found.keys() == metrics.keys()
        assert all(found[name][0] < metrics[name].mean() < found[name][1] for name in metrics)
        widths.append(found["recall@10"][1] - found["recall@10"][0])
    # Four times the users halve the interval.
    assert widths[0] / widths[1] == pytest.approx(2, rel=0.25)
    assert widths[1] / widths[2] == pytest.approx(2, rel=0.25)


def test_interval_of_equal_values_is_a_point() -> None:
    assert intervals({"recall@10": np.full(30, 0.25)}, SEED) == {"recall@10": [0.25, 0.25]}


def test_interval_agrees_with_the_bootstrap_of_scipy() -> None:
    from scipy.stats import bootstrap

    for name, values in some_metrics(573, share=0.1).items():
        expected = bootstrap(
            (values,), np.mean, n_resamples=5_000, method="percentile", rng=np.random.default_rng(0)
        ).confidence_interval
        low, high = intervals({name: values}, SEED, n_resamples=5_000)[name]
        width = expected.high - expected.low
        assert low == pytest.approx(expected.low, abs=0.05 * width)
        assert high == pytest.approx(expected.high, abs=0.05 * width)


def test_models_are_resampled_alike_so_that_their_intervals_can_be_compared() -> None:
    task = make_task(30, target_items=list(range(30)) * 4)
    same = {"one": always(*range(30)), "other": always(*range(30))}
    result = evaluation.evaluate(task, same, SEED)
    assert result.intervals["one"] == result.intervals["other"]


# The real data


@pytest.fixture(scope="module")
def ratings(movielens_dir: Path) -> pd.DataFrame:
    return read_movielens(movielens_dir).ratings


@pytest.fixture(scope="module")
def split(ratings: pd.DataFrame) -> Split:
    return core.leave_one_out(core.positives(ratings))


Evaluated = Callable[[Protocol, str], tuple[TaskResult, Factors]]


@pytest.fixture(scope="module")
def evaluated(ratings: pd.DataFrame, split: Split) -> Evaluated:
    """Fit and evaluate a preset on the test stage of a protocol, once per module."""
    done: dict[tuple[Protocol, str], tuple[TaskResult, Factors]] = {}

    def get(protocol: Protocol, preset: str) -> tuple[TaskResult, Factors]:
        if (protocol, preset) not in done:
            task = build_task(ratings, split, protocol, "test")
            factors = fit_als(task.user_items, PRESETS[preset])
            result = evaluation.evaluate(task, evaluation.scorers(task, factors, SEED), SEED)
            done[protocol, preset] = result, factors
        return done[protocol, preset]

    return get


@pytest.fixture(scope="module")
def exported(evaluated: Evaluated, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The TREC files of the reference in protocol ``rated``."""
    folder = tmp_path_factory.mktemp("run") / "new" / "folder"
    result, _ = evaluated("rated", "reference")
    evaluation.write_trec(folder, result.task, result.runs)
    return folder


def test_reference_point_of_published_notebooks_is_reproduced(evaluated: Evaluated) -> None:
    means = evaluated("positives", "reference")[0].means
    assert means["als"]["recall@10"] == pytest.approx(0.0768, abs=0.002)
    assert means["als"]["ndcg@10"] == pytest.approx(0.0381, abs=0.002)
    assert means["popular"]["recall@10"] == pytest.approx(0.0419, abs=0.002)


def test_reference_in_protocol_rated_has_a_recall_of_about_9_percent(evaluated: Evaluated) -> None:
    assert 0.08 < evaluated("rated", "reference")[0].means["als"]["recall@10"] < 0.105


@pytest.mark.parametrize("preset", sorted(PRESETS))
@pytest.mark.parametrize("protocol", ["rated", "positives"])
def test_als_beats_popular_and_popular_beats_random(evaluated: Evaluated, protocol: Protocol, preset: str) -> None:
    means = evaluated(protocol, preset)[0].means
    for name in ("recall@10", "recall@20", "ndcg@10", "ndcg@20"):
        assert means["als"][name] > means["popular"][name] > means["random"][name]


@pytest.mark.parametrize("model", ["als", "popular", "random"])
def test_metrics_agree_with_ir_measures_user_by_user(evaluated: Evaluated, exported: Path, model: str) -> None:
    result, _ = evaluated("rated", "reference")
    ours = measure(result.runs[model], result.task)
    user_ids = [str(user_id) for user_id in result.task.users.ids[result.task.target_users]]
    names = {"recall": R, "precision": P, "ndcg": nDCG}
    theirs: dict[str, dict[str, float]] = defaultdict(dict)
    run = list(ir_measures.read_trec_run(str(exported / f"run.{model}.txt")))
    qrels = list(ir_measures.read_trec_qrels(str(exported / "qrels.txt")))
    measures = {metric @ k: f"{name}@{k}" for name, metric in names.items() for k in CUTOFFS}
    for found in ir_measures.pytrec_eval.iter_calc(list(measures), qrels, run):
        theirs[measures[found.measure]][found.query_id] = found.value
    assert sorted(theirs) == sorted(ours)
    for name, values in ours.items():
        assert sorted(theirs[name]) == sorted(user_ids)
        np.testing.assert_allclose(values, [theirs[name][user_id] for user_id in user_ids], rtol=0, atol=1e-9)
        assert result.means[model][name] == pytest.approx(float(np.mean(list(theirs[name].values()))), abs=1e-12)


def test_random_is_not_better_than_chance_on_the_real_data(evaluated: Evaluated) -> None:
    result, _ = evaluated("rated", "default")
    n_left = len(result.task.items) - np.diff(result.task.seen.indptr)
    chance = float((20 / n_left).mean())
    assert abs(result.means["random"]["recall@20"] - chance) < 4 * math.sqrt(chance / result.task.n_targets)


def read_run(path: Path) -> list[tuple[int, int, int, float]]:
    """Lines of a TREC run as (user_id, movie_id, rank, score)."""
    lines = [line.split(" ") for line in path.read_text(encoding="ascii").splitlines()]
    model = path.name.split(".")[1]
    assert {(len(fields), fields[1], fields[5]) for fields in lines} == {(6, "Q0", model)}
    return [(int(user), int(movie), int(place), float(score)) for user, _, movie, place, score, _ in lines]


@pytest.mark.parametrize("model", ["als", "popular", "random"])
def test_exported_lists_are_100_deep_with_a_strictly_falling_score(exported: Path, split: Split, model: str) -> None:
    lines = read_run(exported / f"run.{model}.txt")
    assert len(lines) == 573 * 100
    blocks = [lines[start : start + 100] for start in range(0, len(lines), 100)]
    for block in blocks:
        assert len({user for user, *_ in block}) == 1
        assert [place for _, _, place, _ in block] == list(range(1, 101))
        scores = np.array([score for *_, score in block], dtype=np.float32)  # some tools read float32
        assert (np.diff(scores) < 0).all()
        assert len({movie for _, movie, *_ in block}) == 100
    assert len({block[0][0] for block in blocks}) == 573
    assert {movie for _, movie, *_ in lines} <= set(split.train["movie_id"])


def test_exported_truths_are_the_last_positives_of_the_target_users(exported: Path, split: Split) -> None:
    lines = (exported / "qrels.txt").read_text(encoding="ascii").splitlines()
    targets = split.test[split.test["movie_id"].isin(split.train["movie_id"])]
    assert lines == [f"{row.user_id} 0 {row.movie_id} 1" for row in targets.itertuples()]
    assert sorted(path.name for path in exported.iterdir()) == [
        "qrels.txt",
        "run.als.txt",
        "run.popular.txt",
        "run.random.txt",
    ]


@pytest.mark.parametrize("model", ["als", "popular", "random"])
def test_exported_lists_hold_nothing_that_was_rated_before_the_target(
    exported: Path, ratings: pd.DataFrame, split: Split, model: str
) -> None:
    target_time = ratings["user_id"].map(split.test.set_index("user_id")["timestamp"])
    earlier = ratings[ratings["timestamp"] < target_time]
    seen = set(zip(earlier["user_id"].tolist(), earlier["movie_id"].tolist(), strict=True))
    assert len(seen) > 50_000
    assert not seen & {(user, movie) for user, movie, *_ in read_run(exported / f"run.{model}.txt")}


def test_user_163_gets_the_popular_order_under_als(exported: Path) -> None:
    by_als, by_popularity = (
        [movie for user, movie, *_ in read_run(exported / f"run.{model}.txt") if user == 163]
        for model in ("als", "popular")
    )
    assert by_als == by_popularity
    assert len(by_als) == 100


@pytest.mark.parametrize("n_rows", [1, 7, 100, 10_000])
@pytest.mark.parametrize("model", ["als", "popular", "random"])
def test_size_of_the_blocks_changes_no_rank(
    evaluated: Evaluated, monkeypatch: pytest.MonkeyPatch, model: str, n_rows: int
) -> None:
    result, factors = evaluated("rated", "reference")
    monkeypatch.setattr(evaluation, "_BLOCK_CELLS", n_rows * len(result.task.items))
    scorer = evaluation.scorers(result.task, factors, SEED)[model]
    assert (rank(result.task, scorer).items == result.runs[model].items).all()


@pytest.mark.parametrize("n_threads", [1, 2, 5])
def test_number_of_blas_threads_changes_no_rank(evaluated: Evaluated, n_threads: int) -> None:
    result, factors = evaluated("rated", "reference")
    with threadpool_limits(n_threads, "blas"):
        items = rank(result.task, evaluation.als_scorer(result.task, factors)).items
    assert (items == result.runs["als"].items).all()


# What is published


def test_description_holds_split_means_intervals_and_definitions(evaluated: Evaluated, split: Split) -> None:
    results = [evaluated(protocol, "reference")[0] for protocol in ("rated", "positives")]
    description = evaluation.describe_results(split, results)
    assert description["split"] == {
        "name": "leave-one-out",
        "n_train": 47_363,
        "n_users": 608,
        "n_items": 6_227,
        "n_validation": 571,
        "n_test": 573,
    }
    assert description["stage"] == "test"
    assert description["definitions"] == DEFINITIONS
    assert keys(description["protocols"]) == keys(description["intervals"])
    assert list(description["protocols"]) == ["rated", "positives"]
    assert list(description["protocols"]["rated"]) == ["als", "popular", "random"]
    recall = description["protocols"]["positives"]["als"]["recall@10"]
    assert recall * 573 == pytest.approx(round(recall * 573), abs=1e-9)  # unrounded: a count of hits over 573
    for protocol, models in description["protocols"].items():
        for model, means in models.items():
            for name, value in means.items():
                low, high = description["intervals"][protocol][model][name]
                assert low <= value <= high


def keys(tree: Any) -> Any:
    """The keys of nested dictionaries."""
    return {key: keys(branch) for key, branch in tree.items()} if isinstance(tree, dict) else None


def test_short_lists_are_exported_without_padding(tmp_path: Path) -> None:
    task = make_task(4, target_items=[1, 0], seen={0: [3], 1: [1, 2, 3]})
    evaluation.write_trec(tmp_path, task, {"als": rank(task, always(1, 2, 3, 4))})
    assert (tmp_path / "qrels.txt").read_text() == "100 0 1001 1\n101 0 1000 1\n"
    assert (tmp_path / "run.als.txt").read_text() == (
        "100 Q0 1002 1 1.0000000000 als\n"
        "100 Q0 1001 2 0.5000000000 als\n"
        "100 Q0 1000 3 0.3333333333 als\n"
        "101 Q0 1000 1 1.0000000000 als\n"
    )


def test_lists_are_as_deep_as_asked() -> None:
    task = make_task(7, target_items=[0])
    assert rank(task, always(*range(7))).items.shape == (1, DEPTH)
    assert rank(task, always(*range(7)), depth=3).items.tolist() == [[6, 5, 4]]
