"""Titles are found however they are typed, the likeliest first, and what resembles nothing finds nothing."""

from __future__ import annotations

import random
import string
from collections.abc import Sequence
from math import log
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.search import TitleSearch
from app.title_names import query_words

TITLES = (
    "Matrix, The (1999)",
    "Matrix Reloaded, The (2003)",
    "Lord of the Rings: The Fellowship of the Ring, The (2001)",
    "Lord of the Rings, The (1978)",
    "Lord of the Flies (1963)",
    "Amélie (Fabuleux destin d'Amélie Poulain, Le) (2001)",
    "Ocean's Eleven (2001)",
    "Ocean's Eleven (a.k.a. Ocean's 11) (1960)",
    "Heat (1995)",
    "Heat (1986)",
    "Seven (a.k.a. Se7en) (1995)",
    "WALL·E (2008)",
    "Spider-Man (2002)",
    "Star Wars: Episode IV - A New Hope (1977)",
    "Shawshank Redemption, The (1994)",
    "Avventura, L' (Adventure, The) (1960)",
    "Godfather: Part II, The (1974)",
    "Dumb & Dumber (1994)",
    "(500) Days of Summer (2009)",
    "Сталкер (1979)",
    "千と千尋の神隠し (2001)",
    "3 इडियट्स (2009)",
    "Blade Runner 2049 (2017)",
    "Blade Runner (1982)",
    "2001: A Space Odyssey (1968)",
    "Death Note: Desu nôto (2006–2007)",
    "Moonlight",
    "Smørrebrød (1999)",
    "M*A*S*H (1970)",
)
POPULARITY = np.arange(len(TITLES), 0, -1, dtype=np.float32)


def search_in(titles: Sequence[str], popularity: Sequence[float] | None = None) -> TitleSearch:
    return TitleSearch(titles, np.array(popularity or [0] * len(titles), dtype=np.float32))


def found_in(search: TitleSearch, query: str, k: int = 5) -> list[int]:
    return [int(item) for item in search.search(query, k)[0]]


@pytest.fixture(scope="module")
def few() -> TitleSearch:
    return TitleSearch(TITLES, POPULARITY)


@pytest.mark.parametrize(
    ("query", "title"),
    [
        ("the matrix", "Matrix, The (1999)"),
        ("matrix the", "Matrix, The (1999)"),
        ("Matrix, The (1999)", "Matrix, The (1999)"),
        ("THE MATRIX", "Matrix, The (1999)"),
        ("matrix", "Matrix, The (1999)"),
        ("matr", "Matrix, The (1999)"),
        ("teh matrix", "Matrix, The (1999)"),
        ("hte matrx", "Matrix, The (1999)"),
        ("a matrix", "Matrix, The (1999)"),
        ("thematrix", "Matrix, The (1999)"),
        ("th ematrix", "Matrix, The (1999)"),
        ("thexmatrix", "Matrix, The (1999)"),
        ("mat rix", "Matrix, The (1999)"),
        ("matrix 2003", "Matrix Reloaded, The (2003)"),
        ("lord of the r", "Lord of the Rings: The Fellowship of the Ring, The (2001)"),
        ("lord of rings", "Lord of the Rings: The Fellowship of the Ring, The (2001)"),
        ("lord of the rings the felowsh", "Lord of the Rings: The Fellowship of the Ring, The (2001)"),
        ("fellowship", "Lord of the Rings: The Fellowship of the Ring, The (2001)"),
        ("amelie", "Amélie (Fabuleux destin d'Amélie Poulain, Le) (2001)"),
        ("AMÉLIE", "Amélie (Fabuleux destin d'Amélie Poulain, Le) (2001)"),
        ("ame\u0301lie", "Amélie (Fabuleux destin d'Amélie Poulain, Le) (2001)"),
        ("le fabuleux destin", "Amélie (Fabuleux destin d'Amélie Poulain, Le) (2001)"),
        ("damélie poulain", "Amélie (Fabuleux destin d'Amélie Poulain, Le) (2001)"),
        ("ocean's eleven", "Ocean's Eleven (2001)"),
        ("ocean’s eleven", "Ocean's Eleven (2001)"),
        ("oceans eleven", "Ocean's Eleven (2001)"),
        ("oceans eleven 1960", "Ocean's Eleven (a.k.a. Ocean's 11) (1960)"),
        ("oceans 11", "Ocean's Eleven (a.k.a. Ocean's 11) (1960)"),
        ("heat 1995", "Heat (1995)"),
        ("heat (1986)", "Heat (1986)"),
        ("seven", "Seven (a.k.a. Se7en) (1995)"),
        ("Se7en", "Seven (a.k.a. Se7en) (1995)"),
        ("wall-e", "WALL·E (2008)"),
        ("walle", "WALL·E (2008)"),
        ("wall e", "WALL·E (2008)"),
        ("spiderman", "Spider-Man (2002)"),
        ("spider man", "Spider-Man (2002)"),
        ("star wrs", "Star Wars: Episode IV - A New Hope (1977)"),
        ("starwars", "Star Wars: Episode IV - A New Hope (1977)"),
        ("shawshank redemtion", "Shawshank Redemption, The (1994)"),
        ("shawshnak", "Shawshank Redemption, The (1994)"),
        ("l'avventura", "Avventura, L' (Adventure, The) (1960)"),
        ("avventura", "Avventura, L' (Adventure, The) (1960)"),
        ("the adventure", "Avventura, L' (Adventure, The) (1960)"),
        ("godfather 2", "Godfather: Part II, The (1974)"),
        ("godfather part two", "Godfather: Part II, The (1974)"),
        ("god father", "Godfather: Part II, The (1974)"),
        ("dumb and dumber", "Dumb & Dumber (1994)"),
        ("500 days of summer", "(500) Days of Summer (2009)"),
        ("days of summer", "(500) Days of Summer (2009)"),
        ("сталкер", "Сталкер (1979)"),
        ("СТАЛКИР", "Сталкер (1979)"),
        ("千と千尋", "千と千尋の神隠し (2001)"),
        ("इडियट्स", "3 इडियट्स (2009)"),
        ("blade runner 2049", "Blade Runner 2049 (2017)"),
        ("blade runner 1982", "Blade Runner (1982)"),
        ("2001", "2001: A Space Odyssey (1968)"),
        ("2001 a space odyssey", "2001: A Space Odyssey (1968)"),
        ("death note 2006", "Death Note: Desu nôto (2006–2007)"),
        ("moonlight 2016", "Moonlight"),
        ("smorrebrod", "Smørrebrød (1999)"),
        ("mash", "M*A*S*H (1970)"),
        ("heat ❤️ \x00\ud800", "Heat (1995)"),
    ],
)
def test_query_finds_its_title_first(few: TitleSearch, query: str, title: str) -> None:
    assert TITLES[found_in(few, query)[0]] == title


@pytest.mark.parametrize(
    "query",
    ["zzzzqqqq", "qwertyuiop", "the zzzzqqqq", "", " ", "...", "❤️", "\x00", "\ud800", "(.*)[", "x" * 999],
)
def test_query_that_resembles_nothing_finds_nothing(few: TitleSearch, query: str) -> None:
    items, scores = few.search(query, 5)
    assert (items.tolist(), scores.tolist()) == ([], [])


@pytest.mark.parametrize(
    ("title", "query"),
    [
        ("Boot, Das (1981)", "das boot"),
        ("Trou, Le (1960)", "le trou"),
        ("Dolce Vita, La (1960)", "la dolce vita"),
        ("Miserables, Les (1998)", "les miserables"),
        ("Postino, Il (1994)", "il postino"),
        ("Mariachi, El (1992)", "el mariachi"),
        ("Untergang, Der (2004)", "der untergang"),
        ("Fälscher, Die (2007)", "die falscher"),
        ("Homme et une femme, Un (1966)", "un homme et une femme"),
        ("Homme, L' (1966)", "l'homme"),
        ("Homme, L' (1966)", "lhomme"),
        ("Affair, An (1966)", "an affair"),
    ],
)
def test_article_at_the_end_is_read_at_the_beginning(title: str, query: str) -> None:
    items, scores = search_in([title]).search(query, 1)
    assert (items.tolist(), scores.tolist()) == ([0], [1])


def test_place_in_the_title_goes_before_popularity() -> None:
    titles = ("Red Big Old Fox", "My Red Fox", "Red Fox Two", "Fox Red", "Red Fox", "The Red Fox")
    items, scores = search_in(titles, (6, 5, 4, 3, 1, 2)).search("red fox", 9)
    assert items.tolist() == [5, 4, 3, 2, 1, 0]
    assert scores == pytest.approx([1, 1, 0.98, 0.95, 0.9, 0.85])


def test_titles_that_match_alike_are_ordered_by_popularity_then_index() -> None:
    search = search_in(("Star A", "Star B", "Star C", "Star D"), (1, 2, 2, 3))
    assert found_in(search, "star") == [3, 1, 2, 0]
    assert found_in(search, "stra", 2) == [3, 1]


def test_unfinished_word_finds_the_most_popular_not_the_shortest() -> None:
    assert found_in(search_in(("Stay", "Star Wars"), (1, 2)), "sta") == [1, 0]


def test_score_weighs_words_by_how_rare_they_are() -> None:
    items, scores = search_in(("Red Fox", "Blue Fox")).search("red foz", 2)
    red, fox = log(1 + 2 / 1), log(1 + 2 / 2)  # one of two names has red, both have fox
    assert items.tolist() == [0]
    assert scores == pytest.approx([(red + (1 - 1 / 3) * fox) / (red + fox)], abs=0.0005)


def test_words_of_two_letters_forgive_nothing_alone() -> None:
    assert found_in(search_in(("Up", "It")), "ip") == []
    assert found_in(search_in(("Up", "It")), "up") == [0]


def test_phrase_does_not_run_on_into_the_next_title() -> None:
    items, scores = search_in(("Old Fox Red", "Fox Of Red")).search("red fox", 4)
    assert items.tolist() == [0, 1]
    assert scores == pytest.approx([0.85, 0.85])


def test_beside_a_good_match_a_bad_one_is_left_out() -> None:
    search = search_in(("Her", "Hen"))
    assert found_in(search, "hem") == [0, 1]
    assert found_in(search, "her") == [0]


def test_unknown_word_loses_a_title_only_if_it_is_long() -> None:
    search = search_in(("Red Fox", "Blue Fox"))
    assert found_in(search, "red qz") == [0]
    assert found_in(search, "red qzqzqz") == []


def test_another_year_than_asked_for_costs_a_quarter(few: TitleSearch) -> None:
    items, scores = few.search("heat 1986", 9)
    assert [TITLES[item] for item in items] == ["Heat (1986)", "Heat (1995)"]
    assert scores == pytest.approx([1, 0.75])


def test_series_has_the_year_that_it_began(few: TitleSearch) -> None:
    items, scores = few.search("death note desu noto 2006", 1)
    assert (TITLES[items[0]], scores[0]) == ("Death Note: Desu nôto (2006–2007)", 1)


def test_wrong_year_does_not_lose_a_movie(few: TitleSearch) -> None:
    assert TITLES[found_in(few, "heat 1994")[0]] == "Heat (1995)"


def test_filter_comes_before_the_cut_at_k() -> None:
    search = search_in([f"Star {number}" for number in range(100)], list(range(100, 0, -1)))
    allowed = np.zeros(100, dtype=np.bool_)
    allowed[[50, 70, 99]] = True
    assert search.search("star", 2, allowed)[0].tolist() == [50, 70]


def test_of_very_many_names_the_popular_and_the_exact_are_found() -> None:
    n = 60_000
    titles = ["Love", *(f"Love of {number} Kinds" for number in range(n))]
    assert found_in(TitleSearch(titles, np.arange(n + 1, dtype=np.float32)), "love", 3) == [0, n, n - 1]


def test_no_titles_and_titles_without_words_are_found_by_nothing() -> None:
    assert found_in(search_in(()), "love") == []
    assert found_in(search_in(("?", "(1999)", "")), "love") == []
    assert found_in(search_in(("?", "Love", "")), "love") == [1]


WORDS = st.sampled_from(["the", "star", "stars", "wars", "a", "of", "2", "1999", "l'amour", "é", "spider-man", "千"])
ANY_TITLE = st.one_of(
    st.lists(WORDS, max_size=5).map(" ".join), st.text(st.characters(), max_size=12), st.text("ab (),'-", max_size=20)
)
CATALOGUES = st.lists(ANY_TITLE, max_size=8)


@given(CATALOGUES, ANY_TITLE, st.integers(1, 9), st.randoms(use_true_random=False))
def test_any_text_is_searched_in_any_titles(titles: list[str], query: str, k: int, rng: random.Random) -> None:
    popularity = np.array([rng.randrange(3) for _ in titles], dtype=np.float32)
    items, scores = TitleSearch(titles, popularity).search(query, k)
    assert items.dtype == np.int64
    assert scores.dtype == np.float32
    assert np.all((scores > 0) & (scores <= 1))
    order = [(-score, -popularity[item], item) for item, score in zip(items.tolist(), scores.tolist(), strict=True)]
    assert order == sorted(set(order))
    assert len(items) <= k


@given(CATALOGUES.filter(bool), ANY_TITLE, st.integers(1, 9), st.data())
def test_filtered_answer_is_the_whole_answer_less_what_is_not_allowed(
    titles: list[str], query: str, k: int, data: st.DataObject
) -> None:
    allowed = np.array(data.draw(st.lists(st.booleans(), min_size=len(titles), max_size=len(titles))))
    search = search_in(titles)
    items, scores = search.search(query, len(titles))
    some, some_scores = search.search(query, k, allowed)
    assert some.tolist() == items[allowed[items]][:k].tolist()
    assert some_scores.tolist() == scores[allowed[items]][:k].tolist()


@given(CATALOGUES, st.text(st.characters(categories=["L", "N", "Zs", "Po"]), min_size=1, max_size=30))
def test_title_typed_as_it_stands_matches_fully(titles: list[str], title: str) -> None:
    if "," in title or not query_words(title):
        return
    items, scores = search_in([*titles, title]).search(title, 99)
    assert scores[items.tolist().index(len(titles))] == 1


class Real:
    """The titles of ml-latest-small, popular by how many like them."""

    def __init__(self, folder: Path) -> None:
        movies = pd.read_csv(folder / "movies.csv")
        ratings = pd.read_csv(folder / "ratings.csv")
        likes = ratings[ratings["rating"] >= 4]["movieId"].value_counts()
        self.ids = movies["movieId"].to_numpy()
        self.titles: list[str] = movies["title"].to_list()
        self.popularity = np.array(likes.reindex(self.ids, fill_value=0), dtype=np.float32)
        self.search = TitleSearch(self.titles, self.popularity)

    def found(self, query: str, k: int = 5) -> list[int]:
        return [int(movie_id) for movie_id in self.ids[self.search.search(query, k)[0]]]

    def popular(self, n: int) -> list[int]:
        return [int(item) for item in np.argsort(-self.popularity, kind="stable")[:n]]


@pytest.fixture(scope="module")
def real(movielens_dir: Path) -> Real:
    return Real(movielens_dir)


@pytest.mark.parametrize(
    ("query", "movie_id"),
    [
        ("the matrix", 2571),
        ("matrx", 2571),
        ("toy stroy", 1),
        ("forest gump", 356),
        ("pulp ficton", 296),
        ("silence of lambs", 593),
        ("shawshank redemtion", 318),
        ("star wrs", 260),
        ("empire stikes back", 1196),
        ("schindlers lst", 527),
        ("figth club", 2959),
        ("jurasic park", 480),
        ("bravehart", 110),
        ("usual suspcts", 50),
        ("godfather", 858),
        ("godfather 2", 1221),
        ("fellowship of the ring", 4993),
        ("lord of the r", 4993),
        ("fabuleux destin", 4973),
        ("indiana jones last crusade", 1291),
        ("terminator 2", 589),
        ("back to the futur", 1270),
        ("good bad ugly", 1201),
        ("monty pyton grail", 1136),
        ("dr strangelove", 750),
        ("eternal sunshine spotless mind", 7361),
        ("princess monoke", 3000),
        ("crouching tigre", 3996),
        ("harry potter philosophers stone", 4896),
        ("kill bill 2", 7438),
        ("leon", 293),
        ("se7en", 47),
        ("walle", 60069),
        ("et", 1097),
        ("spiderman", 5349),
        ("x men", 3793),
        ("twelve monkeys", 32),
        ("star trek 2009", 68358),
        ("blade runner 2049", 176371),
    ],
)
def test_real_query_finds_its_movie_first(real: Real, query: str, movie_id: int) -> None:
    assert real.found(query)[0] == movie_id


@pytest.mark.parametrize(
    ("query", "movie_id"),
    [
        ("lord of the rings", 4993),  # after the one of 1978, whose whole title this is
        ("inglorious bastards", 68157),  # after the one of 1978, which is spelt so
        ("oceans 11", 4963),  # after the one of 1960, also known as that
        ("batman", 592),
        ("alien", 1214),
    ],
)
def test_real_query_finds_its_movie_among_the_first_three(real: Real, query: str, movie_id: int) -> None:
    assert movie_id in real.found(query, 3)


@pytest.mark.parametrize("query", ["zzzzqqqq", "asdfghjkl", "xqzvb", "qwertyuiop", "blahblah", "sdklfj", "ghjk tyui"])
def test_rubbish_finds_no_real_movie(real: Real, query: str) -> None:
    assert real.found(query) == []


def test_every_real_title_is_found_first_as_it_stands(real: Real) -> None:
    for title in real.titles:
        first = real.titles[real.search.search(title, 1)[0][0]]
        assert first.casefold() == title.casefold()  # some titles are those of two movies


def plain(title: str) -> str:
    """Return what people would type: no year, no alternative title, the article in front."""
    name = title.split(" (")[0].lower()
    core, _, article = name.rpartition(", ")
    return f"{article} {core}" if article in ("the", "a", "an", "la", "le", "les", "das", "il", "el") else name


def misspell(text: str, rng: np.random.Generator) -> str:
    """Leave a character out, swap two, replace one, or add one."""
    at, letter = rng.integers(len(text)), rng.choice(list(string.ascii_lowercase))
    before, char, after = text[:at], text[at], text[at + 1 :]
    changed = (after, after[:1] + char + after[1:], letter + after, letter + char + after)
    return before + changed[rng.integers(4)]


def shares_found(real: Real, queries: dict[int, str]) -> tuple[float, float]:
    """Return the shares of items that are found first, and among the first five."""
    found = {item: real.search.search(query, 5)[0].tolist() for item, query in queries.items()}
    first = np.mean([items[:1] == [item] for item, items in found.items()])
    return float(first), float(np.mean([item in items for item, items in found.items()]))


def test_popular_movies_are_found_in_spite_of_a_typing_error(real: Real) -> None:
    rng = np.random.default_rng(0)
    queries = {item: misspell(plain(real.titles[item]), rng) for item in real.popular(300)}
    first, among_five = shares_found(real, queries)
    assert first >= 0.95
    assert among_five >= 0.98


def test_popular_movies_are_found_before_they_are_typed_fully(real: Real) -> None:
    names = {item: plain(real.titles[item]) for item in real.popular(300)}
    _, among_five = shares_found(real, {item: name[: round(len(name) * 0.6)] for item, name in names.items()})
    assert among_five >= 0.95
