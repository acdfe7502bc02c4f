"""What the offline half and the service must agree on: loading, positives, the split, id maps, the sparse matrix.

``datasets ─▶ core ─▶ als, protocols``. Nothing here learns, scores or writes. pandas is imported only when ratings are
read, because the service shares the id maps and needs no table.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike, NDArray

from app.datasets.locate import SYNTHETIC, Source, read
from app.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

    from app.datasets.movielens import RawData

MIN_RATING = 4.0  # a rating of at least this is a positive
MAX_RATING = 5.0
UNKNOWN = -1  # the index of an id that a map does not hold

Stage = Literal["validation", "test"]
STAGES: tuple[Stage, ...] = ("validation", "test")


def _no_tags() -> pd.DataFrame:
    from app.datasets.movielens import empty_tags  # needs pandas

    return empty_tags()


@dataclass(frozen=True)
class Dataset:
    """Ratings and movies, cleaned: one row per (user, movie), a title for every movie.

    ``ratings`` has the columns user_id, movie_id (int64), rating (float32, 0.5–5), timestamp (int64, seconds since
    1970), in file order. ``movies`` has movie_id, title, genres (``"A|B"``), year (nullable), imdb_id, tmdb_id
    (text), sorted by movie_id. ``fingerprint`` is the SHA-256 of ratings.csv, or of the generated arrays. ``tags`` has
    user_id, movie_id (int64), tag (text as written, never blank), timestamp (int64), in file order, each tag of a user
    for a movie once; users and movies may be among them that have no rating, and it is empty where nobody tagged.
    """

    name: str
    ratings: pd.DataFrame
    movies: pd.DataFrame
    fingerprint: str
    warnings: tuple[str, ...] = ()
    tags: pd.DataFrame = field(default_factory=_no_tags)

    @property
    def is_synthetic(self) -> bool:
        return self.name == SYNTHETIC


@dataclass(frozen=True)
class IdMap:
    """The ids that the outside sees, in the order of the rows (or columns) that they name inside.

    Parameters
    ----------
    ids : ndarray of shape (n,), int64
        Strictly rising, so that a binary search answers without a dictionary beside the array.
    """

    ids: NDArray[np.int64]

    def __post_init__(self) -> None:
        if self.ids.ndim != 1 or self.ids.dtype != np.int64 or bool(np.any(self.ids[1:] <= self.ids[:-1])):
            raise ValueError(f"ids must be one-dimensional int64 and strictly rising, got {self.ids!r}")

    @classmethod
    def of(cls, ids: ArrayLike) -> IdMap:
        """Return the map of the distinct values of ``ids``."""
        return cls(np.unique(np.asarray(ids, dtype=np.int64)))

    def __len__(self) -> int:
        return len(self.ids)

    def index(self, ids: ArrayLike) -> NDArray[np.int64]:
        """Return the index of each id, −1 where the map does not hold it."""
        wanted = np.asarray(ids, dtype=np.int64)
        if len(self.ids) == 0:
            return np.full(wanted.shape, UNKNOWN, dtype=np.int64)
        position = np.minimum(self.ids.searchsorted(wanted), len(self.ids) - 1)
        return np.where(self.ids[position] == wanted, position, UNKNOWN)

    def index_of(self, wanted: int) -> int:
        """Return the index of one id, −1 where the map does not hold it: ``index`` in a third of the time."""
        position = int(self.ids.searchsorted(np.int64(wanted)))
        return position if position < len(self.ids) and self.ids[position] == wanted else UNKNOWN


@dataclass(frozen=True)
class Split:
    """Positives divided by leave-one-out in time: frames like ``Dataset.ratings``, by user, oldest first.

    ``users`` are the users with at least two positives, ``items`` the train catalogue: the movies with a train row.
    """

    train: pd.DataFrame
    validation: pd.DataFrame
    test: pd.DataFrame
    users: IdMap
    items: IdMap


@dataclass(frozen=True)
class TemporalSplit:
    """Positives divided at one moment (seconds since 1970), the same for all users: frames like ``Dataset.ratings``.

    ``users`` are those with a row in ``train`` or in ``held_out``, ``items`` the train catalogue.
    """

    stage: Stage
    moment: int
    train: pd.DataFrame
    held_out: pd.DataFrame
    users: IdMap
    items: IdMap


def load(source: Source, *, n_ratings: int = 100_000, random_state: int = 42, with_tags: bool = True) -> Dataset:
    """Read a source and clean it, see ``clean``.

    Parameters
    ----------
    source : Source
        From ``app.datasets.locate``.
    n_ratings, random_state : int
        Size and seed of synthetic data; not used for a folder.
    with_tags : bool
        Whether to read tags.csv, where there is one: only the second stage looks at it.

    Raises
    ------
    DataError
        If a file is missing or holds something that is not MovieLens; the message names file, row, value and remedy.
    """
    name, raw = read(source, n_ratings=n_ratings, random_state=random_state, with_tags=with_tags)
    return clean(name, raw, source.warnings)


def clean(name: str, raw: RawData, warnings: tuple[str, ...] = ()) -> Dataset:
    """Make a data set of what was read or invented.

    A (user, movie) pair that was rated more than once keeps its latest rating; a movie that has ratings but stands
    not in movies.csv is kept and titled by its id. Both are counted in ``Dataset.warnings``.

    Parameters
    ----------
    name : str
    raw : RawData
    warnings : tuple of str
        What is to be said before what ``raw`` says.
    """
    ratings, n_duplicates = _keep_latest(raw.ratings)
    movies, n_untitled = _complete_movies(raw.movies, raw.links, ratings)
    said = [*warnings, *raw.warnings]
    if n_duplicates:
        said.append(f"ratings that repeat a (user, movie) pair: {n_duplicates:,}; the latest of each pair was kept")
    if n_untitled:
        said.append(f"rated movies without a title in movies.csv: {n_untitled:,}; they are titled by their id")
    return Dataset(name, ratings, movies, raw.fingerprint, tuple(said), raw.tags)


def _keep_latest(ratings: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    pair = ["user_id", "movie_id"]
    if not bool(ratings.duplicated(pair).any()):
        return ratings, 0
    latest = ratings.sort_values("timestamp", kind="stable").drop_duplicates(pair, keep="last").sort_index()
    return latest.reset_index(drop=True), len(ratings) - len(latest)


def _complete_movies(movies: pd.DataFrame, links: pd.DataFrame, ratings: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """Give every rated movie a row and a title, and each row its year and its ids elsewhere."""
    all_ids = np.union1d(movies["movie_id"].to_numpy(), ratings["movie_id"].unique())
    table = movies.set_index("movie_id").reindex(all_ids).rename_axis("movie_id").reset_index()
    table = table.merge(links, on="movie_id", how="left")
    table[["title", "genres", "imdb_id", "tmdb_id"]] = table[["title", "genres", "imdb_id", "tmdb_id"]].fillna("")
    untitled = table["title"] == ""
    table.loc[untitled, "title"] = "Movie " + table.loc[untitled, "movie_id"].astype(str)
    # "Dark Shadows (1966-1971)" and "… (2015– )" carry the year in which they began.
    table["year"] = table["title"].str.extract(r"\(([12]\d{3})(?:[-–]\s*\d{0,4})?\s*\)$", expand=False).astype("Int64")
    return table, int((untitled & table["movie_id"].isin(ratings["movie_id"])).sum())


def positives(ratings: pd.DataFrame, min_rating: float = MIN_RATING) -> pd.DataFrame:
    """Return the ratings of at least ``min_rating``, by user, oldest first (stable: ties keep file order).

    Raises
    ------
    DataError
        If there is none.
    """
    liked = ratings[ratings["rating"] >= min_rating]
    if liked.empty:
        raise DataError(
            f"no rating reaches {min_rating:g}, the least that counts as positive; the highest is "
            f"{ratings['rating'].max():g}. Lower --min-rating, or check the rating column."
        )
    return liked.iloc[np.lexsort((liked["timestamp"], liked["user_id"]))].reset_index(drop=True)


def leave_one_out(liked: pd.DataFrame) -> Split:
    """Split positives by time, per user: the last is test, the one before it validation, the rest train.

    Users with fewer than two positives are left out; a user with exactly two has no train row.

    Parameters
    ----------
    liked : DataFrame
        From ``positives``: by user, oldest first.

    Raises
    ------
    DataError
        If no user has the three positives that it takes to train and to test.
    """
    user_id = liked["user_id"].to_numpy()
    after_last = np.searchsorted(user_id, user_id, side="right")
    n_positives = after_last - np.searchsorted(user_id, user_id, side="left")
    n_later = after_last - np.arange(len(liked)) - 1
    enough = n_positives >= 2
    train, validation, test = (
        liked[enough & (n_later >= 2)],
        liked[enough & (n_later == 1)],
        liked[enough & (n_later == 0)],
    )
    if train.empty:
        raise DataError(
            f"no user has 3 or more positives (the most is {n_positives.max()}), so nothing can be held out and "
            "learned from. Add ratings, lower --min-rating, or train without evaluation: --evaluate none."
        )
    return Split(train, validation, test, users=IdMap.of(test["user_id"]), items=IdMap.of(train["movie_id"]))


def split_at_moment(liked: pd.DataFrame, stage: Stage) -> TemporalSplit:
    """Split positives at one moment for all users: what came before is train, what came after is held out.

    For test the moment is such that the last tenth of all positives is held out; for validation the tenth before it is,
    and the last is not looked at.

    Parameters
    ----------
    liked : DataFrame
        From ``positives``.

    Raises
    ------
    DataError
        If nothing is left to train on or to hold out.
    """
    by_time = np.sort(liked["timestamp"].to_numpy())
    after_last = by_time[-1] + 1
    first, second = (int(by_time[int(len(by_time) * share)]) for share in (0.8, 0.9))
    moment, end = (first, second) if stage == "validation" else (second, int(after_last))
    timestamp = liked["timestamp"].to_numpy()
    train, held_out = liked[timestamp < moment], liked[(timestamp >= moment) & (timestamp < end)]
    if train.empty or held_out.empty:
        raise DataError(
            f"the timestamps of the positives ({by_time[0]} to {by_time[-1]}) leave nothing to train on or to hold out "
            "at one moment. Use --split leave-one-out, or train without evaluation: --evaluate none."
        )
    users = IdMap.of(np.union1d(train["user_id"], held_out["user_id"]))
    return TemporalSplit(stage, moment, train, held_out, users, items=IdMap.of(train["movie_id"]))


def build_user_items(interactions: pd.DataFrame, users: IdMap, items: IdMap) -> sp.csr_matrix:
    """Build the matrix of who rated, or liked, what.

    Parameters
    ----------
    interactions : DataFrame
        Columns user_id and movie_id, each pair once. Rows whose user or movie is in neither map are left out.

    Returns
    -------
    csr_matrix of shape (n_users, n_items), float32
        1 for each pair; column indices sorted within a row.
    """
    rows = users.index(interactions["user_id"])
    columns = items.index(interactions["movie_id"])
    known = (rows != UNKNOWN) & (columns != UNKNOWN)
    values = np.ones(int(known.sum()), dtype=np.float32)
    matrix = sp.csr_matrix((values, (rows[known], columns[known])), shape=(len(users), len(items)))
    matrix.sort_indices()
    return matrix


@dataclass(frozen=True)
class Positives:
    """What models learn from: who liked what, how much, and how recently.

    Parameters
    ----------
    user_items : csr_matrix of shape (n_users, n_items), float32
        1 for each positive; column indices sorted within a row. The other arrays have a value for each of its entries.
    strength : ndarray of shape (nnz,), float32
        How high the rating is among those that count as positive: −1 for the least (``min_rating``) to 1 for a 5; 0 if
        a 5 is the only positive rating.
    n_later : ndarray of shape (nnz,), int32
        How many positives of the same user have a strictly later timestamp; ties have the same number.
    """

    user_items: sp.csr_matrix
    strength: NDArray[np.float32]
    n_later: NDArray[np.int32]

    def with_values(self, values: NDArray[np.floating]) -> sp.csr_matrix:
        """Return the float32 matrix that holds ``values``, of shape (nnz,), in place of the ones.

        It shares its structure with ``user_items``: neither may be sorted or stripped of zeros in place.
        """
        structure = self.user_items
        return sp.csr_matrix((values.astype(np.float32), structure.indices, structure.indptr), shape=structure.shape)


def build_positives(liked: pd.DataFrame, users: IdMap, items: IdMap, min_rating: float = MIN_RATING) -> Positives:
    """Build what models learn from.

    Parameters
    ----------
    liked : DataFrame
        Positives: columns user_id, movie_id, rating and timestamp, each pair once. Rows whose user or movie is in
        neither map are left out, and are no later positives to anything.
    """
    rows, columns = users.index(liked["user_id"]), items.index(liked["movie_id"])
    known = (rows != UNKNOWN) & (columns != UNKNOWN)
    rows, columns = rows[known], columns[known]
    n_later = count_later(rows, liked["timestamp"].to_numpy()[known])
    strength = strength_of(liked["rating"].to_numpy(dtype=np.float64)[known], min_rating)
    order = np.lexsort((columns, rows))  # CSR with sorted indices
    indptr = np.searchsorted(rows[order], np.arange(len(users) + 1)).astype(np.int32)
    ones = np.ones(len(order), dtype=np.float32)
    user_items = sp.csr_matrix((ones, columns[order].astype(np.int32), indptr), shape=(len(users), len(items)))
    return Positives(user_items, strength[order].astype(np.float32), n_later[order].astype(np.int32))


def strength_of(rating: NDArray[np.float64], min_rating: float) -> NDArray[np.float64]:
    if min_rating == MAX_RATING:
        return np.zeros_like(rating)
    return 2 * (rating - min_rating) / (MAX_RATING - min_rating) - 1


def count_later(rows: NDArray[np.int64], timestamp: NDArray[np.int64]) -> NDArray[np.int64]:
    """Count for each entry the entries of its row that have a strictly later timestamp."""
    order = np.lexsort((timestamp, rows))
    by_row, by_time = rows[order], timestamp[order]
    places = np.arange(len(order))
    ends_tie = np.append((by_row[1:] != by_row[:-1]) | (by_time[1:] != by_time[:-1]), True)[: len(order)]
    after_tie = places[ends_tie][np.searchsorted(places[ends_tie], places)] + 1
    n_later = np.empty(len(order), dtype=np.int64)
    n_later[order] = np.searchsorted(by_row, by_row, side="right") - after_tie
    return n_later
