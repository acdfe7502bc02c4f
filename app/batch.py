"""The lists of all users at once, in one file: Parquet, CSV, or a line of JSON for each user.

``Recommender ─▶ write_lists ─▶ cli``. The lists are those of ``Recommender.recommend``, from what the model was trained
on. Users are taken a block at a time, so that memory grows with the block and not with their number. The file takes its
name when it is complete: whatever ends a run leaves what was there before as it was. pyarrow, which formats numbers
fast, is loaded when lists are written. Nothing is served or printed here.
"""

from __future__ import annotations

import os
import secrets
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from app.errors import ConfigError, UnwritableError
from app.recommender import PLAIN, ListOptions, ListSource, Recommender
from app.scoring import Best
from app.threads import cancelling_pool, count_cores

if TYPE_CHECKING:
    import pyarrow as pa

_BLOCK_USERS = 1_024  # with more it is no faster
_BLOCK_SLOW_USERS = 64  # where a list takes milliseconds: Ctrl-C waits for the blocks that are begun
_BLOCK_ENTRIES = 2**15  # of lists; to choose so many movies takes each core 50 MB at 64 factors
_ROW_GROUP = 2**17  # rows of Parquet that wait in memory: 3 MB
_SOURCES: tuple[ListSource, ...] = ("als", "ranker", "popular")  # of lists for users of the training data
_COLUMNS = ("user_id", "rank", "movie_id", "score", "source")


@dataclass(frozen=True)
class Lists:
    """Ragged lists of some users: that of user u is ``slice(indptr[u], indptr[u + 1])``, best first.

    ``user_ids`` int64 and ``sources``, what ordered each list, are of shape (n_users,), ``indptr`` int64 of shape
    (n_users + 1,); ``movie_ids`` int64 and ``scores`` float32 have the same length. ``n_failed`` lists are of the first
    stage because the second one failed.
    """

    user_ids: NDArray[np.int64]
    sources: tuple[ListSource, ...]
    indptr: NDArray[np.int64]
    movie_ids: NDArray[np.int64]
    scores: NDArray[np.float32]
    n_failed: int = 0

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self.indptr)


@dataclass(frozen=True)
class Written:
    """What a file holds: how many lists there are of each source, and movies in all of them; ``n_failed`` as above."""

    sources: dict[ListSource, int]
    n_movies: int
    n_failed: int
    n_bytes: int

    @property
    def n_users(self) -> int:
        return sum(self.sources.values())


def write_lists(
    recommender: Recommender,
    out: Path,
    k: int,
    options: ListOptions = PLAIN,
    on_users: Callable[[int], object] = lambda _n_users: None,
) -> Written:
    """Write the list of every user, in the order of their ids, to a file of the format that its suffix names.

    ``.parquet`` and ``.csv`` have a row for each movie of each list: ``user_id``, ``rank`` from 1, ``movie_id``,
    ``score`` and ``source`` ("als", "ranker" or "popular"); Parquet's metadata have ``version`` and ``k``. ``.jsonl``
    has a line for each user: ``{"user_id":1,"source":"als","results":[{"movie_id":2,"score":0.5}]}``, also where
    nothing is left to list. Read as float32, scores are the recommender's to the bit.

    Parameters
    ----------
    out : Path
        A file that is there is replaced when all lists are written. Until then they stand beside it, in a file whose
        name begins with ``.tmp-``; if the process is killed outright, that stays and may be deleted.
    k : int
        Length of the lists, at least 1; they are shorter where fewer movies are left, or proposed to the second stage.
    options : ListOptions
        Second stage and filter; reasons are not written.
    on_users : callable
        Called with the number of users whenever the lists of so many more are written, for a progress bar.

    Raises
    ------
    ConfigError
        If ``check_request`` refuses.
    UnknownGenreError
        If the filter names a genre that no movie has.
    UnwritableError
        If the file cannot be written.
    """
    check_request(out, k)
    sources: Counter[ListSource] = Counter()
    n_movies = n_failed = 0
    with _replaced(out) as file:
        with (
            _FORMATS[out.suffix](file, recommender.model.version, k) as write,
            threadpool_limits(1, "blas"),  # cores are for blocks of users
            closing(_make_lists(recommender, k, options)) as blocks,
        ):
            for lists in blocks:
                write(lists)
                sources.update(lists.sources)
                n_movies += len(lists.movie_ids)
                n_failed += lists.n_failed
                on_users(len(lists.user_ids))
        n_bytes = file.tell()
    return Written(dict(sorted(sources.items())), n_movies, n_failed, n_bytes)


def check_request(out: Path, k: int) -> None:
    """Raise ConfigError for a file that can be none, or lists that can be none, before any work is done."""
    if k < 1:
        raise ConfigError(f"k is {k}; expected a whole number, at least 1")
    if out.suffix not in _FORMATS:
        raise ConfigError(f"{out} has the suffix {out.suffix!r}; expected one of {', '.join(_FORMATS)}")
    if not out.parent.is_dir():
        raise ConfigError(f"{out.parent} is no folder; expected one that is there, to write {out.name} to")
    if out.is_dir():
        raise ConfigError(f"{out} is a folder; expected the name of a file")


@contextmanager
def _replaced(path: Path) -> Iterator[BinaryIO]:
    """Yield a file that takes the place of ``path`` if all goes well, and leaves no trace otherwise."""
    path = path.resolve()  # of a symbolic link the target is replaced
    temporary = path.with_name(f".tmp-{secrets.token_hex(4)}-{path.name}")  # two runs do not meet
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise UnwritableError(
            f"cannot write {path}: {error.strerror or error}. If there was such a file, it is as it was. "
            "Check free space and permissions, or choose another place with --out."
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


# --- lists


def _make_lists(recommender: Recommender, k: int, options: ListOptions) -> Generator[Lists]:
    """Yield the lists of all users, a block at a time; while one is written, each core works on another."""
    user_ids, n_cores = recommender.model.users.ids, count_cores()
    k = min(k, max(1, len(recommender.model.items)))
    most = _BLOCK_USERS if recommender.is_quick(options) else _BLOCK_SLOW_USERS
    n_users = max(1, min(most, _BLOCK_ENTRIES // k))
    coming: deque[Future[Lists]] = deque()
    with cancelling_pool(n_cores) as pool:
        for start in range(0, len(user_ids), n_users):
            block = user_ids[start : start + n_users]
            coming.append(pool.submit(_make_block, recommender, block, k, options))
            if len(coming) > n_cores:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()


def _make_block(recommender: Recommender, user_ids: NDArray[np.int64], k: int, options: ListOptions) -> Lists:
    rankings = [ranking for ranking in recommender.recommend_many(user_ids.tolist(), k, options) if ranking]
    best = Best.of([(ranking.item_indices, ranking.scores) for ranking in rankings])
    return Lists(
        user_ids=user_ids,
        sources=tuple(ranking.source for ranking in rankings),
        indptr=best.indptr,
        movie_ids=recommender.model.items.ids[best.item_indices],
        scores=best.scores,
        n_failed=sum(ranking.ranker_failed for ranking in rankings),
    )


# --- formats

_Write = Callable[[Lists], object]


@contextmanager
def _write_jsonl(file: BinaryIO, _version: str, _k: int) -> Iterator[_Write]:
    yield lambda lists: file.write(_to_json_lines(lists))


@contextmanager
def _write_csv(file: BinaryIO, version: str, k: int) -> Iterator[_Write]:
    from pyarrow import csv

    schema = _make_schema(version, k)
    file.write(",".join(_COLUMNS).encode() + b"\n")  # which pyarrow would put in quotation marks
    form = csv.WriteOptions(include_header=False, batch_size=_BLOCK_ENTRIES, quoting_style="none")
    with csv.CSVWriter(file, schema, write_options=form) as writer:
        yield lambda lists: writer.write_table(_to_table(lists, schema))


@contextmanager
def _write_parquet(file: BinaryIO, version: str, k: int) -> Iterator[_Write]:
    """Collect lists until they fill a row group, which readers read as one and skip as one."""
    from pyarrow import concat_tables, parquet

    schema = _make_schema(version, k)
    waiting: list[pa.Table] = []
    repeating = [name for name in _COLUMNS if name != "score"]
    with parquet.ParquetWriter(file, schema, compression="zstd", use_dictionary=repeating) as writer:

        def write(lists: Lists) -> None:
            waiting.append(_to_table(lists, schema))
            if sum(map(len, waiting)) >= _ROW_GROUP:
                flush()

        def flush() -> None:
            writer.write_table(concat_tables(waiting))
            waiting.clear()

        yield write
        if waiting:
            flush()


def _make_schema(version: str, k: int) -> pa.Schema:
    import pyarrow as pa

    # A rank may exceed an int16: k is bounded by the catalogue alone.
    types = (pa.int64(), pa.int32(), pa.int64(), pa.float32(), pa.dictionary(pa.int8(), pa.string()))
    fields = [pa.field(name, of, nullable=False) for name, of in zip(_COLUMNS, types, strict=True)]
    return pa.schema(fields, {"version": version, "k": str(k)})


def _to_table(lists: Lists, schema: pa.Schema) -> pa.Table:
    import pyarrow as pa

    n, lengths = len(lists.movie_ids), lists.lengths
    rank = np.arange(1, n + 1) - np.repeat(lists.indptr[:-1], lengths)
    code = np.repeat(np.array([_SOURCES.index(source) for source in lists.sources], dtype=np.int8), lengths)
    columns = (
        np.repeat(lists.user_ids, lengths),
        rank.astype(np.int32),
        lists.movie_ids,
        lists.scores,
        pa.DictionaryArray.from_arrays(code, pa.array(_SOURCES)),
    )
    return pa.Table.from_arrays([pa.array(column) for column in columns], schema=schema)


_PLACE = '{"movie_id":%s,"score":%s},'


def _to_json_lines(lists: Lists) -> bytes:
    """Fill one template with all lists: for each list, or each movie, its own would take twice as long."""
    import pyarrow as pa

    scores = pa.array(lists.scores).cast(pa.string())  # as few digits as tell one float32 from the next
    numbers: list[object] = [None] * (2 * len(scores))
    numbers[::2], numbers[1::2] = lists.movie_ids.tolist(), scores.to_pylist()
    places = _PLACE * int(lists.lengths.max())
    templates: list[str] = []
    values: list[object] = []
    ends = lists.indptr.tolist()
    for user_id, source, start, end in zip(lists.user_ids.tolist(), lists.sources, ends[:-1], ends[1:], strict=True):
        results = places[: max(0, (end - start) * len(_PLACE) - 1)]  # without the last comma
        templates.append(f'{{"user_id":%s,"source":"{source}","results":[{results}]}}\n')
        values.append(user_id)
        values.extend(numbers[2 * start : 2 * end])
    return ("".join(templates) % tuple(values)).encode()


_FORMATS: dict[str, Callable[[BinaryIO, str, int], AbstractContextManager[_Write]]] = {
    ".parquet": _write_parquet,
    ".csv": _write_csv,
    ".jsonl": _write_jsonl,
}
