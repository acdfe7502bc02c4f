"""A search that never sees test, can be repeated and resumed, and says how much of its gain is luck."""

from __future__ import annotations

import json
import shlex
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from filelock import FileLock

from app import core
from app.als import AlsConfig, learn, side_by_side
from app.datasets.locate import Source
from app.errors import ArtifactError, ConfigError, DataError
from app.evaluation import HEADLINES, als_scorer, measure
from app.protocols import RankingTask, build_task
from app.tuning import TrialReport, Tuned, search, to_command_line, tune
from app.tuning.questions import N_SEEDS, hide_test, validation_tasks
from app.tuning.search import GOAL

START = AlsConfig(factors=33, iterations=4, alpha=7.25, num_threads=1)
MIN_RATING = core.MIN_RATING
STEPS = (3, 5, 6)  # fewer iterations, for time

# As a process of its own, for a signal to end it: argv is the storage and where it stops by itself once trial 2 is
# told, "between" trials or "within" the next. It waits for a kill, and ends when its standard input does.
SCRIPT = """
import os, sys, threading
from pathlib import Path
from app.tuning import search
from tests.test_tuning import START, STEPS, synthetic

measure, told = search.measure, []

def wait():
    print("waits", flush=True)
    sys.stdin.read()
    os._exit(1)

def measure_or_wait(*arguments):
    if len(told) == 3 and threading.current_thread() is threading.main_thread():
        wait()
    return measure(*arguments)

def on_trial(trial):
    told.append(trial.number)
    print(trial.number, flush=True)
    if len(told) == 3 and sys.argv[2] == "between":
        wait()

search.STEPS, search.measure = STEPS, measure_or_wait
search.tune(synthetic(), START, 1000, 4.0, Path(sys.argv[1]), on_trial)
"""


def synthetic() -> core.Dataset:
    return core.load(Source("synthetic", None), n_ratings=2_000, random_state=1)


@pytest.fixture(scope="module", autouse=True)
def few_iterations() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "STEPS", STEPS)
        yield


@pytest.fixture(scope="module")
def dataset() -> core.Dataset:
    return synthetic()


@pytest.fixture(scope="module")
def searched(dataset: core.Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tuned, list[TrialReport]]:
    """A search in one go: what the others are compared with."""
    reports: list[TrialReport] = []
    return tune(dataset, START, 12, MIN_RATING, tmp_path_factory.mktemp("tune") / "study.db", reports.append), reports


def run(dataset: core.Dataset, n_trials: int, storage: Path, start: AlsConfig = START) -> tuple[Tuned, list[Any]]:
    reports: list[TrialReport] = []
    tuned = tune(dataset, start, n_trials, MIN_RATING, storage, reports.append)
    return tuned, outcomes(reports)


def outcomes(reports: list[TrialReport]) -> list[tuple[str, AlsConfig, float | None]]:
    return [(report.state, report.config, report.value) for report in reports]


def arrays(task: RankingTask) -> dict[str, Any]:
    """Everything in a task that a model or a metric of rankings reads."""
    found: dict[str, Any] = {}
    for name, matrix in (("seen", task.seen), ("relevant", task.relevant), ("user_items", task.user_items)):
        assert isinstance(matrix, sp.csr_matrix)
        found |= {f"{name}.{part}": getattr(matrix, part) for part in ("data", "indices", "indptr")}
    for name in ("strength", "n_later"):
        found[name] = getattr(task.positives, name)
    for name in ("target_users", "n_history", "n_new"):
        found[name] = getattr(task, name)
    return {**found, "users": task.users.ids, "items": task.items.ids}


def assert_same(task: RankingTask, other: RankingTask) -> None:
    mine, theirs = arrays(task), arrays(other)
    for name in mine:
        np.testing.assert_array_equal(mine[name], theirs[name], err_msg=name)


# Test is out of reach


def disturb_test(dataset: core.Dataset) -> core.Dataset:
    """Change all that happened from each user's test positive on: its movie, its rating, and what came after."""
    ratings = dataset.ratings
    split = core.leave_one_out(core.positives(ratings, MIN_RATING))
    test_time = split.test.set_index("user_id")["timestamp"]
    is_late = ratings["timestamp"] >= ratings["user_id"].map(test_time)
    kept = core.positives(ratings, MIN_RATING).drop(split.test.index)
    is_kept = ratings.set_index(["user_id", "movie_id"]).index.isin(kept.set_index(["user_id", "movie_id"]).index)
    changed = split.test.assign(movie_id=1_000_000, rating=np.float32(5), timestamp=split.test["timestamp"] + 7)
    noise = split.test.assign(movie_id=int(split.items.ids[0]), rating=np.float32(1.0))
    noise = noise[~noise["user_id"].isin(ratings.loc[ratings["movie_id"] == split.items.ids[0], "user_id"])]
    assert len(noise) > 0
    return replace(dataset, ratings=pd.concat([ratings[~is_late | is_kept], changed, noise], ignore_index=True))


def test_the_cut_leaves_the_validation_task_as_it_is(dataset: core.Dataset) -> None:
    split = core.leave_one_out(core.positives(dataset.ratings, MIN_RATING))
    task, _ = validation_tasks(dataset.ratings, MIN_RATING)
    assert_same(task, build_task(dataset.ratings, split, "rated", "validation", MIN_RATING))


def test_the_cut_leaves_the_validation_task_of_real_data_as_it_is(movielens_dir: Path) -> None:
    real = core.load(Source(None, movielens_dir))
    split = core.leave_one_out(core.positives(real.ratings))
    task, second = validation_tasks(real.ratings, MIN_RATING)
    whole = build_task(real.ratings, split, "rated", "validation", MIN_RATING)
    assert_same(task, whole)
    assert task.n_targets == 571
    # Of the gaps, those that a tie with the test positive makes 0; no search reads them.
    times = [frame.set_index("user_id")["timestamp"] for frame in (split.validation, split.test)]
    tied = times[0].eq(times[1])[task.users.ids[task.target_users]].to_numpy()
    np.testing.assert_array_equal(task.gap_seconds[~tied], whole.gap_seconds[~tied])
    assert second.n_targets > 500


def test_what_is_dropped_is_the_test_positive_and_all_from_its_second_on(dataset: core.Dataset) -> None:
    split = core.leave_one_out(core.positives(dataset.ratings, MIN_RATING))
    visible, cut = hide_test(dataset.ratings, split)
    assert cut.test.empty
    for user_id, movie_id, _, timestamp in split.test.itertuples(index=False):
        rows = visible[visible["user_id"] == user_id]
        assert movie_id not in set(rows["movie_id"])
        assert rows["timestamp"].max() < timestamp
        expected = dataset.ratings[(dataset.ratings["user_id"] == user_id) & (dataset.ratings["timestamp"] < timestamp)]
        assert len(rows) == len(expected)


def test_nothing_in_test_changes_anything_in_the_search(
    dataset: core.Dataset, searched: tuple[Tuned, list[TrialReport]], tmp_path: Path
) -> None:
    tuned, reports = searched
    disturbed = disturb_test(dataset)
    assert not disturbed.ratings.equals(dataset.ratings)
    for task, other in zip(
        validation_tasks(dataset.ratings, MIN_RATING), validation_tasks(disturbed.ratings, MIN_RATING), strict=True
    ):
        assert_same(task, other)
    again, trials = run(disturbed, 4, tmp_path / "study.db")
    assert trials == outcomes(reports[:4])
    assert again.validation["start"] == tuned.validation["start"]
    assert again.second_validation["start"] == tuned.second_validation["start"]


def test_the_second_task_asks_for_the_positive_before_the_validation_one(dataset: core.Dataset) -> None:
    task, second = validation_tasks(dataset.ratings, MIN_RATING)
    liked = core.positives(dataset.ratings, MIN_RATING)
    for place, asked in ((-2, task), (-3, second)):
        of_user = {user: rows.iloc[place] for user, rows in liked.groupby("user_id") if len(rows) >= -place}
        for row, user in enumerate(asked.users.ids[asked.target_users]):
            relevant = asked.relevant[row].indices
            assert asked.items.ids[relevant].tolist() == [of_user[user]["movie_id"]]


def test_users_with_too_few_positives_are_refused_with_the_remedy(tmp_path: Path) -> None:
    rows = [(user, movie, 5.0, movie) for user in range(1, 5) for movie in range(1, 4)]
    ratings = pd.DataFrame(rows, columns=["user_id", "movie_id", "rating", "timestamp"])
    few = replace(synthetic(), ratings=ratings)
    with pytest.raises(DataError, match=r"at least 4 positives; there are too few\. Add ratings"):
        run(few, 1, tmp_path / "study.db")


# The search


def test_the_value_of_a_trial_is_what_training_with_its_setting_gives(
    dataset: core.Dataset, searched: tuple[Tuned, list[TrialReport]]
) -> None:
    task, _ = validation_tasks(dataset.ratings, MIN_RATING)
    complete = [report for report in searched[1] if report.state == "complete"]
    for report in complete[:2]:
        seeded = [replace(report.config, random_state=42 + place, num_threads=0) for place in range(N_SEEDS)]
        values = [measure(task, als_scorer(task, learn(task.positives, config)))[GOAL].mean() for config in seeded]
        assert report.value == pytest.approx(np.mean(values), abs=1e-12)


def test_the_best_is_the_highest_value_and_never_worse_than_the_start(
    searched: tuple[Tuned, list[TrialReport]],
) -> None:
    tuned, reports = searched
    best = max((report for report in reports if report.value is not None), key=lambda report: report.value or 0)
    assert tuned.config == best.config
    assert tuned.validation["best"][GOAL] == pytest.approx(best.value, abs=1e-12)
    assert tuned.validation["best"][GOAL] >= tuned.validation["start"][GOAL]
    assert replace(reports[0].config, iterations=START.iterations) == START
    assert reports[-1].best == best.value
    assert [report.n_done for report in reports] == list(range(1, 13))
    assert len({report.config for report in reports}) == len(reports)


def test_the_setting_keeps_what_is_not_searched(searched: tuple[Tuned, list[TrialReport]]) -> None:
    config = searched[0].config
    assert (config.random_state, config.num_threads, config.device) == (42, 1, "cpu")


def test_with_hardly_any_trials_the_start_is_kept_or_bettered(dataset: core.Dataset, tmp_path: Path) -> None:
    tuned, trials = run(dataset, 1, tmp_path / "study.db", replace(START, half_life=0.0, iterations=1, factors=200))
    assert len(trials) == 1
    assert (tuned.config.half_life, tuned.config.factors) == (0.0, 200)
    assert tuned.validation["gain"][GOAL]["difference"] >= 0


def test_trials_below_the_median_are_pruned_but_never_the_start(
    dataset: core.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    level, measured = 1.0, 0

    def measure_worse_each_time(*_: object) -> dict[str, Any]:
        nonlocal measured
        measured += 1
        return dict.fromkeys(HEADLINES, np.array([level]))

    def go_down(report: TrialReport) -> None:
        nonlocal level, measured
        states.append((report.state, measured))
        level, measured = level / 2, 0

    monkeypatch.setattr(search, "measure", measure_worse_each_time)
    monkeypatch.setattr(search, "measure_optimism", lambda *_: ({}, {}, {}))
    states: list[tuple[str, int]] = []
    tuned = tune(dataset, START, 6, MIN_RATING, tmp_path / "study.db", go_down)
    assert [state for state, _ in states] == ["complete"] * 5 + ["pruned"]
    assert states[0][1] == N_SEEDS * len({*search.STEPS, START.iterations})
    assert states[5][1] < states[0][1]  # the fits ended early
    assert tuned.n_pruned == 1
    states.clear()
    again = tune(dataset, replace(START, alpha=9.0), 2, MIN_RATING, tmp_path / "study.db", go_down)
    assert [state for state, _ in states] == ["complete", "pruned"]
    assert (again.n_earlier, again.config) == (6, tuned.config)


def test_equal_seeds_give_equal_trials_and_other_seeds_others(
    dataset: core.Dataset, searched: tuple[Tuned, list[TrialReport]], tmp_path: Path
) -> None:
    expected = outcomes(searched[1])
    _, trials = run(dataset, 3, tmp_path / "study.db")
    assert trials == expected[:3]
    _, others = run(dataset, 3, tmp_path / "other.db", replace(START, random_state=7))
    assert others[1][1] != replace(expected[1][1], random_state=7)


def test_a_resumed_search_goes_on_as_if_it_had_never_ended(
    dataset: core.Dataset, searched: tuple[Tuned, list[TrialReport]], tmp_path: Path
) -> None:
    whole, reports = searched
    storage = tmp_path / "study.db"
    first, begun = run(dataset, 5, storage)
    second, rest = run(dataset, 7, storage)
    assert begun + rest == outcomes(reports)
    assert (first.n_earlier, second.n_earlier, second.n_trials) == (0, 5, 7)
    assert (second.config, second.validation, second.optimism) == (whole.config, whole.validation, whole.optimism)


def test_another_question_does_not_resume_the_study(dataset: core.Dataset, tmp_path: Path) -> None:
    storage = tmp_path / "study.db"
    run(dataset, 1, storage)
    for data, start, min_rating in (
        (replace(dataset, fingerprint="f" * 64), START, MIN_RATING),
        (dataset, replace(START, random_state=1), MIN_RATING),
        (dataset, START, 3.5),
    ):
        assert tune(data, start, 1, min_rating, storage).n_earlier == 0
    assert tune(dataset, replace(START, alpha=9.0), 1, MIN_RATING, storage).n_earlier == 1


# What goes wrong


@pytest.mark.parametrize("where", ["within", pytest.param("between", marks=pytest.mark.slow)])
def test_a_killed_search_can_be_resumed(where: str, searched: tuple[Tuned, list[TrialReport]], tmp_path: Path) -> None:
    storage = tmp_path / "study.db"
    command = [sys.executable, "-c", SCRIPT, str(storage), where]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = [process.stdout.readline().strip() for _ in range(4)]
        process.send_signal(signal.SIGKILL)
    assert said == ["0", "1", "2", "waits"]
    assert states_of(storage).count("RUNNING") == (where == "within")
    tuned, trials = run(synthetic(), 4, storage)
    assert (tuned.n_earlier, tuned.n_trials) == (3, 4)
    assert trials == outcomes(searched[1])[3:7]
    assert states_of(storage).count("FAIL") == (where == "within")
    assert "RUNNING" not in states_of(storage)


def states_of(storage: Path) -> list[str]:
    """What the file itself says of each trial, in order."""
    with closing(sqlite3.connect(storage)) as connection:
        return [state for (state,) in connection.execute("SELECT state FROM trials ORDER BY number")]


def test_ctrl_c_keeps_what_is_done_and_reports_the_best(
    dataset: core.Dataset, searched: tuple[Tuned, list[TrialReport]], tmp_path: Path
) -> None:
    def interrupt(report: TrialReport) -> None:
        if report.n_done == 2:
            signal.raise_signal(signal.SIGINT)

    tuned = tune(dataset, START, 50, MIN_RATING, tmp_path / "study.db", interrupt)
    assert (tuned.interrupted, tuned.n_trials) == (True, 2)
    assert tuned.config == max(searched[1][:2], key=lambda report: report.value or 0).config
    assert tuned.stored.is_file()


@pytest.mark.parametrize("n_fits", [1, N_SEEDS + 1])
def test_ctrl_c_in_a_fit_ends_the_search(
    n_fits: int, dataset: core.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = interrupt_or_fail(monkeypatch, lambda n: n == n_fits, KeyboardInterrupt())
    if n_fits == 1:  # nothing is known yet
        with pytest.raises(KeyboardInterrupt):
            run(dataset, 5, tmp_path / "study.db")
    else:
        tuned, trials = run(dataset, 5, tmp_path / "study.db")
        assert (tuned.interrupted, len(trials)) == (True, 1)
    assert seen


def interrupt_or_fail(
    monkeypatch: pytest.MonkeyPatch, when: Callable[[int], bool], error: BaseException
) -> list[AlsConfig]:
    """Let the fit of the first seed raise in the trials that ``when`` names, counted in fits from 1."""
    seen: list[AlsConfig] = []
    n_fits = 0

    def learn_or_raise(positives: core.Positives, config: AlsConfig, *watch: Any) -> Any:
        nonlocal n_fits
        if config.random_state == START.random_state and watch:
            n_fits += 1
            if when(1 + (n_fits - 1) * N_SEEDS):
                seen.append(config)
                raise error
        return learn(positives, config, *watch)

    monkeypatch.setattr(search, "learn", learn_or_raise)
    return seen


def test_a_setting_that_cannot_be_fitted_does_not_end_the_search(
    dataset: core.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = interrupt_or_fail(monkeypatch, lambda n: n == 1 + N_SEEDS, ConfigError("the factors overflow"))
    tuned, trials = run(dataset, 3, tmp_path / "study.db")
    assert len(failed) == 1
    assert [state for state, *_ in trials] == ["complete", "failed", "complete"]
    assert (tuned.n_trials, tuned.n_failed, tuned.n_pruned) == (3, 1, 0)


def test_a_start_that_overflows_is_an_error(dataset: core.Dataset, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"the factors overflow with .*; use a smaller alpha"):
        run(dataset, 2, tmp_path / "study.db", replace(START, alpha=1e38))


def make_text(path: Path) -> None:
    path.write_text("no database at all, and longer than its header would be\n" * 20)


def make_foreign(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE ratings (user_id INTEGER)")


def make_truncated(path: Path) -> None:
    run(synthetic(), 1, path)
    path.write_bytes(path.read_bytes()[:20_000])


@pytest.mark.parametrize("damage", [make_text, make_foreign, make_truncated, Path.mkdir])
def test_a_storage_that_is_no_study_is_refused_and_left_alone(
    damage: Callable[[Path], None], dataset: core.Dataset, tmp_path: Path
) -> None:
    storage = tmp_path / "study.db"
    damage(storage)
    before = storage.read_bytes() if storage.is_file() else b""
    with pytest.raises(ConfigError, match=r"study\.db cannot be used to store the search: .*remove it to begin anew"):
        run(dataset, 1, storage)
    assert before == (storage.read_bytes() if storage.is_file() else b"")


def test_a_folder_that_cannot_be_made_is_refused(dataset: core.Dataset, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be used to store the search"):
        run(dataset, 1, tmp_path / "file" / "study.db")


def test_a_study_that_breaks_during_the_search_is_an_error(dataset: core.Dataset, tmp_path: Path) -> None:
    def break_study(_report: TrialReport) -> None:
        with closing(sqlite3.connect(tmp_path / "study.db")) as connection:
            connection.execute("DROP TABLE trials")

    with pytest.raises(ArtifactError, match=r"could not be stored in .*study\.db: .*run the same command again"):
        tune(dataset, START, 3, MIN_RATING, tmp_path / "study.db", break_study)


def test_a_result_that_cannot_be_written_is_told_with_the_command(dataset: core.Dataset, tmp_path: Path) -> None:
    (tmp_path / "study.db.best.json").mkdir()
    with pytest.raises(ArtifactError, match=r"could not be written to .*It is: python train_als\.py --factors"):
        run(dataset, 1, tmp_path / "study.db")


def test_any_path_can_hold_the_study(dataset: core.Dataset, tmp_path: Path) -> None:
    storage = tmp_path / "new folder" / "what? {a} 100%20#.db"
    tuned, _ = run(dataset, 1, storage)
    names = {path.name for path in storage.parent.iterdir()}
    assert names == {storage.name, f"{storage.name}.lock", tuned.stored.name}


@pytest.mark.parametrize("n_trials", [0, -1, 2.0, True])
def test_a_number_of_trials_that_is_none_is_refused(n_trials: Any, dataset: core.Dataset, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected a whole number from 1"):
        run(dataset, n_trials, tmp_path / "study.db")


def test_without_optuna_the_remedy_is_named(
    dataset: core.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match=r"not installed; pip install -r requirements\.txt"):
        run(dataset, 1, tmp_path / "study.db")


def test_optuna_is_not_imported_before_a_search() -> None:
    code = "import sys, app.tuning; sys.exit('optuna' in sys.modules or 'sqlalchemy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_optuna_says_nothing(dataset: core.Dataset, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run(dataset, 2, tmp_path / "study.db")
    assert capfd.readouterr() == ("", "")


# Fits beside each other


def test_two_fits_run_at_the_same_time_where_there_are_two_threads() -> None:
    both_run = threading.Barrier(2, timeout=10)
    with side_by_side(2, replace(START, num_threads=2)) as (pool, _):
        jobs = [pool.submit(both_run.wait) for _ in range(2)]
        assert sorted(job.result() for job in jobs) == [0, 1]


@pytest.mark.parametrize(
    ("n_fits", "num_threads", "each"), [(2, 2, 1), (3, 8, 2), (2, 8, 4), (3, 2, 1), (3, 1, 1), (1, 5, 5), (3, 0, 2)]
)
def test_fits_divide_the_threads(n_fits: int, num_threads: int, each: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.als.count_cores", lambda: 7)
    config = replace(START, num_threads=num_threads)
    with side_by_side(n_fits, config) as (_, share):
        assert share == replace(config, num_threads=each)


def test_a_gpu_takes_one_fit_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.als.uses_gpu", lambda device: device == "gpu")
    with side_by_side(3, replace(START, num_threads=4, device="gpu")) as (pool, share):
        first_may_end = threading.Event()
        jobs = [pool.submit(first_may_end.wait, 10), *(pool.submit(threading.get_ident) for _ in range(2))]
        assert not any(job.done() for job in jobs)
        first_may_end.set()
        threads = [job.result() for job in jobs[1:]]
    assert share.num_threads == 4
    assert len(set(threads)) == 1


def test_an_error_in_one_of_the_fits_reaches_the_caller() -> None:
    def fail_in_the_second(place: int) -> int:
        if place == 1:
            raise ValueError("the second fit fails")
        return place

    with (
        pytest.raises(ValueError, match="the second fit fails"),
        side_by_side(2, replace(START, num_threads=2)) as (pool, _),
    ):
        list(pool.map(fail_in_the_second, range(2)))


@pytest.mark.parametrize("place", range(N_SEEDS))
def test_an_error_in_the_fit_of_any_seed_ends_the_search(
    place: int, dataset: core.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def learn_or_raise(positives: core.Positives, config: AlsConfig, *watch: Any) -> Any:
        if config.random_state == START.random_state + place:
            raise RuntimeError("this fit fails")
        return learn(positives, config, *watch)

    monkeypatch.setattr(search, "learn", learn_or_raise)
    with pytest.raises(RuntimeError, match="this fit fails"):
        run(dataset, 2, tmp_path / "study.db", replace(START, num_threads=2))


# What is told


def test_the_result_is_stored_beside_the_study(searched: tuple[Tuned, list[TrialReport]]) -> None:
    tuned, _ = searched
    stored = json.loads(tuned.stored.read_text())
    assert stored == json.loads(json.dumps({**asdict(tuned), "stored": str(tuned.stored)}))
    assert AlsConfig.of(stored["config"]) == tuned.config
    assert tuned.stored.name == "study.db.best.json"


def test_optimism_is_the_gain_on_what_was_searched_less_the_gain_elsewhere(
    dataset: core.Dataset, searched: tuple[Tuned, list[TrialReport]]
) -> None:
    tuned, _ = searched
    task, second = validation_tasks(dataset.ratings, MIN_RATING)
    found = (tuned.validation, tuned.second_validation)
    assert [part["n_users"] for part in found] == [task.n_targets, second.n_targets]
    assert not set(found[0]["seeds"]) & set(found[1]["seeds"])
    for metric in HEADLINES:
        gains = [part["gain"][metric]["difference"] for part in found]
        for part, gain in zip(found, gains, strict=True):
            assert gain == pytest.approx(part["best"][metric] - part["start"][metric])
            low, high = part["gain"][metric]["interval"]
            assert low <= gain <= high
        assert tuned.optimism[metric]["difference"] == pytest.approx(gains[0] - gains[1])
        low, high = tuned.optimism[metric]["interval"]
        assert low <= tuned.optimism[metric]["difference"] <= high


def test_the_command_line_names_the_setting_exactly() -> None:
    config = AlsConfig(96, 0.1 + 0.2, 1e-7, 12, 0.0, 2.5, random_state=3)
    words = shlex.split(to_command_line(config, 3.5))
    assert words[:2] == ["python", "train_als.py"]
    values = dict(zip(words[2::2], words[3::2], strict=True))
    assert float(values.pop("--min-rating")) == 3.5
    types = {field.name: type(getattr(config, field.name)) for field in fields(config)}
    read = {name[2:].replace("-", "_"): value for name, value in values.items()}
    assert AlsConfig(**{name: types[name](value) for name, value in read.items()}) == config
    assert "min-rating" not in to_command_line(config)
    assert to_command_line(AlsConfig()).endswith("--iterations 10 --grading 0.5 --half-life 2 --random-state 42")


def test_a_study_in_use_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "study.sqlite3"
    with FileLock(f"{path}.lock"), pytest.raises(ConfigError, match="in use by another search"):
        tune(synthetic(), START, 1, 4.0, path)
