"""What people may call a movie, read from its title as MovieLens writes it.

``titles ─▶ Names ─▶ search``. A title gives one or more *names*, the title itself, what stands in parentheses after it,
and both together, and a name is a row of words. Titles and queries are folded alike: no case, no accents, no
punctuation. How well they match is decided by ``app.search``.
"""

from __future__ import annotations

import re
import unicodedata
from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_MAX_CHARACTERS, _MAX_WORDS = 200, 16  # of a query; what is beyond is not read

_LETTERS = {"ø": "o", "æ": "ae", "œ": "oe", "ł": "l", "đ": "d", "ð": "d", "þ": "th", "ı": "i", "&": " and "}
_VARIATIONS = frozenset(map(chr, range(0xFE00, 0xFE10)))  # of the picture that a character has
_OFTEN_FOLDED = 0x3000  # characters below are remembered; all of them would be some 100 MB
_STRUCTURE = "(),"
_APART = str.maketrans(dict.fromkeys(f"-{_STRUCTURE}", " "))
_TOGETHER = str.maketrans(dict.fromkeys(f"-{_STRUCTURE}", ""))
_YEAR_AT_END = re.compile(r" ?\(([0-9]{4})(?:- ?[0-9]*)? ?\) ?$")
_ALTERNATIVES_AT_END = re.compile(r"(.*?)((?: ?\([^()]*\))+)")
_ALTERNATIVE = re.compile(r"\((?:a-?k-?a-? )?([^()]*)\)")
LEADING_ARTICLES = ("the", "a", "an")  # at the end of a title, where MovieLens puts them, there are more
_TRAILING_ARTICLES = frozenset(LEADING_ARTICLES).union(
    ("le", "la", "les", "l-", "un", "une"),  # French
    ("il", "lo", "i", "gli", "uno", "una", "un-"),  # Italian
    ("el", "los", "las", "o", "os", "as", "um", "uma"),  # Spanish, Portuguese
    ("der", "die", "das", "den", "dem", "ein", "eine", "de", "het", "een", "det", "en", "et", "ett"),  # Germanic
    ("to", "ta"),  # Greek
)


@dataclass(frozen=True)
class Names:
    """All names: those of an item are neighbours, in the order of items.

    The words of name i are ``name_words[indptr[i]:indptr[i + 1]]``, int32, places in ``words``, which is sorted.
    ``owner`` int32 is the name's item; ``years`` int32 is by item, 0 where the title has none.
    """

    words: list[str]
    indptr: NDArray[np.int64]
    name_words: NDArray[np.int32]
    owner: NDArray[np.int32]
    has_article: NDArray[np.bool_]
    years: NDArray[np.int32]


def read_names(titles: Iterable[str]) -> Names:
    """Return the names of titles, of which the one at position i is item i, and their vocabulary."""
    ids: defaultdict[str, int] = defaultdict()
    ids.default_factory = ids.__len__
    flat, ends, owner, has_article, years = array("i"), array("q", [0]), array("i"), array("b"), array("i")
    for item, title in enumerate(titles):
        year, names = _read_title(title)
        years.append(year)
        for name, begins_with_article in names.items():
            flat.extend(map(ids.__getitem__, name))
            ends.append(len(flat))
            owner.append(item)
            has_article.append(begins_with_article)
    words = sorted(ids)
    place = np.empty(len(words), dtype=np.int32)
    place[np.fromiter((ids[word] for word in words), dtype=np.int64, count=len(words))] = np.arange(len(words))
    return Names(
        words,
        np.frombuffer(ends, dtype=np.int64),
        place[np.frombuffer(flat, dtype=np.int32)] if flat else np.zeros(0, dtype=np.int32),
        np.array(owner, dtype=np.int32),
        np.array(has_article, dtype=np.bool_),
        np.array(years, dtype=np.int32),
    )


def _read_title(title: str) -> tuple[int, dict[tuple[str, ...], bool]]:
    """Return a title's year, 0 without one, and its names as words, with whether they begin with an article."""
    text = _fold(title)
    year = _YEAR_AT_END.search(text)
    if year:
        text = text[: year.start()]
    parts = _ALTERNATIVES_AT_END.fullmatch(text)
    names = [parts[1], *_ALTERNATIVE.findall(parts[2])] if parts else [text]
    spelt = {words: has_article for name in names for words, has_article in _spell(name) if words}
    shown = tuple(text.translate(_APART).split())
    if parts and shown:  # with all that stands in parentheses, as people copy it
        spelt.setdefault(shown, False)
    return int(year[1]) if year else 0, spelt


def _spell(name: str) -> Iterator[tuple[tuple[str, ...], bool]]:
    """Yield the words of a name, "spider-man" as two words and as one, and whether the first is an article."""
    core, _, article = name.rpartition(", ")
    articles = set(LEADING_ARTICLES)
    if core and article in _TRAILING_ARTICLES:
        name = article + core if article.endswith("-") else f"{article} {core}"
        articles.add(article.rstrip("-"))
    for table in (_APART, _TOGETHER):
        words = tuple(name.translate(table).split())
        yield words, len(words) > 1 and words[0] in articles


def query_words(query: str) -> list[str]:
    """Return the words of a query, folded as those of titles are; none if it has no letter or digit."""
    return _fold(query[:_MAX_CHARACTERS]).translate(_APART).split()[:_MAX_WORDS]


class _Folding(dict[int, str]):
    """What becomes of a character: letters lose their accents, what is neither letter nor digit becomes a hyphen."""

    def __missing__(self, code: int) -> str:
        char = chr(code)
        category = unicodedata.category(char)
        if char in _LETTERS:
            folded = _LETTERS[char]
        elif char.isspace():
            folded = " "
        elif unicodedata.combining(char) or category in ("Cf", "Me") or char in _VARIATIONS:
            folded = ""
        else:
            folded = char if category[0] in "LNM" or char in _STRUCTURE else "-"  # vowels of Indian scripts are marks
        if code < _OFTEN_FOLDED:
            self[code] = folded
        return folded


_FOLDING = _Folding()


def _fold(text: str) -> str:
    """Return a text without case, accents and doubled spaces, with hyphens for all but parentheses and commas."""
    if not text.isascii():
        text = unicodedata.normalize("NFKD", text)
    return " ".join(text.casefold().translate(_FOLDING).split())
