"""Learning to rank: what each stage may see, what is learned from, and that a planted effect is found and no other."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from app import core, protocols
from app.als import AlsConfig, learn
from app.datasets.movielens import RawData, empty_links
from app.datasets.synthetic import synthesize
from app.errors import DataError
from app.evaluation import als_scorer, describe_catalogue, measure
from app.evaluation.bootstrap import interval, resampled_means
from app.evaluation.lists import rank
from app.features import FEATURES
from app.protocols import RankingTask, step_back
from app.ranker import RankerConfig
from app.ranker_metrics import measure_dials
from app.second_stage import Examples, HeldOutRanker, Learner, collect, ranker_scorer, train_held_out, train_ranker
from tests.tasks import frame
from train_als import cli

SMALL = RankerConfig(n_stages=2, num_iterations=20)
ALS = AlsConfig(factors=8, iterations=3)


@cache
def held_out(transitions: float = 0.0, n_ratings: int = 4_000) -> HeldOutRanker:
    dataset = core.clean("synthetic", synthesize(n_ratings, 1, transitions))
    split = core.leave_one_out(core.positives(dataset.ratings))
    task = protocols.build_task(dataset.ratings, split, "rated", "validation")
    learner = Learner(dataset, split.users, split.items, ALS)
    return train_held_out(learner, task, learn(task.positives, ALS), SMALL)


def raw_data(rows: list[tuple[int, int, float, int]]) -> RawData:
    ratings = frame(*rows)
    movies = pd.DataFrame({"movie_id": sorted(set(ratings["movie_id"]))}).assign(title="A (1990)", genres="Drama")
    return RawData(ratings, movies, empty_links(), "fingerprint", ())


def test_examples_are_unrated_candidates_of_which_at_most_the_next_liked_one_is_labelled() -> None:
    found = held_out()
    requests = found.task.requests
    for place, user in enumerate(requests.users):
        rows = slice(found.examples.indptr[place], found.examples.indptr[place + 1])
        rated = requests.history.of(int(user)).item_index
        assert not np.isin(found.examples.items[rows], rated).any()
        labelled = found.examples.items[rows][found.examples.labels[rows] == 1]
        assert set(labelled) <= set(requests.relevant[place].indices)


def test_each_stage_is_learned_from_what_was_known_before_it() -> None:
    found = held_out()
    history, n_items = found.task.history, len(found.task.items)
    for stage in found.stages:
        requests = step_back(history, n_items)
        assert len(stage.n_relevant) == len(requests.users)
        for user, moment in zip(requests.users.tolist(), requests.moments.tolist(), strict=True):
            assert (requests.history.of(user).timestamp < moment).all()
        history = requests.history


def test_examples_without_an_answer_are_not_learned_from() -> None:
    examples = held_out().examples
    found = examples.found()
    per_request = np.add.reduceat(found.labels, found.indptr[:-1])
    assert (per_request >= 1).all()
    assert found.labels.sum() == examples.labels.sum()
    assert len(found.n_relevant) < len(examples.n_relevant)


def test_of_many_requests_some_are_drawn_the_same_with_the_same_seed() -> None:
    found = held_out()
    few, again, other = (collect(found.learned, found.task.requests, seed, limit=5) for seed in (1, 1, 2))
    assert len(few.n_relevant) == 5
    assert few.features.tobytes() == again.features.tobytes()
    assert few.items.tobytes() != other.items.tobytes()


def test_nothing_to_learn_from_is_said_with_a_remedy() -> None:
    found = held_out().examples
    nothing = np.zeros(0, dtype=np.int64)
    labels, indptr = nothing.astype(np.int8), np.zeros(1, dtype=np.int64)
    empty = Examples(found.features[:0], nothing, labels, indptr, nothing, found.relevant[:0])
    with pytest.raises(DataError, match="without --ranker"):
        train_ranker([empty], SMALL, 1)


@pytest.mark.parametrize("n_positives", [3, 4, 6])
def test_stages_end_where_no_positive_is_left(n_positives: int) -> None:
    rows = [(user, 10 + (user * 7 + place) % 40, 5.0, place) for user in range(1, 41) for place in range(n_positives)]
    dataset = core.clean("few", raw_data(rows))
    split = core.leave_one_out(core.positives(dataset.ratings))
    task = protocols.build_task(dataset.ratings, split, "rated", "validation")
    learner = Learner(dataset, split.users, split.items, ALS)
    stages = list(learner.stages(task.history, dataset.tags, RankerConfig()))
    assert len(stages) < RankerConfig().n_stages
    assert all(len(stage.labels) for stage in stages)


def test_no_tag_of_after_a_split_at_one_moment_is_known_whoever_gave_it() -> None:
    dataset = core.clean("synthetic", synthesize(4_000, 1))
    split = core.split_at_moment(core.positives(dataset.ratings), "validation")
    task = protocols.build_temporal_tasks(dataset.ratings, split)[0]
    users = [*task.users.ids.tolist(), 10**9]  # the last is a user without ratings
    movie = int(task.items.ids[0])
    early, late = (
        pd.DataFrame({"user_id": users, "movie_id": movie, "tag": "t", "timestamp": split.moment + after})
        for after in (-1, 0)
    )
    learner = Learner(dataset, task.users, task.items, ALS)
    assert len(learner.known_tags(early, task.requests)) == len(users)
    assert len(learner.known_tags(late, task.requests)) == 0


def test_no_tag_of_after_the_held_out_movie_is_known_of_users_who_are_not_asked_about() -> None:
    dataset = core.clean("synthetic", synthesize(4_000, 1))
    split = core.leave_one_out(core.positives(dataset.ratings))
    task = protocols.build_task(dataset.ratings, split, "rated", "validation")
    assert len(task.target_users) < len(split.validation)
    tags = split.validation[["user_id", "movie_id", "timestamp"]].assign(tag="t")
    learner = Learner(dataset, task.users, task.items, ALS)
    assert len(learner.known_tags(tags, task.requests)) == 0
    assert len(learner.known_tags(tags.assign(timestamp=tags["timestamp"] - 1), task.requests)) == len(tags)


def test_dials_that_need_genres_are_left_out_where_no_movie_has_any() -> None:
    found = held_out()
    movies = found.learned.knowledge.tables
    assert movies is not None
    without = replace(movies, genres=movies.genres[:, :0], genre_names=movies.genre_names[:0])
    learned = replace(found.learned, knowledge=replace(found.learned.knowledge, tables=without))
    plain = pd.DataFrame({"movie_id": found.task.items.ids, "genres": ""})
    catalogue = describe_catalogue(found.task, plain)
    curves = measure_dials(replace(found, learned=learned), catalogue, 1)
    assert curves.keys() == {"novelty", "diversity"}
    assert json.dumps(curves, allow_nan=False)
    assert "miscalibration@10" not in curves["novelty"][0]["means"]


def test_equal_examples_give_the_same_text_whatever_the_number_of_threads() -> None:
    texts = {train_ranker(held_out().stages, SMALL, 1, n_threads).text for n_threads in (1, 2)}
    assert len(texts) == 1


def test_evaluation_ranks_what_the_service_would() -> None:
    found = held_out()
    lists = rank(found.task.seen, ranker_scorer(found), depth=10)
    for place, user in enumerate(found.task.target_users.tolist()[:20]):
        context = found.learned.context(user, int(found.task.moments[place]))
        if len(context.liked):
            items, _ = found.ranker.rank(context)
            assert lists[place].tolist() == items[:10].tolist()


def test_contributions_and_a_constant_add_up_to_the_score() -> None:
    found = held_out()
    matrix = found.examples.features[:50]
    rest = found.ranker.score(matrix) - found.ranker.contributions(matrix).sum(axis=1)
    np.testing.assert_allclose(rest, rest[0], atol=1e-4)


@pytest.mark.slow
def test_command_line_trains_evaluates_exports_and_publishes_a_second_stage(tmp_path: Path) -> None:
    arguments = ["--dataset", "synthetic", "--synthetic-ratings", "4000", "--factors", "8", "--iterations", "3"]
    arguments += ["--ranker", "--baselines", "popular", "--artifacts-dir", str(tmp_path / "artifacts"), "--json"]
    result = CliRunner().invoke(cli, [*arguments, "--export-run", str(tmp_path / "runs")])
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    metrics = printed["metrics"]
    assert {"als", "ranker", "popular"} == metrics["protocols"]["rated"].keys()
    assert metrics["gains"]["rated"]["ndcg@10"].keys() == {"difference", "interval"}
    assert metrics["second_stage"]["importance"].keys() == set(FEATURES)
    assert (tmp_path / "runs" / "run.ranker.txt").is_file()
    for name in ("model.txt", "tables.npz", "ranker.json"):
        assert (Path(printed["path"]) / "ranker" / name).is_file()


def gain_by_order(transitions: float, *, shuffle: bool = False) -> tuple[list[float] | None, list[float] | None]:
    """Intervals of what the ranker gains in NDCG@10 over ALS, and over a ranker blind to the features of order."""
    dataset = core.clean("synthetic", synthesize(20_000, 1, transitions))
    if shuffle:
        ratings = dataset.ratings
        dealt = ratings.iloc[np.lexsort((np.random.default_rng(1).random(len(ratings)), ratings["user_id"]))]
        in_time = ratings.iloc[np.lexsort((ratings["timestamp"], ratings["user_id"]))]["timestamp"].to_numpy()
        dataset = replace(dataset, ratings=dealt.reset_index(drop=True).assign(timestamp=in_time))
    split = core.leave_one_out(core.positives(dataset.ratings))
    task: RankingTask = protocols.build_task(dataset.ratings, split, "rated", "validation")
    als, config = AlsConfig(random_state=1), RankerConfig()
    factors = learn(task.positives, als)
    found = train_held_out(Learner(dataset, split.users, split.items, als), task, factors, config)
    stages = []
    for stage in found.stages:
        features = stage.features.copy()
        features[:, [place for place, name in enumerate(FEATURES) if name.startswith(("around", "after"))]] = 0
        stages.append(replace(stage, features=features))
    blind = replace(found, ranker=train_ranker(stages, config, 1))
    measured = {
        "als": measure(task, als_scorer(task, factors)),
        "ranker": measure(task, ranker_scorer(found)),
        "blind": measure(task, ranker_scorer(blind)),
    }
    gains = np.column_stack([measured["ranker"]["ndcg@10"] - measured[other]["ndcg@10"] for other in ("als", "blind")])
    resampled = resampled_means(gains, 1)
    return interval(resampled[:, 0]), interval(resampled[:, 1])


@pytest.mark.slow
def test_planted_transitions_are_found() -> None:
    over_als, by_order = gain_by_order(0.5)
    assert over_als is not None
    assert by_order is not None
    assert over_als[0] > 0.1
    assert by_order[0] > 0.1


@pytest.mark.slow
def test_where_no_order_is_none_is_pretended() -> None:
    over_als, by_order = gain_by_order(0.0, shuffle=True)
    assert over_als is not None
    assert by_order is not None
    assert over_als[0] < 0 < over_als[1]
    assert by_order[0] < 0 < by_order[1]
