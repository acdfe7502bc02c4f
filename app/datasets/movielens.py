"""Read and validate one folder in MovieLens CSV format: disk in, ``RawData`` out.

What comes out is complete and clean: ids are whole numbers from 1, ratings lie in 0.5–5, every movie_id has one title.
Which folder to read is decided by ``locate``; what a positive is, and how ids become indices, by ``app.core``.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from app.datasets.csv_table import Column, check_lines, read_table
from app.errors import DataError

_ID_RANGE = "a whole number from 1 to 9223372036854775807"
_MAX_INT64 = 2**63 - 1
_YEAR_2100 = 4_102_444_800  # seconds since 1970; milliseconds exceed it since 1970-02-17

_USER = Column("userId", "user_id", "int64", 1, _MAX_INT64, _ID_RANGE)
_MOVIE = Column("movieId", "movie_id", "int64", 1, _MAX_INT64, _ID_RANGE)
_RATING = Column("rating", "rating", "float32", 0.5, 5.0, "a number from 0.5 to 5")
_TIMESTAMP = Column(
    "timestamp",
    "timestamp",
    "int64",
    0,
    _YEAR_2100 - 1,
    "a whole number of seconds since 1970, before the year 2100",
    " (are these milliseconds? then divide by 1000)",
)

_RATINGS = (_USER, _MOVIE, _RATING, _TIMESTAMP)
_MOVIES = (_MOVIE, Column("title", "title"), Column("genres", "genres"))
_LINKS = (_MOVIE, Column("imdbId", "imdb_id"), Column("tmdbId", "tmdb_id"))
_TAGS = (_USER, _MOVIE, Column("tag", "tag"), _TIMESTAMP)

_NO_GENRES = "(no genres listed)"


def empty_links() -> pd.DataFrame:
    """Return links of no movie, with the columns and dtypes of ``RawData.links``."""
    frame = pd.DataFrame({"movie_id": [], "imdb_id": [], "tmdb_id": []})
    return frame.astype({"movie_id": "int64", "imdb_id": "str", "tmdb_id": "str"})


def empty_tags() -> pd.DataFrame:
    """Return no tags, with the columns and dtypes of ``RawData.tags``."""
    frame = pd.DataFrame({"user_id": [], "movie_id": [], "tag": [], "timestamp": []})
    return frame.astype({"user_id": "int64", "movie_id": "int64", "tag": "str", "timestamp": "int64"})


@dataclass(frozen=True)
class RawData:
    """One data set as read, before anything is selected or indexed.

    Attributes
    ----------
    ratings : DataFrame
        user_id int64, movie_id int64, rating float32, timestamp int64 (seconds since 1970); in file order.
    movies : DataFrame
        movie_id int64, title str, genres str ("Comedy|Drama", "" if none are listed); one row per movie_id.
    links : DataFrame
        movie_id int64, imdb_id str, tmdb_id str ("" if none); one row per movie_id, no rows without links.csv.
    fingerprint : str
        SHA-256 of ratings.csv in hexadecimal; of the arrays when the data is synthetic.
    warnings : tuple of str
        What was mended on the way, each a sentence for people.
    tags : DataFrame
        user_id int64, movie_id int64, tag str (as written, never blank), timestamp int64; in file order, no rows
        without tags.csv. Nobody gives a movie a tag twice: of those that `fold_tag` makes equal the earliest is kept.
    """

    ratings: pd.DataFrame
    movies: pd.DataFrame
    links: pd.DataFrame
    fingerprint: str
    warnings: tuple[str, ...]
    tags: pd.DataFrame = field(default_factory=empty_tags)


def read_movielens(folder: Path, *, with_tags: bool = True) -> RawData:
    """Read ratings.csv, movies.csv and, where they are there, links.csv and tags.csv.

    Parameters
    ----------
    folder : Path
    with_tags : bool
        Whether tags.csv is looked at.

    Returns
    -------
    RawData

    Raises
    ------
    DataError
        A file is missing or wrong; the message names file, line, column, value, expectation and remedy.
    """
    _require_folder(folder)
    ratings = _read_filled(folder / "ratings.csv", _RATINGS, "ratings")
    movies, movie_warnings = _read_movies(folder / "movies.csv")
    links, link_warnings = _read_links(folder / "links.csv")
    tags, tag_warnings = _read_tags(folder / "tags.csv") if with_tags else (empty_tags(), ())
    fingerprint = sha256_of(folder / "ratings.csv")
    return RawData(ratings, movies, links, fingerprint, movie_warnings + link_warnings + tag_warnings, tags)


def fold_tag(tag: str) -> str:
    """Return what a tag is compared by: "  Sci  FI" and "sci fi" are one tag."""
    return " ".join(tag.split()).casefold()


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes in hexadecimal."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}); check its permissions") from error


def _require_folder(folder: Path) -> None:
    """Refuse what is not a folder, with a remedy."""
    try:
        found = "" if folder.is_dir() else "is not a folder" if folder.exists() else "does not exist"
    except OSError as error:
        raise DataError(f"{folder} cannot be opened ({error.strerror or error}); check its permissions") from error
    if found:
        raise DataError(f"{folder} {found}; expected a folder in MovieLens format with ratings.csv and movies.csv")


def _read_filled(path: Path, columns: tuple[Column, ...], what: str) -> pd.DataFrame:
    """Read a table that must have at least one row."""
    frame = read_table(path, columns)
    if frame.empty:
        raise DataError(f"{path} holds a header but no {what}; expected at least one line below it, check the export")
    return frame


def _read_movies(path: Path) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Read titles and genres, one row per movie."""
    movies = _read_filled(path, _MOVIES, "movies")
    blank = movies["genres"] == ""
    if blank.any():  # the fast parser pads a short line with blanks: look whether that is what happened
        check_lines(path, _MOVIES)
    movies["genres"] = movies["genres"].mask(movies["genres"] == _NO_GENRES, "")
    return _keep_last(movies, path)


def _read_links(path: Path) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Read the ids of other catalogues; the file is optional."""
    if not path.exists():
        return empty_links(), ()
    return _keep_last(read_table(path, _LINKS), path)


def _read_tags(path: Path) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Read what users wrote about movies, each tag once; the file is optional."""
    if not path.exists():
        return empty_tags(), ()
    tags = read_table(path, _TAGS)
    tags["folded"] = tags["tag"].map(fold_tag)
    blank = tags["folded"] == ""
    warnings: tuple[str, ...] = ()
    if blank.any():  # the fast parser pads a short line with blanks: look whether that is what happened
        check_lines(path, _TAGS)
        first = tags[blank].iloc[0]
        whose = f"the first is user {first['user_id']}'s for movie {first['movie_id']}"
        warnings = (f"{path}: tags without a text: {blank.sum():,} ({whose}); they were dropped",)
    by_time = tags[~blank].sort_values("timestamp", kind="stable")
    kept = by_time.drop_duplicates(["user_id", "movie_id", "folded"]).sort_index().reset_index(drop=True)
    return kept.drop(columns="folded"), warnings


def _keep_last(frame: pd.DataFrame, path: Path) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Keep the last row of each movie_id and say how many were dropped."""
    repeated = frame["movie_id"].duplicated(keep="last")
    n_repeated = int(repeated.sum())
    if n_repeated == 0:
        return frame, ()
    first = int(frame.loc[repeated, "movie_id"].iloc[0])
    rows = "row repeats" if n_repeated == 1 else "rows repeat"
    warning = f"{path}: {n_repeated} {rows} a movieId (the first is {first}); the last row of each was kept"
    return frame[~repeated].reset_index(drop=True), (warning,)
