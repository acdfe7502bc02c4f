"""What a title may be called: its names as folded words, and the same folding of a query."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.title_names import Names, query_words, read_names


def by_item(names: Names, n_items: int) -> list[list[str]]:
    """The names of each item, as text."""
    found: list[list[str]] = [[] for _ in range(n_items)]
    for owner, start, end in zip(
        names.owner.tolist(), names.indptr[:-1].tolist(), names.indptr[1:].tolist(), strict=True
    ):
        found[owner].append(" ".join(names.words[place] for place in names.name_words[start:end].tolist()))
    return found


@pytest.mark.parametrize(
    ("title", "expected"),
    [
        ("Heat (1995)", ["heat"]),
        ("Matrix, The (1999)", ["the matrix"]),
        (
            "Ocean's Eleven (a.k.a. Ocean's 11) (1960)",
            [
                *("ocean s eleven", "oceans eleven", "ocean s 11", "oceans 11"),
                "ocean s eleven a k a ocean s 11",
            ],
        ),
        (
            "Avventura, L' (Adventure, The) (1960)",
            [
                *("l avventura", "lavventura", "the adventure"),
                "avventura l adventure the",
            ],
        ),
        ("WALL·E (2008)", ["wall e", "walle"]),
        ("(500) Days of Summer (2009)", ["500 days of summer"]),
        ("Dumb & Dumber (1994)", ["dumb and dumber"]),
        ("Moonlight", ["moonlight"]),
        ("Amélie (1) (2) (2001)", ["amelie", "1", "2", "amelie 1 2"]),
        ("Good, the Bad and the Ugly, The (1966)", ["the good the bad and the ugly"]),
        ("M*A*S*H (1970)", ["m a s h", "mash"]),
        ("Сталкер (1979)", ["сталкер"]),
        ("? (1999)", []),
        ("", []),
    ],
)
def test_title_gives_its_names(title: str, expected: list[str]) -> None:
    assert by_item(read_names([title]), 1) == [expected]


@pytest.mark.parametrize(
    ("title", "year"),
    [
        ("Heat (1995)", 1995),
        ("Heat (1995) ", 1995),
        ("Death Note (2006–2007)", 2006),
        ("Series (2006-)", 2006),
        ("Series (2006– )", 2006),
        ("2001: A Space Odyssey (1968)", 1968),
        ("Heat 1995", 0),
        ("Heat (1995) again", 0),
        ("Heat", 0),
        ("", 0),
    ],
)
def test_year_stands_in_parentheses_at_the_end(title: str, year: int) -> None:
    assert read_names([title]).years.tolist() == [year]


@pytest.mark.parametrize(
    ("title", "has_article"),
    [
        ("Matrix, The (1999)", [True]),
        ("The Matrix (1999)", [True]),
        ("Boot, Das (1981)", [True]),
        ("Das Boot (1981)", [False]),  # who knows whether it is one
        ("The (1999)", [False]),  # nothing would be left
        ("Avventura, L' (Adventure, The) (1960)", [True, False, True, False]),  # not of "lavventura"
        ("Heat (1995)", [False]),
    ],
)
def test_name_knows_whether_it_begins_with_an_article(title: str, has_article: list[bool]) -> None:
    assert read_names([title]).has_article.tolist() == has_article


def test_all_names_share_a_sorted_vocabulary_and_stand_by_item() -> None:
    names = read_names(["Star Wars (1977)", "?", "Wars, The", "Star"])
    assert names.words == ["star", "the", "wars"]
    assert names.name_words.tolist() == [0, 2, 1, 2, 0]
    assert names.indptr.tolist() == [0, 2, 4, 5]
    assert names.owner.tolist() == [0, 2, 3]
    assert names.years.tolist() == [1977, 0, 0, 0]


def test_no_titles_have_no_names() -> None:
    names = read_names([])
    assert (names.words, names.indptr.tolist(), names.owner.tolist(), names.years.tolist()) == ([], [0], [], [])
    types = (names.indptr, names.name_words, names.owner, names.has_article, names.years)
    assert [array.dtype for array in types] == [np.int64, np.int32, np.int32, np.bool_, np.int32]


@given(st.lists(st.text(st.characters(), max_size=20) | st.text("aB (),-'1", max_size=20), max_size=6))
def test_any_titles_give_rows_of_words(titles: list[str]) -> None:
    names = read_names(titles)
    assert names.words == sorted({word for row in by_item(names, len(titles)) for name in row for word in name.split()})
    assert all(word and not set(word) & set(" -(),") for word in names.words)
    assert (np.diff(names.indptr) > 0).all()  # a name has a word
    assert (np.diff(names.owner) >= 0).all()
    assert len(names.has_article) == len(names.owner) == len(names.indptr) - 1
    assert len(names.years) == len(titles)


@given(st.text(st.characters(), max_size=30))
def test_folding_what_is_folded_changes_nothing(text: str) -> None:
    words = query_words(text)
    assert query_words(" ".join(words)) == words


@pytest.mark.parametrize("query", ["", " \t", "?!", "❤️", "\ufe0f\u20e3", "\u200b", "\ud800\x00", "(,)"])
def test_query_without_letter_or_digit_has_no_words(query: str) -> None:
    assert query_words(query) == []


def test_words_of_a_query_are_folded() -> None:
    assert query_words("  L'Été & Straße, WALL·E\u200b (1999)") == ["l", "ete", "and", "strasse", "wall", "e", "1999"]


def test_beginning_of_a_long_query_is_read() -> None:
    assert query_words("ab " * 50) == ["ab"] * 16
    assert query_words("x" * 999) == ["x" * 200]
