"""Search of movies by title, typing errors forgiven.

``title_names + popularity ─▶ TitleSearch ─▶ recommender, routers``. All names of all titles are the rows of one CSR
matrix over a vocabulary. A query is compared with the vocabulary, not with the titles: each of its words becomes a
*slot*, which says how well each word of the vocabulary fits there. Only names with a word for a telling slot are then
looked at, all at once.

It knows titles and their popularity only: no genres (``allowed`` carries filters), no ids, no HTTP.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
from numpy.typing import NDArray
from rapidfuzz import process
from rapidfuzz.distance import OSA

from app.title_names import LEADING_ARTICLES, query_words, read_names

_MAX_READINGS = 12  # of a query

# How well a name matches: similarity of the words, times how they stand in it.
_EXACT, _OTHER_ORDER, _BEGINNING, _PHRASE, _SCATTERED = 1.0, 0.98, 0.95, 0.9, 0.85
_UNFINISHED = 0.95  # similarity of a word to what it begins
_OTHER_NUMERAL = 0.95  # similarity of 2, II and two
_RESPACED, _WITHOUT_ARTICLE, _OTHER_YEAR = 0.95, 0.97, 0.75  # what a reading is worth that is not what was typed
_LEAST_COVERED = 0.55  # share of the query, by the weight of its words, that a name must have
_LEAST_OF_BEST = 0.7  # beside a good match, a bad one is rubbish
_MANY_NAMES = 50_000  # of names that have a query's words, so many of the most popular are looked at
_STEPS = 1000  # scores are rounded to 1/1000, so that popularity decides between titles that match alike
_FULL_WEIGHT_LENGTH = 6  # letters from which on a word that nothing resembles counts in full
_MAX_EDITS, _LETTERS_PER_EDIT = 3, 3
_LEAST_DIVIDED = 6  # letters of two words that another letter stands between
_LEAST_MISSPELT_BEGINNING = 4  # letters

_YEAR_IN_QUERY = re.compile(r"(?:18[7-9]|19[0-9]|20[0-9])[0-9]")
_NUMERALS = {
    numeral: numerals
    for numerals in (
        *(("2", "ii", "two"), ("3", "iii", "three"), ("4", "iv", "four"), ("5", "v", "five"), ("6", "vi", "six")),
        *(("7", "vii", "seven"), ("8", "viii", "eight"), ("9", "ix", "nine"), ("10", "x", "ten")),
        *(("11", "xi", "eleven"), ("12", "xii", "twelve"), ("13", "xiii", "thirteen")),
        *(("1st", "first"), ("2nd", "second"), ("3rd", "third"), ("4th", "fourth"), ("5th", "fifth"), ("6th", "sixth")),
        *(("7th", "seventh"), ("8th", "eighth"), ("9th", "ninth"), ("10th", "tenth"), ("11th", "eleventh")),
        *(("12th", "twelfth"), ("13th", "thirteenth")),
    )
    for numeral in numerals
}


class TitleSearch:
    """Titles that can be searched; immutable, so any number of requests may use it at once.

    The score of a title is that of its best name, for the best reading of the query:

        score = Σᵢ wᵢ·maxⱼ sim(i, j) / Σᵢ wᵢ · place

    over the query's words i and the name's words j. sim is 1 for the same word, 0.95 for a last word that is the
    beginning of j, and 1 − edits/letters else; wᵢ = log(1 + n_names / n_with_i), so small words hardly count; place is
    1 where query and name are the same words in the same order (a leading article aside), and falls over other order
    (0.98), beginning of the name (0.95) and phrase in it (0.9) to words scattered in it (0.85). Names with less than
    0.55 of the query are not found. An edit is a letter too many, missing or wrong, or two swapped (optimal string
    alignment); a word may have one per three letters, at most 3.

    Readings of a query are what was typed, and that with two words joined, a word divided, a leading article left out
    (for a little less score), or with a year taken as the movie's, which other years then cost a quarter of the score.

    Found is what scores at least 0.7 of the best title. Of more than 50,000 names with a query's telling words, that
    many of the most popular are compared, and those that have as many words as the query.

    Parameters
    ----------
    titles : iterable of str
        As MovieLens writes them, "Matrix, The (1999)"; position i is item i.
    popularity : ndarray of shape (n_items,), float32
        Orders titles that match equally well.
    """

    def __init__(self, titles: Iterable[str], popularity: NDArray[np.float32]) -> None:
        names = read_names(titles)
        assert len(names.years) == len(popularity)
        self._words = _Vocabulary(names.words)
        self._owner, self._years, self._has_article = names.owner, names.years, names.has_article
        self._indptr, self._name_words = names.indptr, names.name_words
        self._word_indptr, self._word_names = _transpose(names.indptr, names.name_words, len(names.words))
        self._frequency = np.diff(self._word_indptr)
        self._place = np.empty(len(popularity), dtype=np.int64)  # in the order of popularity, by item
        self._place[np.argsort(-popularity, kind="stable")] = np.arange(len(popularity))

    def search(
        self, query: str, k: int, allowed: NDArray[np.bool_] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the titles that match a query best, best first.

        Parameters
        ----------
        query : str
            Any text. The last word may be unfinished. Without a letter or digit it finds nothing.
        k : int
            At most so many titles, at least 1.
        allowed : ndarray of shape (n_items,), bool, optional
            What may be found. The answer is what would be found without it, less what is not allowed.

        Returns
        -------
        items : ndarray of shape (n_found,), int64
            Item indices, by falling score, then popularity, then rising index.
        scores : ndarray of shape (n_found,), float32
            How well each title matches, 0 to 1.
        """
        steps = np.rint(self._score(query_words(query)) * _STEPS).astype(np.int64)
        least = max(_LEAST_OF_BEST * steps.max(initial=0), 1)
        found = steps >= least
        items = np.flatnonzero(found if allowed is None else found & allowed)
        keys = (_STEPS - steps[items]) << 32 | self._place[items]  # unique, so ties cannot move
        best = np.argpartition(keys, k)[:k] if k < len(keys) else np.arange(len(keys))
        items = items[best[np.argsort(keys[best])]]
        return items, (steps[items] / _STEPS).astype(np.float32)

    def _score(self, words: Sequence[str]) -> NDArray[np.float32]:
        """Return each item's score for the reading of the query that suits it best."""
        scores = np.zeros(len(self._place), dtype=np.float32)
        slots: dict[tuple[str, bool], _Slot] = {}
        for reading in self._readings(words):
            key = [(word, place == len(reading.words) - 1) for place, word in enumerate(reading.words)]
            slots.update({each: self._slot(*each) for each in key if each not in slots})
            names, matched = self._match([slots[each] for each in key])
            if len(names) == 0:
                continue
            owner = self._owner[names]
            first = np.flatnonzero(np.diff(owner, prepend=-1))  # names of an item are neighbours
            items = owner[first]
            values = np.maximum.reduceat(matched, first) * np.float32(reading.worth)
            if reading.year is not None:
                values[self._years[items] != reading.year] *= _OTHER_YEAR
            scores[items] = np.maximum(scores[items], values)
        return scores

    def _readings(self, words: Sequence[str]) -> Iterator[_Reading]:
        """Yield what the query may mean: as typed, with a year taken out, and each of these written otherwise."""
        if not words:
            return
        base = [_Reading(tuple(words))]
        years = [place for place, word in enumerate(words) if _YEAR_IN_QUERY.fullmatch(word)]
        if years and len(words) > 1:
            place = years[-1]
            base.append(_Reading((*words[:place], *words[place + 1 :]), int(words[place])))
        yield from islice((other for reading in base for other in self._spellings(reading)), _MAX_READINGS)

    def _spellings(self, reading: _Reading) -> Iterator[_Reading]:
        """Yield a reading, then it with a space less, one more, or one elsewhere, where that gives known words."""
        yield reading
        words = reading.words
        if len(words) > 1 and words[0] in LEADING_ARTICLES:
            yield replace(reading, words=words[1:], worth=_WITHOUT_ARTICLE)
        known = [self._words.find(word) is not None for word in words]
        for start in range(len(words)):
            for stop in (start + 1, start + 2):
                text = "".join(words[start:stop])
                if stop > len(words) or (stop == start + 1 and known[start]):
                    continue
                written: tuple[str, ...] = (text,) if self._words.find(text) is not None else ()
                if not all(known[start:stop]):
                    written = written or self._divide(text)
                if written:
                    yield replace(reading, words=(*words[:start], *written, *words[stop:]), worth=_RESPACED)

    def _divide(self, text: str) -> tuple[str, ...]:
        """Return two known words that a text consists of, or does but for a letter between them; else nothing."""
        for gap in (0, 1) if len(text) >= _LEAST_DIVIDED else (0,):
            cuts = [(text[:cut], text[cut + gap :]) for cut in range(1, len(text) - gap)]
            known = [cut for cut in cuts if all(self._words.find(word) is not None for word in cut)]
            if known:  # the one whose rarer word is commonest
                return max(known, key=lambda cut: min(self._n_names_with(word) for word in cut))
        return ()

    def _n_names_with(self, word: str) -> int:
        place = self._words.find(word)
        return 0 if place is None else int(self._frequency[place])

    def _slot(self, word: str, is_last: bool) -> _Slot:
        """Find the words of the vocabulary that a word of the query may stand for."""
        similarity = self._words.similar(word)
        for numeral in _NUMERALS.get(word, ()):
            other = self._words.find(numeral)
            if other is not None:
                similarity[other] = max(similarity[other], _OTHER_NUMERAL)
        whole = similarity > 0
        if is_last:
            unfinished = self._words.begun_by(word) * np.float32(_UNFINISHED)
            whole &= similarity >= unfinished
            similarity = np.maximum(similarity, unfinished)
        fitting = np.flatnonzero(similarity)
        well = fitting[similarity[fitting] >= _UNFINISHED]
        n_with = int(self._frequency[well if len(well) else fitting].sum())
        weight = float(np.log1p(len(self._owner) / max(n_with, 1)))
        if len(fitting) == 0:
            weight *= min(1.0, len(word) / _FULL_WEIGHT_LENGTH)
        return _Slot(similarity, whole, fitting, weight)

    def _match(self, slots: Sequence[_Slot]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the names that have enough of some slots, rising, and each one's score."""
        rows = self._rows(self._candidates(slots))
        if len(rows.names) == 0:
            return rows.names, np.zeros(0, dtype=np.float32)
        covered = _coverage(rows, slots)
        enough = covered >= _LEAST_COVERED
        rows = rows if enough.all() else self._rows(rows.names[enough])
        return rows.names, covered[enough] * _standing(rows, slots)

    def _candidates(self, slots: Sequence[_Slot]) -> NDArray[np.int64]:
        """Return the names, rising, with a word for one of the weightiest slots: the rest alone cannot cover enough."""
        is_candidate = np.zeros(len(self._owner), dtype=np.bool_)
        left = total = sum(slot.weight for slot in slots)
        for slot in sorted(slots, key=lambda slot: -slot.weight):
            if left < _LEAST_COVERED * total:
                break
            starts = self._word_indptr[slot.fitting]
            is_candidate[self._word_names[_ranges(starts, self._frequency[slot.fitting])]] = True
            left -= slot.weight
        names = np.flatnonzero(is_candidate)
        if len(names) <= _MANY_NAMES:
            return names
        place = self._place[self._owner[names]]
        n_words = self._indptr[names + 1] - self._indptr[names]
        may_be_exact = (n_words == len(slots)) | (n_words == len(slots) + 1)
        kept: NDArray[np.int64] = names[may_be_exact | (place <= np.partition(place, _MANY_NAMES)[_MANY_NAMES])]
        return kept

    def _rows(self, names: NDArray[np.int64]) -> _Rows:
        lengths = self._indptr[names + 1] - self._indptr[names]
        words = self._name_words[_ranges(self._indptr[names], lengths)]
        return _Rows(names, words, np.cumsum(lengths) - lengths, lengths, self._has_article[names])


@dataclass(frozen=True)
class _Reading:
    """What a query may mean: words in a title, and the year of the movie if it names one."""

    words: tuple[str, ...]
    year: int | None = None
    worth: float = 1.0


@dataclass(frozen=True)
class _Slot:
    """What may stand for one word of a query, by word of the vocabulary.

    ``whole`` is false for words that the query's word only begins.
    """

    similarity: NDArray[np.float32]
    whole: NDArray[np.bool_]
    fitting: NDArray[np.int64]  # where similarity is not 0
    weight: float


@dataclass(frozen=True)
class _Rows:
    """The words of some names one after the other: name i has words[starts[i]:starts[i] + lengths[i]], at least one."""

    names: NDArray[np.int64]
    words: NDArray[np.int32]
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    has_article: NDArray[np.bool_]


def _coverage(rows: _Rows, slots: Sequence[_Slot]) -> NDArray[np.float32]:
    """Return which share of a query each name has."""
    total = sum(slot.weight for slot in slots)
    covered = np.zeros(len(rows.names), dtype=np.float32)
    for slot in slots:
        covered += np.float32(slot.weight / total) * np.maximum.reduceat(slot.similarity[rows.words], rows.starts)
    return covered


def _standing(rows: _Rows, slots: Sequence[_Slot]) -> NDArray[np.float32]:
    """Return what the places of the matched words in each name are worth."""
    n, n_words = len(slots), len(rows.words)
    if n_words == 0:
        return np.zeros(0, dtype=np.float32)
    starts, ends = rows.starts, rows.starts + rows.lengths
    runs = np.repeat(ends, rows.lengths) - np.arange(n_words) >= n  # whether all slots fit here, one after the other
    fits_any = np.zeros(n_words, dtype=np.bool_)
    has_all = np.ones(len(rows.names), dtype=np.bool_)
    for place, slot in enumerate(slots):
        fits = slot.similarity[rows.words] > 0
        runs[: max(n_words - place, 0)] &= fits[place:]
        fits_any |= fits
        has_all &= np.logical_or.reduceat(fits, starts)
    at_start = runs[starts]
    at_second = rows.has_article & runs[np.minimum(starts + 1, n_words - 1)]
    finished = slots[-1].whole[rows.words]
    same = (at_start & (rows.lengths == n) | at_second & (rows.lengths == n + 1)) & finished[ends - 1]
    all_fit = np.logical_and.reduceat(fits_any, starts) & np.logical_or.reduceat(finished, starts)
    ways = [same, has_all & all_fit & (rows.lengths == n), at_start | at_second, np.logical_or.reduceat(runs, starts)]
    return np.select(ways, [_EXACT, _OTHER_ORDER, _BEGINNING, _PHRASE], _SCATTERED).astype(np.float32)


class _Vocabulary:
    """Different words in the order of their letters; a word's id is its place.

    Parameters
    ----------
    words : list of str
        Sorted, none empty.
    """

    def __init__(self, words: list[str]) -> None:
        self._words = words
        self._lengths = np.fromiter(map(len, words), dtype=np.int32, count=len(words))
        self._letters = _letter_sets("".join(words), self._lengths)

    def find(self, word: str) -> int | None:
        """Return a word's id."""
        place = bisect_left(self._words, word)
        return place if place < len(self._words) and self._words[place] == word else None

    def begun_by(self, text: str) -> NDArray[np.float32]:
        """Return how similar the beginning of each word is to a text, with errors after its first letter if none is."""
        similarity = np.zeros(len(self._words), dtype=np.float32)
        begun = self._range(text)
        similarity[begun] = 1
        if begun.start == begun.stop and len(text) >= _LEAST_MISSPELT_BEGINNING:
            near = self._range(text[0])
            edits = _edits(text, [word[: len(text)] for word in self._words[near]], _most_edits(text))
            similarity[near] = np.where(edits <= _most_edits(text), 1 - edits / len(text), 0)
        return similarity

    def _range(self, beginning: str) -> slice:
        """Return the ids of the words with a beginning."""
        return slice(bisect_left(self._words, beginning), bisect_left(self._words, beginning + chr(0x10FFFF)))

    def similar(self, word: str) -> NDArray[np.float32]:
        """Return how similar each word is: 1 if the same, 1 − edits/letters of the shorter one if near, else 0."""
        similarity = np.zeros(len(self._words), dtype=np.float32)
        near, edits = self._near(word)
        similarity[near] = 1 - edits / np.minimum(self._lengths[near], len(word))
        return np.maximum(similarity, 0, out=similarity)

    def _near(self, word: str) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """Return the ids of words within a few edits, and how many."""
        most = _most_edits(word)
        letters = _letter_sets(word, np.array([len(word)]))[0]
        # An edit changes the length by at most one, and the set of letters by at most two: this leaves few to measure.
        near = np.flatnonzero(
            (np.abs(self._lengths - len(word)) <= most) & (np.bitwise_count(self._letters ^ letters) <= 2 * most)
        )
        edits = _edits(word, [self._words[each] for each in near.tolist()], most)
        return near[edits <= most], edits[edits <= most]


def _most_edits(word: str) -> int:
    """Return how many typing errors a word may have."""
    return min(_MAX_EDITS, max(len(word) // _LETTERS_PER_EDIT, int(len(word) > 1)))


def _edits(word: str, others: Sequence[str], most: int) -> NDArray[np.int32]:
    """Return the edits between a word and each of some others, ``most`` + 1 where there are more."""
    edits: NDArray[np.int32] = process.cdist([word], others, scorer=OSA.distance, score_cutoff=most, dtype=np.int32)[0]
    return edits


def _letter_sets(text: str, lengths: NDArray[np.integer]) -> NDArray[np.uint64]:
    """Return the letters of each word of a text without spaces, one bit per letter modulo 64."""
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    if len(codes) == 0:
        return np.zeros(0, dtype=np.uint64)
    bits = np.left_shift(np.uint64(1), codes.astype(np.uint64) & np.uint64(63))
    return np.bitwise_or.reduceat(bits, np.cumsum(lengths) - lengths)


def _ranges(starts: NDArray[np.integer], lengths: NDArray[np.integer]) -> NDArray[np.int64]:
    """Return the whole numbers of some ranges, one range after the other."""
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(int(lengths.sum()))


def _transpose(
    indptr: NDArray[np.int64], columns: NDArray[np.int32], n_columns: int
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Return the structure of a CSR matrix by column: indptr and rows, which rise within a column."""
    rows = np.repeat(np.arange(len(indptr) - 1, dtype=np.int32), np.diff(indptr))
    counts = np.bincount(columns, minlength=n_columns)
    return np.concatenate([[0], np.cumsum(counts)]), rows[np.argsort(columns, kind="stable")]
