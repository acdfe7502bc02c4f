"""Version folders: what was saved is what is loaded, and nothing damaged is ever loaded."""

from __future__ import annotations

import hashlib
import json
import math
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.artifacts import (
    MANIFEST,
    MOVIE_ARRAYS,
    MOVIE_MAP,
    REQUIRED_FILES,
    LoadedModel,
    content_digest,
    load_version,
    read_manifest,
    verify_version,
    write_version,
)
from app.errors import ArtifactError
from app.npz import map_npz, write_npz
from app.recommender import Ranking, Recommender
from tests.models import BIG_MOVIE, MOVIES, RATINGS, forge, in_memory, make_model

TRAINED_AT = "2026-11-23T10:15:00+00:00"


def write(parent: Path, **options: Any) -> Path:
    """Write a model as a version folder under the name that it would be published as."""
    folder = parent / "new"
    folder.mkdir(parents=True)
    digest = write_version(folder, make_model(**options), TRAINED_AT)
    return folder.rename(parent / f"20261123T101500Z-{digest}")


@pytest.fixture
def version(tmp_path: Path) -> Path:
    return write(tmp_path / "versions")


def test_arrays_and_settings_survive(version: Path) -> None:
    saved, loaded = in_memory(make_model()), load_version(version)
    for name in ("user_factors", "item_factors"):
        assert_identical(getattr(loaded.factors, name), getattr(saved.factors, name))
    for name in ("indptr", "item_index", "rating", "timestamp"):
        assert_identical(getattr(loaded.history, name), getattr(saved.history, name))
    for name, array in in_memory(make_model()).movies.to_arrays().items():
        assert_identical(getattr(loaded.movies, name), array)
    for name in ("positives_indptr", "positives_items"):
        assert_identical(getattr(loaded, name), getattr(saved, name))
    assert_identical(loaded.users.ids, saved.users.ids)
    assert_identical(loaded.items.ids, saved.items.ids)
    assert loaded.als_config == saved.als_config
    assert loaded.version == version.name
    assert loaded.manifest["trained_at"] == TRAINED_AT
    assert loaded.manifest["dataset"] == "hand-made"


def assert_identical(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.dtype == expected.dtype
    assert np.array_equal(found, expected)


def test_movies_survive_with_commas_quotes_accents_and_gaps(version: Path) -> None:
    loaded = load_version(version)
    found = {movie.movie_id: movie for movie in loaded.movies}
    assert [*found] == [1, 2, 3, 5, 10, BIG_MOVIE]
    for movie_id, (title, genres, year, imdb_id, tmdb_id) in MOVIES.items():
        movie = found[movie_id]
        assert (movie.title, movie.year, movie.imdb_id, movie.tmdb_id) == (title, year, imdb_id, tmdb_id)
        assert movie.genres == (tuple(genres.split("|")) if genres else ())


def test_a_version_without_mapped_movies_has_the_same_from_its_table(version: Path, tmp_path: Path) -> None:
    found = load_version(forge(version, tmp_path, of_an_earlier_release)).movies
    for name, array in load_version(version).movies.to_arrays().items():
        assert_identical(getattr(found, name), array)


def test_the_factors_are_mapped_not_copied(version: Path) -> None:
    factors = load_version(version).factors
    for array in (factors.user_factors, factors.item_factors):
        assert isinstance(array, np.memmap)
        assert array.flags.aligned
        assert not array.flags.writeable


COLD_STARTS: tuple[list[int], ...] = ([], [1], [2, 3], [10, 1, 404, 5], [404], [1, 2, 3, 5, 10, BIG_MOVIE])


def answers(model: LoadedModel) -> list[Ranking]:
    recommender = Recommender(model)
    users = [recommender.recommend(user_id, k) for user_id in model.users.ids.tolist() for k in (1, 3, 100)]
    return [*users, *(recommender.recommend_cold(liked, k) for liked in COLD_STARTS for k in (1, 3, 100))]


def assert_same_answers(found: LoadedModel, expected: LoadedModel) -> None:
    for one, other in zip(answers(found), answers(expected), strict=True):
        assert (one.source, one.ignored) == (other.source, other.ignored)
        assert_identical(one.item_indices, other.item_indices)
        assert_identical(one.scores, other.scores)


def test_answers_are_identical_before_and_after_a_round_trip(version: Path) -> None:
    assert_same_answers(load_version(version), in_memory(make_model()))


random_ratings = st.dictionaries(
    st.tuples(st.integers(1, 2**63 - 1), st.integers(1, 2**63 - 1) | st.integers(1, 6)),
    st.sampled_from([0.5, 3.5, 4.0, 5.0]),
    max_size=20,
).map(lambda rated: [(1, 1, 5.0), *((*pair, rating) for pair, rating in rated.items() if pair != (1, 1))])


@given(random_ratings, st.integers(1, 9))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_model_answers_identically_after_a_round_trip(
    tmp_path: Path, ratings: list[tuple[int, int, float]], factors: int
) -> None:
    shutil.rmtree(tmp_path / "any", ignore_errors=True)
    version = write(tmp_path / "any", ratings=ratings, factors=factors)
    assert_same_answers(load_version(version), in_memory(make_model(ratings, factors=factors)))


def test_equal_models_have_equal_digests_and_others_do_not(tmp_path: Path) -> None:
    one, same, other = write(tmp_path / "1"), write(tmp_path / "2"), write(tmp_path / "3", random_state=1)
    assert one.name == same.name
    assert one.name != other.name


# --- damage: each way must be refused with the file, what was expected, and the remedy


def assert_refused(folder: Path, file: str, *words: str) -> None:
    with pytest.raises(ArtifactError) as caught:
        load_version(folder)
    message = str(caught.value)
    for word in (str(folder / file), "expected", "train_als.py", *words):
        assert word in message, message


@pytest.mark.parametrize("name", [*REQUIRED_FILES, MANIFEST])
def test_a_missing_file_is_refused(version: Path, name: str) -> None:
    (version / name).unlink()
    assert_refused(version, name, "is missing")


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    assert_refused(tmp_path / "20261123T101500Z-00000000", MANIFEST, "is missing")


@pytest.mark.parametrize("name", REQUIRED_FILES)
@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-1],
        lambda content: content[:0],
        lambda content: content + b"\n",
        lambda content: bytes([content[0] ^ 1]) + content[1:],
        lambda content: content[:-1] + bytes([content[-1] ^ 128]),
    ],
    ids=["cut off", "emptied", "longer", "first bit flipped", "last bit flipped"],
)
def test_a_damaged_file_is_refused(version: Path, name: str, damage: Callable[[bytes], bytes]) -> None:
    path = version / name
    path.write_bytes(damage(path.read_bytes()))
    assert_refused(version, name, "SHA-256")


@pytest.mark.parametrize("name", ["als.npz", "config.json", "users.npy"])
def test_a_folder_in_place_of_a_file_is_refused(version: Path, name: str) -> None:
    (version / name).unlink()
    (version / name).mkdir()
    assert_refused(version, name)


def test_a_file_of_another_version_is_refused(version: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other", random_state=1)
    shutil.copy(other / "als.npz", version / "als.npz")
    assert_refused(version, "als.npz", "SHA-256")


def test_the_files_and_the_manifest_of_another_version_are_refused(version: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other", random_state=1)
    shutil.copytree(other, version, dirs_exist_ok=True)
    assert load_version(other).version == other.name  # consistent in itself, but not what the name says
    assert_refused(version, MANIFEST, version.name)
    with pytest.raises(ArtifactError, match="content"):
        verify_version(version)


class Intruder:
    """Unpickling it creates a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.trace,))


@pytest.mark.parametrize(
    "name", sorted({*REQUIRED_FILES, MOVIE_ARRAYS} - {"metrics.json"})
)  # which is not loaded at all
def test_a_pickle_with_right_checksums_is_refused_and_not_run(version: Path, tmp_path: Path, name: str) -> None:
    trace = tmp_path / "trace"

    def change(folder: Path) -> None:
        if name == MOVIE_MAP:
            (folder / MOVIE_ARRAYS).unlink()  # else the table is not loaded either
        (folder / name).write_bytes(pickle.dumps(Intruder(trace)))

    forged = forge(version, tmp_path, change)
    with pytest.raises(ArtifactError, match=r"train_als\.py"):
        load_version(forged)
    assert not trace.exists()


@pytest.mark.parametrize("name", ["users.npy", "items.npy"])
def test_ids_as_pickled_objects_are_refused_and_not_run(version: Path, tmp_path: Path, name: str) -> None:
    trace = tmp_path / "trace"
    objects = np.array([Intruder(trace)], dtype=object)
    forged = forge(version, tmp_path, lambda folder: np.save(folder / name, objects, allow_pickle=True))
    assert_refused(forged, name)
    assert not trace.exists()


def edit_npz(name: str, **changes: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        arrays = {key: np.array(array) for key, array in map_npz(folder / name).items()}
        write_npz(folder / name, arrays | {key: edit(arrays[key]) for key, edit in changes.items()})

    return change


def drop_from_npz(name: str, key: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        arrays = {other: np.array(array) for other, array in map_npz(folder / name).items() if other != key}
        write_npz(folder / name, arrays)

    return change


def edit_ids(name: str, edit: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    return lambda folder: np.save(folder / name, edit(np.load(folder / name)))


def edit_config(**als: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        config["als"] |= als
        (folder / "config.json").write_text(json.dumps(config))

    return change


def of_an_earlier_release(folder: Path) -> None:
    """Leave the table of movies alone, as versions had it before there was ``movies.npz``."""
    (folder / MOVIE_ARRAYS).unlink()


def edit_text(name: str, old: str, new: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        if name == MOVIE_MAP:
            of_an_earlier_release(folder)
        text = (folder / name).read_text(encoding="utf-8")
        assert old in text
        (folder / name).write_text(text.replace(old, new, 1), encoding="utf-8")

    return change


def overwrite_movie_map(content: bytes) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        of_an_earlier_release(folder)
        (folder / MOVIE_MAP).write_bytes(content)

    return change


def without_array(name: str, array: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        write_npz(folder / name, {key: np.array(each) for key, each in map_npz(folder / name).items() if key != array})

    return change


def replaced(value: float, at: int = 0) -> Callable[[np.ndarray], np.ndarray]:
    def edit(array: np.ndarray) -> np.ndarray:
        array.reshape(-1)[at] = value
        return array

    return edit


def compressed(folder: Path) -> None:
    arrays = {key: np.array(array) for key, array in map_npz(folder / "als.npz").items()}
    np.savez_compressed(folder / "als.npz", **arrays)


def not_npy(folder: Path) -> None:
    np.savez(folder / "users", ids=np.arange(5))
    (folder / "users.npz").rename(folder / "users.npy")


X, HISTORY = "X_users_items.npz", "history.npz"
FORGERIES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "fewer users' factors": ("als.npz", edit_npz("als.npz", user_factors=lambda a: a[:-1])),
    "more items' factors": ("als.npz", edit_npz("als.npz", item_factors=lambda a: np.vstack([a, a[:1]]))),
    "fewer factors": ("als.npz", edit_npz("als.npz", user_factors=lambda a: a[:, 1:], item_factors=lambda a: a[:, 1:])),
    "factors in float64": ("als.npz", edit_npz("als.npz", user_factors=lambda a: a.astype(np.float64))),
    "factors in one dimension": ("als.npz", edit_npz("als.npz", item_factors=lambda a: a.reshape(-1))),
    "NaN for a user": ("als.npz", edit_npz("als.npz", user_factors=replaced(np.nan))),
    "NaN for an item": ("als.npz", edit_npz("als.npz", item_factors=replaced(np.nan, -1))),
    "inf": ("als.npz", edit_npz("als.npz", item_factors=replaced(np.inf))),
    "-inf": ("als.npz", edit_npz("als.npz", user_factors=replaced(-np.inf, -1))),
    "no user factors": ("", drop_from_npz("als.npz", "user_factors")),
    "compressed": ("als.npz", compressed),
    "user ids repeat": ("users.npy", edit_ids("users.npy", lambda ids: ids[[0, 0, 2, 3, 4]])),
    "user ids unsorted": ("users.npy", edit_ids("users.npy", lambda ids: ids[::-1])),
    "item ids repeat": ("items.npy", edit_ids("items.npy", lambda ids: ids[[0, 1, 2, 3, 4, 4]])),
    "item ids unsorted": ("items.npy", edit_ids("items.npy", lambda ids: ids[::-1])),
    "ids in int32": ("items.npy", edit_ids("items.npy", lambda ids: ids.astype(np.int32))),
    "ids in float64": ("users.npy", edit_ids("users.npy", lambda ids: ids.astype(np.float64))),
    "ids in two dimensions": ("users.npy", edit_ids("users.npy", lambda ids: ids[:, None])),
    "an npz as ids": ("users.npy", not_npy),
    "other item ids": (MOVIE_ARRAYS, edit_ids("items.npy", lambda ids: ids + 1)),
    "positive item too high": (X, edit_npz(X, indices=replaced(6))),
    "positive item below 0": (X, edit_npz(X, indices=replaced(-1))),
    "positive items in float32": (X, edit_npz(X, indices=lambda a: a.astype(np.float32))),
    "rows of positives too few": (X, edit_npz(X, indptr=lambda a: a[:-1])),
    "rows of positives overlap": (X, edit_npz(X, indptr=replaced(9, 1))),
    "rows of positives start late": (X, edit_npz(X, indptr=replaced(1))),
    "rows of positives end early": (X, edit_npz(X, indptr=replaced(2, -1))),
    "rows of positives in 0 dimensions": (X, edit_npz(X, indptr=lambda a: a[0])),
    "no rows of positives": ("", drop_from_npz(X, "indptr")),
    "rated item too high": (HISTORY, edit_npz(HISTORY, item_index=replaced(6))),
    "rated item below 0": (HISTORY, edit_npz(HISTORY, item_index=replaced(-1, -1))),
    "rated items in float64": (HISTORY, edit_npz(HISTORY, item_index=lambda a: a.astype(np.float64))),
    "rated rows overlap": (HISTORY, edit_npz(HISTORY, indptr=replaced(99, 1))),
    "rated rows past the end": (HISTORY, edit_npz(HISTORY, item_index=lambda a: a[:-1])),
    "fewer ratings than rated items": (HISTORY, edit_npz(HISTORY, rating=lambda a: a[:-1])),
    "fewer timestamps than rated items": (HISTORY, edit_npz(HISTORY, timestamp=lambda a: a[:-1])),
    "no timestamps": ("", drop_from_npz(HISTORY, "timestamp")),
    "movies out of order": ("movie_map.csv", edit_text("movie_map.csv", "\n10,", "\n4,")),
    "a movie id that is no number": ("movie_map.csv", edit_text("movie_map.csv", "\n10,", "\nten,")),
    "a year that is no number": ("movie_map.csv", edit_text("movie_map.csv", ",2000,", ",soon,")),
    "a column too few": ("movie_map.csv", edit_text("movie_map.csv", ",popularity\n", "\n")),
    "a cell too few": ("movie_map.csv", edit_text("movie_map.csv", ",2000,", "2000,")),
    "an open quote": ("movie_map.csv", edit_text("movie_map.csv", ",NA,", ',"NA,')),
    "popularity is NaN": ("movie_map.csv", edit_text("movie_map.csv", ",1\n", ",nan\n")),
    "movies in Latin-1": (MOVIE_MAP, overwrite_movie_map(b"movie_id\n\xe9")),
    "no movies": (MOVIE_MAP, overwrite_movie_map(b"")),
    "a card that is no JSON": (MOVIE_ARRAYS, edit_npz(MOVIE_ARRAYS, cards=replaced(0, at=5))),
    "a card of another movie": (MOVIE_ARRAYS, edit_npz(MOVIE_ARRAYS, cards=replaced(ord("7"), at=len('"movie_id":')))),
    "links that are no JSON": (MOVIE_ARRAYS, edit_npz(MOVIE_ARRAYS, links=replaced(0))),
    "cards that end elsewhere": (MOVIE_ARRAYS, edit_npz(MOVIE_ARRAYS, card_ends=replaced(9, at=1))),
    "cards that go back": (MOVIE_ARRAYS, edit_npz(MOVIE_ARRAYS, card_ends=replaced(2**40, at=1))),
    "a genre too many": (MOVIE_ARRAYS, edit_npz(MOVIE_ARRAYS, genre_index=replaced(99))),
    "a genre before the first": (MOVIE_ARRAYS, edit_npz(MOVIE_ARRAYS, genre_index=replaced(-1))),
    "a year too few": (MOVIE_ARRAYS, edit_npz(MOVIE_ARRAYS, years=lambda years: years[1:])),
    "a popularity that is no number": (MOVIE_ARRAYS, edit_npz(MOVIE_ARRAYS, popularity=replaced(math.nan))),
    "no genres at all": ("", without_array(MOVIE_ARRAYS, "genre_names")),
    "config is a list": ("config.json", lambda folder: (folder / "config.json").write_text("[]")),
    "config is no JSON": ("config.json", lambda folder: (folder / "config.json").write_text("{")),
    "no ALS config": ("", lambda folder: (folder / "config.json").write_text("{}")),
    "ALS config is text": ("", lambda folder: (folder / "config.json").write_text('{"als": "none"}')),
    "0 factors": ("", edit_config(factors=0)),
    "regularization is text": ("", edit_config(regularization="much")),
    "regularization is null": ("", edit_config(regularization=None)),
    "regularization is 0": ("", edit_config(regularization=0)),
    "factors unlike the arrays": ("als.npz", edit_config(factors=5)),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_what_is_no_model_is_refused_although_its_checksums_are_right(version: Path, tmp_path: Path, name: str) -> None:
    file, change = FORGERIES[name]
    forged = forge(version, tmp_path, change)
    verify_version(forged)
    assert_refused(forged, file)


def test_a_forged_version_without_change_loads(version: Path, tmp_path: Path) -> None:
    forged = forge(version, tmp_path, Path.exists)
    assert_same_answers(load_version(forged), load_version(version))


def edit_manifest(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    edit(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")


@pytest.mark.parametrize("content", ["", "{", "null", "[]", '"text"', "\xff\xfe", "[" * 100_000, "{}"])
def test_a_manifest_that_is_no_manifest_is_refused(version: Path, content: str) -> None:
    (version / MANIFEST).write_bytes(content.encode("latin-1"))
    assert_refused(version, MANIFEST)


@pytest.mark.parametrize("found", [0, 1, 3, "2", None])
def test_an_unknown_format_version_is_refused(version: Path, found: object) -> None:
    edit_manifest(version, lambda manifest: manifest.update(format_version=found))
    assert_refused(version, MANIFEST, "format_version", repr(found))


@pytest.mark.parametrize("key", ["files", "dataset", "trained_at", "format_version"])
def test_a_manifest_that_lacks_something_is_refused(version: Path, key: str) -> None:
    edit_manifest(version, lambda manifest: manifest.pop(key))
    assert_refused(version, MANIFEST, key)
    with pytest.raises(ArtifactError):
        read_manifest(version)


@pytest.mark.parametrize("name", REQUIRED_FILES)
def test_a_manifest_without_a_required_file_is_refused(version: Path, name: str) -> None:
    edit_manifest(version, lambda manifest: manifest["files"].pop(name))
    assert_refused(version, MANIFEST, name)


@pytest.mark.parametrize(
    "stated",
    [None, 1, "text", [], {}, {"size": 1}, {"sha256": "0"}, {"sha256": 5, "size": "x"}, {"sha256": [], "size": {}}],
)
def test_a_malformed_entry_of_the_manifest_is_refused(version: Path, stated: object) -> None:
    edit_manifest(version, lambda manifest: manifest["files"].update({"als.npz": stated}))
    with pytest.raises(ArtifactError, match=r"expected.*train_als\.py"):
        load_version(version)


@pytest.mark.parametrize("files", [None, [], "als.npz", 3, list(REQUIRED_FILES)])
def test_a_malformed_list_of_files_is_refused(version: Path, files: object) -> None:
    edit_manifest(version, lambda manifest: manifest.update(files=files))
    assert_refused(version, MANIFEST)


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "report/../../secret", "C:/secret", "..\\secret"])
def test_a_manifest_cannot_point_out_of_its_folder(version: Path, name: str) -> None:
    (version.parent / "secret").write_text("x")
    stated = {"sha256": hashlib.sha256(b"x").hexdigest(), "size": 1}
    edit_manifest(version, lambda manifest: manifest["files"].update({name: stated}))
    assert_refused(version, MANIFEST)


def test_documents_are_files_of_the_version_in_folders_too(version: Path) -> None:
    documents = make_model().documents
    assert any("/" in name for name in documents)
    for name, text in documents.items():
        assert (version / name).read_text(encoding="utf-8") == text
        assert name in verify_version(version)["files"]


@pytest.mark.parametrize("name", make_model().documents)
def test_a_damaged_document_is_refused_like_any_other_file(version: Path, name: str) -> None:
    (version / name).write_text("changed")
    assert_refused(version, name)


def test_the_digest_covers_names_and_checksums() -> None:
    files = {"a": {"sha256": "1"}, "b": {"sha256": "2"}}
    assert content_digest(files) == content_digest(dict(reversed(files.items())))
    assert content_digest(files) != content_digest({"a": {"sha256": "2"}, "b": {"sha256": "1"}})
    assert len(content_digest(files)) == 8


def test_history_is_oldest_first_and_holds_only_the_catalogue() -> None:
    model = make_model([*RATINGS, (1, 3, 1.0)])
    user = model.users.ids.tolist().index(1)
    row = slice(model.history.indptr[user], model.history.indptr[user + 1])
    assert model.items.ids[model.history.item_index[row]].tolist() == [1, 2, 5, 3]
    assert model.history.rating[row].tolist() == [5.0, 4.0, 2.0, 1.0]
    assert np.all(np.diff(model.history.timestamp[row]) > 0)
    assert len(model.history.item_index) == len(RATINGS)  # one more, and movie 99 left out
