"""The second stage on disk: what was saved is what is mapped, and nothing damaged is ever loaded."""

from __future__ import annotations

import json
import logging
import mmap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app import features
from app.artifacts import LoadedModel, load_version, verify_version
from app.datasets.movielens import empty_tags
from app.errors import ArtifactError
from app.npz import map_npz, write_npz
from app.recommender import ListOptions, Recommender, load_recommender
from app.registry import load_current, publish
from app.stored_ranker import RANKER, RANKER_FILES, StoredRanker
from app.tables import build_tables
from tests.models import forge, invent, train, trained

MODEL, TABLES, RANKER_JSON = RANKER_FILES
RAGGED = ("around", "after", "together", "words", "tags", "tags_of_user")


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish(tmp_path_factory.mktemp("artifacts"), trained()[1]).folder


@pytest.fixture(scope="module")
def loaded(version: Path) -> LoadedModel:
    return load_version(version)


def arrays_of(ranker: StoredRanker | None) -> dict[str, np.ndarray]:
    assert ranker is not None
    return {**ranker.tables.to_arrays(), "plain_factors": ranker.plain_factors}


# --- what survives


def test_everything_survives(loaded: LoadedModel) -> None:
    saved = trained()[1].ranker
    assert saved is not None
    assert loaded.ranker is not None
    expected, found = arrays_of(saved), arrays_of(loaded.ranker)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype, name
        np.testing.assert_array_equal(found[name], array, err_msg=name)
    assert loaded.ranker.text == saved.text
    assert loaded.ranker.description == saved.description
    assert list(loaded.ranker.description["features"]) == list(features.DEFINITIONS)


def test_the_tables_are_mapped_not_copied(loaded: LoadedModel) -> None:
    n_mapped = 0
    for name, array in arrays_of(loaded.ranker).items():
        if array.size == 0:
            continue
        assert isinstance(memory_of(array), mmap.mmap), name
        assert not array.flags.writeable, name
        assert array.flags.aligned, name
        assert array.ctypes.data % 64 == 0, name
        n_mapped += 1
    assert n_mapped > 20


def memory_of(array: Any) -> Any:
    """Return what an array is a view of in the end."""
    while getattr(array, "base", None) is not None:
        array = array.base
    return array


def test_tables_without_any_tag_survive(tmp_path: Path) -> None:
    dataset, model = trained()
    assert model.ranker is not None
    tables = build_tables(model.history, model.users, model.items, dataset.movies, empty_tags())
    publish(tmp_path, replace(model, ranker=replace(model.ranker, tables=tables)))
    found = arrays_of(load_current(tmp_path).ranker)
    assert found["tags.index"].size == found["tags_of_user.index"].size == 0
    assert load_recommender(load_current(tmp_path)).recommend(1, 5).source == "ranker"


def test_the_manifest_names_the_files_and_lightgbm(version: Path) -> None:
    manifest = verify_version(version)
    assert set(RANKER_FILES) <= manifest["files"].keys()
    assert set(manifest["libraries"]) == {"implicit", "numpy", "pandas", "scipy", "lightgbm"}


def test_equal_data_give_equal_digests(version: Path, tmp_path: Path) -> None:
    _, again = train(invent())
    assert again is not trained()[1]
    assert publish(tmp_path, again).version.split("-")[1] == version.name.split("-")[1]


def test_a_version_without_a_second_stage_loads_and_serves(tmp_path: Path) -> None:
    _, both = trained()
    folder = publish(tmp_path, replace(both, ranker=None)).folder
    assert not (folder / RANKER).exists()
    assert "lightgbm" not in verify_version(folder)["libraries"]
    model = load_version(folder)
    assert model.ranker is None
    recommender = load_recommender(model)
    assert recommender.ranker is None
    ranking = recommender.recommend(1, 10)
    assert (ranking.source, ranking.ranker_failed, len(ranking.item_indices)) == ("als", False, 10)
    assert recommender.recommend_cold([1], 10).source == "fold_in"


# --- damage: each way must be refused with the file, what was expected, and the remedy


def tables_of(folder: Path) -> dict[str, np.ndarray]:
    return {name: np.array(array) for name, array in map_npz(folder / TABLES).items()}  # no map: it is written next


def edit_tables(**changes: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        arrays = tables_of(folder)
        edits = {name.replace("__", "."): edit for name, edit in changes.items()}
        write_npz(folder / TABLES, arrays | {name: edit(arrays[name]) for name, edit in edits.items()})

    return change


def drop_from_tables(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        write_npz(folder / TABLES, {other: array for other, array in tables_of(folder).items() if other != name})

    return change


def edit_json(edit: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        stated = json.loads((folder / RANKER_JSON).read_text(encoding="utf-8"))
        edit(stated)
        (folder / RANKER_JSON).write_text(json.dumps(stated), encoding="utf-8")

    return change


def write(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content)


def cut_off(n_bytes: int) -> Callable[[Path], None]:
    return lambda folder: (folder / TABLES).write_bytes((folder / TABLES).read_bytes()[:-n_bytes])


def replaced(value: float, at: int = 0) -> Callable[[np.ndarray], np.ndarray]:
    def edit(array: np.ndarray) -> np.ndarray:
        array.reshape(-1)[at] = value
        return array

    return edit


def renamed(stated: dict[str, Any]) -> None:
    stated["features"] = {name.replace("als_score", "score"): text for name, text in stated["features"].items()}


def reordered(stated: dict[str, Any]) -> None:
    stated["features"] = dict(reversed(stated["features"].items()))


def one_fewer(stated: dict[str, Any]) -> None:
    stated["features"].popitem()


def without_last(array: np.ndarray) -> np.ndarray:
    return array[:-1]


def in_no_dimension(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1)[:1].reshape(())


N_ITEMS = 10**6  # more than there are
FORGERIES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "tables cut off": (TABLES, cut_off(100)),
    "tables cut in half": (TABLES, lambda folder: cut_off((folder / TABLES).stat().st_size // 2)(folder)),
    "tables empty": (TABLES, write(TABLES, b"")),
    "compressed": (TABLES, lambda folder: np.savez_compressed(folder / TABLES, **tables_of(folder))),
    "no plain factors": ("", drop_from_tables("plain_factors")),
    "no timeline": ("", drop_from_tables("timeline")),
    "no indices of a ragged table": ("", drop_from_tables("around.index")),
    "NaN in plain factors": (TABLES, edit_tables(plain_factors=replaced(np.nan, -1))),
    "inf in plain factors": (TABLES, edit_tables(plain_factors=replaced(np.inf))),
    "plain factors of fewer users": (TABLES, edit_tables(plain_factors=without_last)),
    "fewer plain factors": (TABLES, edit_tables(plain_factors=lambda a: a[:, 1:])),
    "plain factors in integers": (TABLES, edit_tables(plain_factors=lambda a: a.astype(np.int64))),
    "plain factors in one dimension": (TABLES, edit_tables(plain_factors=lambda a: a.reshape(-1))),
    "NaN in genres": (TABLES, edit_tables(genres=replaced(np.nan))),
    "genres of fewer movies": (TABLES, edit_tables(genres=without_last)),
    "a genre without a name": (TABLES, edit_tables(genre_names=without_last)),
    "genre names in no dimension": (TABLES, edit_tables(genre_names=in_no_dimension)),
    "years of fewer movies": (TABLES, edit_tables(year=without_last)),
    "years as text": (TABLES, edit_tables(year=lambda a: a.astype(np.str_))),
    "two typical values": (TABLES, edit_tables(typical=without_last)),
    "NaN as mean rating": (TABLES, edit_tables(typical=replaced(np.nan))),
    "inf as last timestamp": (TABLES, edit_tables(typical=replaced(np.inf, 2))),
    "timeline falls": (TABLES, edit_tables(timeline=lambda a: a[::-1])),
    "timeline falls at its end": (TABLES, edit_tables(timeline=replaced(0, -1))),
    "timeline in float64": (TABLES, edit_tables(timeline=lambda a: a.astype(np.float64))),
    "timeline longer than its sums": (TABLES, edit_tables(timeline=lambda a: np.append(a, a[-1]))),
    "timeline in no dimension": (TABLES, edit_tables(timeline=in_no_dimension)),
    "NaN in the sums of the timeline": (TABLES, edit_tables(timeline_total=replaced(np.nan, 5))),
    "tag weights in no dimension": (TABLES, edit_tables(tag_idf=in_no_dimension)),
    "NaN among the tag weights": (TABLES, edit_tables(tag_idf=replaced(np.nan))),
    "words that are no numbers": (TABLES, edit_tables(words__index=lambda a: np.full(len(a), np.nan))),
    "words as text": (TABLES, edit_tables(words__index=lambda a: a.astype(np.str_))),
    **{f"{name}: index above": (TABLES, edit_tables(**{f"{name}__index": replaced(2**31 - 2)})) for name in RAGGED},
    **{f"{name}: index below": (TABLES, edit_tables(**{f"{name}__index": replaced(-1, -1)})) for name in RAGGED},
    **{f"{name}: rows too few": (TABLES, edit_tables(**{f"{name}__indptr": without_last})) for name in RAGGED},
    **{f"{name}: rows overlap": (TABLES, edit_tables(**{f"{name}__indptr": replaced(10**6, 1)})) for name in RAGGED},
    **{f"{name}: values too few": (TABLES, edit_tables(**{f"{name}__value": without_last})) for name in RAGGED},
    **{f"{name}: NaN": (TABLES, edit_tables(**{f"{name}__value": replaced(np.nan)})) for name in RAGGED},
    "values as text": (TABLES, edit_tables(around__value=lambda a: a.astype(np.str_))),
    "trees that are no text": (MODEL, write(MODEL, b"\xff\xfe\x00")),
    "features renamed": (RANKER_JSON, edit_json(renamed)),
    "features reordered": (RANKER_JSON, edit_json(reordered)),
    "a feature fewer": (RANKER_JSON, edit_json(one_fewer)),
    "another hash": (RANKER_JSON, edit_json(lambda stated: stated.update(features_hash="0" * 64))),
    "no hash": (RANKER_JSON, edit_json(lambda stated: stated.pop("features_hash"))),
    "no features": (RANKER_JSON, edit_json(lambda stated: stated.pop("features"))),
    "features as a list": (RANKER_JSON, edit_json(lambda stated: stated.update(features=list(stated["features"])))),
    "ranker.json is a list": (RANKER_JSON, write(RANKER_JSON, b"[]")),
    "ranker.json is null": (RANKER_JSON, write(RANKER_JSON, b"null")),
    "ranker.json is no JSON": (RANKER_JSON, write(RANKER_JSON, b"{")),
    "ranker.json is empty": (RANKER_JSON, write(RANKER_JSON, b"")),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_what_is_no_second_stage_is_refused_although_its_checksums_are_right(
    version: Path, tmp_path: Path, name: str
) -> None:
    file, change = FORGERIES[name]
    forged = forge(version, tmp_path, change)
    verify_version(forged)
    assert_refused(forged, file)


def assert_refused(folder: Path, file: str, *words: str) -> None:
    with pytest.raises(ArtifactError) as caught:
        load_version(folder)
    message = str(caught.value)
    for word in (str(folder / file), "expected", "train_als.py", *words):
        assert word in message, message


@pytest.mark.parametrize("name", RANKER_FILES)
def test_a_missing_file_is_refused(version: Path, tmp_path: Path, name: str) -> None:
    forged = forge(version, tmp_path, lambda folder: (folder / name).unlink())
    verify_version(forged)
    assert_refused(forged, name)


@pytest.mark.parametrize("name", RANKER_FILES)
def test_a_changed_file_is_refused(version: Path, tmp_path: Path, name: str) -> None:
    forged = forge(version, tmp_path, Path.exists)
    content = (forged / name).read_bytes()
    (forged / name).write_bytes(bytes([content[0] ^ 1]) + content[1:])
    assert_refused(forged, name, "SHA-256")


class Intruder:
    """Unpickling it creates a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.trace,))


@pytest.mark.parametrize("table", ["plain_factors", "genre_names", "around.value"])
def test_pickled_objects_are_refused_and_not_run(version: Path, tmp_path: Path, table: str) -> None:
    trace = tmp_path / "trace"

    def change(folder: Path) -> None:
        arrays = tables_of(folder)
        np.savez(folder / TABLES, **arrays | {table: np.array([Intruder(trace)], dtype=object)})

    assert_refused(forge(version, tmp_path, change), TABLES)
    assert not trace.exists()


def test_another_release_s_features_are_told_from_damage(version: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"other features \(als_score, score\).*train_als\.py --ranker"):
        load_version(forge(version, tmp_path, edit_json(renamed)))


def test_a_forged_version_without_change_loads(version: Path, loaded: LoadedModel, tmp_path: Path) -> None:
    found = load_recommender(load_version(forge(version, tmp_path, Path.exists)))
    expected = load_recommender(loaded)
    assert found.recommend(1, 20).item_indices.tolist() == expected.recommend(1, 20).item_indices.tolist()


# --- trees that only LightGBM can tell are no good: the version is served without them


def edit_trees(old: str, new: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        text = (folder / MODEL).read_text(encoding="utf-8")
        assert old in text
        (folder / MODEL).write_text(text.replace(old, new, 1), encoding="utf-8", newline="\n")

    return change


UNREADABLE: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (write(MODEL, b""), "cannot be loaded"),
    "no text model": (write(MODEL, b"tree\nnot a model\n"), "cannot be loaded"),
    "a feature renamed": (edit_trees("als_score", "score"), "other features"),
    "features reordered": (edit_trees("als_score als_rank", "als_rank als_score"), "other features"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_with_trees_that_cannot_be_used_the_first_stage_serves_and_the_log_says_why(
    version: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    change, why = UNREADABLE[name]
    model = load_version(forge(version, tmp_path, change))
    with caplog.at_level(logging.ERROR, logger="uvicorn.error"):
        recommender = load_recommender(model)
    (record,) = caplog.records
    assert model.version in record.getMessage()
    assert why in record.getMessage()
    assert "train_als.py" in record.getMessage()
    assert recommender.ranker is None
    expected = Recommender(model).recommend(1, 10, ListOptions(ranker=False))
    ranking = recommender.recommend(1, 10)
    assert (ranking.source, ranking.ranker_failed) == ("als", True)
    assert ranking.item_indices.tolist() == expected.item_indices.tolist()
    assert ranking.scores.tolist() == expected.scores.tolist()
