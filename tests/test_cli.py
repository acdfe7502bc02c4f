"""The operator's command line, on versions that were really published."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
from click.testing import Result
from typer.testing import CliRunner

from app import registry
from app.artifacts import TrainedModel
from app.cli import cli
from app.evaluation import HEADLINES
from app.models_screen import SHOWN, open_console, show_difference
from app.recommender import Recommender
from app.shadow import Exposure, compare
from app.stored_ranker import RANKER_FILES
from tests.models import forge, make_model, trained
from tests.test_shadow import OWNER_B
from tests.test_shadow import version as shadow_version

ROOT = Path(__file__).parents[1]
EVALUATED: dict[str, Any] = {
    "stage": "test",
    "protocols": {
        "rated": {"als": {"recall@10": 0.12344, "recall@20": 0.2, "ndcg@10": 0.05678, "ndcg@20": 0.07}},
        "positives": {"als": {"recall@10": 0.9}},
    },
    "intervals": {"rated": {"als": {"recall@10": [0.1001, 0.1502], "ndcg@10": None}}},
}


@pytest.fixture(autouse=True)
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RECS_ARTIFACTS_DIR", str(tmp_path / "artifacts"))
    return tmp_path / "artifacts"


def evaluated(random_state: int = 0, **metrics: Any) -> TrainedModel:
    return replace(make_model(random_state=random_state), metrics={**EVALUATED, **metrics})


def publish(folder: Path, n: int) -> list[str]:
    """Publish n different versions; returns their ids, the oldest first."""
    return [registry.publish(folder, make_model(random_state=seed)).version for seed in range(n)]


def damage(folder: Path, version: str, name: str = "als.npz") -> None:
    path = folder / registry.VERSIONS / version / name
    path.chmod(0o644)
    content = path.read_bytes()
    path.write_bytes(bytes([content[0] ^ 1]) + content[1:])


def run(*arguments: object, status: int = 0) -> Result:
    result = CliRunner().invoke(cli, ["models", *map(str, arguments)])
    assert result.exit_code == status, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


def read_json(text: str) -> Any:
    """Read JSON in which every number is one."""

    def refuse(name: str) -> NoReturn:
        raise AssertionError(name)

    return json.loads(text, parse_constant=refuse)


def rows(text: str) -> dict[str, str]:
    """The two lines of each version in a printed table, by its id."""
    lines = text.splitlines()[2:]
    return {lines[i].split()[0]: "\n".join(lines[i : i + 2]) for i in range(0, len(lines), 2)}


# --- list


def test_an_empty_folder_is_no_error_and_says_how_to_make_a_model(folder: Path) -> None:
    assert "python train_als.py" in run("list").stdout
    assert read_json(run("list", "--json").stdout) == []
    assert not folder.exists()


@pytest.mark.parametrize("columns", ["20", "80", "200"])
def test_versions_are_listed_newest_first_with_whole_ids(
    folder: Path, monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    published = publish(folder, 3)
    result = run("list")
    listed = rows(result.stdout)
    assert list(listed) == sorted(published, reverse=True)
    assert result.stderr == ""
    if columns == "80":
        assert max(map(len, result.stdout.splitlines())) <= 80


def test_a_row_says_what_a_version_is_and_how_good(folder: Path) -> None:
    refused = {"promotion": {"activate": False, "reasons": ["worse"]}}
    previous = registry.publish(folder, make_model(random_state=1)).version
    active = registry.publish(folder, evaluated(2)).version
    kept_back = registry.publish(folder, evaluated(3, **refused), may_activate=lambda _active: False).version
    listed = rows(run("list").stdout)
    assert listed[active].split() == [
        *(active, "hand-made", "0.1234", "0.0568", "no", "active"),
        *(entry_of(folder, active).trained_at or "").replace("+00:00", "T").split("T")[:2],
        *("UTC", "14"),
    ]
    assert listed[previous].split()[2:6] == ["–", "–", "no", "previous"]
    assert [line.split()[-1] for line in listed[kept_back].splitlines()] == ["not", "promoted"]


def entry_of(folder: Path, version: str) -> registry.Entry:
    (entry,) = [entry for entry in registry.versions(folder) if entry.version == version]
    return entry


def test_names_are_shown_as_they_are(folder: Path) -> None:
    registry.publish(folder, make_model(dataset="[red]:smile:[/red]"))
    assert "[red]:smile:" in run("list").stdout
    assert "[red]:smile:[/red]" in run("show").stdout


def test_a_second_stage_is_listed_with_its_own_figures(folder: Path) -> None:
    metrics = {"protocols": {"rated": {"als": {"recall@10": 0.1}, "ranker": {"recall@10": 0.3}}}}
    version = registry.publish(folder, replace(trained()[1], metrics={**EVALUATED, **metrics})).version
    assert rows(run("list").stdout)[version].split()[2:6] == ["0.3000", "–", "yes", "active"]


def test_a_version_that_cannot_be_read_is_listed_as_damaged_with_the_reason_on_standard_error(folder: Path) -> None:
    first, second = publish(folder, 2)
    damage(folder, first, "manifest.json")
    result = run("list")
    assert "previous" in rows(result.stdout)[first]
    assert "damaged" in rows(result.stdout)[first]
    assert first in result.stderr
    assert "manifest.json" in result.stderr
    entries = {entry["version"]: entry for entry in read_json(run("list", "--json").stdout)}
    assert entries[first]["state"] == "previous, damaged"
    assert entries[second]["state"] == "active"


def test_entries_as_json_are_strict_whatever_a_file_holds(folder: Path) -> None:
    version = registry.publish(folder, evaluated()).version
    path = folder / registry.VERSIONS / version / "metrics.json"
    path.chmod(0o644)
    path.write_text(path.read_text().replace("0.12344", "NaN").replace("0.05678", "1e999"))
    (entry,) = read_json(run("list", "--json").stdout)
    assert entry["metrics"] == {"recall@10": None, "recall@20": 0.2, "ndcg@10": None, "ndcg@20": 0.07}
    assert {**entry, "metrics": None} == {
        "version": version,
        "state": "active",
        "is_active": True,
        "is_previous": False,
        "trained_at": entry["trained_at"],
        "dataset": "hand-made",
        "n_ratings": 14,
        "n_users": 5,
        "n_items": 6,
        "has_ranker": False,
        "protocol": "rated",
        "stage": "test",
        "metrics": None,
        "promotion": {},
        "damage": None,
    }


@pytest.mark.parametrize("content", ["20200101T000000Z-00000000\n", "nonsense\n", None])
def test_a_current_that_names_no_version_is_warned_of(folder: Path, content: str | None) -> None:
    (version,) = publish(folder, 1)
    (folder / registry.CURRENT).unlink()
    if content:
        (folder / registry.CURRENT).write_text(content)
    result = run("list")
    assert version in result.stdout
    assert "CURRENT" in result.stderr
    assert "models rollback" in result.stderr
    assert "CURRENT" in run("verify", status=1).stdout
    assert "CURRENT" in run("show", status=1).stderr
    assert version in run("rollback").stdout
    assert run("list").stderr == ""


# --- show


def test_show_tells_all_about_the_active_version(folder: Path) -> None:
    promotion = {"promote": "auto", "activate": True, "reasons": ["no version was active"]}
    publish(folder, 1)
    version = registry.publish(folder, evaluated(1, promotion=promotion)).version
    text = " ".join(run("show").stdout.split())
    for words in (
        f"version {version} (active)",
        "dataset hand-made",
        "fingerprint " + make_model().fingerprint,
        "sizes 5 users, 6 movies, 14 ratings",
        "factors 4, regularization 20.0",
        "second stage none",
        "of als, protocol rated, test:",
        "recall@10 0.1234 (95 % interval 0.1001 to 0.1502)",
        "ndcg@10 0.0568 (no interval)",
        "gate passed: no version was active",
        "KiB als.npz",
        "KiB report/index.html",
        "implicit",
    ):
        assert words in text, words


def test_show_as_json(folder: Path) -> None:
    first, second = publish(folder, 2)
    shown = read_json(run("show", first, "--json").stdout)
    assert (shown["version"], shown["state"]) == (first, "previous")
    assert shown["config"]["als"]["factors"] == 4
    assert shown["headlines"] == {}
    assert Path(shown["folder"]) == (folder / registry.VERSIONS / first).resolve()
    assert shown["files"]["als.npz"].keys() == {"sha256", "size"}
    assert "not evaluated" in run("show", second).stdout


def test_show_of_a_refused_version_gives_the_reasons(folder: Path) -> None:
    promotion = {"activate": False, "reasons": ["ndcg@10 is worse", "so is recall@10"]}
    version = registry.publish(folder, evaluated(promotion=promotion), may_activate=lambda _active: False).version
    text = " ".join(run("show", version).stdout.split())
    assert f"{version} (not promoted)" in text
    assert "gate refused: ndcg@10 is worse; so is recall@10" in text
    told = {"promote": "never", "activate": False, "reasons": ["--promote never was asked for"]}
    version = registry.publish(folder, evaluated(promotion=told), may_activate=lambda _active: False).version
    text = " ".join(run("show", version).stdout.split())
    assert "gate not asked to decide: --promote never was asked for" in text  # nothing was found wrong with it


def test_show_of_what_cannot_be_read_is_an_error(folder: Path) -> None:
    (version,) = publish(folder, 1)
    (folder / registry.VERSIONS / version / "config.json").unlink()
    assert "config.json" in run("show", status=1).stderr
    assert "python train_als.py" in run("show", "--artifacts-dir", folder / "none", status=1).stderr


def test_the_headlines_are_those_of_the_evaluation() -> None:
    assert set(SHOWN) == set(HEADLINES)


# --- activate, rollback


@pytest.mark.parametrize("shorten", [lambda of: of, lambda of: of[:-1], lambda of: of[-8:], lambda of: of[-8:-2]])
def test_activate_takes_an_id_its_start_or_its_digest(folder: Path, shorten: Callable[[str], str]) -> None:
    first, second = publish(folder, 2)
    result = run("activate", shorten(first))
    assert registry.current(folder) == first
    assert f"{first} is active; it replaced {second}." in result.stdout
    assert "RECS_RELOAD_SECONDS" in result.stdout
    assert "was active already" in run("activate", first).stdout


def test_a_version_must_be_named_without_doubt(folder: Path) -> None:
    published = publish(folder, 2)
    ambiguous = run("activate", "20", status=2)
    assert all(version in ambiguous.stderr for version in published)
    for unknown in ("", "-", "x", published[0] + "0", "Z", "../versions"):
        assert "models list" in run("activate", "--", unknown, status=2).stderr
    assert registry.current(folder) == published[1]


def test_equal_content_twice_is_told_apart_by_the_whole_id_alone(folder: Path) -> None:
    first, second = (registry.publish(folder, make_model()).version for _ in range(2))
    assert first[-8:] == second[-8:]
    run("activate", first[-8:], status=2)
    run("activate", first)
    assert registry.current(folder) == first


def test_a_damaged_version_is_not_activated(folder: Path) -> None:
    first, second = publish(folder, 2)
    damage(folder, first)
    result = run("activate", first, status=1)
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert "als.npz" in result.stderr
    assert registry.current(folder) == second


def test_rollback_goes_further_back_each_time_until_nothing_is_left(folder: Path) -> None:
    first, second, third = publish(folder, 3)
    assert f"{second} is active; it replaced {third}." in run("rollback").stdout
    assert f"{first} is active; it replaced {second}." in run("rollback").stdout
    assert "nothing to roll back to" in run("rollback", status=1).stderr
    assert registry.current(folder) == first


def test_rollback_warns_of_what_it_passes_over(folder: Path) -> None:
    first, second, _ = publish(folder, 3)
    damage(folder, second)
    result = run("rollback")
    assert first in result.stdout
    assert result.stderr.startswith(f"Warning: {second}")


def test_nothing_is_created_where_nothing_is_published(folder: Path) -> None:
    for command in (["rollback"], ["prune"], ["verify"], ["show"]):
        assert "python train_als.py" in run(*command, status=1).stderr
    for command in (["activate", "x"], ["verify", "x"], ["show", "x"], ["diff", "x", "y"]):
        run(*command, status=2)
    assert not folder.exists()


# --- prune


def test_prune_keeps_the_active_version_and_the_one_before(folder: Path) -> None:
    published = publish(folder, 5)
    active, previous, *_, newest = sorted(published)  # by id: within a second that is not the order of publishing
    run("activate", previous)
    run("activate", active)
    result = run("prune", "--keep", 1)
    left = {path.name for path in (folder / registry.VERSIONS).iterdir()}
    assert left == {newest, active, previous}
    for version in set(published) - left:
        assert f"Removed {version}" in result.stdout
    assert "2 removed, 3 left" in result.stdout
    assert "0 removed, 3 left" in run("prune").stdout


def test_pruning_to_nothing_is_refused(folder: Path) -> None:
    publish(folder, 1)
    assert "keep is 0" in run("prune", "--keep", 0, status=2).stderr
    run("prune", "--keep", "many", status=2)


# --- verify


def test_verify_reads_every_file(folder: Path) -> None:
    first, second = publish(folder, 2)
    assert sorted(run("verify").stdout.splitlines()) == sorted([f"{first}  intact", f"{second}  intact"])
    damage(folder, first, "users.npy")
    result = run("verify", status=1)
    assert f"{second}  intact\n" in result.stdout
    assert f"{first}  damaged: " in result.stdout
    assert "users.npy" in result.stdout
    assert run("verify", second).stdout == f"{second}  intact\n"
    run("verify", first, status=1)


def test_trees_that_cannot_be_read_are_damage(folder: Path) -> None:
    intact = registry.publish(folder, trained()[1])
    versions = folder / registry.VERSIONS
    broken = forge(intact.folder, versions, lambda copy: (copy / RANKER_FILES[0]).write_text("no tree")).name
    result = run("verify", status=1)
    assert f"{intact.version}  intact\n" in result.stdout
    (line,) = [line for line in result.stdout.splitlines() if line.startswith(broken)]
    assert "damaged: " in line
    assert "the ranker cannot be loaded" in line
    assert "the ranker cannot be loaded" in run("diff", broken, intact.version, status=1).stderr


# --- diff


def test_diff_says_how_lists_differ_either_way(folder: Path) -> None:
    first, second = publish(folder, 2)
    text = run("diff", first, second[-8:], "--k", 2).stdout
    assert f"A  {first}\nB  {second}\n" in text
    report = read_json(run("diff", first, second, "--k", 2, "--users", 3, "--seed", 7, "--json").stdout)
    a, b = (registry.verify(registry.find(folder, version)) for version in (first, second))
    expected = compare(Recommender(a), Recommender(b), n_users=3, k=2, random_state=7)
    assert report == json.loads(json.dumps(expected.to_dict()))
    same = run("diff", first, first).stdout
    assert "overlap@10" in same
    assert "100.0%" in same


def test_every_figure_of_a_diff_stands_in_its_place(capsys: pytest.CaptureFixture[str]) -> None:
    everybody = dict.fromkeys(range(1, 9), 1.0)
    scores = {1: 5.0, 2: 4.0, 3: 3.0}
    a = shadow_version(scores, everybody, name="20260101T000000Z-00000000")
    other = {**everybody, 8: -1.0}
    b = shadow_version(scores | {4: 3.5}, other, owner=OWNER_B, indifferent=(7,), name="20260102T000000Z-00000000")
    report = compare(a, b, k=1)
    odd = Exposure(5, "[REC] (2007)", 0.5, 0.25, -0.25, in_a=True, in_b=False)
    show_difference(open_console(), replace(report, lost=(*report.lost, odd)))
    out = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in out.splitlines()]
    for line in (
        "A B only A only B both",
        "users 9 9 1 1 8",
        "movies 4 5 0 1 4",
        "second stage no no",
        "lists by als 8 7",
        "lists by popular 0 1",
        "coverage@1 25.0% 40.0%",
        "overlap@1 87.5% of the movies; 87.5% of lists are the same",
        "100.0% 87.5% -12.5% 1 Toy Story (1995)",
        "50.0% 25.0% -25.0% 5 [REC] (2007) (not in B)",
    ):
        assert line in lines, (line, lines)
    assert max(map(len, out.splitlines())) <= 80


def test_diff_of_versions_without_a_common_user_is_no_error(folder: Path) -> None:
    one = registry.publish(folder, make_model([(1, 1, 5.0), (1, 2, 5.0)])).version
    other = registry.publish(folder, make_model([(2, 1, 5.0), (2, 2, 5.0)])).version
    assert "–" in run("diff", one, other).stdout
    assert read_json(run("diff", one, other, "--json").stdout)["overlap"] is None


def test_diff_without_a_second_stage_that_should_be_there_is_warned_of(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = registry.publish(folder, trained()[1]).version
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    result = run("diff", version, version, "--users", 2)
    assert result.stderr.startswith(f"Warning: Serving {version} without its second stage")
    assert "lists by als" in result.stdout
    verified = run("verify")  # a library that is missing is no damage of the version
    assert verified.stdout == f"{version}  intact\n"
    assert "second stage" in verified.stderr


@pytest.mark.parametrize("wrong", [("--k", 0), ("--k", 101), ("--users", 0), ("--seed", -1)])
def test_diff_refuses_options_out_of_range(folder: Path, wrong: tuple[object, object]) -> None:
    (version,) = publish(folder, 1)
    assert f" is {wrong[1]}; expected " in run("diff", version, version, *wrong, status=2).stderr
    run("diff", version, version, wrong[0], "many", status=2)


def test_diff_of_a_damaged_version_fails(folder: Path) -> None:
    first, second = publish(folder, 2)
    damage(folder, second)
    assert "als.npz" in run("diff", first, second, status=1).stderr


# --- the folder, and the process


def test_the_option_goes_before_the_environment(folder: Path, tmp_path: Path) -> None:
    here, there = publish(folder, 1), publish(tmp_path / "other", 2)
    assert list(rows(run("list").stdout)) == here
    assert set(rows(run("list", "--artifacts-dir", tmp_path / "other").stdout)) == set(there)


def test_a_setting_that_is_no_setting_is_bad_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECS_RELOAD_SECONDS", "often")
    assert run("list", status=2).stderr.startswith("Error: ")


def test_a_file_in_place_of_the_folder_is_an_error_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    for command in (["list"], ["rollback"], ["prune"], ["verify"], ["show"], ["activate", "x"]):
        assert run(*command, "--artifacts-dir", tmp_path / "file", status=1).stderr.startswith("Error: ")


def test_the_module_runs_as_a_command(folder: Path) -> None:
    (version,) = publish(folder, 1)

    def module(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-W", "error", "-m", "app.cli", "models", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)

    listed = module("list")
    assert (listed.returncode, listed.stderr) == (0, "")
    assert version in listed.stdout
    unknown = module("activate", "x")
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert unknown.stderr.startswith("Error: there is no version 'x'")
    assert "Traceback" not in unknown.stderr
