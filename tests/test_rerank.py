"""The three dials: what each moves, by how much, and that nothing moves without them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from app.errors import ConfigError
from app.evaluation.metrics import Catalogue, list_metrics, popularity_bands
from app.rerank import Dials, Traits, genre_mix, information, rerank

NAMES = ("novelty", "diversity", "calibrate")
STEPS = np.linspace(0, 1, 11)
FLOAT_NOISE = 1e-9
POSITIONS = st.one_of(st.sampled_from([0.0, 1.0]), st.integers(0, 100).map(lambda percent: percent / 100))
DIALS = st.builds(Dials, POSITIONS, POSITIONS, POSITIONS)


@dataclass(frozen=True)
class Problem:
    """What ``rerank`` is asked: candidates with their scores, the catalogue, and what the user likes."""

    items: NDArray[np.int64]
    scores: NDArray[np.float32]
    traits: Traits
    mix: NDArray[np.float64]

    def answer(self, k: int, dials: Dials) -> list[int]:
        found = rerank(self.items, self.scores, k, dials, self.traits, self.mix)
        assert found.dtype == np.int64
        return [int(item) for item in found]


@st.composite
def problems(draw: st.DrawFn, min_candidates: int = 0) -> Problem:
    """Few distinct values, so that ties, movies without genres and movies without a direction are common."""
    n_items, n_genres = draw(st.integers(max(min_candidates, 1), 12)), draw(st.integers(1, 4))
    items = draw(st.permutations(range(n_items)))[: draw(st.integers(min_candidates, n_items))]
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    genres = rng.integers(0, 2, (n_items, n_genres)).astype(np.float32)
    mix = genre_mix(genres, rng.integers(0, 3, n_items).astype(np.float64))
    scores = np.sort(rng.integers(-5, 5, len(items)).astype(np.float32))[::-1]
    traits = Traits(information(rng.integers(0, 9, n_items)), genres, unit(rng.integers(-1, 2, (n_items, 3))))
    return Problem(np.array(items, dtype=np.int64), scores, traits, mix)


def random_problems(n_users: int, n_candidates: int = 100, seed: int = 0) -> list[Problem]:
    """Make users whose best movies are of few genres, as real ones' are: affinity to genres makes most of a score.

    Direction and genres agree as well: a movie's direction is that of its genres, and noise.
    """
    rng = np.random.default_rng(seed)
    n_items, n_genres, factors = 400, 8, 16
    genres = (rng.random((n_items, n_genres)) < 0.12).astype(np.float32)
    genres[np.arange(n_items), rng.integers(0, n_genres, n_items)] = 1
    genres[:5] = 0
    directions = unit(genres @ rng.normal(size=(n_genres, factors)) + rng.normal(size=(n_items, factors)))
    traits = Traits(information(rng.integers(1, 200, n_items)), genres, directions)
    users = []
    for _ in range(n_users):
        affinity = rng.dirichlet(np.full(n_genres, 0.7))
        appeal = genres @ affinity + rng.normal(scale=0.2, size=n_items)
        best = np.argsort(-appeal)[:n_candidates]
        liked = rng.choice(n_items, 20, p=np.exp(3 * appeal) / np.exp(3 * appeal).sum())
        users.append(Problem(best, appeal[best].astype(np.float32), traits, genre_mix(genres[liked], np.ones(20))))
    return users


def unit(factors: NDArray[np.integer | np.floating]) -> NDArray[np.float32]:
    length = np.linalg.norm(factors, axis=1, keepdims=True)
    return (factors / np.where(length > 0, length, 1)).astype(np.float32)


def movies(genres: list[list[float]], directions: list[list[float]] | None = None) -> Traits:
    """Movies that differ in genres and direction alone; without directions no two point the same way."""
    no_direction = np.zeros((len(genres), 1), dtype=np.float32)
    return Traits(
        np.ones(len(genres), dtype=np.float32),
        np.array(genres, dtype=np.float32),
        no_direction if directions is None else np.array(directions, dtype=np.float32),
    )


def order_of(scores: list[float], traits: Traits, dials: Dials, mix: list[float] | None = None) -> list[int]:
    """Rerank the whole catalogue, whose movies are numbered by falling score."""
    found = rerank(
        np.arange(len(scores)),
        np.array(scores, dtype=np.float32),
        len(scores),
        dials,
        traits,
        None if mix is None else np.array(mix),
    )
    return [int(item) for item in found]


def standardised(values: NDArray[np.float32]) -> list[float]:
    numbers = [float(value) for value in values]
    mean = sum(numbers) / len(numbers)
    deviation = math.sqrt(sum((number - mean) ** 2 for number in numbers) / len(numbers))
    return [(number - mean) / deviation if max(numbers) > min(numbers) else 0.0 for number in numbers]


def jaccard(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    genres_a, genres_b = set(np.flatnonzero(a)), set(np.flatnonzero(b))
    return len(genres_a & genres_b) / len(genres_a | genres_b) if genres_a | genres_b else 1.0


def divergence(mix: NDArray[np.float64], genres: NDArray[np.float32]) -> float:
    """Steck's KL(p ‖ q̃) of a list, whose movies' genres are given."""
    with_genres = [movie / movie.sum() for movie in genres.astype(np.float64) if movie.any()]
    listed = sum(with_genres) / max(len(with_genres), 1) if with_genres else np.zeros(len(mix))
    return sum(p * math.log(p / (0.99 * q + 0.01 * p)) for p, q in zip(mix, listed, strict=True) if p > 0)


def utilities(problem: Problem, chosen: list[int], dials: Dials) -> dict[int, float]:
    """Work out the equation of ``rerank``, one candidate after the other, for what is not chosen yet."""
    calibrate = dials.calibrate if problem.mix.any() else 0.0
    traits = problem.traits
    by_score = standardised(problem.scores)
    by_information = standardised(traits.information[problem.items])
    found = {}
    for place, item in enumerate(problem.items.tolist()):
        if item in chosen:
            continue
        relevance = (1 - dials.novelty) * by_score[place] + dials.novelty * by_information[place] / 2
        likeness = 0.0
        for other in chosen:
            cosine = float(traits.directions[item].astype(np.float64) @ traits.directions[other].astype(np.float64))
            likeness += (jaccard(traits.genres[item], traits.genres[other]) + max(0.0, cosine)) / 2
        found[item] = (1 - dials.diversity) * (1 - calibrate) * relevance
        found[item] -= dials.diversity * 7 * likeness / max(len(chosen), 1)
        listed = [*chosen, item]
        found[item] -= calibrate * len(listed) * divergence(problem.mix, traits.genres[listed])
    return found


# Whatever the dials


@given(problems(), st.integers(0, 15), DIALS)
def test_list_holds_candidates_once_each_and_as_many_as_there_are(problem: Problem, k: int, dials: Dials) -> None:
    found = problem.answer(k, dials)
    assert len(found) == min(k, len(problem.items))
    assert len(set(found)) == len(found)
    assert set(found) <= set(problem.items.tolist())


@given(problems(), st.integers(0, 15))
def test_zero_dials_leave_the_order(problem: Problem, k: int) -> None:
    assert problem.answer(k, Dials()) == problem.items[:k].tolist()


@given(problems(), DIALS)
def test_each_pick_is_the_best_of_the_equation(problem: Problem, dials: Dials) -> None:
    found = problem.answer(len(problem.items), dials)
    for place, item in enumerate(found):
        utility = utilities(problem, found[:place], dials)
        assert utility[item] >= max(utility.values()) - FLOAT_NOISE


@given(problems(), st.integers(0, 12), DIALS)
def test_shorter_list_is_the_beginning_of_a_longer_one(problem: Problem, k: int, dials: Dials) -> None:
    assert problem.answer(k, dials) == problem.answer(k + 3, dials)[:k]


@given(st.integers(0, 2**32 - 1), DIALS, st.integers(1, 99), st.integers(0, 9), st.integers(-99, 99))
def test_unit_and_zero_of_the_scores_do_not_matter(
    seed: int, dials: Dials, factor: int, halvings: int, shift: int
) -> None:
    problem = random_problems(1, n_candidates=30, seed=seed)[0]
    scores = np.sort(np.random.default_rng(seed).integers(-999, 999, 30))[::-1]  # all of this is exact in float32
    others = ((scores * factor) / 2.0**halvings + shift).astype(np.float32)
    one, other = (
        Problem(problem.items, numbers, problem.traits, problem.mix) for numbers in (scores.astype(np.float32), others)
    )
    assert one.answer(10, dials) == other.answer(10, dials)


@given(problems(), DIALS)
def test_arguments_are_left_as_they_were(problem: Problem, dials: Dials) -> None:
    arrays = (*vars(problem.traits).values(), problem.items, problem.scores, problem.mix)
    before = [array.tobytes() for array in arrays]
    found = rerank(problem.items, problem.scores, 5, dials, problem.traits, problem.mix)
    found += 1
    assert [array.tobytes() for array in arrays] == before


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("position", [0, 1, 0.0, 1.0])
def test_equal_movies_keep_their_order_at_either_end_of_every_dial(name: str, position: float) -> None:
    alike = movies([[1, 0]] * 4, [[1.0]] * 4)
    assert order_of([2, 2, 2, 2], alike, Dials(**{name: position}), [0.5, 0.5]) == [0, 1, 2, 3]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [math.nan, -0.1, 1.1, math.inf, -math.inf])
def test_dial_outside_its_range_is_refused_by_name_and_value(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"^{name} is {value}; expected a number from 0, .* to 1$"):
        Dials(**{name: value})


def test_dials_are_zero_only_together() -> None:
    assert Dials().are_zero
    assert Dials(0, -0.0, 0).are_zero
    assert not any(Dials(**{name: 1e-9}).are_zero for name in NAMES)


# Novelty


@pytest.mark.parametrize(
    ("novelty", "expected"), [(0.4, [0, 1, 2]), (0.66, [0, 1, 2]), (0.67, [2, 1, 0]), (1, [2, 1, 0])]
)
def test_novelty_moves_weight_from_score_to_information(novelty: float, expected: list[int]) -> None:
    # z is (a, 0, −a) of the scores and (−a, 0, a) of the information, whose units differ and which counts half: at ⅔
    # all are equal.
    traits = movies([[1]] * 3)
    traits.information[:] = [3, 4, 5]
    assert order_of([20, 10, 0], traits, Dials(novelty=novelty)) == expected


def test_equally_relevant_movies_of_a_long_list_keep_their_order() -> None:
    rng = np.random.default_rng(0)
    traits = movies([[1]] * 300)
    traits.information[:] = rng.integers(0, 3, 300)
    expected = sorted(range(300), key=lambda item: -traits.information[item])
    assert order_of([0] * 300, traits, Dials(novelty=0.5)) == expected


@given(problems(min_candidates=1), st.integers(1, 12))
def test_information_of_the_list_never_falls_with_novelty(problem: Problem, k: int) -> None:
    bits = [
        problem.traits.information[problem.answer(k, Dials(novelty=novelty))].sum(dtype=np.float64) for novelty in STEPS
    ]
    assert all(after >= before - FLOAT_NOISE for before, after in pairwise(bits))
    assert bits[-1] == pytest.approx(np.sort(problem.traits.information[problem.items])[::-1][:k].sum(dtype=np.float64))


def test_information_is_what_novelty_is_measured_by() -> None:
    popularity = np.array([8, 4, 0, 4])
    found = information(popularity)
    assert (found.tolist(), found.dtype) == ([1, 2, 4, 2], np.float32)
    catalogue = Catalogue(popularity, popularity_bands(popularity), np.ones((4, 1), dtype=np.float32))
    measured = list_metrics(np.array([[0, 1, 2]], dtype=np.int32), catalogue, (3,))["novelty@3"]
    assert measured.tolist() == [pytest.approx((1 + 2 + 4) / 3)]


def test_information_of_a_catalogue_without_positives_is_nothing() -> None:
    assert information(np.zeros(2, dtype=np.int64)).tolist() == [0, 0]


# Diversity. Scores 3, 1, −1, −3 have z = ±3/√5 and ±1/√5.


def test_diversity_takes_the_mean_similarity_to_those_chosen() -> None:
    # Jaccard with the first: 1, 0, ½. So the third is next; then the mean is ½ for both and relevance decides. By the
    # largest similarity, 1 and ½, the last would have come before the second.
    traits = movies([[1, 0], [1, 0], [0, 1], [1, 1]])
    assert order_of([3, 1, -1, -3], traits, Dials(diversity=0.5)) == [0, 2, 1, 3]


@pytest.mark.parametrize(("diversity", "expected"), [(0.203, [0, 1, 2]), (0.204, [0, 2, 1])])
def test_all_genres_in_common_cost_three_and_a_half_deviations_of_relevance(
    diversity: float, expected: list[int]
) -> None:
    # Second before third while (1−d) · 2/√5 > d · 7 · ½, that is d < .2035.
    traits = movies([[1, 0], [1, 0], [0, 1], [1, 1]])
    assert order_of([3, 1, -1, -3], traits, Dials(diversity=diversity))[:3] == expected


def test_movies_of_the_same_direction_are_alike_and_opposite_ones_are_only_unlike() -> None:
    # Cosines with the first: 1, 0, −1. Were −1 a bonus, the last would come second.
    traits = movies([[1]] * 4, [[1, 0], [1, 0], [0, 1], [-1, 0]])
    assert order_of([3, 1, -1, -3], traits, Dials(diversity=0.6)) == [0, 2, 3, 1]


def test_movies_without_genres_are_alike() -> None:
    assert order_of([1, 0, -1], movies([[0], [0], [1]]), Dials(diversity=0.5)) == [0, 2, 1]


def test_full_diversity_begins_with_the_most_relevant_and_orders_ties_by_relevance() -> None:
    traits = movies([[1, 0, 0], [0, 1, 0], [0, 1, 0], [0, 0, 1]])
    assert order_of([3, 1, -1, -3], traits, Dials(diversity=1)) == [0, 1, 3, 2]
    traits.information[:] = [1, 2, 3, 4]
    assert order_of([3, 1, -1, -3], traits, Dials(diversity=1, novelty=1)) == [3, 2, 0, 1]


def test_diversity_of_lists_rises_with_the_dial() -> None:
    asked = random_problems(200)
    traits = asked[0].traits
    popularity = np.ones(len(traits.genres), dtype=np.int64)
    catalogue = Catalogue(popularity, popularity_bands(popularity), traits.genres)

    def measure(diversity: float) -> float:
        lists = np.array([problem.answer(10, Dials(diversity=diversity)) for problem in asked], dtype=np.int32)
        return float(list_metrics(lists, catalogue, (10,))["diversity@10"].mean())

    measured = [measure(diversity) for diversity in STEPS]
    assert all(after > before for before, after in pairwise(measured)), measured
    half_way = (measured[0] + measured[-1]) / 2
    assert measured[2] < half_way < measured[8], measured  # the whole of the dial is of use


# Calibration


@pytest.mark.parametrize(("calibrate", "expected"), [(0.237, [0, 1, 2]), (0.239, [0, 2, 1])])
def test_calibration_weighs_divergence_times_length_against_relevance(calibrate: float, expected: list[int]) -> None:
    # p = (½, ½). Beside the first, the second makes q = (1, 0), q̃ = (.995, .005), KL = ½ ln(.5/.995) + ½ ln(.5/.005)
    # = 1.9585; the third makes q = p, KL = 0. z = ±√1.5: second before third while (1−c) √1.5 > c · 2 · 1.9585.
    traits = movies([[1, 0], [1, 0], [0, 1]])
    assert order_of([1, 0, -1], traits, Dials(calibrate=calibrate), [0.5, 0.5]) == expected


@pytest.mark.parametrize(("calibrate", "first"), [(0.346, 0), (0.348, 2)])
def test_genre_that_is_missing_costs_the_logarithm_of_a_hundred(calibrate: float, first: int) -> None:
    # p = (0, 1). The first alone has q̃ = .01 p and KL = ln 100, the third 0; z = ±√1.5: (1−c) · 2√1.5 = c ln 100 at
    # c = .3472.
    traits = movies([[1, 0], [1, 0], [0, 1]])
    assert order_of([1, 0, -1], traits, Dials(calibrate=calibrate), [0, 1])[0] == first


def test_movies_without_genres_leave_the_mix_as_it_is() -> None:
    # After the first and the last, the mix is right: what has no genre keeps it so, and comes before the second.
    traits = movies([[1, 0], [1, 0], [0, 0], [0, 1]])
    assert order_of([3, 1, -1, -3], traits, Dials(calibrate=1), [0.5, 0.5]) == [0, 3, 2, 1]


def test_movie_counts_in_equal_parts_for_each_of_its_genres() -> None:
    # The second has the user's mix, ⅓ each; the first only two of the three genres, the third all four.
    traits = movies([[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]])
    assert order_of([1, 0, -1], traits, Dials(calibrate=1), [1 / 3, 1 / 3, 1 / 3, 0])[0] == 1


@pytest.mark.parametrize("mix", [None, [0.0, 0.0]])
def test_calibration_without_a_mix_does_nothing(mix: list[float] | None) -> None:
    traits = movies([[1, 0], [1, 0], [0, 1], [1, 1]])
    for others in (Dials(), Dials(novelty=0.3), Dials(diversity=0.15), Dials(diversity=0.5)):
        calibrated = Dials(others.novelty, others.diversity, calibrate=1)
        assert order_of([3, 1, -1, -3], traits, calibrated, mix) == order_of([3, 1, -1, -3], traits, others)


def test_lists_come_closer_to_the_mix_with_the_dial() -> None:
    asked = random_problems(100)

    def measure(calibrate: float) -> float:
        lists = [problem.answer(10, Dials(calibrate=calibrate)) for problem in asked]
        return float(
            np.mean([divergence(p.mix, p.traits.genres[found]) for p, found in zip(asked, lists, strict=True)])
        )

    measured = [measure(calibrate) for calibrate in STEPS]
    assert all(after < before for before, after in pairwise(measured)), measured
    half_way = (measured[0] + measured[-1]) / 2
    assert measured[1] > half_way > measured[8], measured  # the whole of the dial is of use


@pytest.mark.parametrize("unit_weight", [0.125, 1, 8])
def test_genre_mix_is_the_weighted_mean_over_movies_with_genres(unit_weight: float) -> None:
    liked = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 0]], dtype=np.float32)
    found = genre_mix(liked, np.array([1, 3, 5], dtype=np.float32) * unit_weight)  # (½ + 3, ½, 0) / 4
    assert (found.tolist(), found.dtype) == ([0.875, 0.125, 0], np.float64)


@pytest.mark.parametrize("n_liked", [0, 2])
def test_genre_mix_without_genres_is_zero(n_liked: int) -> None:
    assert genre_mix(np.zeros((n_liked, 3), dtype=np.float32), np.ones(n_liked)).tolist() == [0, 0, 0]


def test_genre_mix_of_weightless_movies_is_zero() -> None:
    assert genre_mix(np.ones((2, 2), dtype=np.float32), np.zeros(2)).tolist() == [0, 0]


# Together


def test_each_dial_moves_what_it_is_for_beside_the_others() -> None:
    asked = random_problems(100)
    traits = asked[0].traits

    def measure(dials: Dials) -> NDArray[np.float64]:
        rows = []
        for problem in asked:
            found = problem.answer(10, dials)
            pairs = [1 - jaccard(traits.genres[a], traits.genres[b]) for a in found for b in found if a < b]
            closeness = -divergence(problem.mix, traits.genres[found])
            rows.append([traits.information[found].mean(), np.mean(pairs), closeness])
        return np.mean(rows, axis=0)

    low, high = 0.3, 0.8
    for place, name in enumerate(NAMES):
        others = dict.fromkeys(NAMES, low)
        assert measure(Dials(**others | {name: high}))[place] > measure(Dials(**others))[place], name
