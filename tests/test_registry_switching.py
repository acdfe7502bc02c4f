"""Going from version to version and back, whatever HISTORY and CURRENT have been through."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from filelock import FileLock
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from app import registry
from app.artifacts import MANIFEST
from app.errors import (
    ArtifactError,
    ConfigError,
    NoModelError,
    UnknownVersionError,
    UnwritableError,
    VersionRefusedError,
)
from app.npz import map_npz, write_npz
from app.registry import (
    CURRENT,
    HISTORY,
    VERSIONS,
    activate,
    current,
    earlier,
    load_current,
    load_intact,
    prune,
    publish,
    rollback,
    versions,
)
from app.registry.flat_view import refresh_flat_view
from tests.models import forge, make_model, trained
from tests.publishers import check_flat_view, check_leftovers, recorded

LETTERS = "ABCDE"
GONE = "20200101T000000Z-00000000"
Ids = dict[str, str]
Arrange = Callable[[str], Path]


@pytest.fixture(autouse=True)
def fast_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flush nothing: no machine dies in these tests."""
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five versions of which A is the oldest."""
    folder = tmp_path_factory.mktemp("store")
    for n, letter in enumerate(LETTERS):
        made = publish(folder / letter, make_model(random_state=n)).folder
        made.rename(folder / f"2026010{n + 1}T000000Z-{made.name[-8:]}")
        shutil.rmtree(folder / letter)
    return folder


@pytest.fixture(scope="module")
def ids(store: Path) -> Ids:
    return dict(zip(LETTERS, sorted(path.name for path in store.iterdir()), strict=True))


@pytest.fixture
def arrange(tmp_path: Path, store: Path, ids: Ids) -> Arrange:
    """Lay out a folder by hand: "A B ~A" is one in which A was published, then B, then rolled back to A.

    All five versions are there. CURRENT names the last.
    """

    def lay_out(moves: str) -> Path:
        folder = tmp_path / "artifacts"
        shutil.copytree(store, folder / VERSIONS, copy_function=os.link)  # what is damaged is replaced, not written to
        write_history(folder, ids, moves)
        point(folder, ids[moves[-1]])
        refresh_flat_view(folder, Path(VERSIONS) / ids[moves[-1]])
        return folder

    return lay_out


def write_history(folder: Path, ids: Ids, moves: str) -> None:
    (folder / HISTORY).write_text("".join(line(ids, move) for move in moves.split()))


def line(ids: Ids, move: str) -> str:
    return f"2026-01-09T00:00:00+00:00\t{ids[move[-1]]}\t{'rolled back' if move[0] == '~' else 'trained'}\n"


def point(folder: Path, content: str) -> None:
    (folder / CURRENT).write_text(f"{content}\n")


def letters(ids: Ids, versions: list[str]) -> str:
    of = {version: letter for letter, version in ids.items()}
    return "".join(of.get(version, "?") for version in versions)


def damage(folder: Path, version: str) -> None:
    path = folder / VERSIONS / version / "als.npz"
    content = path.read_bytes()
    replace(path, content[:-1] + bytes([content[-1] ^ 1]))


def replace(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


def state(folder: Path) -> dict[str, Any]:
    """What a refusal must leave as it is."""
    names = sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.name.startswith(".lock")
    )
    return {"names": names, "current": (folder / CURRENT).read_bytes(), "history": (folder / HISTORY).read_bytes()}


# --- back, and further back


def test_rollback_goes_further_back_each_time_until_nothing_is_left(arrange: Arrange, ids: Ids) -> None:
    folder = arrange("A B C")
    for old, new in ("CB", "BA"):
        switched = rollback(folder)
        assert (switched.version, switched.replaced, switched.warnings) == (ids[new], ids[old], ())
        assert current(folder) == load_current(folder).version == ids[new]
        assert recorded(folder)[-1] == (ids[new], "rolled back")
        check_flat_view(folder, ids[new])
    before = state(folder)
    with pytest.raises(VersionRefusedError, match=f"nothing to roll back to.*{ids['A']}"):
        rollback(folder)
    assert state(folder) == before


@pytest.mark.parametrize(
    ("moves", "expected", "walk"),
    [
        ("A", "", ""),
        ("A A", "", ""),
        ("A B C", "BA", "BA"),
        ("A A B B C C", "BA", "BA"),
        ("A B C ~B", "A", "A"),
        ("A B C ~B ~A", "", ""),
        ("A B C ~A", "", ""),
        ("A B C ~B D", "BA", "BA"),
        ("A B C ~B C", "BA", "BA"),
        ("A B C ~A C", "A", "A"),
        ("A B A", "B", "BA"),
        ("A B A ~B", "A", "A"),
        ("A B C B", "CA", "CBA"),
        ("A B C B ~C", "BA", "BA"),
        ("A B A C", "ABA", "ABA"),
        ("A B A C ~A", "B", "BA"),
        ("A B A C ~A ~B", "A", "A"),
        ("~A B", "A", "A"),
    ],
)
def test_rollback_walks_back_through_what_was_not_taken_back(
    arrange: Arrange, ids: Ids, moves: str, expected: str, walk: str
) -> None:
    folder = arrange(moves)
    assert letters(ids, earlier(folder)) == expected
    previous = [entry.version for entry in versions(folder) if entry.is_previous]
    assert letters(ids, previous) == expected[:1]
    for letter in walk:
        assert rollback(folder).version == ids[letter]
    with pytest.raises(VersionRefusedError):
        rollback(folder)
    assert current(folder) == ids[walk[-1:] or moves[-1]]


def test_what_was_rolled_back_may_be_activated_and_rolled_back_again(arrange: Arrange, ids: Ids) -> None:
    folder = arrange("A B C")
    rollback(folder)
    switched = activate(folder, ids["C"])
    assert (switched.version, switched.replaced) == (ids["C"], ids["B"])
    assert rollback(folder).version == ids["B"]
    assert activate(folder, ids["D"]).replaced == ids["B"]
    assert [rollback(folder).version for _ in range(2)] == [ids["B"], ids["A"]]
    assert [why for _, why in recorded(folder)[3:]] == [
        *("rolled back", "activated", "rolled back", "activated", "rolled back", "rolled back")
    ]


def remove(folder: Path, version: str) -> None:
    shutil.rmtree(folder / VERSIONS / version)


@pytest.mark.parametrize("harm", [damage, remove])
def test_what_is_damaged_or_gone_is_passed_over_with_a_warning(
    arrange: Arrange, ids: Ids, harm: Callable[[Path, str], None]
) -> None:
    folder = arrange("A B C D")
    harm(folder, ids["C"])
    harm(folder, ids["B"])
    switched = rollback(folder)
    assert (switched.version, switched.replaced) == (ids["A"], ids["D"])
    assert [warning.split()[0] for warning in switched.warnings] == [ids["C"], ids["B"]]
    assert all("passed over" in warning for warning in switched.warnings)
    assert len(recorded(folder)) == 5
    assert earlier(folder) == []  # and the next one does not come back to them
    activate(folder, ids["E"])
    assert rollback(folder).version == ids["A"]


def test_where_nothing_earlier_is_intact_it_stays_as_it_is(arrange: Arrange, ids: Ids) -> None:
    folder = arrange("A B C")
    damage(folder, ids["A"])
    damage(folder, ids["B"])
    before = state(folder)
    with pytest.raises(VersionRefusedError, match=rf"still intact\. {ids['B']} was passed.*als\.npz.*{ids['A']}"):
        rollback(folder)
    assert state(folder) == before


def test_a_damaged_version_can_be_left(arrange: Arrange, ids: Ids) -> None:
    folder = arrange("A B C")
    damage(folder, ids["C"])
    assert rollback(folder).version == ids["B"]
    damage(folder, ids["B"])
    assert activate(folder, ids["E"]).replaced == ids["B"]


# --- what somebody did to CURRENT


@pytest.mark.parametrize(
    "content", [None, b"", b"\n", b"garbage\n", b"\xff", f"{GONE}\n".encode(), b"..", b"A" * 99_999]
)
def test_from_a_current_that_names_nothing_one_goes_to_what_was_active_last(
    arrange: Arrange, ids: Ids, content: bytes | None
) -> None:
    folder = arrange("A B C ~B")
    (folder / CURRENT).unlink()
    if content is not None:
        (folder / CURRENT).write_bytes(content)
    assert letters(ids, earlier(folder)) == "BA"
    with pytest.raises(ArtifactError, match="CURRENT"):
        load_current(folder)
    model, error = load_intact(folder, registry.listing.load_version)
    assert model.version == ids["B"]
    assert "CURRENT" in str(error)
    switched = rollback(folder)
    is_gone = content is not None and GONE.encode() in content
    assert (switched.version, switched.replaced) == (ids["B"], GONE if is_gone else None)
    assert rollback(folder).version == ids["A"]
    check_flat_view(folder, ids["A"])


def test_from_a_version_that_is_gone_one_goes_to_the_one_before(arrange: Arrange, ids: Ids) -> None:
    folder = arrange("A B C")
    remove(folder, ids["C"])
    assert rollback(folder).version == ids["B"]
    assert letters(ids, earlier(folder)) == "A"


@pytest.mark.parametrize(
    ("by_hand", "then", "further"), [("D", "CBA", "BA"), ("A", "CB", "BA"), ("B", "A", ""), ("C", "BA", "A")]
)
def test_a_current_that_was_written_by_hand_is_walked_back_from(
    arrange: Arrange, ids: Ids, by_hand: str, then: str, further: str
) -> None:
    folder = arrange("A B C")
    point(folder, ids[by_hand])
    assert letters(ids, earlier(folder)) == then
    assert letters(ids, [entry.version for entry in versions(folder) if entry.is_previous]) == then[0]
    assert rollback(folder).version == ids[then[0]]
    assert letters(ids, earlier(folder)) == further


def test_a_hand_that_comes_back_leaves_no_trace(arrange: Arrange, ids: Ids) -> None:
    folder = arrange("A B C")
    point(folder, ids["E"])
    prune(folder, keep=5)  # as anything that changes something, it records where CURRENT was found
    assert recorded(folder)[-1] == (ids["E"], "recovered")
    point(folder, ids["C"])
    prune(folder, keep=5)
    assert letters(ids, earlier(folder)) == "BA"


# --- what happened to HISTORY

NO_LINES = [
    "\n",
    "a note of somebody's\n",
    "2026\tnone\ttrained\n",
    f"{GONE}\n",
    "\t\t\n",
    f"x\t{GONE}\ttrained\tmore\n",
]


def test_without_a_history_nothing_is_known_to_go_back_to(arrange: Arrange, ids: Ids) -> None:
    folder = arrange("A B C")
    (folder / HISTORY).unlink()
    with pytest.raises(VersionRefusedError):
        rollback(folder)
    assert recorded(folder) == [(ids["C"], "recovered")]
    activate(folder, ids["A"])
    assert rollback(folder).version == ids["C"]


@pytest.mark.parametrize("foreign", NO_LINES)
def test_lines_that_are_not_ours_count_for_nothing(arrange: Arrange, ids: Ids, foreign: str) -> None:
    folder = arrange("A B C")
    lines = (folder / HISTORY).read_text().splitlines(keepends=True)
    (folder / HISTORY).write_text(foreign + foreign.join(lines) + foreign)
    assert letters(ids, earlier(folder)) == "BA"
    assert [rollback(folder).version for _ in range(2)] == [ids["B"], ids["A"]]
    assert (folder / HISTORY).read_text().count(foreign) >= 4  # appended to, never rewritten


@pytest.mark.parametrize("end", [b"\r\n", b"\n\n", b"\r"])
def test_lines_may_end_as_another_system_s_do(arrange: Arrange, ids: Ids, end: bytes) -> None:
    folder = arrange("A B C")
    (folder / HISTORY).write_bytes((folder / HISTORY).read_bytes().replace(b"\n", end))
    assert [rollback(folder).version for _ in range(2)] == [ids["B"], ids["A"]]


def test_bytes_that_are_no_text_spoil_only_their_line(arrange: Arrange, ids: Ids) -> None:
    folder = arrange("A B C")
    history = (folder / HISTORY).read_bytes()
    (folder / HISTORY).write_bytes(history.replace(ids["B"].encode(), b"\xff\xfe"))
    assert letters(ids, earlier(folder)) == "A"
    assert rollback(folder).version == ids["A"]


def recorded_line(text: str) -> bool:
    return re.fullmatch(r"[^\t\n]+\t[^\t\n]+\tstayed\n", text) is not None


@pytest.mark.parametrize("cut_off", ["D", "~B", "A"])
def test_a_line_that_was_cut_off_anywhere_did_not_come_true(arrange: Arrange, ids: Ids, cut_off: str) -> None:
    folder = arrange("A B C")
    whole = (folder / HISTORY).read_text()
    last = line(ids, cut_off)
    for n in (*range(0, 50, 9), *range(50, len(last) + 1)):
        (folder / HISTORY).write_text(whole + last[:n])
        assert letters(ids, earlier(folder)) == "BA", n
        prune(folder, keep=5)  # which finishes what was interrupted
        assert letters(ids, earlier(folder)) == "BA", n
        added = (folder / HISTORY).read_text().removeprefix(whole + last[:n])
        if n < len(last) and last[:n] and added:
            assert added.startswith("\n")
        assert not added or recorded_line(added.lstrip("\n")), n
    assert rollback(folder).version == ids["B"]
    assert letters(ids, earlier(folder)) == "A"
    assert (folder / HISTORY).read_text().startswith(whole)


# --- what died between HISTORY and CURRENT


class Died(BaseException):
    pass


@pytest.fixture
def dying() -> Callable[[Callable[[], object]], None]:
    def die(work: Callable[[], object]) -> None:
        with patch("app.registry.pointer.replace_text", side_effect=Died), pytest.raises(Died):
            work()

    return die


@pytest.mark.parametrize(
    "work",
    [
        lambda folder, _ids: publish(folder, make_model(random_state=9)),
        lambda folder, ids: activate(folder, ids["A"]),
        lambda folder, ids: activate(folder, ids["B"]),
        lambda folder, ids: activate(folder, ids["E"]),
        lambda folder, _ids: rollback(folder),
    ],
)
def test_what_died_before_the_pointer_moved_did_not_happen(
    arrange: Arrange, ids: Ids, work: Callable[[Path, Ids], object], dying: Callable[[Callable[[], object]], None]
) -> None:
    folder = arrange("A B C")
    for _ in range(2):
        dying(lambda: work(folder, ids))
        assert current(folder) == ids["C"]
        assert letters(ids, earlier(folder)) == "BA"
        assert letters(ids, [entry.version for entry in versions(folder) if entry.is_previous]) == "B"
    assert rollback(folder).version == ids["B"]
    assert recorded(folder)[-2:] == [(ids["C"], "stayed"), (ids["B"], "rolled back")]
    assert letters(ids, earlier(folder)) == "A"
    work(folder, ids)  # and it can be done now
    check_flat_view(folder, current(folder))
    check_leftovers(folder)


@pytest.mark.parametrize(("work", "then"), [("activate", "CB"), ("rollback", "A"), ("publish", "CBA")])
def test_what_died_right_after_the_pointer_moved_has_happened(arrange: Arrange, ids: Ids, work: str, then: str) -> None:
    folder = arrange("A B C")
    works: dict[str, Callable[[], object]] = {
        "activate": lambda: activate(folder, ids["A"]),
        "rollback": lambda: rollback(folder),
        "publish": lambda: publish(folder, make_model(random_state=9)),
    }
    # The first call finishes what whoever was before left undone, which is nothing.
    with patch("app.registry.pointer.refresh_flat_view", side_effect=[None, Died]), pytest.raises(Died):
        works[work]()
    assert letters(ids, earlier(folder)) == then
    assert rollback(folder).version == ids[then[0]]
    check_flat_view(folder, ids[then[0]])


def test_of_what_cannot_be_recorded_nothing_happens(arrange: Arrange, ids: Ids) -> None:
    folder = arrange("A B C")
    before = state(folder)
    with patch("app.registry.pointer._record", side_effect=OSError(28, "No space left on device")):
        for work in (lambda: activate(folder, ids["A"]), lambda: rollback(folder)):
            with pytest.raises(UnwritableError, match="No space left"):
                work()
    names = {name: value for name, value in state(folder).items() if name != "names"}
    assert names == {name: value for name, value in before.items() if name != "names"}
    check_leftovers(folder)


@pytest.mark.parametrize(
    "work",
    [
        lambda folder, ids: activate(folder, ids["A"]),
        lambda folder, _: rollback(folder),
        lambda folder, _: prune(folder),
    ],
)
def test_what_somebody_who_died_was_writing_is_removed(
    arrange: Arrange, ids: Ids, work: Callable[[Path, Ids], object]
) -> None:
    folder = arrange("A B C")
    (folder / ".tmp-CURRENT").write_text("half")
    shutil.copytree(folder / VERSIONS / ids["D"], folder / f".tmp-{GONE}")
    work(folder, ids)
    check_leftovers(folder)


# --- activate


def test_activation_moves_pointer_record_and_links(arrange: Arrange, ids: Ids) -> None:
    folder = arrange("A B C")
    switched = activate(folder, ids["E"], why="by hand")
    assert (switched.version, switched.replaced, switched.warnings) == (ids["E"], ids["C"], ())
    assert (folder / CURRENT).read_text() == f"{ids['E']}\n"
    assert recorded(folder)[3:] == [(ids["E"], "by hand")]
    check_flat_view(folder, ids["E"])
    check_leftovers(folder)


def test_activating_the_active_version_records_nothing_but_mends_the_links(arrange: Arrange, ids: Ids) -> None:
    folder = arrange("A B C")
    before = state(folder)
    (folder / "als.npz").unlink()
    for _ in range(2):
        switched = activate(folder, ids["C"])
        assert (switched.version, switched.replaced) == (ids["C"], ids["C"])
    assert state(folder) == before
    check_flat_view(folder, ids["C"])
    assert rollback(folder).version == ids["B"]


@pytest.mark.parametrize(
    "name",
    [
        *(
            "",
            ".",
            "..",
            "/",
            "../versions",
            "../versions/{C}",
            "{folder}/versions/{C}",
            "/etc",
            "{C}/",
            "{C}\n",
            " {C}",
        ),
        *(
            "{C}0",
            "{C}/../{C}",
            "{C}\0",
            "\0",
            GONE,
            "２０２６0101T000000Z-00000000",
            "x" * 10_000,
            "~",
            "CURRENT",
            "*",
        ),
    ],
)
def test_what_is_no_id_of_a_version_is_unknown(arrange: Arrange, ids: Ids, name: str) -> None:
    folder = arrange("A B C")
    before = state(folder)
    version = name.replace("{C}", ids["C"]).replace("{folder}", str(folder))
    with pytest.raises(UnknownVersionError, match="models list") as caught:
        activate(folder, version)
    assert len(str(caught.value)) < 500  # what was sent is not sent back at length
    with pytest.raises(UnknownVersionError):
        registry.verify(registry.find(folder, version))
    assert state(folder) == before


def test_a_file_named_like_a_version_is_none(arrange: Arrange, ids: Ids) -> None:
    folder = arrange("A B C")
    (folder / VERSIONS / GONE).write_text("no folder")
    with pytest.raises(UnknownVersionError):
        activate(folder, GONE)
    point(folder, GONE)
    assert rollback(folder).version == ids["C"]


def test_where_there_is_no_folder_none_is_made(tmp_path: Path) -> None:
    folder = tmp_path / "none"
    with pytest.raises(UnknownVersionError):
        activate(folder, GONE)
    with pytest.raises(VersionRefusedError, match="nothing to roll back to"):
        rollback(folder)
    assert prune(folder) == ()
    assert versions(folder) == ()
    assert earlier(folder) == []
    with pytest.raises(NoModelError):
        load_intact(folder, registry.listing.load_version)
    assert not folder.exists()


def with_array(name: str, array: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    def edit(version: Path) -> None:
        arrays = {key: np.array(value) for key, value in map_npz(version / name).items()}
        write_npz(version / name, {**arrays, array: change(arrays[array])})

    return edit


FORGED: dict[str, tuple[str, Callable[[Path], None]]] = {
    "NaN": ("als.npz", with_array("als.npz", "item_factors", lambda found: np.full_like(found, np.nan))),
    "shape": ("als.npz", with_array("als.npz", "user_factors", lambda found: found[:, :-1])),
    "ids": ("users.npy", lambda version: np.save(version / "users.npy", np.array([1, 1, 2, 7, 9]))),
    "rows": ("history.npz", with_array("history.npz", "item_index", lambda found: found + 1_000)),
}
DAMAGED: dict[str, tuple[str, Callable[[Path], object]]] = {
    "cut off": ("als.npz", lambda version: replace(version / "als.npz", b"half")),
    "missing": ("items.npy", lambda version: (version / "items.npy").unlink()),
    "manifest": (MANIFEST, lambda version: replace(version / MANIFEST, b"[]")),
    "format": (
        "format_version",
        lambda version: replace(
            version / MANIFEST,
            (version / MANIFEST).read_bytes().replace(b'"format_version": 2', b'"format_version": 3'),
        ),
    ),
    "renamed": (MANIFEST, lambda version: shutil.rmtree(version) or shutil.copytree(sibling(version), version)),
}


def sibling(version: Path) -> Path:
    return next(path for path in sorted(version.parent.iterdir()) if path != version)


@pytest.mark.parametrize("kind", [*FORGED, *DAMAGED])
def test_a_damaged_version_is_refused_by_name_of_the_file(arrange: Arrange, ids: Ids, kind: str) -> None:
    folder = arrange("A B C ~B")
    version = folder / VERSIONS / ids["E"]
    if kind in FORGED:
        file, change = FORGED[kind]
        version = forge(version, folder / VERSIONS, change)
    else:
        file, harm = DAMAGED[kind]
        harm(version)
    before = state(folder)
    with pytest.raises(VersionRefusedError, match=rf"{version.name} was not activated: .*{file}.*train_als\.py"):
        activate(folder, version.name)
    assert {**state(folder), "names": None} == {**before, "names": None}
    assert current(folder) == ids["B"]


# --- a second stage


@pytest.fixture
def two_stages(tmp_path: Path) -> tuple[Path, str, str, str]:
    """A folder with a version of one stage, one of two, and one whose trees LightGBM cannot read."""
    folder = tmp_path / "artifacts"
    plain = publish(folder, make_model())
    ranked = publish(folder, trained()[1])
    broken = forge(ranked.folder, folder / VERSIONS, lambda copy: (copy / "ranker" / "model.txt").write_text("no tree"))
    return folder, plain.version, ranked.version, broken.name


def test_trees_that_cannot_be_read_are_refused_and_passed_over(two_stages: tuple[Path, str, str, str]) -> None:
    folder, plain, ranked, broken = two_stages
    with pytest.raises(VersionRefusedError, match=f"{broken}/ranker: the ranker cannot be loaded"):
        activate(folder, broken)
    assert current(folder) == ranked
    activate(folder, plain)
    point(folder, broken)
    (folder / HISTORY).write_text((folder / HISTORY).read_text() + f"x\t{broken}\tactivated\n")
    activate(folder, ranked)
    switched = rollback(folder)
    assert switched.version == plain
    assert broken in " ".join(switched.warnings)
    check_flat_view(folder, plain)
    assert not (folder / "ranker").is_symlink()


def test_where_lightgbm_is_missing_trees_are_not_judged(
    two_stages: tuple[Path, str, str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _, ranked, broken = two_stages
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    assert activate(folder, broken).replaced == ranked
    assert rollback(folder).version == ranked


# --- listing, and loading what is intact


def test_versions_are_listed_newest_first_and_nothing_else_is(arrange: Arrange, ids: Ids) -> None:
    folder = arrange("A D C ~D")
    damage(folder, ids["E"])
    (folder / VERSIONS / ids["B"] / "config.json").unlink()
    (folder / VERSIONS / "mine").mkdir()
    (folder / VERSIONS / "notes.txt").write_text("")
    entries = versions(folder)
    assert letters(ids, [entry.version for entry in entries]) == "EDCBA"
    assert len(entries) == 5
    assert letters(ids, [entry.version for entry in entries if entry.is_active]) == "D"
    assert letters(ids, [entry.version for entry in entries if entry.is_previous]) == "A"
    assert letters(ids, [entry.version for entry in entries if entry.damage]) == "B"  # checksums are not looked at
    assert "config.json" in str(next(entry.damage for entry in entries if entry.damage))


def test_what_is_previous_is_there(arrange: Arrange, ids: Ids) -> None:
    folder = arrange("A B C")
    remove(folder, ids["B"])
    assert letters(ids, [entry.version for entry in versions(folder) if entry.is_previous]) == "A"


def loader(folder: Path, bad: str, tried: list[str]) -> Callable[[Path], str]:
    def load(path: Path) -> str:
        assert path.parent == folder / VERSIONS
        tried.append(path.name)
        if path.name in bad:
            raise ArtifactError(f"bad {path.name}")
        return path.name

    return load


@pytest.mark.parametrize(
    ("moves", "bad", "tried"),
    [
        ("A B C", "", "C"),
        ("A B C", "C", "CB"),
        ("A B C", "CB", "CBA"),
        ("A B C ~B", "B", "BA"),
        ("A B A", "A", "AB"),
        ("A B C B", "BC", "BCA"),
    ],
)
def test_the_nearest_intact_version_is_loaded(arrange: Arrange, ids: Ids, moves: str, bad: str, tried: str) -> None:
    folder = arrange(moves)
    found: list[str] = []
    loaded, error = load_intact(folder, loader(folder, " ".join(ids[letter] for letter in bad), found))
    assert letters(ids, found) == tried
    assert loaded == ids[tried[-1]]
    assert str(error) == (f"bad {ids[moves[-1]]}" if bad else "None")


def test_if_none_is_intact_the_error_is_that_of_the_active_one(arrange: Arrange, ids: Ids) -> None:
    folder = arrange("A B C")
    found: list[str] = []
    remove(folder, ids["B"])
    with pytest.raises(ArtifactError, match=f"^bad {ids['C']}$"):
        load_intact(folder, loader(folder, " ".join(ids.values()), found))
    assert letters(ids, found) == "CA"


def test_what_is_no_damage_is_not_hidden(arrange: Arrange) -> None:
    def fail(_path: Path) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        load_intact(arrange("A B"), fail)


# --- prune


@pytest.mark.parametrize("keep", [1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize(
    ("moves", "always"),
    [("A B C D E", "ED"), ("A B C D E ~D ~C", "CB"), ("A B C D E A", "AE"), ("C B A", "AB"), ("A", "A")],
)
def test_the_newest_the_active_and_the_previous_stay(
    arrange: Arrange, ids: Ids, moves: str, always: str, keep: int
) -> None:
    folder = arrange(moves)
    for name in ("mine", f"{GONE}x", ".hidden"):
        (folder / VERSIONS / name).mkdir()
    (folder / VERSIONS / "notes.txt").write_text("mine")
    stay = {*sorted(LETTERS, reverse=True)[:keep], *always}
    removed = prune(folder, keep)
    assert letters(ids, list(removed)) == "".join(letter for letter in "EDCBA" if letter not in stay)
    left = {path.name for path in (folder / VERSIONS).iterdir()}
    assert left == {ids[letter] for letter in stay} | {"mine", f"{GONE}x", ".hidden", "notes.txt"}
    check_leftovers(folder)
    assert current(folder) == ids[moves[-1]]
    check_flat_view(folder, current(folder))
    assert prune(folder, keep) == ()
    if len(always) > 1:
        assert rollback(folder).version == ids[always[1]]


def test_five_stay_unless_said(arrange: Arrange) -> None:
    assert registry.KEEP == 5
    assert prune(arrange("A B C D E")) == ()


def test_where_the_previous_one_is_gone_the_one_before_it_stays(arrange: Arrange, ids: Ids) -> None:
    folder = arrange("A B C D E")
    remove(folder, ids["D"])
    assert letters(ids, list(prune(folder, 1))) == "BA"
    assert rollback(folder).version == ids["C"]


@pytest.mark.parametrize("keep", [0, -1])
def test_pruning_to_nothing_is_a_mistake(arrange: Arrange, keep: int) -> None:
    folder = arrange("A B")
    before = state(folder)
    with pytest.raises(ConfigError, match=f"keep is {keep}"):
        prune(folder, keep)
    assert state(folder) == before


def test_where_nobody_can_say_what_is_active_nothing_is_removed(arrange: Arrange) -> None:
    folder = arrange("A B C D E")
    point(folder, "garbage")
    before = state(folder)
    with pytest.raises(ArtifactError, match="CURRENT"):
        prune(folder, 1)
    assert state(folder) == before


def test_without_a_current_what_was_active_last_stays(arrange: Arrange, ids: Ids) -> None:
    folder = arrange("A B C D E ~B")
    (folder / CURRENT).unlink()
    assert letters(ids, list(prune(folder, 1))) == "DCA"
    assert rollback(folder).version == ids["B"]


def test_versions_elsewhere_are_pruned_there(arrange: Arrange, ids: Ids, tmp_path: Path) -> None:
    folder = arrange("A B C D E")
    (folder / VERSIONS).rename(tmp_path / "elsewhere")
    (folder / VERSIONS).symlink_to(Path("..") / "elsewhere")
    assert letters(ids, list(prune(folder, 1))) == "CBA"
    assert {path.name for path in (tmp_path / "elsewhere").iterdir()} == {ids["D"], ids["E"]}
    assert (folder / VERSIONS).is_symlink()
    assert rollback(folder).version == ids["D"]
    check_flat_view(folder, ids["D"])


# --- one at a time


def test_who_waits_too_long_is_told_for_whom(arrange: Arrange, ids: Ids) -> None:
    folder = arrange("A B C")
    before = state(folder)
    (folder / ".lock-owner").write_text("process 7 on another\n")
    with FileLock(folder / ".lock"):
        for work in (
            lambda: activate(folder, ids["A"], wait_seconds=0.01),
            lambda: rollback(folder, wait_seconds=0.01),
            lambda: prune(folder, 1, wait_seconds=0.01),
        ):
            with pytest.raises(UnwritableError, match="process 7 on another"):
                work()
    assert state(folder) == before
    assert rollback(folder, wait_seconds=0).version == ids["B"]


# --- anything, in any order


class Switching(RuleBasedStateMachine):
    """Publish, activate, roll back, prune, damage and die at random, beside a model of what must come of it."""

    root: Path
    count = 0

    @initialize()
    def begin(self) -> None:
        Switching.count += 1
        self.folder = self.root / str(Switching.count)
        self.n_published = 0
        self.trail: list[str] = []  # the way to the active version, which is the last
        self.there: set[str] = set()
        self.damaged: set[str] = set()
        self.add(may_activate=True)

    @property
    def intact(self) -> list[str]:
        return sorted(self.there - self.damaged)

    def way_back(self) -> int | None:
        """Where in the trail a rollback must go to."""
        fitting = [n for n, version in enumerate(self.trail) if version != self.trail[-1] and version in self.intact]
        return fitting[-1] if fitting else None

    @rule(may_activate=st.booleans())
    def add(self, may_activate: bool) -> None:
        self.n_published += 1
        model = make_model(random_state=self.n_published)
        published = publish(self.folder, model, may_activate=lambda _active: may_activate)
        assert (published.activated, published.warnings) == (may_activate, ())
        self.there.add(published.version)
        if may_activate:
            self.trail.append(published.version)

    @rule(data=st.data())
    def choose(self, data: st.DataObject) -> None:
        version = data.draw(st.sampled_from(sorted(self.there)))
        if version in self.damaged:
            with pytest.raises(VersionRefusedError):
                activate(self.folder, version)
            return
        switched = activate(self.folder, version)
        assert (switched.version, switched.replaced, switched.warnings) == (version, self.trail[-1], ())
        if version != self.trail[-1]:
            self.trail.append(version)

    @rule()
    def go_back(self) -> None:
        place = self.way_back()
        if place is None:
            with pytest.raises(VersionRefusedError):
                rollback(self.folder)
            return
        assert rollback(self.folder).version == self.trail[place]
        self.trail = self.trail[: place + 1]

    @rule(keep=st.integers(1, 4))
    def clean_up(self, keep: int) -> None:
        previous = [version for version in self.trail if version != self.trail[-1] and version in self.there][-1:]
        stay = {*sorted(self.there)[-keep:], self.trail[-1], *previous}
        assert set(prune(self.folder, keep)) == self.there - stay
        self.there &= stay
        self.damaged &= stay

    @precondition(lambda self: len(self.intact) > 1)
    @rule(data=st.data())
    def harm(self, data: st.DataObject) -> None:
        version = data.draw(st.sampled_from([version for version in self.intact if version != self.trail[-1]]))
        damage(self.folder, version)
        self.damaged.add(version)

    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        work = data.draw(st.sampled_from([rollback, *(each for each in self.intact)]))
        if work == self.trail[-1] or (work is rollback and self.way_back() is None):
            return
        with patch("app.registry.pointer.replace_text", side_effect=Died), pytest.raises(Died):
            rollback(self.folder) if work is rollback else activate(self.folder, str(work))

    @invariant()
    def what_is_active_can_be_served(self) -> None:
        if self.trail:
            assert current(self.folder) == load_current(self.folder).version == self.trail[-1]
            assert {entry.version for entry in versions(self.folder)} == self.there
            check_flat_view(self.folder, self.trail[-1])

    @invariant()
    def the_way_back_is_known(self) -> None:
        if self.trail:
            expected = [version for version in reversed(self.trail) if version != self.trail[-1]]
            assert earlier(self.folder) == expected


def test_after_any_sequence_current_is_intact_and_the_way_back_is_right(tmp_path: Path) -> None:
    class InFolder(Switching):
        root = tmp_path

    run_state_machine_as_test(
        InFolder,
        settings=settings(max_examples=12, stateful_step_count=16, deadline=None, derandomize=True, database=None),
    )
