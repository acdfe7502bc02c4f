"""What is counted is shown, once, whichever process is asked."""

from __future__ import annotations

import logging
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from app.counts import WorkerFiles, remove_leftovers
from app.telemetry import BUCKETS, Telemetry
from tests.tiny_servers import Tiny, serving

Join = Callable[[], Telemetry]
Found = dict[tuple[str, ...], float]


def read(rendered: bytes | str) -> Found:
    """Read what Prometheus would: ``(name, value of label, …)``, the labels in the order of their names."""
    text = rendered if isinstance(rendered, str) else rendered.decode()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    found = {(each.name, *(each.labels[label] for label in sorted(each.labels))): each.value for each in samples}
    assert len(found) == len(samples)
    return found


def show_in_flight(telemetry: Telemetry, n_requests: int) -> None:
    numbers, at = telemetry.in_flight
    numbers[at] = n_requests


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where workers meet: here applications of one process, which are kept apart like workers."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path / "metrics"))
    return tmp_path / "metrics"


@pytest.fixture
def join() -> Iterator[Join]:
    """Make an application's metrics and let it meet the others; afterwards all leave."""
    made: list[Telemetry] = []

    def make() -> Telemetry:
        made.append(Telemetry())
        made[-1].join_workers()
        return made[-1]

    yield make
    for telemetry in made:
        telemetry.leave_workers()


# --- one process


def test_nothing_has_happened_yet_and_that_is_shown() -> None:
    found = read(Telemetry().render())
    begun = found.pop(("process_start_time_seconds",))
    assert 0 <= time.time() - begun < 60
    assert found == {
        ("recs_requests_in_flight",): 0,
        ("recs_disconnects_total",): 0,
        ("recs_ranker_fallbacks_total",): 0,
        ("recs_reload_failing",): 0,
    }


def test_each_thing_is_counted_under_its_name() -> None:
    telemetry = Telemetry()
    for seconds in (0.0002, 0.0003, 3.0):
        telemetry.count_request("/recommend", "GET", 200, seconds)
    telemetry.count_request("/users/{user_id}", "GET", 404, 0.001)
    telemetry.count_list("als", False)
    telemetry.count_list("als", True)
    telemetry.count_reload("loaded")
    telemetry.count_refusal("overloaded")
    telemetry.count_disconnect()
    telemetry.on_lookup("local", False)
    telemetry.on_lookup("shared", True)
    telemetry.on_shared_error("get")
    show_in_flight(telemetry, 3)
    found = read(telemetry.render())
    expected = {
        ("recs_requests_total", "GET", "/recommend", "200"): 3,
        ("recs_requests_total", "GET", "/users/{user_id}", "404"): 1,
        ("recs_request_seconds_count", "/recommend"): 3,
        ("recs_request_seconds_sum", "/recommend"): 3.0005,
        ("recs_request_seconds_bucket", "0.00025", "/recommend"): 1,
        ("recs_request_seconds_bucket", "0.0005", "/recommend"): 2,
        ("recs_request_seconds_bucket", "2.5", "/recommend"): 2,
        ("recs_request_seconds_bucket", "+Inf", "/recommend"): 3,
        ("recs_request_seconds_bucket", "0.0005", "/users/{user_id}"): 0,
        ("recs_request_seconds_bucket", "0.001", "/users/{user_id}"): 1,  # a bound belongs to its bucket
        ("recs_lists_total", "als"): 2,
        ("recs_ranker_fallbacks_total",): 1,
        ("recs_reloads_total", "loaded"): 1,
        ("recs_refusals_total", "overloaded"): 1,
        ("recs_disconnects_total",): 1,
        ("recs_cache_lookups_total", "local", "miss"): 1,
        ("recs_cache_lookups_total", "shared", "hit"): 1,
        ("recs_redis_errors_total", "get"): 1,
        ("recs_requests_in_flight",): 3,
    }
    assert {key: found[key] for key in expected} == pytest.approx(expected)


@given(st.lists(st.floats(0, 4) | st.sampled_from(BUCKETS), max_size=20))
def test_latencies_are_shown_as_prometheus_clients_own_histogram_shows_them(seconds: list[float]) -> None:
    telemetry, registry = Telemetry(), CollectorRegistry()
    theirs = Histogram("recs_request_seconds", "", ["route"], buckets=BUCKETS, registry=registry)
    counted = Counter("recs_requests", "", ["route", "method", "status"], registry=registry)
    for each in seconds:
        telemetry.count_request("/a", "GET", 200, each)
        theirs.labels("/a").observe(each)
        counted.labels("/a", "GET", "200").inc()
    expected = {key: value for key, value in read(generate_latest(registry)).items() if "_created" not in key[0]}
    found = read(telemetry.render())
    assert {key: value for key, value in found.items() if key[0].startswith("recs_request")} == pytest.approx(
        {**expected, ("recs_requests_in_flight",): 0}
    )


def test_methods_that_a_caller_invents_share_one_label() -> None:
    telemetry = Telemetry()
    for method in ("BREW", "WHEN", "BREW", "get"):
        telemetry.count_request("unmatched", method, 405, 0.1)
    found = read(telemetry.render())
    assert [key for key in found if key[0] == "recs_requests_total"] == [
        ("recs_requests_total", "OTHER", "unmatched", "405")
    ]
    assert found["recs_requests_total", "OTHER", "unmatched", "405"] == 4


def test_only_the_version_being_served_is_shown_with_its_age() -> None:
    telemetry = Telemetry()
    trained = datetime.now(UTC) - timedelta(hours=3)
    telemetry.show_serving("old", failing=False, trained_at="2020-01-01T00:00:00+00:00")
    telemetry.show_serving("new", failing=True, trained_at=trained.isoformat())
    found = read(telemetry.render())
    assert {key: value for key, value in found.items() if key[0] == "recs_serving"} == {("recs_serving", "new"): 1}
    assert found["recs_reload_failing",] == 1
    assert found["recs_model_age_seconds",] == pytest.approx(3 * 3600, abs=60)
    time.sleep(0.01)
    assert read(telemetry.render())["recs_model_age_seconds",] > found["recs_model_age_seconds",]
    telemetry.show_serving(None, failing=True)
    assert {key[0] for key in read(telemetry.render())}.isdisjoint({"recs_serving", "recs_model_age_seconds"})


@pytest.mark.parametrize("trained_at", [None, "", "yesterday"])
def test_a_version_that_does_not_say_when_it_was_trained_has_no_age(trained_at: str | None) -> None:
    telemetry = Telemetry()
    telemetry.show_serving("new", failing=False, trained_at=trained_at)
    assert "recs_model_age_seconds" not in {key[0] for key in read(telemetry.render())}


def test_a_moment_without_a_time_zone_is_in_utc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        telemetry = Telemetry()
        telemetry.show_serving("new", failing=False, trained_at=datetime.now(UTC).replace(tzinfo=None).isoformat())
        assert read(telemetry.render())["recs_model_age_seconds",] < 60
    finally:
        monkeypatch.undo()
        time.tzset()


def test_redis_is_shown_once_there_is_one() -> None:
    telemetry = Telemetry()
    assert ("recs_redis_up",) not in read(telemetry.render())
    telemetry.on_shared_state(True)
    assert read(telemetry.render())["recs_redis_up",] == 1
    telemetry.on_shared_state(False)
    assert read(telemetry.render())["recs_redis_up",] == 0


def test_applications_of_one_process_count_each_for_itself(join: Join) -> None:
    first, second = join(), join()  # which join nobody: there are no workers
    first.count_list("als", False)
    assert ("recs_lists_total", "als") in read(first.render())
    assert ("recs_lists_total", "als") not in read(second.render())


# --- several workers


def test_workers_show_the_sums_of_their_counts(folder: Path, join: Join) -> None:
    first, second = join(), join()
    for telemetry, n in ((first, 2), (second, 3)):
        for _ in range(n):
            telemetry.count_request("/recommend", "GET", 200, 0.002)
            telemetry.on_lookup("local", True)
    assert read(first.render()) == read(second.render())
    found = read(first.render())
    assert found["recs_requests_total", "GET", "/recommend", "200"] == 5
    assert found["recs_cache_lookups_total", "local", "hit"] == 5
    assert found["recs_request_seconds_count", "/recommend"] == 5
    assert found["recs_request_seconds_sum", "/recommend"] == pytest.approx(0.01)
    assert found["recs_request_seconds_bucket", "0.001", "/recommend"] == 0
    assert found["recs_request_seconds_bucket", "0.0025", "/recommend"] == 5
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.usefixtures("folder")
def test_gauges_of_workers_become_what_an_operator_asks_for(join: Join) -> None:
    first, second = join(), join()
    first.show_serving("v1", failing=False, trained_at=(datetime.now(UTC) - timedelta(hours=2)).isoformat())
    second.show_serving("v2", failing=True, trained_at=(datetime.now(UTC) - timedelta(hours=1)).isoformat())
    show_in_flight(first, 2), show_in_flight(second, 5)
    first.on_shared_state(True), second.on_shared_state(False)
    found = read(first.render())
    assert (found["recs_serving", "v1"], found["recs_serving", "v2"]) == (1, 1)
    assert found["recs_reload_failing",] == 1  # somebody's
    assert found["recs_requests_in_flight",] == 7
    assert found["recs_redis_up",] == 0  # for somebody not
    assert found["recs_model_age_seconds",] == pytest.approx(2 * 3600, abs=60)  # the oldest
    second.show_serving("v1", failing=False)
    found = read(first.render())
    assert found["recs_serving", "v1"] == 2
    assert ("recs_serving", "v2") not in found
    assert found["recs_reload_failing",] == 0


@pytest.mark.usefixtures("folder")
def test_a_worker_that_leaves_takes_its_gauges_and_leaves_its_counts(join: Join) -> None:
    first, second = join(), join()
    for telemetry in (first, second):
        telemetry.count_list("als", False)
        telemetry.show_serving("v1", failing=telemetry is second)
    second.leave_workers()
    found = read(first.render())
    assert found["recs_lists_total", "als"] == 2
    assert found["recs_serving", "v1"] == 1
    assert found["recs_reload_failing",] == 0


def test_a_worker_goes_on_with_the_counts_of_one_that_had_its_number(folder: Path, join: Join) -> None:
    first = join()
    first.count_list("als", False)
    show_in_flight(first, 9)
    first.leave_workers()
    second = join()
    second.count_list("als", False)
    found = read(second.render())
    assert found["recs_lists_total", "als"] == 2
    assert found["recs_requests_in_flight",] == 0
    assert len(list(folder.glob("counter_*.db"))) == 1


@pytest.mark.usefixtures("folder")
def test_what_was_counted_before_the_workers_met_is_not_lost() -> None:
    telemetry = Telemetry()
    telemetry.count_request("/a", "GET", 200, 0.1)
    show_in_flight(telemetry, 1)
    telemetry.join_workers()
    telemetry.count_request("/a", "GET", 200, 0.1)
    telemetry.join_workers()  # again, which changes nothing
    found = read(telemetry.render())
    assert found["recs_requests_total", "GET", "/a", "200"] == 2
    assert found["recs_request_seconds_count", "/a"] == 2
    assert found["recs_requests_in_flight",] == 1
    telemetry.leave_workers()


@pytest.mark.usefixtures("folder")
def test_numbers_stay_right_when_their_file_has_to_grow(join: Join) -> None:
    telemetry = join()
    telemetry.count_list("first", False)
    for n in range(700):  # some 100 bytes each, and a file begins with 64 KiB
        telemetry.count_list(f"{n:0100}", False)
    telemetry.count_list("first", False)
    telemetry.count_list(f"{699:0100}", False)
    found = read(telemetry.render())
    assert found["recs_lists_total", "first"] == 2
    assert found["recs_lists_total", f"{699:0100}"] == 2
    assert found["recs_lists_total", f"{350:0100}"] == 1


@pytest.mark.usefixtures("folder")
def test_threads_that_count_different_things_may_begin_at_the_same_moment(join: Join) -> None:
    telemetry = join()
    begin = [lambda n=n: telemetry.on_shared_error(f"operation {n}") for n in range(200)]
    with ThreadPoolExecutor(8) as threads:
        for each in [threads.submit(every) for every in begin]:
            each.result()
    found = read(telemetry.render())
    assert [found["recs_redis_errors_total", f"operation {n}"] for n in range(200)] == [1] * 200


def test_without_a_folder_for_the_workers_each_counts_alone_and_says_so(
    folder: Path, caplog: pytest.LogCaptureFixture, join: Join
) -> None:
    folder.write_text("a file")
    telemetry = join()
    telemetry.count_list("als", False)
    assert read(telemetry.render())["recs_lists_total", "als"] == 1
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert str(folder) in record.getMessage()


def test_folders_of_services_that_have_ended_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    ended, living, young = (tmp_path / f"recs-metrics-{name}" for name in ("ended", "living", "young"))
    for folder in (ended, young):
        WorkerFiles(folder).close()
    files = WorkerFiles(living)
    for folder in (ended, living):
        os.utime(folder, (0, 0))
    (tmp_path / "recs-other").mkdir()
    remove_leftovers()
    assert {path.name for path in tmp_path.iterdir()} == {"recs-metrics-living", "recs-metrics-young", "recs-other"}
    files.close()


def scrapes(tiny: Tiny, n_workers: int) -> list[Found]:
    """Ask until every worker has answered, and return what each says last."""
    by_worker: dict[str, Found] = {}
    deadline = time.monotonic() + 20
    while len(by_worker) < n_workers:
        response = tiny.get("/metrics")
        by_worker[response.headers["x-pid"]] = read(response.text)
        assert time.monotonic() < deadline
    return list(by_worker.values())


def test_the_workers_of_a_real_server_add_up_and_one_that_is_killed_loses_no_count(tmp_path: Path) -> None:
    with serving(tmp_path, n_workers=2) as tiny:
        pids: list[int] = [tiny.get(f"/lists/{n}").json() for n in range(60)]
        assert len(set(pids)) == 2
        for found in scrapes(tiny, 2):
            assert found["recs_lists_total", "als"] == 60
            assert found["recs_cache_lookups_total", "local", "hit"] == 60
            assert found["recs_requests_total", "GET", "/lists/{user_id}", "200"] == 60
            assert found["recs_request_seconds_count", "/lists/{user_id}"] == 60
            assert found["recs_serving", "v1"] == 2
        os.kill(pids[0], signal.SIGSTOP)  # so that nobody takes its place while we look
        os.kill(pids[0], signal.SIGKILL)
        found = next(iter(scrapes(tiny, 1)))
        assert found["recs_serving", "v1"] == 1
        assert found["recs_lists_total", "als"] == 60
        tiny.wait_for("Application startup complete", 3)
        for found in scrapes(tiny, 2):
            assert found["recs_serving", "v1"] == 2
            assert found["recs_lists_total", "als"] == 60
        assert len(list(tmp_path.glob("recs-metrics-*"))) == 1
        assert tiny.stop() == 0
