"""The registry: publishing is all or nothing, whatever happens to the publisher."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from itertools import chain
from pathlib import Path

import pytest

from app.artifacts import MANIFEST, MOVIE_ARRAYS, REQUIRED_FILES, load_version
from app.errors import ArtifactError, NoModelError, UnwritableError, VersionRefusedError
from app.registry import (
    CURRENT,
    HISTORY,
    VERSIONS,
    current,
    earlier,
    load_current,
    load_intact,
    publish,
    rollback,
)
from tests.models import make_model
from tests.publishers import check_flat_view, check_leftovers, recorded, serves

ROOT = Path(__file__).parents[1]
OLD, NEW = make_model(random_state=1), make_model(random_state=2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "not yet" / "artifacts"


def run(*arguments: object) -> str:
    command = [sys.executable, "-W", "error", "-m", "tests.publishers", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_nothing_published_is_an_error_that_names_the_remedy(folder: Path) -> None:
    assert current(folder) is None
    with pytest.raises(NoModelError, match=r"python train_als\.py"):
        load_current(folder)


def test_the_first_version_is_active_and_whole(folder: Path) -> None:
    published = publish(folder, OLD)
    assert published.activated
    assert published.folder == folder / VERSIONS / published.version
    assert re.fullmatch(r"\d{8}T\d{6}Z-[0-9a-f]{8}", published.version)
    assert (folder / CURRENT).read_text() == f"{published.version}\n"
    assert serves(load_current(folder), OLD)
    assert current(folder) == published.version
    assert load_current(folder).manifest["dataset"] == "hand-made"
    check_leftovers(folder)


def test_the_newest_version_is_active_and_the_older_stays(folder: Path) -> None:
    first, second = publish(folder, OLD), publish(folder, NEW, why="tuned")
    assert serves(load_current(folder), NEW)
    assert serves(load_version(first.folder), OLD)
    assert recorded(folder) == [(first.version, "trained"), (second.version, "tuned")]
    assert {path.name for path in (folder / VERSIONS).iterdir()} == {first.version, second.version}


def test_publishing_the_same_again_is_harmless(folder: Path) -> None:
    publish(folder, OLD)
    again = publish(folder, OLD)
    assert again.activated
    assert serves(load_current(folder), OLD)
    check_leftovers(folder)


def test_history_states_time_version_and_reason(folder: Path) -> None:
    version = publish(folder, OLD).version
    line = (folder / HISTORY).read_text()
    assert re.fullmatch(rf"\d{{4}}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00\t{version}\ttrained\n", line)


def test_published_files_cannot_be_written(folder: Path) -> None:
    published = publish(folder, OLD)
    files = [path for path in published.folder.rglob("*") if path.is_file()]
    names = {path.relative_to(published.folder).as_posix() for path in files}
    assert names == {*REQUIRED_FILES, MOVIE_ARRAYS, *OLD.documents, MANIFEST}
    assert {path.stat().st_mode & 0o777 for path in files} == {0o444}
    assert published.folder.stat().st_mode & 0o055 == 0o055  # others may read it


def test_the_flat_view_follows_the_newest_by_relative_links(folder: Path, tmp_path: Path) -> None:
    for model in (OLD, NEW):
        version = publish(folder, model).version
        check_flat_view(folder, version)
    moved = folder.rename(tmp_path / "moved")
    check_flat_view(moved, version)


def test_links_to_files_that_the_version_lacks_are_removed_but_only_ours(folder: Path, tmp_path: Path) -> None:
    publish(folder, OLD)
    (folder / "ranker.txt").symlink_to(Path(VERSIONS) / "gone" / "ranker.txt")
    (tmp_path / "notes").write_text("mine")
    (folder / "notes").symlink_to(tmp_path / "notes")
    (folder / "plain").write_text("mine")
    publish(folder, NEW)
    assert not (folder / "ranker.txt").is_symlink()
    assert (folder / "notes").read_text() == (folder / "plain").read_text() == "mine"


def test_versions_may_live_on_another_disk(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    folder.mkdir(parents=True)
    (folder / VERSIONS).symlink_to(tmp_path / "elsewhere")
    publish(folder, OLD)
    publish(folder, NEW)
    assert serves(load_current(folder), NEW)
    assert len(list((tmp_path / "elsewhere").iterdir())) == 2


def test_copies_stand_in_where_links_are_not_allowed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object, **_options: object) -> None:
        raise OSError("symbolic links are not permitted")

    monkeypatch.setattr(os, "symlink", refuse)
    for model in (OLD, NEW):
        published = publish(folder, model)
        for source in published.folder.rglob("*"):
            copy = folder / source.relative_to(published.folder)
            assert not copy.is_symlink()
            if source.is_dir():
                continue
            assert copy.read_bytes() == source.read_bytes()
            assert copy.stat().st_nlink == 1  # a hard link would let a careless edit reach the version
    monkeypatch.undo()
    check_flat_view(folder, publish(folder, OLD).version)
    check_leftovers(folder)


# --- what follows the pointer


def test_a_flat_view_that_cannot_follow_the_pointer_is_a_warning(folder: Path) -> None:
    (folder / "als.npz").mkdir(parents=True)
    published = publish(folder, OLD)
    assert published.activated
    assert serves(load_current(folder), OLD)
    (warning,) = published.warnings
    assert published.version in warning
    (folder / "als.npz").rmdir()
    assert publish(folder, NEW).warnings == ()
    check_flat_view(folder, current(folder))


def test_nothing_moves_that_cannot_be_recorded(folder: Path) -> None:
    old = publish(folder, OLD)
    (folder / HISTORY).unlink()
    (folder / HISTORY).mkdir()
    with pytest.raises(UnwritableError, match="HISTORY"):
        publish(folder, NEW)
    assert current(folder) == old.version


# --- damage


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"../../etc\n", b"\xff\xfe", b"20261123T101500Z-XXXXXXXX\n", b"a\nb", b"\0"]
)
def test_a_damaged_pointer_is_refused_and_the_next_publish_mends_it(folder: Path, content: bytes) -> None:
    publish(folder, OLD)
    (folder / CURRENT).write_bytes(content)
    with pytest.raises(ArtifactError, match=r"CURRENT.*expected.*train_als\.py"):
        load_current(folder)
    publish(folder, NEW)
    assert serves(load_current(folder), NEW)


def test_a_pointer_that_cannot_be_read_is_an_artifact_error(folder: Path) -> None:
    (folder / CURRENT).mkdir(parents=True)
    with pytest.raises(ArtifactError, match="CURRENT"):
        load_current(folder)


def test_a_pointer_to_a_version_that_is_gone_is_refused_and_mended(folder: Path) -> None:
    publish(folder, OLD)
    (folder / CURRENT).write_text("20200101T000000Z-00000000\n")
    with pytest.raises(ArtifactError, match="20200101T000000Z-00000000"):
        load_current(folder)
    publish(folder, NEW)
    assert serves(load_current(folder), NEW)


def test_a_model_that_could_not_be_loaded_is_not_published(folder: Path) -> None:
    old = publish(folder, OLD)
    broken = make_model(random_state=3)
    broken.factors.item_factors[0, 0] = float("nan")
    with pytest.raises(ArtifactError, match="NaN"):
        publish(folder, broken)
    assert serves(load_current(folder), OLD)
    assert [path.name for path in (folder / VERSIONS).iterdir()] == [old.version]
    check_leftovers(folder)


def test_leftovers_of_a_dead_publisher_are_removed(folder: Path) -> None:
    publish(folder, OLD)
    (folder / ".tmp-version").mkdir()
    (folder / ".tmp-version" / "als.npz").write_bytes(b"half")
    (folder / ".tmp-version" / "als.npz").chmod(0o444)
    (folder / ".tmp-CURRENT").write_text("x")
    (folder / ".tmp-als.npz").symlink_to("nowhere")
    publish(folder, NEW)
    check_leftovers(folder)
    assert serves(load_current(folder), NEW)


def test_an_activation_that_was_not_recorded_is_recorded_by_the_next(folder: Path) -> None:
    first, second = publish(folder, OLD), publish(folder, NEW)
    lines = (folder / HISTORY).read_text().splitlines(keepends=True)
    (folder / HISTORY).write_text(lines[0] + lines[1][:30])  # died within the second line
    third = publish(folder, OLD, why="again")
    text = (folder / HISTORY).read_text()
    assert text.startswith(lines[0] + lines[1][:30] + "\n")
    recovered, newest = (line.split("\t")[1:] for line in text.splitlines()[-2:])
    assert recovered == [second.version, "recovered"]
    assert newest == [third.version, "again"]
    assert first.version in text


def test_a_flat_view_that_was_left_behind_is_mended_even_by_a_version_that_is_not_activated(folder: Path) -> None:
    old, new = publish(folder, OLD), publish(folder, NEW)
    (folder / "als.npz").unlink()
    (folder / "als.npz").symlink_to(Path(VERSIONS) / old.version / "als.npz")
    publish(folder, make_model(random_state=3), may_activate=lambda _active: False)
    check_flat_view(folder, new.version)


def test_equal_content_is_a_version_of_its_own_even_within_a_second(folder: Path) -> None:
    first = publish(folder, OLD)
    damaged = first.folder / "als.npz"
    damaged.chmod(0o644)
    damaged.write_bytes(b"")
    second = publish(folder, OLD)
    assert second.version != first.version
    assert second.version.split("-")[1] == first.version.split("-")[1]
    assert serves(load_current(folder), OLD)


# --- what can happen to a publisher


@pytest.mark.slow
def test_a_publisher_killed_at_any_file_operation_leaves_a_whole_model(tmp_path: Path) -> None:
    counts = json.loads(run("killed", tmp_path))
    assert counts["points"] > 100  # each one checked in the child process; a failed check fails the run
    assert counts["old"] + counts["new"] == counts["points"]
    assert counts["old"] > 30
    assert counts["new"] > 10
    assert counts["recovered"] > 0
    assert counts["leftovers"] > 30


def test_a_full_disk_leaves_the_old_version(tmp_path: Path) -> None:
    counts = json.loads(run("limited", tmp_path))
    assert counts["refused"] > 5


def test_publishers_at_the_same_moment_take_turns(folder: Path) -> None:
    seeds = [[1, 2, 3, 4], [11, 12, 13, 14], [1, 2, 13, 14]]
    command = [sys.executable, "-m", "tests.publishers", "several", folder]
    processes = [
        subprocess.Popen([*command, *map(str, row)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for row in seeds
    ]
    time.sleep(2)  # until all of them wait for the starting line
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    versions = [process.communicate(timeout=60)[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    for row, published in zip(seeds, versions, strict=True):
        for seed, version in zip(row, published, strict=True):
            assert serves(load_version(folder / VERSIONS / version), make_model(random_state=seed))
    assert sorted(version for version, _ in recorded(folder)) == sorted(chain(*versions))
    assert load_current(folder).version == recorded(folder)[-1][0]
    check_flat_view(folder, current(folder))
    check_leftovers(folder)


def test_a_file_in_place_of_the_folder_is_an_artifact_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ArtifactError, match="--artifacts-dir"):
            publish(folder, OLD)
        with pytest.raises(ArtifactError):
            load_current(folder)


def test_a_folder_of_somebody_s_own_is_left_as_it_is(folder: Path) -> None:
    (folder / "report").mkdir(parents=True)
    (folder / "report" / "mine.txt").write_text("precious")
    published = publish(folder, OLD)
    assert "report" in " ".join(published.warnings)
    assert (folder / "report" / "mine.txt").read_text() == "precious"
    assert serves(load_current(folder), OLD)


def test_where_the_trail_ends_what_was_rolled_back_from_is_better_than_nothing(folder: Path) -> None:
    first, second = publish(folder, OLD), publish(folder, NEW)
    rollback(folder)
    shutil.rmtree(first.folder)
    model, error = load_intact(folder, load_version)
    assert serves(model, NEW)
    assert first.version in str(error)
    with pytest.raises(VersionRefusedError):  # that was no way back, and nobody takes it by himself
        rollback(folder)
    assert current(folder) == first.version != second.version


def test_a_history_of_many_years_is_read(folder: Path) -> None:
    folder.mkdir(parents=True)
    ids = [f"2026{n // 86_400 % 12 + 1:02}01T{n % 86_400:06}Z-{n:08x}" for n in range(50_000)]
    (folder / HISTORY).write_text("".join(f"2026\t{version}\ttrained\n" for version in ids))
    (folder / CURRENT).write_text(ids[-1])
    assert earlier(folder) == ids[-2::-1]
