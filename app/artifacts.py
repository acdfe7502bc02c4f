"""One version folder: write it, verify it, load it.

``als.Factors ─▶ TrainedModel ─▶ write_version ─▶ registry.publish``; ``registry ─▶ load_version ─▶ LoadedModel ─▶
recommender``. A model is data, never code: arrays without pickles, text as JSON and CSV. Which version is active is
the registry's matter.
"""

from __future__ import annotations

import csv
import hashlib
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version as library_version
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from app.als import AlsConfig, Factors
from app.core import MAX_RATING, IdMap
from app.errors import ArtifactError, ConfigError
from app.history import UserRows
from app.index import INDEX, THRESHOLD, Index, build_index, map_index
from app.movies import Movie, Movies, build_movies
from app.npz import write_npz
from app.stored_ranker import RANKER, RANKER_FILES, StoredRanker, check_ranker, map_ranker, write_ranker
from app.verification import check_rows, damaged, map_arrays, read_json, write_json

if TYPE_CHECKING:
    import pandas as pd
    import scipy.sparse as sp

log = logging.getLogger("uvicorn.error")

FORMAT_VERSION = 2
MANIFEST = "manifest.json"
MOVIE_MAP, MOVIE_ARRAYS = "movie_map.csv", "movies.npz"  # the same movies, for people and for the service
MOVIE_COLUMNS = ("movie_id", "title", "genres", "year", "imdb_id", "tmdb_id", "popularity")
REQUIRED_FILES = (
    "als.npz",
    "users.npy",
    "items.npy",
    "X_users_items.npz",
    "history.npz",
    MOVIE_MAP,
    "metrics.json",
    "config.json",
)
_MAX_WEIGHT = 1e9  # of alpha and regularization: with more, folding in is beyond the precision of numbers
LIBRARIES = ("implicit", "numpy", "pandas", "scipy")


@dataclass(frozen=True)
class TrainedModel:
    """Everything that a version folder is written from.

    ``confidence`` is the CSR matrix (n_users, n_items) of the positives that the factors learned from, values c;
    ``history`` holds everything that each user rated; ``movies`` has a row for each item, in item order; ``documents``
    are further text files, by their path in the folder: ``MODEL_CARD.md``, ``report/index.html``.
    """

    users: IdMap
    items: IdMap
    factors: Factors
    confidence: sp.csr_matrix
    history: UserRows
    movies: pd.DataFrame
    config: dict[str, Any]
    metrics: dict[str, Any]
    dataset: str
    fingerprint: str
    documents: Mapping[str, str] = field(default_factory=dict)
    ranker: StoredRanker | None = None


@dataclass(frozen=True)
class LoadedModel:
    """One verified version in memory; the arrays are read-only maps of its files.

    ``positives_indptr`` and ``positives_items`` are the CSR structure of X_users_items.npz;
    ``movies[i]`` belongs to item index i. ``metrics`` are those of metrics.json. ``index`` is there for large
    catalogues.
    """

    version: str
    manifest: dict[str, Any]
    als_config: AlsConfig
    users: IdMap
    items: IdMap
    factors: Factors
    positives_indptr: NDArray[np.integer[Any]]
    positives_items: NDArray[np.integer[Any]]
    history: UserRows
    movies: Movies
    min_rating: float
    metrics: dict[str, Any]
    ranker: StoredRanker | None = None
    index: Index | None = None

    def positives_of(self, user_index: int) -> NDArray[np.integer[Any]]:
        """Return the item indices that a user's factor was learned from."""
        return self.positives_items[self.positives_indptr[user_index] : self.positives_indptr[user_index + 1]]


def write_version(folder: Path, model: TrainedModel, trained_at: str) -> str:
    """Write a model's files and its manifest into ``folder``, which exists and is empty.

    Returns
    -------
    str
        Digest of the content, 8 hexadecimal digits: the same for the same data, seed and configuration.
    """
    write_npz(folder / "als.npz", vars(model.factors))
    np.save(folder / "users.npy", model.users.ids, allow_pickle=False)
    np.save(folder / "items.npy", model.items.ids, allow_pickle=False)
    write_npz(folder / "X_users_items.npz", _csr_members(model.confidence))
    write_npz(folder / "history.npz", vars(model.history))
    _write_movies(folder, model)
    write_json(folder / "metrics.json", model.metrics)
    write_json(folder / "config.json", model.config)
    if model.ranker:
        write_ranker(folder / RANKER, model.ranker)
    if len(model.items) >= THRESHOLD:
        build_index(model.factors.item_factors, folder / INDEX)
    for name, text in model.documents.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
    files = {
        path.relative_to(folder).as_posix(): _describe(path) for path in sorted(folder.rglob("*")) if path.is_file()
    }
    manifest = {
        "format_version": FORMAT_VERSION,
        "trained_at": trained_at,
        "dataset": model.dataset,
        "dataset_fingerprint": model.fingerprint,
        "n_users": len(model.users),
        "n_items": len(model.items),
        "files": files,
        "libraries": {name: library_version(name) for name in (*LIBRARIES, *["lightgbm"][: model.ranker is not None])},
    }
    write_json(folder / MANIFEST, manifest)
    return content_digest(files)


def content_digest(files: Mapping[str, Mapping[str, Any]]) -> str:
    """Digest the checksums of all files into the 8 hexadecimal digits that end a version's name."""
    lines = "".join(f"{name} {files[name]['sha256']}\n" for name in sorted(files))
    return hashlib.sha256(lines.encode()).hexdigest()[:8]


def _csr_members(matrix: sp.csr_matrix) -> dict[str, NDArray[Any]]:
    """Name the arrays as scipy.sparse.load_npz expects them."""
    return {
        "indices": matrix.indices,
        "indptr": matrix.indptr,
        "format": np.array(b"csr"),
        "shape": np.array(matrix.shape),
        "data": matrix.data,
    }


def _write_movies(folder: Path, model: TrainedModel) -> None:
    """Write the movies twice: as a table for people and other programs, and as the service maps them."""
    popularity = np.bincount(model.confidence.indices, minlength=len(model.items))
    table = model.movies.assign(popularity=popularity)[list(MOVIE_COLUMNS)]
    table.to_csv(folder / MOVIE_MAP, index=False, encoding="utf-8", lineterminator="\n")
    write_npz(folder / MOVIE_ARRAYS, _read_movie_map(folder / MOVIE_MAP).to_arrays())


def _describe(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "size": path.stat().st_size}


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read a version's manifest, without looking at the files that it names.

    Raises
    ------
    ArtifactError
        If it is missing, no JSON, of another format version, or lacks what a manifest states.
    """
    manifest = read_json(folder / MANIFEST)
    found = manifest.get("format_version")
    if found != FORMAT_VERSION:
        raise ArtifactError(
            f"{folder / MANIFEST}: format_version is {found!r}, expected {FORMAT_VERSION}. "
            "Train again with this release: python train_als.py"
        )
    for name in ("trained_at", "dataset"):
        if not isinstance(manifest.get(name), str):
            raise damaged(folder / MANIFEST, f"{name} is {manifest.get(name)!r}", "text")
    if not _is_list_of_files(manifest.get("files")):
        expected = f"file names, each with sha256 and size, among them {', '.join(REQUIRED_FILES)}"
        raise damaged(folder / MANIFEST, "files is not the list of a version's files", expected)
    return manifest


def _is_list_of_files(files: object) -> bool:
    return (
        isinstance(files, dict)
        and set(REQUIRED_FILES) <= files.keys()
        and all(_is_inside(PurePosixPath(name)) for name in files)
        and all(isinstance(stated, dict) and stated.keys() == {"sha256", "size"} for stated in files.values())
    )


def _is_inside(path: PurePosixPath) -> bool:
    """Tell whether a relative path leads to nothing outside its folder, on any system."""
    return not path.is_absolute() and all(part not in ("", "..") and not set(part) & set("\\:") for part in path.parts)


def verify_version(folder: Path) -> dict[str, Any]:
    """Check that every file of a version is there and is what its manifest and the folder's name say.

    Returns
    -------
    dict
        The manifest.

    Raises
    ------
    ArtifactError
        Naming file, expectation and remedy.
    """
    manifest = read_manifest(folder)
    for name, stated in manifest["files"].items():
        path = folder / name
        expected = f"{stated['size']} bytes, SHA-256 {stated['sha256']}"
        try:
            if not path.is_file():
                raise damaged(path, "is missing", expected)
            found = _describe(path)
        except OSError as error:
            raise damaged(path, str(error), expected) from error
        if found != stated:
            raise damaged(path, f"has {found['size']} bytes, SHA-256 {found['sha256']}", expected)
    digest = content_digest(manifest["files"])
    if not folder.name.endswith(f"-{digest}"):
        raise damaged(folder / MANIFEST, f"describes the content {digest}", f"that of version {folder.name}")
    return manifest


def load_version(folder: Path) -> LoadedModel:
    """Verify a version folder and map its arrays.

    Raises
    ------
    ArtifactError
        If a file is missing, differs from the manifest, or its content cannot be a model; names file and remedy.
    """
    manifest = verify_version(folder)
    model = _map_version(folder, manifest)
    _check_consistency(folder, model)
    return model


def _map_version(folder: Path, manifest: dict[str, Any]) -> LoadedModel:
    als, positives, history = (map_arrays(folder / name) for name in ("als.npz", "X_users_items.npz", "history.npz"))
    config = read_json(folder / "config.json")
    try:
        return LoadedModel(
            version=folder.name,
            manifest=manifest,
            als_config=AlsConfig.of(config["als"]),
            users=_read_ids(folder / "users.npy"),
            items=_read_ids(folder / "items.npy"),
            factors=Factors(als["user_factors"], als["item_factors"]),
            positives_indptr=positives["indptr"],
            positives_items=positives["indices"],
            history=UserRows(**{name: history[name] for name in UserRows.__dataclass_fields__}),
            movies=_map_movies(folder, manifest),
            min_rating=float(config["min_rating"]),
            metrics=read_json(folder / "metrics.json"),
            ranker=map_ranker(folder / RANKER) if set(RANKER_FILES) & manifest["files"].keys() else None,
            index=_map_index(folder / INDEX, als["item_factors"]) if INDEX in manifest["files"] else None,
        )
    except (KeyError, TypeError, ValueError, OverflowError, ConfigError) as error:
        raise damaged(folder, repr(error), "all arrays and settings of a model") from error


def _map_index(path: Path, item_factors: NDArray[np.float32]) -> Index | None:
    """Map the index, if its library is there: a library that is missing must not stop the service."""
    try:
        return map_index(path, *item_factors.shape)
    except ImportError as error:
        log.error("Scoring all movies for each request, without the index of %s: %s", path.parent.name, error)
        return None


def _check_consistency(folder: Path, model: LoadedModel) -> None:
    """Refuse a model whose arrays do not belong together, or that could not answer with numbers."""
    n_users, n_items = len(model.users), len(model.items)
    _check_settings(folder / "config.json", model)
    _check_factors(folder / "als.npz", model.factors, (n_users, n_items), model.als_config.factors)
    check_rows(folder / "X_users_items.npz", model.positives_indptr, model.positives_items, n_users, n_items)
    _check_history(folder / "history.npz", model.history, n_users, n_items)
    if model.ranker:
        check_ranker(folder / RANKER, model.ranker, n_users, n_items, model.als_config.factors)
    movies = folder / (MOVIE_ARRAYS if MOVIE_ARRAYS in model.manifest["files"] else MOVIE_MAP)
    try:
        model.movies.check(model.items.ids)
    except Exception as error:  # a damaged byte makes json and numpy raise nearly anything
        raise damaged(movies, f"{type(error).__name__}: {error}", "the movies of items.npy, in their order") from error


def _check_settings(path: Path, model: LoadedModel) -> None:
    if not 0 < model.min_rating <= MAX_RATING:
        raise damaged(path, f"min_rating is {model.min_rating}", f"a rating, up to {MAX_RATING:g}")
    for name in ("alpha", "regularization"):
        if (weight := getattr(model.als_config, name)) > _MAX_WEIGHT:
            raise damaged(path, f"{name} is {weight!r:.40}", f"at most {_MAX_WEIGHT:g}")


def _check_factors(path: Path, factors: Factors, n_rows: tuple[int, int], n_factors: int) -> None:
    """Refuse factors of other shapes than (n_rows[i], n_factors), or whose scores no float32 could hold."""
    largest = []
    for (name, array), n in zip(vars(factors).items(), n_rows, strict=True):
        if array.shape != (n, n_factors) or array.dtype != np.float32:
            raise damaged(path, f"{name} is {array.dtype} {array.shape}", f"float32 {(n, n_factors)}")
        if not np.isfinite(array).all():
            raise damaged(path, f"{name} holds NaN or infinity", "finite numbers")
        largest.append(max(-float(array.min(initial=0)), float(array.max(initial=0))))
    if n_factors * math.prod(largest) > float(np.finfo(np.float32).max):
        raise damaged(path, f"factors run up to {largest[0]:g} and {largest[1]:g}", "finite scores")


def _check_history(path: Path, history: UserRows, n_users: int, n_items: int) -> None:
    check_rows(path, history.indptr, history.item_index, n_users, n_items)
    if not history.item_index.shape == history.rating.shape == history.timestamp.shape:
        raise damaged(path, "item_index, rating and timestamp differ in shape", "one shape")
    if history.rating.dtype.kind != "f" or not ((history.rating > 0) & (history.rating <= MAX_RATING)).all():
        raise damaged(path, "rating holds what is none", f"floating-point, up to {MAX_RATING:g}")


def _read_ids(path: Path) -> IdMap:
    try:
        # Mapped, and still a plain array: maps themselves are slow to index.
        return IdMap(np.asarray(np.load(path, mmap_mode="r", allow_pickle=False)))
    except Exception as error:  # numpy's header parser raises nearly anything
        raise damaged(path, str(error), "int64 ids, strictly rising") from error


def _map_movies(folder: Path, manifest: Mapping[str, Any]) -> Movies:
    """Map the movies; of a version of an earlier release, which has the table alone, make them of that."""
    if MOVIE_ARRAYS not in manifest["files"]:
        return _read_movie_map(folder / MOVIE_MAP)
    return Movies.of_arrays(map_arrays(folder / MOVIE_ARRAYS))


def _read_movie_map(path: Path) -> Movies:
    """Read the table of movies with the csv module: the service needs no pandas for it."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            header, *rows = csv.reader(file, strict=True)
        if header != list(MOVIE_COLUMNS):
            raise ValueError(f"columns {', '.join(header)}")
        popularity = np.array([int(row[-1]) for row in rows], dtype=np.float32)
        return build_movies((_read_movie(*row) for row in rows), popularity)
    except (TypeError, ValueError, OverflowError, OSError, csv.Error) as error:
        raise damaged(path, str(error), f"columns {', '.join(MOVIE_COLUMNS)}") from error


def _read_movie(
    movie_id: str, title: str, genres: str, year: str, imdb_id: str, tmdb_id: str, _popularity: str
) -> Movie:
    return Movie(
        movie_id=int(movie_id),
        title=title,
        genres=tuple(genres.split("|")) if genres else (),
        year=int(year) if year else None,
        imdb_id=imdb_id,
        tmdb_id=tmdb_id,
    )
