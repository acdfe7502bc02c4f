"""Every feature against its definition, computed once more and slowly from the words alone.

Whoever adds a feature adds what it should be to ``REFERENCE``.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from app import features
from app.candidates import Context, Query, propose
from app.core import UNKNOWN, IdMap
from app.errors import ArtifactError
from app.features import DEFINITIONS, FEATURES, compute, features_hash, require_same_features
from app.history import History, build_history
from app.tables import Ragged, build_tables, title_words
from tests.tasks import frame
from tests.worlds import HOUR, MONTH, OFFSETS, START, YEAR, World, make_world, random_world, real_world, some_requests

POPULARITY = (
    "rated_before",
    "rated_last_year",
    "rated_last_month",
    "trend",
    "mean_before",
    "popularity_of_recent",
    "popularity_from_recent",
)


# The reference


@dataclass(frozen=True)
class Rated:
    item: int
    rating: float
    time: int


def last(rows: Sequence[Rated], n: int) -> list[Rated]:
    """Those with fewer than n strictly later ones."""
    return [row for row in rows if n_later(row, rows) < n]


def n_later(row: Rated, rows: Sequence[Rated]) -> int:
    return sum(other.time > row.time for other in rows)


def mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found) if found else math.nan


def cosine(one: dict[str, float], other: dict[str, float]) -> float:
    """Of sparse vectors by name; 0 where one of them is 0."""
    product = sum(value * other.get(name, 0.0) for name, value in one.items())
    lengths = math.hypot(*one.values()) * math.hypot(*other.values())
    return product / lengths if lengths else 0.0


def unit(vector: dict[str, float]) -> dict[str, float]:
    length = math.hypot(*vector.values())
    return {name: value / length for name, value in vector.items()} if length else {}


def total(vectors: Iterable[dict[str, float]]) -> dict[str, float]:
    found: Counter[str] = Counter()
    for vector in vectors:
        found.update(vector)
    return dict(found)


class Facts:
    """What is known about the movies of a world, whoever asks, without a table of the application but the three."""

    def __init__(self, world: World) -> None:
        item_of = {movie: item for item, movie in enumerate(world.items.ids.tolist())}
        rows = world.movies.astype({"year": object})
        self.n_items = len(item_of)
        self.year: dict[int, int] = {}
        self.genres: dict[int, set[str]] = {}
        self.title: dict[int, set[str]] = {}
        for movie, title, genres, year in zip(*(rows[c] for c in ("movie_id", "title", "genres", "year")), strict=True):
            if movie in item_of:
                self.title[item_of[movie]] = set(title_words(title))
                self.genres[item_of[movie]] = {name for name in genres.split("|") if name}
                if not pd.isna(year):
                    self.year[item_of[movie]] = year
        self.n_titles_with = Counter(word for words in self.title.values() for word in words)
        self.tags: dict[int, set[tuple[int, str]]] = {}
        for user, movie, tag in zip(*(world.tags[c] for c in ("user_id", "movie_id", "tag")), strict=True):
            if movie in item_of:
                self.tags.setdefault(item_of[movie], set()).add((user, " ".join(tag.lower().split())))
        # Of everybody's tags: how rare a tag is does not depend on who asks.
        self.n_tagged_with = Counter(tag for given in self.tags.values() for tag in {tag for _, tag in given})
        self.rated: dict[int, list[tuple[int, float]]] = {item: [] for item in item_of.values()}
        for movie, rating, time in zip(*(world.ratings[c] for c in ("movie_id", "rating", "timestamp")), strict=True):
            self.rated[item_of[movie]].append((time, rating))
        self.mean_rating = mean(rating for events in self.rated.values() for _, rating in events)
        self.user_ids = world.users.ids.tolist()

    def rarity(self, n_with: int) -> float:
        return math.log((1 + self.n_items) / (1 + n_with))


class Slow:
    """One request, in plain numbers."""

    def __init__(self, facts: Facts, context: Context) -> None:
        knowledge, query = context.knowledge, context.query
        columns = (query.history.item_index, query.history.rating, query.history.timestamp)
        self.facts, self.knowledge = facts, knowledge
        self.rated = [Rated(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]
        self.liked = [row for row in self.rated if row.rating >= 4]
        self.moment, self.known_moment = query.moment, context.known_moment
        self.user_id = None if query.user_index == UNKNOWN else facts.user_ids[query.user_index]
        self.y = knowledge.item_factors.astype(np.float64)

    def scores(self, half_life: float) -> dict[int, float]:
        """xᵀy of every movie that was not rated, with (YᵀCY + λI) x = YᵀCp."""
        als = self.knowledge.als
        c, p = np.ones(len(self.y)), np.zeros(len(self.y))
        for row in self.liked:
            fading = 0.5 ** (n_later(row, self.liked) / half_life) if half_life else 1.0
            strength = 2 * (row.rating - 4) / (5 - 4) - 1
            c[row.item], p[row.item] = als.alpha * (1 + als.grading * strength) * fading, 1
        left = (self.y.T * c) @ self.y + als.regularization * np.eye(self.y.shape[1])
        return self.unrated(self.y @ np.linalg.solve(left, self.y.T @ (c * p)))

    def unrated(self, values: np.ndarray) -> dict[int, float]:
        known = {row.item for row in self.rated}
        return {item: value for item, value in enumerate(values.tolist()) if item not in known}

    @cached_property
    def als(self) -> dict[int, float]:
        return self.scores(self.knowledge.als.half_life)

    @cached_property
    def plain(self) -> dict[int, float]:
        return self.scores(0)

    def table(self, name: str) -> Callable[[int, int], float]:
        """Return table(row's movie, column's movie)."""
        table: Ragged = getattr(self.knowledge.tables, name)

        def value(row: int, column: int) -> float:
            own = slice(table.indptr[row], table.indptr[row + 1])
            places = np.flatnonzero(table.index[own] == column)
            return float(table.value[own][places[0]]) if len(places) else 0.0

        return value

    def faded(self, name: str, rows: Sequence[Rated], item: int) -> float:
        """Σ ½^(n/3) table(movie, candidate) over the last ten."""
        value = self.table(name)
        return sum(0.5 ** (n_later(row, rows) / 3) * value(row.item, item) for row in last(rows, 10))

    @cached_property
    def around(self) -> dict[int, float]:
        table: Ragged = self.knowledge.tables.around
        sums = np.zeros(self.facts.n_items)
        for row in last(self.rated, 10):
            for place in range(table.indptr[row.item], table.indptr[row.item + 1]):
                sums[table.index[place]] += 0.5 ** (n_later(row, self.rated) / 3) * float(table.value[place])
        return self.unrated(sums)

    def cosine_to(self, row: Rated, item: int) -> float:
        one, other = self.y[row.item], self.y[item]
        lengths = math.hypot(*one) * math.hypot(*other)
        return float(one @ other) / lengths if lengths else 0.0

    def genres_of(self, rows: Sequence[Rated]) -> dict[str, float]:
        return total(dict.fromkeys(self.facts.genres.get(row.item, ()), 1.0) for row in rows)

    def taste(self, genre: str) -> float:
        """Σ (rating − the user's mean) / (ratings + 3) of one genre."""
        own = mean(row.rating for row in self.rated)
        of_genre = [row.rating - own for row in self.rated if genre in self.facts.genres.get(row.item, ())]
        return sum(of_genre) / (len(of_genre) + 3)

    def mean_year(self, rows: Sequence[Rated]) -> float:
        return mean(self.facts.year[row.item] for row in rows if row.item in self.facts.year)

    def year(self, item: int) -> float:
        return self.facts.year.get(item, math.nan)

    def words(self, item: int) -> dict[str, float]:
        n_with = self.facts.n_titles_with
        return unit({word: self.facts.rarity(n_with[word]) for word in self.facts.title.get(item, ())})

    def tags(self, item: int) -> dict[str, float]:
        given = Counter(tag for user, tag in self.facts.tags.get(item, ()) if user != self.user_id)
        n_with = self.facts.n_tagged_with
        return unit({tag: math.log(1 + n) * self.facts.rarity(n_with[tag]) for tag, n in given.items()})

    def before(self, item: int, seconds: float = math.inf) -> list[float]:
        """The ratings of a movie before the request, of the last so many seconds."""
        now = self.known_moment
        return [rating for time, rating in self.facts.rated[item] if now - seconds <= time < now]

    def rated_before(self, item: int) -> float:
        return math.log(1 + len(self.before(item)))

    @cached_property
    def popularity_of_recent(self) -> float:
        return mean(self.rated_before(row.item) for row in last(self.rated, 10))

    def pace(self) -> float:
        times = [row.time for row in self.rated[-20:]]
        gaps = sorted(later - earlier for earlier, later in pairwise(times))
        return math.log(1 + float(np.median(gaps))) if gaps else math.nan


Expected = float | tuple[float, float]
"""A value, or the least and the most that it may be where rounding decides."""


def log_rank(scores: dict[int, float], item: int) -> Expected:
    """log(1 + movies with a higher score); those whose scores differ by rounding only may be on either side."""
    own, slack = scores[item], 1e-5 * max(map(abs, scores.values()))
    others = [score for score in scores.values() if score != own]
    least, most = (sum(score > own + shift for score in others) for shift in (slack, -slack))
    return math.log(1 + least), math.log(1 + most)


def faded(name: str, request: Slow, item: int) -> float:
    return request.faded(name, request.rated, item)


def mean_of_table(name: str, liked: bool, n: int, request: Slow, item: int) -> float:
    value = request.table(name)
    return mean(value(row.item, item) for row in last(request.liked if liked else request.rated, n))


def mean_cosine(n: int, request: Slow, item: int) -> float:
    return mean(request.cosine_to(row, item) for row in last(request.liked, n))


def genre_cosine(chosen: Callable[[Slow], list[Rated]], request: Slow, item: int) -> float:
    return cosine(dict.fromkeys(request.facts.genres.get(item, ()), 1.0), request.genres_of(chosen(request)))


REFERENCE: dict[str, Callable[[Slow, int], Expected]] = {
    "als_score": lambda request, item: request.als[item],
    "als_rank": lambda request, item: log_rank(request.als, item),
    "plain_score": lambda request, item: request.plain[item],
    "plain_rank": lambda request, item: log_rank(request.plain, item),
    "around_recent": lambda request, item: request.around[item],
    "around_rank": lambda request, item: log_rank(request.around, item),
    "around_lift": lambda request, item: request.around[item] / math.sqrt(len(request.facts.rated[item]) + 5),
    "around_last": partial(mean_of_table, "around", False, 1),
    "around_liked": lambda request, item: request.faded("around", request.liked, item),
    "after_recent": partial(faded, "after"),
    "after_last": partial(mean_of_table, "after", False, 1),
    "together_1": partial(mean_of_table, "together", True, 1),
    "together_3": partial(mean_of_table, "together", True, 3),
    "together_5": partial(mean_of_table, "together", True, 5),
    "together_10": partial(mean_of_table, "together", True, 10),
    "together_recent": partial(faded, "together"),
    "cosine_1": partial(mean_cosine, 1),
    "cosine_3": partial(mean_cosine, 3),
    "cosine_5": partial(mean_cosine, 5),
    "cosine_10": partial(mean_cosine, 10),
    "cosine_most": lambda request, item: max(request.cosine_to(row, item) for row in last(request.liked, 10)),
    "genres_liked": partial(genre_cosine, lambda request: request.liked),
    "genres_recent": partial(genre_cosine, lambda request: last(request.liked, 5)),
    "genres_last": partial(genre_cosine, lambda request: last(request.rated, 3)),
    "genres_rated": lambda request, item: (
        mean(request.taste(genre) for genre in request.facts.genres[item]) if request.facts.genres.get(item) else 0.0
    ),
    "year": lambda request, item: request.year(item),
    "age": lambda request, item: 1970 + request.known_moment / YEAR - request.year(item),
    "year_from_last": lambda request, item: abs(request.year(item) - request.mean_year(last(request.rated, 1))),
    "year_from_recent": lambda request, item: request.year(item) - request.mean_year(last(request.rated, 5)),
    "year_from_liked": lambda request, item: request.year(item) - request.mean_year(request.liked),
    "title": lambda request, item: cosine(
        request.words(item), total(request.words(row.item) for row in last(request.rated, 10))
    ),
    "tags": lambda request, item: cosine(
        request.tags(item), total(request.tags(row.item) for row in last(request.liked, 10))
    ),
    "rated_before": lambda request, item: request.rated_before(item),
    "rated_last_year": lambda request, item: math.log(1 + len(request.before(item, YEAR))),
    "rated_last_month": lambda request, item: math.log(1 + len(request.before(item, MONTH))),
    "trend": lambda request, item: (len(request.before(item, YEAR)) + 1) / (len(request.before(item)) + 5),
    "mean_before": lambda request, item: (
        (sum(request.before(item)) + 5 * request.facts.mean_rating) / (len(request.before(item)) + 5)
    ),
    "popularity_of_recent": lambda request, _: request.popularity_of_recent,
    "popularity_from_recent": lambda request, item: request.rated_before(item) - request.popularity_of_recent,
    "n_ratings": lambda request, _: math.log(1 + len(request.rated)),
    "mean_rating": lambda request, _: mean(row.rating for row in request.rated),
    "mean_of_last": lambda request, _: mean(row.rating for row in last(request.rated, 3)),
    "share_liked": lambda request, _: len(request.liked) / len(request.rated),
    "since_last": lambda request, _: math.log(1 + request.moment - max(row.time for row in request.rated)),
    "ratings_last_hour": lambda request, _: math.log(
        1 + sum(row.time > request.moment - HOUR for row in request.rated)
    ),
    "pace": lambda request, _: request.pace(),
}
# float32 holds years to 0.0001; the rest is compared relatively.
TOLERANCE = {name: 5e-4 if name.startswith(("year", "age")) else 1e-5 for name in REFERENCE}


def check_features(facts: Facts, context: Context, items: np.ndarray) -> None:
    found = compute(context, items)
    assert (found.shape, found.dtype) == ((len(items), len(DEFINITIONS)), np.float32)
    request = Slow(facts, context)
    for column, name in enumerate(DEFINITIONS):
        for value, item in zip(found[:, column].tolist(), items.tolist(), strict=True):
            expected = REFERENCE[name](request, item)
            low, high = expected if isinstance(expected, tuple) else (expected, expected)
            slack = TOLERANCE[name] + 1e-4 * abs(low)
            right = math.isnan(value) if math.isnan(low) else low - slack <= value <= high + slack
            assert right, f"{name} of item {item}: {value}, expected {expected}"


def column(found: np.ndarray, name: str) -> list[float]:
    return found[:, FEATURES.index(name)].tolist()


# Each feature is what its definition says


def test_every_feature_has_a_reference_and_every_reference_a_feature() -> None:
    assert sorted(REFERENCE) == sorted(DEFINITIONS)
    assert tuple(DEFINITIONS) == FEATURES
    assert all(DEFINITIONS.values())


@pytest.mark.parametrize("seed", range(12))
def test_features_are_what_their_definitions_say(seed: int) -> None:
    world = random_world(seed)
    facts = Facts(world)
    for context in some_requests(world, seed, 4):
        check_features(facts, context, propose(context))


def test_random_requests_are_of_every_kind() -> None:
    # Without which the test above might say little.
    values = {name: [] for name in DEFINITIONS}
    n_own = 0
    for seed in range(12):
        world = random_world(seed)
        for context in some_requests(world, seed, 4):
            for name, own in zip(DEFINITIONS, compute(context, propose(context)).T, strict=True):
                values[name] += own.tolist()
            indptr = world.knowledge.tables.tags_of_user.indptr
            n_own += bool(context.query.user_index != UNKNOWN and np.diff(indptr)[context.query.user_index])
    assert n_own > 5
    for name, own in values.items():
        assert len(set(own)) > 5, name
    for name in ("year", "age", "year_from_last"):
        assert any(map(math.isnan, values[name])), name
    for name in set(DEFINITIONS) - {"year", "age", "year_from_last", "year_from_recent", "year_from_liked", "pace"}:
        assert not any(map(math.isnan, values[name])), name


def test_features_are_what_their_definitions_say_on_the_real_data(movielens_dir: Path) -> None:
    world, task, factors = real_world(movielens_dir)
    facts, rng = Facts(world), np.random.default_rng(0)
    n_rated = np.diff(world.history.indptr)[task.target_users]
    taggers = np.diff(world.knowledge.tables.tags_of_user.indptr)[task.target_users] > 0
    few, tagger = (np.flatnonzero(chosen & (n_rated < 150)) for chosen in (n_rated > 0, taggers))
    n_checked = 0
    for place in [*rng.choice(few, 4, replace=False), *rng.choice(tagger, 2, replace=False)]:
        user, moment = int(task.target_users[place]), int(task.moments[place])
        context = world.ask(user, moment)
        if not len(context.liked):
            continue
        query = replace(context.query, recent_factor=factors.user_factors[user])
        items = rng.choice(propose(context), 25, replace=False)
        check_features(facts, Context(world.knowledge, query), np.append(items, task.relevant[place].indices))
        n_checked += 1
    assert n_checked >= 4


def test_features_without_tags_genres_years_and_titles_are_what_their_definitions_say() -> None:
    world = random_world(3, with_tags=False)
    nothing = world.movies.assign(title="", genres="", year=pd.array([None] * len(world.movies), dtype="Int64"))
    bare = make_world(
        world.ratings, nothing, users=world.users, items=world.items, item_factors=world.knowledge.item_factors
    )
    for context in some_requests(bare, 3, 3):
        check_features(Facts(bare), context, propose(context))
        found = compute(context, propose(context))
        assert all(math.isnan(value) for name in ("year", "age", "year_from_liked") for value in column(found, name))
        assert all(value == 0 for name in ("title", "tags", "genres_liked") for value in column(found, name))


# By hand


def by_hand(*rows: tuple[int, int, float, int], n_items: int = 6, item_factors: np.ndarray | None = None) -> World:
    """A world of the movies 0, 1, 2 … without titles."""
    movies = pd.DataFrame({"movie_id": range(n_items), "title": "", "genres": "", "year": None}).astype(
        {"year": "Int64"}
    )
    return make_world(frame(*rows), movies, items=IdMap(np.arange(n_items)), item_factors=item_factors)


def test_ranks_count_the_movies_that_are_higher_and_none_that_is_equal() -> None:
    # One liked movie, one factor: the score of y is y · 1·c/(…), so ranks are those of y. Movie 0 is rated.
    factors = np.array([[1], [3], [2], [2], [2], [-1]], dtype=np.float32)
    context = by_hand((7, 0, 4.0, 10), item_factors=factors).ask(0, 11)
    found = compute(context, np.arange(1, 6))
    expected = np.log1p([0, 1, 1, 1, 4]).tolist()
    assert column(found, "als_rank") == column(found, "plain_rank") == pytest.approx(expected, rel=1e-6)
    assert column(found, "around_rank") == [0] * 5  # nothing is around: all equal, and nobody is higher


def test_popularity_counts_what_is_strictly_before_the_request_and_not_before_its_window() -> None:
    now = START + 2 * YEAR
    times = [now - YEAR - 1, now - YEAR, now - MONTH - 1, now - MONTH, now - 1, now, now + 1]
    rows = [(user, 1, 3.0, time) for user, time in enumerate(times)]
    context = by_hand(*rows, (50, 0, 4.0, now - 5)).ask(7, now)
    found = compute(context, np.array([1, 2]))
    assert column(found, "rated_before") == pytest.approx([math.log(6), 0])
    assert column(found, "rated_last_year") == pytest.approx([math.log(5), 0])
    assert column(found, "rated_last_month") == pytest.approx([math.log(3), 0])
    assert column(found, "trend") == pytest.approx([5 / 10, 1 / 5])
    mean_of_all = (7 * 3 + 4) / 8
    assert column(found, "mean_before") == pytest.approx([(15 + 5 * mean_of_all) / 10, mean_of_all])
    assert column(found, "popularity_of_recent") == pytest.approx([math.log(2)] * 2)
    assert column(found, "popularity_from_recent") == pytest.approx([math.log(6) - math.log(2), -math.log(2)])


def test_request_after_the_last_rating_counts_every_rating() -> None:
    # What is served to a user of today: two movies were rated in the last second of the file.
    context = by_hand((7, 0, 4.0, START), (8, 1, 4.0, START + 9), (9, 2, 4.0, START + 9), (8, 3, 2.0, START)).ask(
        0, START + 100
    )
    found = compute(context, np.array([1, 2, 3, 4]))
    assert column(found, "rated_before") == pytest.approx([math.log(2)] * 3 + [0])


def test_user_s_own_figures_by_hand() -> None:
    world = by_hand(
        (7, 0, 4.0, START), (7, 1, 2.0, START + 100), (7, 2, 5.0, START + 3_600), (7, 3, 1.0, START + 3_600)
    )
    found = compute(world.ask(0, START + 3_700), np.array([4, 5]))
    expected = {
        "n_ratings": math.log(5),
        "mean_rating": 3.0,
        "mean_of_last": (2 + 5 + 1) / 3,
        "share_liked": 0.5,
        "since_last": math.log(101),
        "ratings_last_hour": math.log(1 + 2),  # the one of exactly an hour before is out
        "pace": math.log(101),
    }
    for name, value in expected.items():
        assert column(found, name) == pytest.approx([value] * 2, rel=1e-6), name


def test_request_of_the_second_of_the_last_rating_or_before_it_is_no_time_after_it() -> None:
    world = by_hand((7, 0, 4.0, START), (7, 1, 4.0, START + 9), (8, 2, 4.0, START + 20))
    for moment in (START + 9, START + 3):
        query = Query(world.history.of(0), moment, 0)
        found = compute(Context(world.knowledge, query), np.array([3]))
        assert column(found, "since_last") == [0.0]


# What changes nothing


def later_ratings(world: World, moment: int, user: int, rng: np.random.Generator) -> pd.DataFrame:
    """Ratings of other users that are new, from the moment on."""
    rated = set(zip(world.ratings["user_id"], world.ratings["movie_id"], strict=True))
    pairs = [
        (own, movie)
        for own in world.users.ids.tolist()
        for movie in world.items.ids.tolist()
        if own != world.users.ids[user] and (own, movie) not in rated
    ]
    chosen = [pair for pair in pairs if rng.random() < 0.5]
    times = moment + rng.choice([0, 0, 1, *OFFSETS], len(chosen))
    return frame(*((*pair, rng.choice([0.5, 5.0]), time) for pair, time in zip(chosen, times.tolist(), strict=True)))


def with_timeline_of(world: World, ratings: pd.DataFrame) -> Callable[[Context], Context]:
    """Return what asks the same of other counts over time."""
    history = build_history(ratings, world.users, world.items)
    other = build_tables(history, world.users, world.items, world.movies, world.tags)
    tables = replace(world.knowledge.tables, timeline=other.timeline, timeline_total=other.timeline_total)
    return lambda context: Context(replace(world.knowledge, tables=tables), context.query)


def popularity(context: Context, items: np.ndarray) -> np.ndarray:
    return compute(context, items)[:, [FEATURES.index(name) for name in POPULARITY]]


@pytest.mark.parametrize("seed", range(8))
def test_what_others_rate_from_the_moment_on_changes_no_popularity(seed: int) -> None:
    world, rng = random_world(seed), np.random.default_rng(seed)
    for context in some_requests(world, seed, 3):
        moment, items = context.query.moment, propose(context)
        more = later_ratings(world, moment, context.query.user_index, rng)
        assert len(more) > 20
        asked = with_timeline_of(world, pd.concat([world.ratings, more], ignore_index=True))(context)
        assert popularity(asked, items).tobytes() == popularity(context, items).tobytes()


@pytest.mark.parametrize("seed", range(4))
def test_what_others_rated_before_the_moment_does_change_popularity(seed: int) -> None:
    world, rng = random_world(seed), np.random.default_rng(seed)
    (context,) = some_requests(world, seed, 1)
    items = propose(context)
    more = later_ratings(world, START, context.query.user_index, rng)
    more["timestamp"] = context.known_moment - 1
    asked = with_timeline_of(world, pd.concat([world.ratings, more], ignore_index=True))(context)
    changed = popularity(asked, items) != popularity(context, items)
    assert changed.any(axis=0).all()


def without_tags_of(world: World, user: int) -> World:
    tags = world.tags[world.tags["user_id"] != world.users.ids[user]]
    tables = build_tables(world.history, world.users, world.items, world.movies, tags)
    return replace(world, tags=tags, knowledge=replace(world.knowledge, tables=tables))


@pytest.mark.parametrize("seed", range(8))
def test_user_s_own_tags_count_for_nothing(seed: int) -> None:
    # How rare a tag is aside: that is of everybody's tags, and the same in both.
    world = random_world(seed)
    n_tags = len(world.knowledge.tables.tag_idf)
    flat = replace(world.knowledge.tables, tag_idf=np.ones(n_tags, dtype=np.float32))
    for context in some_requests(world, seed, 4):
        user, items = context.query.user_index, propose(context)
        if user == UNKNOWN:
            continue
        others = without_tags_of(world, user)
        assert len(others.knowledge.tables.tag_idf) == n_tags
        blind = replace(others.knowledge.tables, tag_idf=flat.tag_idf)
        one, other = (
            compute(Context(replace(world.knowledge, tables=tables), context.query), items) for tables in (flat, blind)
        )
        assert one.tobytes() == other.tobytes()


def test_somebody_else_s_tags_do_change_the_tags_of_a_request() -> None:
    world = random_world(0)
    changed = []
    for context in some_requests(world, 0, 4):
        other = (context.query.user_index + 1) % len(world.users)
        asked = Context(without_tags_of(world, other).knowledge, context.query)
        items = propose(context)
        changed.append(column(compute(asked, items), "tags") != column(compute(context, items), "tags"))
    assert any(changed)


@pytest.mark.parametrize("seed", range(8))
def test_features_of_a_movie_do_not_depend_on_the_other_candidates(seed: int) -> None:
    world, rng = random_world(seed), np.random.default_rng(seed)
    for context in some_requests(world, seed, 2):
        items = propose(context)
        everything = compute(context, items)
        for n in (1, 2, len(items) // 2, len(items)):
            places = rng.permutation(len(items))[:n]
            some = compute(Context(context.knowledge, context.query), items[places])
            np.testing.assert_allclose(some, everything[places], rtol=1e-6, atol=1e-6)


def test_features_of_a_real_movie_do_not_depend_on_the_other_candidates(movielens_dir: Path) -> None:
    world, task, _ = real_world(movielens_dir)
    context = world.ask(int(task.target_users[9]), int(task.moments[9]))
    items = propose(context)
    everything = compute(context, items)
    for places in (np.arange(0, len(items), 3), np.array([5]), np.arange(len(items))[::-1]):
        np.testing.assert_allclose(compute(context, items[places]), everything[places], rtol=1e-6, atol=1e-6)


def test_nothing_asked_for_gives_no_rows() -> None:
    (context,) = some_requests(random_world(0), 0, 1)
    assert compute(context, np.array([], dtype=np.int64)).shape == (0, len(DEFINITIONS))


def test_asking_twice_gives_the_same_bits() -> None:
    (context,) = some_requests(random_world(1), 1, 1)
    items = propose(context)
    again = Context(context.knowledge, context.query)
    assert compute(context, items).tobytes() == compute(context, items).tobytes() == compute(again, items).tobytes()


def test_single_positive_and_nothing_else_is_enough() -> None:
    world = random_world(2)
    history = History(np.array([4]), np.array([4.0], dtype=np.float32), np.array([START]))
    context = Context(world.knowledge, Query(history, START + 1))
    found = compute(context, propose(context))
    assert all(map(math.isnan, column(found, "pace")))
    check_features(Facts(world), context, propose(context))


# Which features they are


def changed_definitions() -> list[dict[str, str]]:
    first, *others = DEFINITIONS.items()
    return [
        dict(others),
        {**DEFINITIONS, "new": "a new one"},
        dict([*others, first]),
        {"other_name": first[1], **dict(others)},
        {first[0]: first[1] + ".", **dict(others)},
    ]


@pytest.mark.parametrize("changed", changed_definitions(), ids=["fewer", "more", "order", "name", "definition"])
def test_hash_changes_with_names_order_and_definitions(
    monkeypatch: pytest.MonkeyPatch, changed: dict[str, str]
) -> None:
    before = features_hash()
    monkeypatch.setattr(features, "DEFINITIONS", dict(DEFINITIONS))
    assert features_hash() == before
    monkeypatch.setattr(features, "DEFINITIONS", changed)
    assert features_hash() != before
    assert len(features_hash()) == 64


def test_ranker_of_these_features_is_accepted() -> None:
    require_same_features(FEATURES)
    require_same_features(list(FEATURES), features_hash())


@pytest.mark.parametrize(
    ("names", "stated_hash", "said"),
    [
        (FEATURES[1:], None, r"other features \(als_score\); expected the \d+ of this release"),
        ((*FEATURES, "new"), None, r"\(new\)"),
        (FEATURES[::-1], None, r"\(their order or definitions\)"),
        (FEATURES, "0" * 64, r"\(their order or definitions\).*--ranker"),
    ],
)
def test_ranker_of_other_features_is_refused_with_a_remedy(
    names: Sequence[str], stated_hash: str | None, said: str
) -> None:
    with pytest.raises(ArtifactError, match=said):
        require_same_features(names, stated_hash)
