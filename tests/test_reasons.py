"""Why a movie is listed: parts that add up to its score, and sentences that are true of the ratings."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from app import core, tables
from app.als import AlsConfig, confidence, learn
from app.artifacts import LoadedModel, TrainedModel
from app.candidates import Context, Knowledge, Query
from app.core import Dataset, build_positives, positives
from app.datasets.movielens import read_movielens
from app.features import FEATURES
from app.history import History
from app.movies import Movie, Movies, build_movies
from app.ranker import Ranker
from app.reasons import N_BECAUSE, N_REASONS, explain
from app.recommender import ListOptions, Recommender
from app.tables import build_tables, title_words
from tests.models import LIKES_NOTHING, in_memory, train, trained
from tests.tasks import frame
from tests.worlds import YEAR, World, make_world

FIRST_STAGE = ListOptions(ranker=False, explain=True)
EXPLAIN = ListOptions(explain=True)
LATE = 2_000_000_000


@pytest.fixture(scope="module")
def recommender() -> Recommender:
    model = in_memory(trained()[1])
    assert model.ranker is not None
    return Recommender(model, Ranker(model.ranker.text))


@pytest.fixture(scope="module")
def real(movielens_dir: Path) -> tuple[Dataset, TrainedModel]:
    """Every third user of the real data, trained on everything: nothing is measured with it."""
    dataset = core.clean("real", read_movielens(movielens_dir))
    kept = dataset.ratings[dataset.ratings["user_id"] % 3 == 0].reset_index(drop=True)
    return train(replace(dataset, ratings=kept), AlsConfig(factors=16, iterations=3, num_threads=1))


def knowledge_of(model: TrainedModel) -> Knowledge:
    assert model.ranker is not None
    liked = np.bincount(model.confidence.indices, minlength=len(model.items)).astype(np.float32)
    return Knowledge(
        AlsConfig.of(model.config["als"]), model.factors.item_factors, liked, model.ranker.tables, core.MIN_RATING
    )


# --- the liked movies that a score comes from


def divide_slowly(model: LoadedModel, liked: dict[int, float], n_later: dict[int, int], item: int) -> dict[int, float]:
    """Divide an ALS score as Hu et al. do: y_iᵀ (YᵀCY + λI)⁻¹ y_j c_j of each liked movie j."""
    als, y = model.als_config, model.factors.item_factors.astype(np.float64)
    c = np.ones(len(y))
    for each, rating in liked.items():
        grade = 1 + als.grading * (2 * (rating - 4) / (5 - 4) - 1)
        c[each] = als.alpha * grade * 0.5 ** (n_later[each] / als.half_life)
    inverse = np.linalg.inv(y.T @ (c[:, None] * y) + als.regularization * np.eye(y.shape[1]))
    return {each: float(y[item] @ inverse @ y[each] * c[each]) for each in liked}


def assert_explained(divided: dict[int, float], because: tuple[tuple[int, float], ...], score: float) -> None:
    assert sum(divided.values()) == pytest.approx(score, rel=1e-4, abs=1e-5)
    largest = sorted((part for part in divided.values() if part > 0), reverse=True)[:N_BECAUSE]
    assert [part for _, part in because] == pytest.approx(largest, rel=1e-4, abs=1e-6)
    assert [divided[item] for item, _ in because] == pytest.approx(largest, rel=1e-4, abs=1e-6)
    assert len({item for item, _ in because}) == len(because)


def rated_by(dataset: Dataset, model: LoadedModel, user_id: int) -> pd.DataFrame:
    """Return a user's raw ratings of the catalogue, with their item index."""
    table = dataset.ratings[dataset.ratings["user_id"] == user_id]
    index = {int(movie_id): item for item, movie_id in enumerate(model.items.ids)}
    table = table[table["movie_id"].isin(index.keys())]
    return table.assign(item=table["movie_id"].map(index)).sort_values("timestamp", kind="stable")


@pytest.mark.parametrize("user_id", [1, 2, 40, 77, 116, 10_002])
@pytest.mark.parametrize("options", [FIRST_STAGE, EXPLAIN])
def test_the_largest_parts_of_a_users_score_are_named_and_all_add_up_to_it(
    recommender: Recommender, user_id: int, options: ListOptions
) -> None:
    model = recommender.model
    liked = rated_by(trained()[0], model, user_id).query("rating >= 4")
    times = dict(zip(liked["item"], liked["timestamp"], strict=True))
    n_later = {item: sum(other > time for other in times.values()) for item, time in times.items()}
    ranking = recommender.recommend(user_id, 8, options)
    factor = model.factors.user_factors[int(model.users.index(user_id))].astype(np.float64)
    scores = (model.factors.item_factors.astype(np.float64) @ factor).astype(np.float32)
    if not options.ranker:
        assert ranking.source == "als"
        np.testing.assert_array_equal(ranking.scores, scores[ranking.item_indices])
    assert ranking.explanations is not None
    for item, why in zip(ranking.item_indices.tolist(), ranking.explanations, strict=True):
        divided = divide_slowly(model, dict(zip(liked["item"], liked["rating"], strict=True)), n_later, item)
        assert_explained(divided, why.because, float(scores[item]))


@pytest.mark.parametrize("liked", [[1], [1, 2, 3], [3, 404, 1]])
def test_the_largest_parts_of_a_folded_in_score_are_named_and_all_add_up_to_it(
    recommender: Recommender, liked: list[int]
) -> None:
    ranking = recommender.recommend_cold(liked, 8, FIRST_STAGE)
    assert ranking.source == "fold_in"
    model = recommender.model
    items = [item for item, movie_id in enumerate(model.items.ids.tolist()) if movie_id in liked]
    assert ranking.explanations is not None
    for item, score, why in zip(ranking.item_indices.tolist(), ranking.scores, ranking.explanations, strict=True):
        divided = divide_slowly(model, dict.fromkeys(items, 4.5), dict.fromkeys(items, 0), item)
        assert_explained(divided, why.because, float(score))


def test_parts_add_up_where_the_factors_know_only_some_of_the_ratings() -> None:
    """With --no-refit a version's factors are of the held-out fit, while its history is whole."""
    dataset, whole = trained()
    liked = positives(dataset.ratings)
    known = build_positives(liked[liked.duplicated("user_id", keep="last")], whole.users, whole.items)
    als = AlsConfig.of(whole.config["als"])
    held_out = replace(
        whole, factors=learn(known, als), confidence=known.with_values(confidence(known, als)), ranker=None
    )
    model = in_memory(held_out)
    for user_id in (1, 5, 60):
        rated = rated_by(dataset, model, user_id).query("rating >= 4").iloc[:-1]
        times = dict(zip(rated["item"], rated["timestamp"], strict=True))
        n_later = {item: sum(other > time for other in times.values()) for item, time in times.items()}
        ranking = Recommender(model).recommend(user_id, 5, FIRST_STAGE)
        assert ranking.explanations is not None
        for item, score, why in zip(ranking.item_indices.tolist(), ranking.scores, ranking.explanations, strict=True):
            divided = divide_slowly(model, dict(zip(rated["item"], rated["rating"], strict=True)), n_later, item)
            assert_explained(divided, why.because, float(score))


def test_what_is_listed_for_its_popularity_comes_from_no_liked_movie(recommender: Recommender) -> None:
    for ranking in (recommender.recommend(LIKES_NOTHING, 5, EXPLAIN), recommender.recommend_cold([], 5, EXPLAIN)):
        assert ranking.source == "popular"
        assert ranking.explanations is not None
        assert [(why.because, why.reasons) for why in ranking.explanations] == [((), ())] * 5


# --- sentences: what may be said of a user and a movie, found out from the raw ratings


@dataclass(frozen=True)
class Truth:
    """What may be said, computed the slow way from ratings and movies; an empty set is nothing.

    Where several movies are named with equal right, or the numbers are within rounding, there are several sentences.
    """

    ratings: pd.DataFrame
    movies: Movies
    knowledge: Knowledge
    n_together: int = tables.N_TOGETHER  # that the tables keep of each movie

    @cached_property
    def by_user(self) -> dict[int, list[tuple[int, float, int]]]:
        """(item, rating, timestamp) of each user, oldest first; ties in file order."""
        index = {movie.movie_id: item for item, movie in enumerate(self.movies)}
        found: dict[int, list[tuple[int, float, int]]] = defaultdict(list)
        for user_id, movie_id, rating, timestamp in self.ratings.itertuples(index=False):
            if movie_id in index:
                found[user_id].append((index[movie_id], rating, timestamp))
        return {user_id: sorted(rows, key=lambda row: row[2]) for user_id, rows in found.items()}

    @cached_property
    def counts(self) -> tuple[Counter[int], Counter[Any], Counter[Any]]:
        """How many rated a movie; of pairs how many the second soon after the first, and Σ 1/d of both directions."""
        n, after, around = Counter[int](), Counter[Any](), Counter[Any]()
        for rows in self.by_user.values():
            items = [item for item, *_ in rows]
            n.update(items)
            for place, one in enumerate(items):
                for d, other in enumerate(items[place + 1 : place + 21], start=1):
                    after[one, other] += d <= 5
                    around[one, other] += 1 / d
                    around[other, one] += 1 / d
        return n, after, around

    @cached_property
    def both(self) -> np.ndarray:
        """How many rated both of two movies, (n_items, n_items)."""
        has_rated = np.zeros((len(self.by_user), len(self.movies)), dtype=np.float32)
        for row, rated in enumerate(self.by_user.values()):
            has_rated[row, [item for item, *_ in rated]] = 1
        return has_rated.T @ has_rated

    @cached_property
    def mean_of_all(self) -> float:
        return float(np.mean([rating for rows in self.by_user.values() for _, rating, _ in rows]))

    @cached_property
    def by_item(self) -> dict[int, list[tuple[int, float]]]:
        found = defaultdict(list)
        for rows in self.by_user.values():
            for item, rating, timestamp in rows:
                found[item].append((timestamp, rating))
        return found

    def titles(self, value_of: dict[int, float]) -> set[str]:
        """Return the titles of the movies with the largest value, within rounding."""
        return {self.movies[item].title for item, value in value_of.items() if value > max(value_of.values()) - 1e-6}

    def near(self, rated: History, item: int) -> set[str]:
        n, after, around = self.counts
        for words, pairs, prior in (("right after", after, 5), ("around", around, 10)):
            share = {
                other: pairs[other, item] / (n[other] + prior)
                for other in rated.last(10).item_index.tolist()
                if pairs[other, item] > 3 - 1e-5 and pairs[other, item] / (n[other] + prior) > 0.05 - 1e-7
            }
            if share:
                return {f"often watched {words} {title}" for title in self.titles(share)}
        return set()

    def together(self, rated: History, item: int) -> set[str]:
        cosine = {}
        for other in rated.where(rated.rating >= 4).last(10).item_index.tolist():
            both = self.both[other].astype(np.float64)
            cosines = both / np.sqrt(both[other] * self.both.diagonal())
            is_kept = (cosines > cosines[item]).sum() <= self.n_together  # the movie itself is one of them
            if both[item] >= 3 and cosines[item] > 0.2 - 1e-7 and is_kept:
                cosine[other] = float(cosines[item])
        return {f"seen by many who have seen {title}" for title in self.titles(cosine)}

    def liked(self, rated: History, item: int) -> set[str]:
        als, y = self.knowledge.als, self.knowledge.item_factors.astype(np.float64)
        liked = rated.where(rated.rating >= 4)
        c = np.ones(len(y))
        n_later = np.array([(liked.timestamp > time).sum() for time in liked.timestamp])
        grade = 1 + als.grading * (2 * (liked.rating.astype(np.float64) - 4) - 1)
        recency = 0.5 ** (n_later / als.half_life) if als.half_life else 1.0
        c[liked.item_index] = als.alpha * grade * recency
        normal = y.T @ (c[:, None] * y) + als.regularization * np.eye(y.shape[1])
        parts = (np.linalg.solve(normal, y[item]) @ y[liked.item_index].T) * c[liked.item_index]
        if not (parts.max() > 0 and parts.max() >= 0.1 * parts.sum() - 1e-7):
            return set()
        titles = self.titles(dict(zip(liked.item_index.tolist(), parts.tolist(), strict=True)))
        return {f"close to {title}, which you like" for title in titles}

    def genre(self, rated: History, item: int) -> set[str]:
        own = self.movies[item].genres
        mean = float(rated.rating.astype(np.float64).mean())
        of_genre = {
            genre: [
                float(rating)
                for other, rating in zip(rated.item_index.tolist(), rated.rating, strict=True)
                if genre in self.movies[other].genres
            ]
            for genre in own
        }
        above = {genre: sum(each) / len(each) - mean for genre, each in of_genre.items() if len(each) >= 3}
        highest = max(above.values(), default=0.0)
        if highest >= 0.1:
            how = "highly" if mean + highest >= 4 else "above your average"
            return {f"{genre}, which you rate {how}" for genre, value in above.items() if value > highest - 1e-5}
        last = rated.where(rated.rating >= 4).last(3).item_index.tolist()
        return {
            f"{genre}, like what you liked last"
            for genre in own
            if all(genre in self.movies[other].genres for other in last)
        }

    def year(self, rated: History, item: int) -> set[str]:
        year, years = self.movies[item].year, [self.movies[i].year for i in rated.last(5).item_index.tolist()]
        near = year is not None and all(other is not None and abs(other - year) <= 5 for other in years)
        return {f"from {year}, within 5 years of what you rated last"} if near else set()

    def title(self, rated: History, item: int) -> set[str]:
        words = set(title_words(self.movies[item].title))
        titles = [self.movies[other].title for other in rated.last(10).item_index.tolist()]
        n_shared = {title: len(words & set(title_words(title))) for title in titles}
        most = max(n_shared.values())
        if most == 0 or most < len(words) / 2:
            return set()
        return {f"a title like {title}" for title, n in n_shared.items() if n == most}

    def average(self, item: int, moment: int) -> set[str]:
        before = [rating for timestamp, rating in self.by_item[item] if timestamp < moment]
        if len(before) < 3 or sum(before) / len(before) <= self.mean_of_all:
            return set()
        return {f"rated {sum(before) / len(before):.1f} on average"}

    def year_before(self, item: int, moment: int) -> set[str]:
        n = sum(moment - YEAR <= timestamp < moment for timestamp, _ in self.by_item[item])
        return {f"rated by {n:,} people within a year"} if n >= 10 else set()

    def all(self, rated: History, item: int, moment: int) -> set[str]:
        """Return everything that may be said."""
        about_user = (self.near, self.together, self.liked, self.genre, self.year, self.title)
        said = [truth(rated, item) for truth in about_user]
        moment = min(moment, int(self.ratings["timestamp"].max()) + 1)  # nothing is known of later
        return set().union(*said, self.average(item, moment), self.year_before(item, moment))


def truth_of(dataset: Dataset, model: TrainedModel) -> Truth:
    return Truth(dataset.ratings, in_memory(model).movies, knowledge_of(model))


class SeesOnly:
    """Stands for trees that look at some features alone, so that each kind of sentence can be had by itself."""

    def __init__(self, **weights: float) -> None:
        self.weights = np.array([weights.get(name, 0.0) for name in FEATURES])

    def contributions(self, matrix: np.ndarray) -> np.ndarray:
        return np.tile(self.weights, (len(matrix), 1))


def said_about(context: Context, items: np.ndarray, movies: Movies, **weights: float) -> list[tuple[str, ...]]:
    return [why.reasons for why in explain(context, items, movies, SeesOnly(**weights))]  # type: ignore[arg-type]


KINDS: dict[str, tuple[str, Callable[[Truth, History, int, int], set[str]]]] = {
    "near": ("after_recent", lambda truth, rated, item, _: truth.near(rated, item)),
    "together": ("together_3", lambda truth, rated, item, _: truth.together(rated, item)),
    "liked": ("als_score", lambda truth, rated, item, _: truth.liked(rated, item)),
    "genre": ("genres_liked", lambda truth, rated, item, _: truth.genre(rated, item)),
    "year": ("year_from_last", lambda truth, rated, item, _: truth.year(rated, item)),
    "title": ("title", lambda truth, rated, item, _: truth.title(rated, item)),
    "average": ("mean_before", lambda truth, _, item, moment: truth.average(item, moment)),
    "year before": ("rated_last_year", lambda truth, _, item, moment: truth.year_before(item, moment)),
}
SELDOM = {"year", "year before"}  # invented movies have too few ratings and too many years; real ones do it below


def some_requests(
    model: TrainedModel, n: int, knowledge: Knowledge | None = None
) -> Iterator[tuple[Context, np.ndarray]]:
    """Yield requests with movies to say something about: the likeliest, and some others."""
    knowledge, rng = knowledge or knowledge_of(model), np.random.default_rng(0)
    for user in np.linspace(0, len(model.users) - 1, n).astype(int).tolist():
        rated = model.history.of(user)
        if (rated.rating >= 4).any():
            context = Context(knowledge, Query(rated, rated.next_moment, user))
            unrated = np.setdiff1d(np.arange(len(model.items)), rated.item_index)
            best = np.argsort(-context.around_scores)[:25]
            yield context, np.union1d(best, rng.choice(unrated, 10, replace=False))


@pytest.mark.parametrize("kind", KINDS)
def test_a_sentence_is_said_where_it_is_true_and_nowhere_else(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, model = trained()
    truth = truth_of(dataset, model)
    if kind == "together":  # which of equal movies are the last that are kept cannot be known
        monkeypatch.setattr(tables, "N_TOGETHER", len(model.items))
        everything = build_tables(model.history, model.users, model.items, dataset.movies, dataset.tags)
        truth = replace(truth, n_together=len(model.items), knowledge=replace(truth.knowledge, tables=everything))
    if kind == "liked":  # with recency the latest movies always make up a tenth of a score
        truth = replace(truth, knowledge=replace(truth.knowledge, als=replace(truth.knowledge.als, half_life=0)))
    feature, true_of = KINDS[kind]
    n_said = n_silent = 0
    for context, items in some_requests(model, 16, truth.knowledge):
        reasons = said_about(context, items, truth.movies, **{feature: 1.0})
        for item, said in zip(items.tolist(), reasons, strict=True):
            allowed = true_of(truth, context.query.history, item, context.known_moment)
            assert len(said) == (1 if allowed else 0), (said, allowed)
            assert set(said) <= allowed
            n_said += len(said)
            n_silent += not said
    assert n_silent > 10
    assert n_said > 10 or kind in SELDOM


def test_each_sentence_of_the_served_lists_is_true(recommender: Recommender) -> None:
    assert_true_lists(recommender, *trained(), users=range(1, 117, 6))


def test_each_sentence_about_real_movies_is_true(real: tuple[Dataset, TrainedModel]) -> None:
    dataset, trained_model = real
    model = in_memory(trained_model)
    assert model.ranker is not None
    recommender = Recommender(model, Ranker(model.ranker.text))
    kinds = assert_true_lists(recommender, dataset, trained_model, users=model.users.ids[::8].tolist())
    assert kinds >= {"after", "liked", "seen", "genre", "from", "average", "people"}


def assert_true_lists(
    recommender: Recommender, dataset: Dataset, model: TrainedModel, users: Sequence[int]
) -> set[str]:
    truth = truth_of(dataset, model)
    kinds = Counter[str]()
    for user_id in users:
        ranking = recommender.recommend(user_id, 10, EXPLAIN)
        assert ranking.source == "ranker"
        rated = model.history.of(int(model.users.index(user_id)))
        assert ranking.explanations is not None
        for item, why in zip(ranking.item_indices.tolist(), ranking.explanations, strict=True):
            assert len(why.reasons) <= N_REASONS
            assert len(set(why.reasons)) == len(why.reasons)
            assert set(why.reasons) <= truth.all(rated, item, ranking.moment), (user_id, item)
            kinds.update(kind_of(reason) for reason in why.reasons)
    assert kinds.total() > 2 * len(users)
    return set(kinds)


def kind_of(reason: str) -> str:
    patterns = {
        "after": "often watched right after ",
        "around": "often watched around ",
        "liked": "close to .*, which you like$",
        "seen": "seen by many who have seen ",
        "genre": ".*, (which you rate (highly|above your average)|like what you liked last)$",
        "from": r"from \d{4}, within 5 years of what you rated last$",
        "title": "a title like ",
        "average": r"rated \d\.\d on average$",
        "people": r"rated by [\d,]+ people within a year$",
    }
    (kind,) = (kind for kind, pattern in patterns.items() if re.match(pattern, reason))
    return kind


def test_real_movies_are_from_like_years_and_rated_by_many_only_where_they_are(
    real: tuple[Dataset, TrainedModel],
) -> None:
    dataset, model = real
    truth = truth_of(dataset, model)
    for kind in SELDOM:
        feature, true_of = KINDS[kind]
        n_said = 0
        for context, items in some_requests(model, 40):
            reasons = said_about(context, items, truth.movies, **{feature: 1.0})
            for item, said in zip(items.tolist(), reasons, strict=True):
                assert set(said) == true_of(truth, context.query.history, item, context.known_moment)
                n_said += len(said)
        assert n_said > 5, kind


# --- the evidence of one or two people is none


def asked(world: World) -> Context:
    """The request of user 1, who has rated one movie, 10, and likes it."""
    return Context(world.knowledge, Query(world.history.of(0), LATE, 0))


def say(world: World, item: int, feature: str) -> tuple[str, ...]:
    movies = in_memory_movies(world)
    (said,) = said_about(asked(world), np.array([item]), movies, **{feature: 1.0})
    return said


def in_memory_movies(world: World) -> Movies:
    rows = world.movies.set_index("movie_id").loc[world.items.ids.tolist()]
    movies = [
        Movie(movie_id, row.title, tuple(filter(None, row.genres.split("|"))), int(row.year), "", "")
        for movie_id, row in zip(world.items.ids.tolist(), rows.itertuples(), strict=True)
    ]
    return build_movies(movies, np.zeros(len(movies), dtype=np.float32))


def small_world(*rows: tuple[int, int, float, int]) -> World:
    """User 1 likes movie 10; ``rows`` are more ratings. Of movies 10, 20, 30 and 40 user 9 rated the last two."""
    titles = {10: "Ten", 20: "Twenty", 30: "Thirty", 40: "Forty"}
    movies = pd.DataFrame(
        [(movie_id, f"{title} (2000)", "Drama", 2000) for movie_id, title in titles.items()],
        columns=["movie_id", "title", "genres", "year"],
    ).astype({"year": "Int64"})
    return make_world(frame((1, 10, 5.0, 1_000), *rows, *((9, movie_id, 1.0, 1) for movie_id in (30, 40))), movies)


def viewers(n: int, *movie_ids: int, apart: int = 1, rating: float = 4.0) -> list[tuple[int, int, float, int]]:
    return [
        (100 + user, movie_id, rating, 1 + place * apart)
        for user in range(n)
        for place, movie_id in enumerate(movie_ids)
    ]


@pytest.mark.parametrize("n_people", [1, 2, 3, 4])
def test_often_is_said_of_three_people_or_more(n_people: int) -> None:
    world = small_world(*viewers(n_people, 10, 20))
    expected = ("often watched right after Ten (2000)",) if n_people >= 3 else ()
    assert say(world, 1, "after_recent") == expected


@pytest.mark.parametrize(("n_people", "said"), [(2, False), (3, True), (4, True)])
def test_often_around_takes_three_people_s_worth_of_evidence(n_people: int, said: bool) -> None:
    """Rated just before movie 10, and never after it."""
    world = small_world(*viewers(n_people, 20, 10))
    assert say(world, 1, "around_recent") == (("often watched around Ten (2000)",) if said else ())


def test_often_is_a_share_of_those_who_rated_the_movie() -> None:
    """Three are often among 60 − 5 who rated it, and not among 61 − 5."""
    for n_others, said in ((51, True), (52, False)):
        others = [(1_000 + user, 10, 4.0, 5) for user in range(n_others)]
        world = small_world(*viewers(3, 10, 20), *others)
        assert bool(say(world, 1, "after_recent")) == said, n_others


@pytest.mark.parametrize(("n_people", "said"), [(1, False), (2, False), (3, True), (4, True)])
def test_many_is_said_of_three_people_or_more(n_people: int, said: bool) -> None:
    world = small_world(*viewers(n_people, 10, 20))
    assert say(world, 1, "together_3") == (("seen by many who have seen Ten (2000)",) if said else ())


def test_the_movie_with_enough_evidence_is_named_where_another_has_a_larger_share() -> None:
    """Everyone who rated movie 10, two people, went on to 20; of the twenty who rated movie 30, four did."""
    mine = [(1, 30, 4.0, 2_000)]
    others = [(500 + user, 30, 4.0, 5) for user in range(16)]
    world = small_world(
        *viewers(2, 10, 20), *mine, *others, *((700 + u, m, 4.0, m) for u in range(4) for m in (20, 30))
    )
    context = asked(world)
    assert len(context.query.history) == 2
    assert say(world, 1, "after_recent") == ("often watched around Thirty (2000)",)  # 20 came before 30 there
    world = small_world(
        *viewers(2, 10, 20), *mine, *others, *((700 + u, m, 4.0, -m) for u in range(4) for m in (20, 30))
    )
    assert say(world, 1, "after_recent") == ("often watched right after Thirty (2000)",)


@pytest.mark.parametrize(("ratings", "expected"), [((5.0, 5.0), ()), ((5.0, 4.5, 4.0), ("rated 4.5 on average",))])
def test_the_average_is_that_of_the_ratings_themselves_of_three_or_more(
    ratings: tuple[float, ...], expected: tuple[str, ...]
) -> None:
    world = small_world(*((100 + user, 20, rating, 5) for user, rating in enumerate(ratings)))
    assert say(world, 1, "mean_before") == expected


@pytest.mark.parametrize("rating", [4.0, 4.5, 5.0])
def test_a_genre_rated_like_all_else_is_not_rated_highly(rating: float) -> None:
    """All movies are of it; in float32 the distances from a mean need not add up to 0."""
    world = small_world(*viewers(3, 10, 20), (1, 30, rating, 1_001), (1, 40, 1.5, 1_002))
    (said,) = say(world, 1, "genres_liked")
    assert said == "Drama, like what you liked last"


# --- how they are chosen


def test_sentences_stand_in_the_order_of_what_their_features_weigh(recommender: Recommender) -> None:
    _, model = trained()
    movies = recommender.model.movies
    n_full = 0
    for context, items in some_requests(model, 6):
        rising = said_about(context, items, movies, after_recent=1, together_3=2, als_score=3, genres_liked=4)
        falling = said_about(context, items, movies, after_recent=4, together_3=3, als_score=2, genres_liked=1)
        for one, other in zip(rising, falling, strict=True):
            assert len(one) <= N_REASONS
            if len(set(one) | set(other)) == 4:
                kinds = ["genre", "liked", "seen", "after"]
                assert [kind_of(reason) for reason in one] == kinds[:3]
                assert [kind_of(reason).replace("around", "after") for reason in other] == kinds[:0:-1]
                n_full += 1
    assert n_full > 5


def test_what_speaks_against_a_movie_or_has_no_words_is_not_said(recommender: Recommender) -> None:
    _, model = trained()
    for context, items in some_requests(model, 3):
        against = said_about(context, items, recommender.model.movies, after_recent=-1.0, genres_liked=-0.1)
        without = said_about(context, items, recommender.model.movies, tags=1.0, pace=2.0, mean_rating=1.0)
        outweighed = said_about(context, items, recommender.model.movies, after_recent=1.0, around_recent=-1.0)
        assert {*against, *without, *outweighed} == {()}


def test_nothing_is_said_without_a_second_stage(recommender: Recommender) -> None:
    (context, items), *_ = some_requests(trained()[1], 3)
    found = explain(context, items, recommender.model.movies, None)
    assert all(why.because and why.reasons == () for why in found)
    for ranking in (recommender.recommend(1, 9, FIRST_STAGE), recommender.recommend_cold([1], 9, FIRST_STAGE)):
        assert ranking.explanations is not None
        assert {why.reasons for why in ranking.explanations} == {()}


def test_nothing_is_explained_of_nothing(recommender: Recommender) -> None:
    (context, _), *_ = some_requests(trained()[1], 3)
    assert explain(context, np.empty(0, dtype=np.int64), recommender.model.movies, recommender.ranker) == []


def test_explanations_are_the_same_each_time_and_on_another_recommender(recommender: Recommender) -> None:
    model = recommender.model
    assert model.ranker is not None
    other = Recommender(in_memory(trained()[1]), Ranker(model.ranker.text))
    for user_id in (1, 30, 90):
        first = recommender.recommend(user_id, 10, EXPLAIN).explanations
        assert first is not None
        assert recommender.recommend(user_id, 10, EXPLAIN).explanations == first
        assert other.recommend(user_id, 10, EXPLAIN).explanations == first
        assert other.recommend(user_id, 4, EXPLAIN).explanations == first[:4]
        assert any(why.reasons for why in first)


def test_asking_for_explanations_does_not_change_the_list(recommender: Recommender) -> None:
    for user_id in (1, 30, LIKES_NOTHING):
        plain, explained = recommender.recommend(user_id, 10), recommender.recommend(user_id, 10, EXPLAIN)
        assert plain.explanations is None
        assert explained.explanations is not None
        without = asdict(explained) | {"explanations": None}
        for name, value in asdict(plain).items():
            np.testing.assert_array_equal(without[name], value, err_msg=name)
