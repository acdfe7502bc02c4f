"""Ratings, movies and tags with what a model knows of them, at random and real: what the tests of features build on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from app import core
from app.als import AlsConfig, Factors, learn
from app.candidates import Context, Knowledge, Query
from app.core import UNKNOWN, IdMap
from app.datasets.movielens import empty_tags, read_movielens
from app.history import UserRows, build_history, positives_of
from app.protocols import RankingTask, build_task
from app.tables import build_tables

START = 1_500_000_000
HOUR, MONTH, YEAR = 3_600, 30 * 86_400, 31_557_600  # seconds
# Times of which many are the same, and many a second within or outside of an hour, a month, a year before another.
OFFSETS = (0, 0, 1, 60, HOUR, HOUR + 1, MONTH - 1, MONTH, MONTH + 60, YEAR, YEAR, YEAR + 1, YEAR + MONTH, 2 * YEAR)
GENRES = ("Action", "Comedy", "Drama", "War")
WORDS = ("The", "Matrix", "of", "Two", "Towers", "Notice", "Rings", "II")
TAGS = ("sci fi", "SCI  fi", "classic", "long", "Long", "dull")


@dataclass(frozen=True)
class World:
    """``ratings``, of users and movies of the maps only, are what ``history`` and ``knowledge`` were built from."""

    users: IdMap
    items: IdMap
    ratings: pd.DataFrame
    movies: pd.DataFrame
    tags: pd.DataFrame
    history: UserRows
    knowledge: Knowledge

    def ask(self, user: int, moment: int, *, known: bool = True) -> Context:
        """Return the request of a user at a moment, knowing what they had rated before it."""
        history = self.history.of(user)
        rated = history.where(history.timestamp < moment)
        return Context(self.knowledge, Query(rated, moment, user if known else UNKNOWN))


def make_world(
    ratings: pd.DataFrame,
    movies: pd.DataFrame,
    tags: pd.DataFrame | None = None,
    *,
    users: IdMap | None = None,
    items: IdMap | None = None,
    item_factors: np.ndarray | None = None,
    als: AlsConfig | None = None,
) -> World:
    """Count everything; the factors are random unless they are given."""
    users = users or IdMap.of(ratings["user_id"])
    items = items or IdMap.of(ratings["movie_id"])
    tags = empty_tags() if tags is None else tags
    if item_factors is None:
        item_factors = np.random.default_rng(0).normal(size=(len(items), 3)).astype(np.float32)
    ratings = ratings[ratings["user_id"].isin(users.ids) & ratings["movie_id"].isin(items.ids)].reset_index(drop=True)
    history = build_history(ratings, users, items)
    liked = positives_of(history, len(items), core.MIN_RATING).user_items
    knowledge = Knowledge(
        als=als or AlsConfig(factors=item_factors.shape[1], regularization=2.0),
        item_factors=item_factors,
        popularity=np.bincount(liked.indices, minlength=len(items)).astype(np.float32),
        tables=build_tables(history, users, items, movies, tags),
    )
    return World(users, items, ratings, movies, tags, history, knowledge)


def random_world(seed: int, *, n_users: int = 10, n_items: int = 36, with_tags: bool = True) -> World:
    """A world in which much is missing: years, genres, words, tags, ratings; ties are everywhere."""
    rng = np.random.default_rng(seed)
    user_ids, movie_ids = np.arange(101, 101 + n_users), 1_000 + 7 * np.arange(n_items)
    eager = rng.uniform(0.1, 0.9, n_users)  # some rate three movies, some thirty
    user, item = np.nonzero(rng.random((n_users, n_items)) < np.minimum.outer(eager, rng.uniform(0, 1, n_items)))
    order = rng.permutation(len(user))
    ratings = pd.DataFrame(
        {
            "user_id": user_ids[user],
            "movie_id": movie_ids[item],
            "rating": rng.choice([0.5, 2, 3.5, 4, 4, 4.5, 5], len(user)).astype(np.float32),
            "timestamp": START + rng.choice(OFFSETS, len(user)),
        }
    ).iloc[order]
    item_factors = rng.normal(size=(n_items, 4)).astype(np.float32)
    item_factors[rng.integers(n_items, size=2)] = 0  # liked by nobody
    return make_world(
        ratings,
        _random_movies(rng, np.append(movie_ids[rng.permutation(n_items)], 5)),
        _random_tags(rng, user_ids, movie_ids) if with_tags else None,
        users=IdMap(user_ids),
        items=IdMap(movie_ids),
        item_factors=item_factors,
        als=AlsConfig(factors=4, regularization=2.0, alpha=5.0, grading=0.5, half_life=2.0),
    )


def _random_movies(rng: np.random.Generator, movie_ids: np.ndarray) -> pd.DataFrame:
    rows = []
    for movie_id in movie_ids.tolist():
        year = int(rng.integers(1930, 2018)) if rng.random() < 0.8 else None
        title = " ".join(rng.choice(WORDS, rng.integers(0, 4)))
        genres = "|".join(sorted(rng.choice(GENRES, rng.integers(0, 4), replace=False)))
        rows.append((movie_id, f"{title} ({year})" if year else title, genres, year))
    return pd.DataFrame(rows, columns=["movie_id", "title", "genres", "year"]).astype({"year": "Int64"})


def _random_tags(rng: np.random.Generator, user_ids: np.ndarray, movie_ids: np.ndarray) -> pd.DataFrame:
    n = 60
    tags = pd.DataFrame(
        {
            "user_id": rng.choice([*user_ids, 999], n),  # 999 is unknown, and movie 5 outside the catalogue
            "movie_id": rng.choice([*movie_ids[:20], 5], n),
            "tag": rng.choice(TAGS, n),
            "timestamp": START,
        }
    )
    folded = tags["tag"].str.split().str.join(" ").str.lower()
    return tags[~tags.assign(tag=folded).duplicated(["user_id", "movie_id", "tag"])].reset_index(drop=True)


def some_requests(world: World, seed: int, n: int) -> list[Context]:
    """Return requests of users who liked something before, at moments that are often those of other ratings."""
    rng = np.random.default_rng(seed)
    found: list[Context] = []
    while len(found) < n:
        moment = START + int(rng.choice(OFFSETS)) + int(rng.choice([0, 1, 1, 3 * YEAR]))
        context = world.ask(int(rng.integers(len(world.users))), moment, known=bool(rng.random() < 0.8))
        if len(context.liked):
            found.append(context)
    return found


@cache
def real_world(folder: Path) -> tuple[World, RankingTask, Factors]:
    """Return the world before the validation targets of the real data, and a quick fit to it."""
    data = core.clean("real", read_movielens(folder))
    split = core.leave_one_out(core.positives(data.ratings))
    task = build_task(data.ratings, split, "rated", "validation")
    config = AlsConfig(factors=16, iterations=3)
    factors = learn(task.positives, config)
    rows = task.history
    ratings = pd.DataFrame(
        {
            "user_id": task.users.ids[rows.user_index],
            "movie_id": task.items.ids[rows.item_index],
            "rating": rows.rating,
            "timestamp": rows.timestamp,
        }
    )
    world = make_world(
        ratings,
        data.movies,
        data.tags,
        users=task.users,
        items=task.items,
        item_factors=factors.item_factors,
        als=config,
    )
    return world, task, factors
