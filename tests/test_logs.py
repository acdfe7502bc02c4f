"""What is logged is one line each, says nothing personal, and gets lost nowhere."""

from __future__ import annotations

import json
import logging
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app import logs
from app.logs import _to_json, _to_text, configure_logging, log_request
from tests.servers import ROOT
from tests.tiny_servers import Tiny, serving

LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (DEBUG|INFO|WARNING|ERROR) +\S.*")
HOSTILE = "a\nb\r\x1b[31mred\x85\u2028\x00é\ud800"


def parsed(lines: list[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines]


def requests(lines: list[str]) -> list[dict[str, Any]]:
    return [line for line in parsed(lines) if line["event"] == "request"]


# --- one line


@given(st.text(), st.dictionaries(st.sampled_from(["a", "b"]), st.text() | st.integers() | st.booleans() | st.none()))
def test_json_comes_back_as_it_went_in_on_one_line_of_ascii(message: str, fields: dict[str, object]) -> None:
    line = _to_json(None, "info", {"event": message, **fields})
    assert line.isascii()
    assert line.isprintable() or "\x7f" in line
    found = json.loads(line)
    assert list(found)[:3] == ["timestamp", "level", "event"]
    assert {name: found[name] for name in fields} == fields
    assert (found["event"], found["level"]) == (message.rstrip(), "info")


@given(st.text(), st.text(), st.text())
def test_text_is_one_line_and_a_traceback_can_pass_for_none(message: str, value: str, traceback: str) -> None:
    event = {"event": message, "a": value, "exception": f"Traceback\n{traceback}"}
    first, *rest = _to_text(None, "info", event).split("\n")
    assert first.isprintable()
    assert all(line.isprintable() and line.startswith("    ") for line in rest)
    assert " a=" in first


def test_steering_characters_are_written_out() -> None:
    event = {"event": HOSTILE, "path": HOSTILE}
    assert json.loads(_to_json(None, "info", dict(event)))["path"] == HOSTILE
    written = r"a\nb\r\x1b[31mred\x85\u2028\x00é\ud800"
    assert _to_text(None, "info", dict(event)).endswith(f" INFO    {written} path={written}")


# --- where it goes


def test_a_process_that_no_server_has_configured_is_left_alone(capfd: pytest.CaptureFixture[str]) -> None:
    before = [(logger.handlers[:], logger.level, logger.propagate) for logger in all_loggers()]
    configure_logging("json", "debug")
    log_request(b"id", "GET", "/recommend", 200, 1.0, {}, "/recommend")
    assert [(logger.handlers[:], logger.level, logger.propagate) for logger in all_loggers()] == before
    assert logs._Requests.write is None
    assert capfd.readouterr() == ("", "")


def all_loggers() -> list[logging.Logger]:
    return [logging.getLogger(), *map(logging.getLogger, ("uvicorn", "uvicorn.error", "uvicorn.access"))]


def run(script: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a process of which uvicorn has configured the logging."""
    begin = "import logging, logging.config, uvicorn.config; logging.config.dictConfig(uvicorn.config.LOGGING_CONFIG)\n"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", begin + "from app.logs import *\n" + script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == ""
    return done


def test_everybody_logs_in_one_shape_to_standard_error() -> None:
    script = """
configure_logging("json", "info")
configure_logging("json", "info")  # a second application
logging.getLogger("uvicorn.error").info("ours %s", 1, extra={"request_id": "abc", "secret": 5})
logging.getLogger("some.library").warning("theirs")
logging.getLogger("some.library").info("nobody wants to know")
logging.getLogger("uvicorn.access").info('%s - "%s %s HTTP/%s" %d', "10.0.0.1:5", "GET", "/a?user_id=7", "1.1", 200)
try:
    1 / 0
except ZeroDivisionError:
    logging.getLogger("uvicorn.error").exception("failed\\n")
"""
    ours, theirs, failed = parsed(run(script).stderr.splitlines())
    for line in (ours, theirs, failed):
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("timestamp"))
    assert ours == {"level": "info", "event": "ours 1", "request_id": "abc"}
    assert theirs == {"level": "warning", "event": "theirs", "logger": "some.library"}
    assert (failed["level"], failed["event"]) == ("error", "failed")
    assert failed["exception"].startswith("Traceback (most recent call last)")
    assert failed["exception"].endswith("ZeroDivisionError: division by zero")


@pytest.mark.parametrize(
    ("level", "written"),
    [
        ("debug", ["debug", "info", "warning", "error", "request", "probe"]),
        ("info", ["info", "warning", "error", "request"]),
        ("warning", ["warning", "error"]),
        ("error", ["error"]),
    ],
)
def test_the_level_says_what_is_written(level: str, written: list[str]) -> None:
    script = f"""
configure_logging("text", {level!r})
for name in ("debug", "info", "warning", "error"):
    getattr(logging.getLogger("uvicorn.error"), name)(name)
answered = {{"version": "v1", "source": "als", "cache": "local", "user_id": 77}}
log_request(b"request", "GET", "/users/{{user_id}}", 200, 0.0015, answered, "/users/77")
log_request(b"probe", "GET", "/livez", 200, 0.0005, {{}}, "/livez", quietly=True)
assert answered["user_id"] == 77
"""
    lines = run(script).stderr.splitlines()
    assert all(LINE.fullmatch(line) for line in lines)
    names = [match[1] if (match := re.search(r"request_id=(\w+)", line)) else line.split()[-1] for line in lines]
    assert names == written
    if level != "debug":
        assert "77" not in "".join(line.split(" ", 1)[1] for line in lines)


def test_the_line_of_a_request_says_how_it_went() -> None:
    script = """
answered = {"version": "v1", "source": "als", "cache": "local", "user_id": 77}
for level in ("info", "debug"):
    configure_logging("json", level)
    log_request(b"abc", "GET", "/users/{user_id}", 200, 0.0015, answered, "/users/77")
"""
    brief, full = parsed(run(script).stderr.splitlines())
    assert list(brief)[:2] == ["timestamp", "level"]
    del brief["timestamp"], full["timestamp"]
    assert brief == {
        "level": "info",
        "event": "request",
        "request_id": "abc",
        "method": "GET",
        "route": "/users/{user_id}",
        "status": 200,
        "ms": 1.5,
        "version": "v1",
        "source": "als",
        "cache": "local",
    }
    assert full == {**brief, "user_id": 77, "path": "/users/77"}


def test_without_a_level_it_is_the_one_that_uvicorn_was_told() -> None:
    script = """
logging.getLogger("uvicorn.error").setLevel("WARNING")
configure_logging("text")
logging.getLogger("uvicorn.error").info("no")
log_request(b"no", "GET", "/", 200, 1.0, {}, "/")
logging.getLogger("uvicorn.error").warning("yes")
"""
    [line] = run(script).stderr.splitlines()
    assert line.endswith("WARNING yes")


def test_a_configuration_of_the_operators_own_is_left_alone() -> None:
    script = """
logging.getLogger("uvicorn").handlers[0].setFormatter(logging.Formatter("mine %(message)s"))
configure_logging("json", "info")
logging.getLogger("uvicorn.error").info("hello")
"""
    assert run(script).stderr == "mine hello\n"


def test_a_line_that_nobody_reads_any_more_fails_nothing() -> None:
    script = """
import os, sys
configure_logging("json", "info")
end, other = os.pipe()
os.dup2(other, 2)
os.close(other), os.close(end)
for _ in range(3):
    log_request(b"abc", "GET", "/", 200, 1.0, {}, "/")
os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
"""
    run(script)


# --- a real server


def ask(tiny: Tiny) -> None:
    assert tiny.client.get("/lists/4711?user_id=4712", headers={"X-Request-ID": "mine"}).status_code == 200
    assert tiny.client.get("/nothing%0A%1B[31m/4713?user_id=4714", headers={"X-Request-ID": "a b"}).status_code == 404
    assert tiny.client.get("/fail").status_code == 500
    assert tiny.client.get("/livez").status_code == 200


def test_a_server_that_logs_json_logs_nothing_else(tmp_path: Path) -> None:
    with serving(tmp_path, TINY_FORMAT="json") as tiny:
        ask(tiny)
        tiny.stop()
        lines = parsed(tiny.lines())
    events = [line["event"] for line in lines]
    assert events[0].startswith("Started server process")
    assert events[-1].startswith("Finished server process")
    good, unknown, fault = requests(tiny.lines())
    assert (good["request_id"], good["route"], good["status"], good["cache"]) == (
        "mine",
        "/lists/{user_id}",
        200,
        "local",
    )
    assert 0 < good["ms"] < 10_000
    assert (unknown["route"], unknown["status"]) == ("unmatched", 404)
    assert re.fullmatch(r"[0-9a-f]{12}-[0-9a-f]+", unknown["request_id"])
    assert unknown["request_id"] != fault["request_id"]
    [error] = [line for line in lines if line["level"] == "error"]
    assert error["request_id"] == fault["request_id"]
    assert fault["request_id"] in error["event"]
    assert 'RuntimeError("boom' in error["exception"]
    text = tiny.log.read_text()
    for personal in ("4711", "4712", "4713", "4714", "127.0.0.1:", "user_id="):
        assert personal not in text.replace(f"on {tiny.url} ", "")


def test_a_server_that_logs_text_logs_a_line_each(tmp_path: Path) -> None:
    with serving(tmp_path, TINY_LEVEL="debug") as tiny:
        ask(tiny)
        tiny.stop()
        lines = tiny.lines()
    beginnings = [line for line in lines if not line.startswith("    ")]
    assert all(LINE.fullmatch(line) for line in beginnings)
    assert sum(" request request_id=" in line for line in beginnings) >= 4
    assert r"    2026-01-01 ERROR forged \x1b[31m" in lines
    assert all(line.startswith("    ") for line in lines if "forged" in line)
    assert any(r"path=/nothing\n\x1b[31m/4713" in line for line in beginnings)
    assert any(" user_id=4711 " in line and " DEBUG " not in line for line in beginnings)
    assert any(" DEBUG " in line and "route=/livez" in line for line in beginnings)


# A killed process may have answered the last request, and not yet written what it did.
@pytest.mark.parametrize(("how", "n_lines"), [(signal.SIGTERM, {50}), (signal.SIGKILL, {49, 50})])
def test_no_line_is_lost_however_the_process_ends(tmp_path: Path, how: signal.Signals, n_lines: set[int]) -> None:
    with serving(tmp_path, TINY_FORMAT="json") as tiny:
        for _ in range(50):
            tiny.client.get("/lists/1")
        tiny.stop(how)
        assert len(requests(tiny.lines())) in n_lines
