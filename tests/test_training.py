"""The offline half as its users run it: ``python train_als.py`` with options, on good and on bad input."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from threadpoolctl import threadpool_info
from typer.testing import CliRunner, Result

from app import promotion, registry
from app.als import AlsConfig, learn
from app.core import leave_one_out, positives
from app.datasets.download import download
from app.datasets.synthetic import synthesize
from app.evaluation import BASELINES
from app.protocols import build_task
from app.recommender import Recommender
from app.registry import current, load_current
from train_als import cli

ROOT = Path(__file__).parent.parent
NOBODY = "http://127.0.0.1:9"  # the discard port: connections are refused at once
MEASURED = ("--evaluate", "rated", "--baselines", "none")  # what the gate needs
UNMEASURED = ("--evaluate", "none")  # for tests that need a model and not its figures
Train = Callable[..., Result]


@pytest.fixture(scope="module")
def ratings_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of someone's own ratings in MovieLens format, small enough to train on in a blink."""
    folder = tmp_path_factory.mktemp("my-ratings")
    data = synthesize(4_000, random_state=1)
    data.ratings.set_axis(["userId", "movieId", "rating", "timestamp"], axis=1).to_csv(
        folder / "ratings.csv", index=False
    )
    data.movies.set_axis(["movieId", "title", "genres"], axis=1).to_csv(folder / "movies.csv", index=False)
    return folder


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Train:
    """Run the command line in an empty working folder, with nothing to download from."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MOVIELENS_DIR", raising=False)
    monkeypatch.setenv("RECS_MOVIELENS_URL", NOBODY)
    monkeypatch.setattr("app.datasets.download.download", partial(download, retries=0))  # nobody answers later either

    def run(*arguments: object) -> Result:
        quick = () if "--iterations" in arguments else ("--iterations", 3, "--factors", 8)
        plain = () if "--report" in arguments else ("--no-report",)
        return CliRunner().invoke(cli, [str(argument) for argument in (*quick, *plain, *arguments)])

    return run


def tree(folder: Path) -> dict[str, str]:
    """Every file below a folder with its checksum, to see that nothing changed."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".lock")
    }


def test_publishes_a_model_that_the_service_can_load(train: Train, ratings_dir: Path) -> None:
    result = train("--data-dir", ratings_dir)
    assert result.exit_code == 0, result.output
    model = load_current(Path("artifacts"))
    ratings = pd.read_csv(ratings_dir / "ratings.csv")
    assert model.users.ids.tolist() == sorted(ratings["userId"].unique())
    assert model.items.ids.tolist() == sorted(ratings.loc[ratings["rating"] >= 4, "movieId"].unique())
    assert model.manifest["dataset"] == ratings_dir.name
    assert (
        model.manifest["dataset_fingerprint"] == hashlib.sha256((ratings_dir / "ratings.csv").read_bytes()).hexdigest()
    )


def test_screen_shows_seven_steps_with_check_marks_and_what_to_run_next(train: Train, ratings_dir: Path) -> None:
    output = train("--data-dir", ratings_dir).output
    assert [f"[{n}/7]" in output for n in range(1, 8)] == [True] * 7
    assert output.count("✓") >= 6
    assert "Loaded 4,000 ratings" in output
    assert "uvicorn app.main:app" in output
    for model in ("als", *BASELINES):
        assert f"│ {model} " in output
    assert "had rated something within an hour before" in output
    assert "within an hour)" in output  # of the cold start too
    assert "Cold start" in output


def test_quiet_prints_nothing_when_all_is_well(train: Train, ratings_dir: Path) -> None:
    result = train("--data-dir", ratings_dir, "--quiet")
    assert (result.exit_code, result.output) == (0, "")


def test_json_prints_one_object_that_names_the_version_and_the_metrics(train: Train, ratings_dir: Path) -> None:
    printed = json.loads(train("--data-dir", ratings_dir, "--json").stdout)
    assert printed["version"] == current(Path("artifacts"))
    on_disk = json.loads(Path("artifacts/metrics.json").read_text())
    assert printed["metrics"] == on_disk
    assert set(on_disk["protocols"]) == {"rated", "positives"}
    assert set(on_disk["protocols"]["rated"]) == {"als", *BASELINES}
    assert on_disk["stage"] == "test"
    of_all_users = {f"{name}@{k}" for name in ("coverage", "gini") for k in (5, 10, 20)}
    assert on_disk["intervals"]["rated"]["als"].keys() == on_disk["protocols"]["rated"]["als"].keys() - of_all_users
    for part in ("differences", "strata", "recall_by_k", "exposure"):
        assert set(on_disk[part]) == {"rated", "positives"}
    losses = on_disk["convergence"]["loss"]
    assert len(losses) == 3
    assert losses == sorted(losses, reverse=True)


def test_the_table_of_the_screen_fits_eighty_columns(train: Train, ratings_dir: Path) -> None:
    output = train("--data-dir", ratings_dir).output
    assert max(len(line) for line in output.splitlines() if line.startswith("│")) <= 80
    assert not any(line.startswith("│           │") for line in output.splitlines())  # no cell is broken in two


def test_baselines_are_chosen(train: Train, ratings_dir: Path) -> None:
    printed = json.loads(train("--data-dir", ratings_dir, "--baselines", "popular, ease", "--json").stdout)
    assert list(printed["metrics"]["protocols"]["rated"]) == ["als", "popular", "ease"]
    printed = json.loads(train("--data-dir", ratings_dir, "--baselines", "none", "--json").stdout)
    assert list(printed["metrics"]["protocols"]["rated"]) == ["als"]


def test_a_baseline_that_is_too_large_is_left_out_with_a_word(
    train: Train, ratings_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.evaluation.scorers.EASE_MAX_SIZE", 10)
    result = train("--data-dir", ratings_dir, "--json")
    printed = json.loads(result.stdout)
    assert "ease" not in printed["metrics"]["protocols"]["rated"]
    assert any("ease inverts" in warning for warning in printed["warnings"])
    assert "ease inverts" in result.stderr


def test_a_split_at_one_moment_is_evaluated_for_warm_and_for_new_users(train: Train, ratings_dir: Path) -> None:
    result = train("--data-dir", ratings_dir, "--split", "temporal", "--export-run", "runs", "--json")
    assert result.exit_code == 0, result.output
    metrics = json.loads(result.stdout)["metrics"]
    assert metrics["split"]["name"] == "temporal"
    assert list(metrics["protocols"]) == ["temporal", "temporal_new_users"]
    targets = metrics["split"]["targets"]["temporal"]
    assert targets["n_users"] == len({line.split()[0] for line in Path("runs/qrels.txt").read_text().splitlines()})
    assert metrics["protocols"]["temporal_new_users"].keys() == {"als", "popular", "random"}
    assert len(metrics["convergence"]["loss"]) == 3  # the served model is fitted on everything, whatever the split
    assert "cold_start" not in metrics  # it would be measured on what came after the moment, too


def test_cold_start_is_measured_with_everything_else(train: Train, ratings_dir: Path) -> None:
    everything = json.loads(train("--data-dir", ratings_dir, "--json").stdout)["metrics"]
    assert set(everything["cold_start"]["n_liked"]) == {"1", "3", "5", "10"}
    for stage in ("rated", "validation", "none"):
        printed = json.loads(train("--data-dir", ratings_dir, "--evaluate", stage, "--json").stdout)
        assert "cold_start" not in printed["metrics"]


def test_report_and_model_card_belong_to_the_version(train: Train, ratings_dir: Path) -> None:
    assert train("--data-dir", ratings_dir, "--report").exit_code == 0
    model = load_current(Path("artifacts"))
    assert {"report/index.html", "MODEL_CARD.md"} <= model.manifest["files"].keys()
    metrics = json.loads(Path("artifacts/metrics.json").read_text())
    recall = metrics["protocols"]["rated"]["als"]["recall@10"]
    for document in ("report/index.html", "MODEL_CARD.md"):
        assert f"{recall:.4f}" in Path("artifacts", document).read_text(encoding="utf-8")


def test_without_a_report_there_is_still_a_model_card(train: Train, ratings_dir: Path) -> None:
    assert train("--data-dir", ratings_dir, *UNMEASURED).exit_code == 0
    assert Path("artifacts/MODEL_CARD.md").is_file()
    assert not Path("artifacts/report").exists()


def test_without_matplotlib_all_but_the_report_is_made(ratings_dir: Path, tmp_path: Path) -> None:
    without = "import sys; sys.modules['matplotlib'] = None; from train_als import cli; cli()"
    command = [
        sys.executable,
        "-c",
        without,
        "--data-dir",
        ratings_dir,
        "--artifacts-dir",
        tmp_path,
        "--iterations",
        "2",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "matplotlib is not installed" in done.stderr
    model = load_current(tmp_path)
    assert "MODEL_CARD.md" in model.manifest["files"]
    assert "report/index.html" not in model.manifest["files"]


def test_a_matplotlib_that_is_broken_does_not_cost_the_model(
    train: Train, ratings_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_down(_model: object) -> str:
        raise AttributeError("half-installed")

    monkeypatch.setattr("app.training.render_report", break_down)
    result = train("--data-dir", ratings_dir, "--report", *UNMEASURED)
    assert result.exit_code == 0
    assert "no report: it could not be drawn (AttributeError: half-installed)" in result.stderr
    assert "MODEL_CARD.md" in load_current(Path("artifacts")).manifest["files"]


def test_equal_runs_make_equal_versions(train: Train, ratings_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Down to config.json: BLAS libraries are found in any order."""
    names, found = [], threadpool_info()
    for order in (1, -1):
        monkeypatch.setattr("app.machine.threadpool_info", lambda order=order: found[::order])
        beside_nothing = ("--artifacts-dir", f"artifacts{order}")  # what was active is part of what a version says
        printed = train("--data-dir", ratings_dir, "--json", *UNMEASURED, *beside_nothing).stdout
        names.append(json.loads(printed)["version"])
    assert names[0].split("-")[1] == names[1].split("-")[1]


def test_the_service_imports_neither_matplotlib_nor_optuna_nor_implicit() -> None:
    check = "import sys, app.main; sys.exit(bool({'matplotlib', 'optuna', 'implicit', 'pandas'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", check], cwd=ROOT, check=True)


def test_help_documents_every_option_and_its_default() -> None:
    output = CliRunner().invoke(cli, ["--help"], env={"COLUMNS": "250"}).output
    options = [parameter for parameter in cli.registered_commands[0].callback.__annotations__ if parameter != "return"]
    for option in options:
        flag = {"as_json": "--json"}.get(option, "--" + option.replace("_", "-"))
        assert flag in output
    assert output.count("[default: ") == len(options)
    for default in ("100000", "4.0", "42", "0.02 in reference", "$MOVIELENS_DIR, else data_small/", "all", "refit"):
        assert default in output


def test_validation_keeps_eyes_off_test(train: Train, ratings_dir: Path, tmp_path: Path) -> None:
    """Each user's last positive is the test row: what it says must not move a figure of validation."""
    ratings = pd.read_csv(ratings_dir / "ratings.csv")
    liked = ratings[ratings["rating"] >= 4].sort_values(["userId", "timestamp"], kind="stable")
    train_movies = liked[liked.groupby("userId").cumcount(ascending=False) >= 2]["movieId"].unique()
    changed = ratings.copy()
    for row in liked.groupby("userId").tail(1).index:
        rated = ratings.loc[ratings["userId"] == ratings.loc[row, "userId"], "movieId"]
        changed.loc[row, "movieId"] = np.setdiff1d(train_movies, rated)[0]
    other = tmp_path / "other"
    other.mkdir()
    changed.to_csv(other / "ratings.csv", index=False)
    (other / "movies.csv").write_bytes((ratings_dir / "movies.csv").read_bytes())

    def metrics(folder: Path, evaluate: str) -> dict[str, dict[str, object]]:
        return json.loads(train("--data-dir", folder, "--evaluate", evaluate, "--json").stdout)["metrics"]

    seen, unseen = metrics(ratings_dir, "validation"), metrics(other, "validation")
    assert seen["stage"] == "validation"
    assert seen["protocols"] == unseen["protocols"]
    assert metrics(ratings_dir, "rated")["protocols"]["rated"] != metrics(other, "rated")["protocols"]["rated"]


def test_evaluate_none_publishes_without_figures(train: Train, ratings_dir: Path) -> None:
    printed = json.loads(train("--data-dir", ratings_dir, "--evaluate", "none", "--json").stdout)
    assert printed["metrics"]["protocols"] == {}
    assert printed["metrics"]["served_model"] == "fitted on all positives; not evaluated"
    assert "fit" not in printed["seconds"]
    assert load_current(Path("artifacts"))


def test_evaluate_rated_saves_the_other_fit(train: Train, ratings_dir: Path) -> None:
    result = train("--data-dir", ratings_dir, "--evaluate", "rated")
    assert "1 fit," in result.output
    assert "protocol positives" not in result.output
    assert set(json.loads(Path("artifacts/metrics.json").read_text())["protocols"]) == {"rated"}


def test_no_refit_serves_the_rated_test_fit_and_knows_every_user(train: Train, ratings_dir: Path) -> None:
    assert train("--data-dir", ratings_dir, "--no-refit").exit_code == 0
    model = load_current(Path("artifacts"))
    ratings = pd.read_csv(ratings_dir / "ratings.csv").set_axis(["user_id", "movie_id", "rating", "timestamp"], axis=1)
    task = build_task(ratings, leave_one_out(positives(ratings)), "rated", "test")
    expected = learn(task.positives, AlsConfig(factors=8, iterations=3))
    rows = model.users.index(task.users.ids)
    np.testing.assert_array_equal(model.factors.user_factors[rows], expected.user_factors)
    np.testing.assert_array_equal(model.factors.item_factors, expected.item_factors)
    np.testing.assert_array_equal(np.diff(model.positives_indptr)[rows], np.diff(task.user_items.indptr))
    rated = set(ratings.loc[ratings["user_id"] == ratings["user_id"].iloc[0], "movie_id"])
    listed = Recommender(model).recommend(int(ratings["user_id"].iloc[0]), 100).item_indices
    assert rated.isdisjoint(model.items.ids[listed])


def test_preset_and_options_are_recorded(train: Train, ratings_dir: Path) -> None:
    result = train("--data-dir", ratings_dir, "--preset", "reference", "--iterations", 2, "--random-state", 7)
    assert result.exit_code == 0
    config = json.loads(Path("artifacts/config.json").read_text())
    assert config["preset"] == "reference"
    assert config["als"] == {
        "factors": 64,
        "regularization": 0.02,
        "alpha": 21.0,
        "iterations": 2,
        "grading": 0.0,
        "half_life": 0.0,
        "random_state": 7,
        "num_threads": 0,
        "device": "cpu",
    }
    assert config["fitted_on"] == "all positives"
    assert config["machine"]["num_threads"] == 0
    assert config["machine"]["blas"]
    assert config["machine"]["cpu_features"]


def test_export_run_writes_truths_and_rankings(train: Train, ratings_dir: Path) -> None:
    assert train("--data-dir", ratings_dir, "--export-run", "runs").exit_code == 0
    assert {path.name for path in Path("runs").iterdir()} == {
        "qrels.txt",
        "run.als.txt",
        *(f"run.{baseline}.txt" for baseline in BASELINES),
    }


def test_a_search_prints_a_command_line_that_is_read_back_and_publishes_nothing(
    train: Train, ratings_dir: Path
) -> None:
    result = train("--data-dir", ratings_dir, "--tune", 2, "--min-rating", 3.5)
    assert result.exit_code == 0, result.output
    assert "second positive" in result.output
    best = json.loads(Path("artifacts/tuning.sqlite3.best.json").read_text())
    assert f"Best:  {best['command']}" in result.output
    assert current(Path("artifacts")) is None
    options = best["command"].removeprefix("python train_als.py ").split()
    assert train("--data-dir", ratings_dir, *UNMEASURED, *options).exit_code == 0
    config = json.loads(Path("artifacts/config.json").read_text())
    assert config["als"] == best["config"]
    assert config["min_rating"] == 3.5


def test_a_search_goes_on_where_the_last_one_ended(train: Train, ratings_dir: Path) -> None:
    search = ("--data-dir", ratings_dir, "--study", "deep/search.sqlite3", "--json", "--tune")
    first, second = (json.loads(train(*search, n).stdout) for n in (2, 1))
    assert [(found["n_trials"], found["n_earlier"]) for found in (first, second)] == [(2, 0), (1, 2)]
    assert not Path("artifacts").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tune", "3", "--evaluate", "all"], "--tune searches on validation"),
        (["--tune", "3", "--evaluate", "none"], "--tune searches on validation"),
        (["--tune", "0"], "--tune is 0"),
        (["--tune", "0", "--study", "x.sqlite3"], "--tune is 0"),
        (["--tune", "3", "--split", "temporal"], "--tune searches on leave-one-out"),
        (["--tune", "3", "--export-run", "runs"], "--tune searches on leave-one-out"),
        (["--tune", "3", "--no-refit"], "--tune serves nothing"),
        (["--study", "x.sqlite3"], "--study"),
        (["--factors", "0"], "factors is 0"),
        (["--regularization", "nan"], "regularization is nan"),
        (["--alpha", "-1"], "alpha is -1"),
        (["--grading", "1"], "grading is 1"),
        (["--half-life", "-3"], "half_life is -3"),
        (["--baselines", "popular,itemknn"], "'itemknn'; expected some of reference, item_knn, ease, popular, random"),
        (["--split", "temporal", "--evaluate", "rated"], "--split leave-one-out"),
        (["--split", "temporal", "--no-refit"], "--no-refit"),
        (["--random-state", "-1"], "random_state is -1"),
        (["--preset", "best"], "'best'; expected one of default, reference"),
        (["--min-rating", "7"], "--min-rating is 7"),
        (["--no-refit", "--evaluate", "none"], "--no-refit"),
        (["--no-refit", "--evaluate", "validation"], "--no-refit"),
        (["--export-run", "runs", "--evaluate", "none"], "--export-run"),
        (["--dataset", "imdb"], "imdb"),
        (["--data-dir", "/nowhere"], "/nowhere"),
        (["--alpha", "1e30"], "smaller alpha"),
        (["--export-run", "/proc/runs"], "--export-run"),
    ],
)
def test_unusable_options_exit_with_2_and_change_nothing(
    train: Train, ratings_dir: Path, arguments: list[str], message: str
) -> None:
    assert train("--data-dir", ratings_dir, *UNMEASURED).exit_code == 0
    before = tree(Path("artifacts"))
    result = train("--data-dir", ratings_dir, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert tree(Path("artifacts")) == before


@pytest.mark.parametrize(
    ("bad_row", "message"),
    [
        ("1,1,six,964982703", "six"),
        ("1,1,5.5,964982703", "5.5"),
        ("1,1,,964982703", "rating"),
        ("1,1,4.0,-5", "-5"),
        ("1,1,4.0,964982703000", "964982703000"),
        ("x,1,4.0,964982703", "userId"),
    ],
)
def test_a_bad_row_exits_with_2_names_the_row_and_changes_nothing(
    train: Train, ratings_dir: Path, tmp_path: Path, bad_row: str, message: str
) -> None:
    assert train("--data-dir", ratings_dir, *UNMEASURED).exit_code == 0
    before = tree(Path("artifacts"))
    bad = tmp_path / "bad"
    bad.mkdir()
    rows = (ratings_dir / "ratings.csv").read_text().splitlines()
    (bad / "ratings.csv").write_text("\n".join([*rows[:9], bad_row, *rows[9:]]) + "\n")
    (bad / "movies.csv").write_bytes((ratings_dir / "movies.csv").read_bytes())
    result = train("--data-dir", bad)
    assert result.exit_code == 2
    for part in ("ratings.csv", "10", message):
        assert part in result.stderr
    assert tree(Path("artifacts")) == before


def test_ratings_without_enough_positives_are_refused_with_the_remedy(train: Train, tmp_path: Path) -> None:
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,1,4.0,5\n1,2,5.0,6\n2,1,3.0,7\n")
    (tmp_path / "movies.csv").write_text("movieId,title,genres\n1,A (1990),Drama\n2,B (1991),Drama\n")
    result = train("--data-dir", tmp_path)
    assert result.exit_code == 2
    assert "--evaluate none" in result.stderr
    assert not Path("artifacts").exists()
    assert train("--data-dir", tmp_path, "--evaluate", "none").exit_code == 0


def test_without_data_and_network_a_synthetic_model_is_made_and_says_so(train: Train) -> None:
    result = train("--synthetic-ratings", 3000, *UNMEASURED)
    assert result.exit_code == 0, result.output
    assert "SYNTHETIC" in result.stderr
    for name in ("config.json", "manifest.json"):
        assert json.loads(Path("artifacts", name).read_text())["dataset"] == "synthetic"


def test_a_synthetic_model_does_not_replace_one_of_real_data(train: Train, ratings_dir: Path) -> None:
    assert train("--data-dir", ratings_dir, *UNMEASURED).exit_code == 0
    real = current(Path("artifacts"))
    result = train("--dataset", "synthetic", "--synthetic-ratings", 3000, "--json", *UNMEASURED)
    assert result.exit_code == 3
    assert "NOT ACTIVATED" in result.stderr
    printed = json.loads(result.stdout)
    assert printed["activated"] is False
    assert (Path(printed["path"]) / "als.npz").is_file()
    assert current(Path("artifacts")) == real


def test_a_real_model_replaces_a_synthetic_one(train: Train, ratings_dir: Path) -> None:
    assert train("--synthetic-ratings", 3000, *UNMEASURED).exit_code == 0
    assert train("--data-dir", ratings_dir, *UNMEASURED).exit_code == 3  # whatever is active, and this is not measured
    assert train("--data-dir", ratings_dir, *MEASURED).exit_code == 0
    assert load_current(Path("artifacts")).manifest["dataset"] == ratings_dir.name


def test_a_named_dataset_never_falls_back(train: Train) -> None:
    result = train("--dataset", "ml-latest-small")
    assert result.exit_code == 2
    assert NOBODY in result.stderr
    assert not Path("artifacts").exists()


def test_a_folder_named_by_the_environment_never_falls_back(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOVIELENS_DIR", "empty")
    Path("empty").mkdir()
    result = train()
    assert result.exit_code == 2
    assert "MOVIELENS_DIR" in result.stderr


def test_if_needed_trains_once(train: Train, ratings_dir: Path) -> None:
    assert train("--data-dir", ratings_dir, "--if-needed", *UNMEASURED).exit_code == 0
    first = current(Path("artifacts"))
    assert train("--data-dir", ratings_dir, "--if-needed", *UNMEASURED).exit_code == 0
    assert current(Path("artifacts")) == first


def test_if_needed_trains_again_when_real_data_is_found_beside_a_synthetic_model(
    train: Train, ratings_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train("--synthetic-ratings", 3000, "--if-needed", *UNMEASURED).exit_code == 0
    synthetic = current(Path("artifacts"))
    assert train("--if-needed", *UNMEASURED).exit_code == 0
    assert current(Path("artifacts")) == synthetic
    monkeypatch.setenv("MOVIELENS_DIR", str(ratings_dir))
    assert train("--if-needed", *MEASURED).exit_code == 0
    assert load_current(Path("artifacts")).manifest["dataset"] == ratings_dir.name


def test_if_needed_says_as_json_that_it_did_nothing(train: Train, ratings_dir: Path) -> None:
    assert train("--data-dir", ratings_dir, *UNMEASURED).exit_code == 0
    printed = json.loads(train("--data-dir", ratings_dir, "--if-needed", "--json").stdout)
    assert printed == {"version": current(Path("artifacts")), "trained": False}


@pytest.mark.parametrize("arguments", [["--data-dir", "nowhere"], ["--dataset", "imdb"], ["--dataset", "ml-25m"]])
def test_if_needed_does_not_excuse_what_was_named_and_cannot_be_had(
    train: Train, ratings_dir: Path, arguments: list[str]
) -> None:
    assert train("--data-dir", ratings_dir, *UNMEASURED).exit_code == 0
    assert train(*arguments, "--if-needed").exit_code == 2


def test_if_needed_trains_again_when_the_model_is_damaged(train: Train, ratings_dir: Path) -> None:
    assert train("--data-dir", ratings_dir, *UNMEASURED).exit_code == 0
    damaged = Path("artifacts/als.npz").resolve()
    damaged.chmod(0o644)
    damaged.write_bytes(b"")
    assert train("--data-dir", ratings_dir, "--if-needed", *UNMEASURED).exit_code == 0
    assert load_current(Path("artifacts"))


def test_unwritable_artifacts_exit_with_1(train: Train, ratings_dir: Path) -> None:
    Path("file").write_text("")
    result = train("--data-dir", ratings_dir, "--artifacts-dir", "file")
    assert result.exit_code == 1
    assert "--artifacts-dir" in result.stderr


@pytest.mark.slow
def test_equal_seeds_give_equal_files_over_processes_and_threads(movielens_dir: Path, tmp_path: Path) -> None:
    """On real data: arrays, run files, figures, model card; all but what names threads, and the report with it."""

    def files(name: str, threads: int) -> dict[str, str]:
        folder = tmp_path / name
        command = [sys.executable, "train_als.py", "--quiet", "--no-report", "--data-dir", movielens_dir]
        where = ["--artifacts-dir", folder, "--export-run", folder / "runs", "--num-threads", str(threads)]
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)}
        subprocess.run([*command, *where], cwd=ROOT, env=environment, check=True)
        described = json.loads((folder / "manifest.json").read_text())["files"]
        versions = {name: stated["sha256"] for name, stated in described.items() if name != "config.json"}
        runs = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (folder / "runs").iterdir()}
        return {**versions, **runs}

    one, two = files("one", 1), files("two", 2)
    assert {
        "als.npz",
        "X_users_items.npz",
        "metrics.json",
        "run.als.txt",
        "run.ease.txt",
        "MODEL_CARD.md",
    } <= one.keys()
    assert one == two


@pytest.mark.slow
@pytest.mark.parametrize("data", ["a random half of the users", "synthetic"])
def test_the_order_of_the_models_holds_on_other_data(data: str, movielens_dir: Path, tmp_path: Path) -> None:
    """The choices were made on ml-latest-small; the same command on other data must not turn the result around."""
    source = ["--dataset", "synthetic"]
    if data != "synthetic":
        ratings = pd.read_csv(movielens_dir / "ratings.csv")
        users = np.random.default_rng(0).permutation(ratings["userId"].unique())
        ratings[ratings["userId"].isin(users[: len(users) // 2])].to_csv(tmp_path / "ratings.csv", index=False)
        shutil.copy(movielens_dir / "movies.csv", tmp_path)
        source = ["--data-dir", str(tmp_path)]
    arguments = [*source, "--artifacts-dir", str(tmp_path / "artifacts"), "--no-report", "--json"]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0
    protocols = json.loads(result.stdout)["metrics"]["protocols"]
    for models in protocols.values():
        ordered = [models[name]["ndcg@20"] for name in ("als", "reference", "popular", "random")]
        assert all(better > worse for better, worse in itertools.pairwise(ordered))
        for learned in ("item_knn", "ease"):  # like ALS they know what is recent; which of the three is first is open
            assert models[learned]["ndcg@20"] > models["reference"]["ndcg@20"]


def test_a_warning_of_the_fit_reaches_the_screen_as_one_line(ratings_dir: Path, tmp_path: Path) -> None:
    command = [sys.executable, "train_als.py", "--data-dir", ratings_dir, "--artifacts-dir", tmp_path, "--alpha", "0.5"]
    unlooked = ["--evaluate", "none", "--promote", "always"]  # with so little confidence all lists are the same
    done = subprocess.run([*command, *unlooked], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "Warning: alpha 0.5 gives no positive more confidence" in done.stderr
    assert ".py:" not in done.stderr


@pytest.mark.parametrize("user_id", [442, 214])
def test_real_users_with_no_and_with_one_positive_are_answered(
    user_id: int, real_model: Recommender, real_ratings: pd.DataFrame
) -> None:
    ranking = real_model.recommend(user_id, 10)
    assert len(ranking.item_indices) == 10
    assert ranking.source == {442: "popular", 214: "als"}[user_id]
    rated = set(real_ratings.loc[real_ratings["userId"] == user_id, "movieId"])
    assert rated.isdisjoint(real_model.model.items.ids[ranking.item_indices])


def test_no_real_user_is_recommended_a_rated_movie(real_model: Recommender, real_ratings: pd.DataFrame) -> None:
    rated = real_ratings.groupby("userId")["movieId"].agg(set)
    for user_id, movies in rated.items():
        listed = real_model.model.items.ids[real_model.recommend(int(user_id), 100).item_indices]
        assert movies.isdisjoint(listed)


def test_real_cold_starts_resemble_what_was_liked(real_model: Recommender) -> None:
    def titles(*liked: int) -> str:
        ranking = real_model.recommend_cold(liked, 10)
        assert ranking.source == "fold_in"
        return " | ".join(real_model.model.movies[i].title for i in ranking.item_indices)

    assert "Indiana Jones" in titles(260, 1196, 1210)  # Star Wars IV, V, VI
    assert "Beauty and the Beast" in titles(1, 364, 588)  # Toy Story, The Lion King, Aladdin
    assert "Fight Club" in titles(2571)  # The Matrix


@pytest.fixture(scope="module")
def real_model(movielens_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Recommender:
    folder = tmp_path_factory.mktemp("artifacts")
    arguments = ["--data-dir", str(movielens_dir), "--artifacts-dir", str(folder), "--evaluate", "none", "--quiet"]
    assert CliRunner().invoke(cli, arguments).exit_code == 0
    return Recommender(load_current(folder))


@pytest.fixture(scope="module")
def real_ratings(movielens_dir: Path) -> pd.DataFrame:
    return pd.read_csv(movielens_dir / "ratings.csv")


@pytest.mark.parametrize("options", [["--baselines", "none"], ["--tune", "50"]])
def test_ctrl_c_ends_a_long_run_at_once_and_publishes_nothing(
    ratings_dir: Path, tmp_path: Path, options: list[str]
) -> None:
    command = [sys.executable, "-u", "train_als.py", "--data-dir", ratings_dir, "--artifacts-dir", tmp_path / "a"]
    endless = ["--iterations", "10000", "--factors", "128"]
    with subprocess.Popen([*command, *endless, *options], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        step = "[2/2]" if "--tune" in options else "[3/7]"
        assert any(line.startswith(step) for line in process.stdout)  # the next thing that it does is to fit
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
    assert current(tmp_path / "a") is None


# --- the promotion gate, from the command line


@pytest.fixture
def gated(train: Train, movielens_dir: Path) -> Train:
    """Train on the real data, and measure no more than the gate needs."""
    measured = ("--data-dir", movielens_dir, "--evaluate", "rated", "--baselines", "none")
    return lambda *arguments: train(*measured, *arguments)


GOOD = ("--iterations", 5, "--factors", 32)
BAD = ("--iterations", 1, "--factors", 2, "--half-life", 0, "--grading", 0)


def active() -> str | None:
    return current(Path("artifacts"))


def test_what_is_significantly_worse_is_published_and_not_activated(gated: Train) -> None:
    assert gated(*GOOD).exit_code == 0
    before = active()
    result = gated(*BAD)
    assert result.exit_code == 3
    assert active() == before
    assert "uvicorn" not in result.stdout  # there is nothing new to serve
    (version,) = {path.name for path in Path("artifacts/versions").iterdir()} - {before}
    assert f"models activate {version}" in result.stderr
    verdict = json.loads(Path("artifacts/versions", version, "metrics.json").read_text())["promotion"]
    assert (verdict["promote"], verdict["activate"], verdict["against"]) == ("auto", False, before)
    assert len(verdict["comparisons"]) == 8
    worse = [of for of in verdict["comparisons"] if of["is_worse"]]
    assert {(of["metric"], of["users"]) for of in worse} >= {("recall@10", "all users"), ("ndcg@10", "all users")}
    card = Path("artifacts/versions", version, "MODEL_CARD.md").read_text(encoding="utf-8")
    for reason in verdict["reasons"]:
        assert reason[:60] in result.stderr.replace(" │\n│ ", " ")
        assert reason in card.replace("\\", "")
    assert "did not let it become active" in card


def test_what_is_active_after_the_gate_is_compared_by_its_configuration(gated: Train) -> None:
    """Never by its factors, which have seen the answers: a better model would not have a chance."""
    assert gated(*BAD).exit_code == 0
    result = gated(*GOOD)
    assert result.exit_code == 0
    verdict = json.loads(Path("artifacts/metrics.json").read_text())["promotion"]
    of_all = next(of for of in verdict["comparisons"] if (of["metric"], of["users"]) == ("recall@10", "all users"))
    held_out = json.loads(Path("artifacts/versions", verdict["against"], "metrics.json").read_text())
    assert of_all["active"] == pytest.approx(held_out["protocols"]["rated"]["als"]["recall@10"])
    assert of_all["difference"] > 0.01


def test_the_same_configuration_is_not_fitted_twice(train: Train, ratings_dir: Path) -> None:
    for _ in range(2):
        result = train("--data-dir", ratings_dir, "--evaluate", "rated")
        assert result.exit_code == 0
    assert "nothing to compare" in result.stdout


def test_promote_always_and_never_decide_by_themselves(train: Train, ratings_dir: Path) -> None:
    assert train("--data-dir", ratings_dir, *UNMEASURED).exit_code == 0
    first = active()
    printed = json.loads(train("--dataset", "synthetic", "--promote", "always", "--json", *UNMEASURED).stdout)
    assert (printed["activated"], active()) == (True, printed["version"])
    result = train("--data-dir", ratings_dir, "--promote", "never", *UNMEASURED)
    assert result.exit_code == 0  # it did as it was told
    assert active() == printed["version"] != first
    assert "NOT ACTIVATED" not in result.stderr


def test_what_was_not_evaluated_is_activated_only_beside_nothing(train: Train, ratings_dir: Path) -> None:
    assert train("--data-dir", ratings_dir, *UNMEASURED).exit_code == 0
    before = active()
    result = train("--data-dir", ratings_dir, *UNMEASURED)
    assert (result.exit_code, active()) == (3, before)
    assert "it was not evaluated" in result.stderr


def test_a_model_of_other_data_does_not_replace_the_active_one(train: Train, ratings_dir: Path, tmp_path: Path) -> None:
    assert train("--data-dir", ratings_dir).exit_code == 0
    before = active()
    shutil.copytree(ratings_dir, tmp_path / "others")
    result = train("--data-dir", tmp_path / "others")
    assert (result.exit_code, active()) == (3, before)
    assert "trained on others" in result.stderr


def test_a_version_that_became_active_meanwhile_is_not_replaced(
    train: Train, ratings_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the gate compared with is not active any more, so its verdict does not count."""
    for _ in range(2):
        assert train("--data-dir", ratings_dir, "--evaluate", "rated").exit_code == 0
    judge = promotion.judge

    def judge_and_roll_back(*arguments: Any) -> promotion.Verdict:
        registry.rollback(Path("artifacts"))
        return judge(*arguments)

    monkeypatch.setattr(promotion, "judge", judge_and_roll_back)
    result = train("--data-dir", ratings_dir, "--evaluate", "rated")
    assert result.exit_code == 3
    assert f"{active()} became active while this one was trained" in result.stderr


def test_old_versions_are_removed_but_not_the_active_and_the_previous_one(train: Train, ratings_dir: Path) -> None:
    for _ in range(2):
        assert train("--data-dir", ratings_dir, "--evaluate", "rated").exit_code == 0
    needed = {path.name for path in Path("artifacts/versions").iterdir()}
    for _ in range(3):
        assert train("--data-dir", ratings_dir, "--keep", 1, *UNMEASURED).exit_code == 3
    kept = {path.name for path in Path("artifacts/versions").iterdir()}
    assert needed < kept
    assert len(kept) == 3
    assert train("--data-dir", ratings_dir, "--keep", 0).exit_code == 2


def cut_off(version: str) -> None:
    path = Path("artifacts/versions", version, "als.npz")
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-10])


def test_a_damaged_version_is_replaced_by_one_of_its_own_data_and_by_no_other(train: Train, ratings_dir: Path) -> None:
    """Nobody can serve it; but what it says of itself still protects what it was trained on."""
    assert train("--dataset", "synthetic", "--synthetic-ratings", 3000, *UNMEASURED).exit_code == 0
    assert train("--data-dir", ratings_dir, *MEASURED).exit_code == 0
    before = active()
    assert before is not None
    cut_off(before)
    result = train("--dataset", "synthetic", "--synthetic-ratings", 3000, *MEASURED)
    assert (result.exit_code, active()) == (3, before)
    assert "the active version is damaged" in result.stderr
    assert train("--data-dir", ratings_dir, *UNMEASURED).exit_code == 0
    assert load_current(Path("artifacts")).manifest["dataset"] == ratings_dir.name


def test_what_was_overtaken_says_so_in_its_own_files(
    train: Train, ratings_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = promotion.judge

    def judge_and_be_overtaken(*arguments: Any) -> promotion.Verdict:
        monkeypatch.setattr(promotion, "judge", judge)
        assert train("--data-dir", ratings_dir, *UNMEASURED).exit_code == 0
        return judge(*arguments)

    monkeypatch.setattr(promotion, "judge", judge_and_be_overtaken)
    printed = json.loads(train("--data-dir", ratings_dir, "--json", *UNMEASURED).stdout)
    assert printed["version"] != active()
    reason = f"{active()} became active while this one was trained"
    assert (printed["metrics"]["promotion"]["activate"], printed["metrics"]["promotion"]["reasons"]) == (
        False,
        [reason],
    )
    assert reason in Path(printed["path"], "MODEL_CARD.md").read_text(encoding="utf-8")
