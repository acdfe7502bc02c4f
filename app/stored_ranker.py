"""The second stage of a version on disk: trees as text, tables as arrays, and what it was trained on.

``second_stage ─▶ StoredRanker ─▶ artifacts ─▶ recommender``. Whether the trees can be read is found out by ``ranker``,
since that takes LightGBM; here is checked that they are of this release's features and belong to the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.errors import ArtifactError
from app.features import require_same_features
from app.npz import write_npz
from app.tables import MovieTables
from app.verification import check_rows, damaged, falls, map_arrays, read_json, write_json

RANKER = "ranker"  # folder of the second stage, which a version may have
RANKER_FILES = tuple(f"{RANKER}/{name}" for name in ("model.txt", "tables.npz", "ranker.json"))
_PLAIN_FACTORS = "plain_factors"


@dataclass(frozen=True)
class StoredRanker:
    """The second stage of a version, as ``ranker/`` holds it.

    ``text`` is LightGBM's text model (model.txt). Features are computed from ``tables`` and from ``plain_factors`` of
    shape (n_users, factors), float32 (tables.npz). ``description`` names the features, their hash, and the
    hyper-parameters (ranker.json).
    """

    text: str
    tables: MovieTables
    plain_factors: NDArray[np.float32]
    description: dict[str, Any]


def write_ranker(folder: Path, ranker: StoredRanker) -> None:
    folder.mkdir()
    (folder / "model.txt").write_text(ranker.text, encoding="utf-8", newline="\n")
    write_npz(folder / "tables.npz", {**ranker.tables.to_arrays(), _PLAIN_FACTORS: ranker.plain_factors})
    write_json(folder / "ranker.json", ranker.description)


def map_ranker(folder: Path) -> StoredRanker:
    arrays = map_arrays(folder / "tables.npz")
    try:
        text = (folder / "model.txt").read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise damaged(folder / "model.txt", str(error), "LightGBM's text model") from error
    description = read_json(folder / "ranker.json")
    return StoredRanker(text, MovieTables.of_arrays(arrays), arrays[_PLAIN_FACTORS], description)


def check_ranker(folder: Path, ranker: StoredRanker, n_users: int, n_items: int, factors: int) -> None:
    """Refuse a second stage of other features, or whose tables do not belong to the model."""
    stated = ranker.description
    if not isinstance(stated.get("features"), dict) or not isinstance(stated.get("features_hash"), str):
        raise damaged(folder / "ranker.json", "it names no features", "features and features_hash")
    try:
        require_same_features(list(stated["features"]), stated["features_hash"])
    except ArtifactError as error:
        raise ArtifactError(f"{folder / 'ranker.json'}: {error}") from error
    path, tables = folder / "tables.npz", ranker.tables
    for name in ("genre_names", "tag_idf", "timeline"):
        if getattr(tables, name).ndim != 1:
            raise damaged(path, f"{name} has {getattr(tables, name).ndim} dimensions", "one")
    n_tags = len(tables.tag_idf)
    for name, array, shape in (
        (_PLAIN_FACTORS, ranker.plain_factors, (n_users, factors)),
        ("genres", tables.genres, (n_items, len(tables.genre_names))),
        ("year", tables.year, (n_items,)),
        ("typical", tables.typical, (3,)),
        ("tag_idf", tables.tag_idf, (n_tags,)),
        ("timeline_total", tables.timeline_total, (len(tables.timeline) + 1,)),
    ):
        if array.shape != shape or array.dtype.kind != "f":
            raise damaged(path, f"{name} is {array.dtype} {array.shape}", f"floating-point {shape}")
        if name != "year" and not np.isfinite(array).all():
            raise damaged(path, f"{name} holds NaN or infinity", "finite numbers")
    for name, n_rows, n_columns in (
        *((name, n_items, n_items) for name in ("around", "after", "together")),
        ("words", n_items, tables.words.index.size),  # as many as there are at most: each is in some title
        ("tags", n_items, n_tags),
        ("tags_of_user", n_users, n_items * n_tags),
    ):
        table = getattr(tables, name)
        check_rows(path, table.indptr, table.index, n_rows, n_columns)
        is_float = table.value.dtype.kind == "f"
        if table.value.shape != table.index.shape or not is_float or not np.isfinite(table.value).all():
            raise damaged(path, f"{name} has no finite value for each index", "as many finite values as indices")
    if tables.n_counted.shape != (n_items,) or tables.n_counted.dtype != np.int64:
        raise damaged(path, f"n_counted is {tables.n_counted.dtype} {tables.n_counted.shape}", f"int64 {(n_items,)}")
    if tables.timeline.dtype != np.int64 or falls(tables.timeline):
        raise damaged(path, "timeline does not rise", "int64 keys, rising")
