"""What is written about the work: one line per request, and what the modules and libraries log, in one shape.

``routers.edge ─▶ log_request``; everything else goes through the standard library's loggers, which
``configure_logging`` leads into the same renderer. All of it goes to standard error: there uvicorn's supervisor writes
what it logs before any application is loaded, so that a service has one log in one order. A line is handed to the
system as soon as it is made, so none is lost however the process ends.

Nothing personal is written: no address, no query string, no path (it may name a user) but the route's template. Level
"debug" adds the user's id and the path. What is counted is ``app.telemetry``'s business.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Mapping
from typing import BinaryIO, Literal, TypeAlias, cast

import structlog
from structlog.stdlib import ExtraAdder, ProcessorFormatter
from structlog.typing import EventDict, Processor

LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_EXTRAS = ("request_id", "method", "route")  # what our own messages may carry beside their text
_LIBRARIES = ("uvicorn", "uvicorn.error", "uvicorn.access")
_quote, _encode = json.encoder.encode_basestring_ascii, json.JSONEncoder(default=str).encode

Render: TypeAlias = Callable[[object, str, EventDict], str]  # a structlog processor: logger, level, event


class _Requests:
    """How request lines are written: not at all, until a server's logging is configured."""

    write: Callable[[str, EventDict], None] | None = None
    writes_all = False


def log_request(
    request_id: bytes,
    method: str,
    route: str,
    status: int,
    seconds: float,
    answered: Mapping[str, object],
    path: str,
    *,
    quietly: bool = False,
) -> None:
    """Write one request's line: at level info, or ``quietly`` at debug.

    Parameters
    ----------
    request_id : bytes
        In ASCII.
    route : str
        Its template.
    answered : mapping
        What the handler says of its answer: ``version``, ``source``, ``cache``, and ``user_id``.
    path : str
        Without the query string.
    """
    write = _Requests.write
    if write is None or (quietly and not _Requests.writes_all):
        return
    event: EventDict = {"event": "request", "request_id": request_id.decode(), "method": method, "route": route}
    event["status"], event["ms"] = status, round(seconds * 1000, 3)
    event.update(answered)
    if _Requests.writes_all:
        event["path"] = path
    else:
        event.pop("user_id", None)
    write("debug" if quietly else "info", event)


def configure_logging(log_format: LogFormat, level: LogLevel | None = None) -> None:
    """Lead everything that this process logs into one renderer, and write a line per request.

    Nothing happens in a process whose logging is not as uvicorn sets it up: a test, a command line, or a service whose
    operator gave a configuration of their own (``--log-config``). Uvicorn's access log falls silent: it would say less,
    and the address and query string of who asked.

    Parameters
    ----------
    level : str, optional
        The least that is written, of libraries only warnings and worse; if not given, what uvicorn was told.
    """
    handlers = [handler for name in _LIBRARIES for handler in logging.getLogger(name).handlers]
    if not handlers or not all(_is_known(handler.formatter) for handler in handlers):
        return
    threshold = _LEVELS[level] if level else logging.getLogger("uvicorn.error").getEffectiveLevel()
    render = _to_json if log_format == "json" else _to_text
    _adopt(_handler(render), threshold)
    _Requests.writes_all = threshold <= logging.DEBUG
    _Requests.write = _writer(render, sys.stderr.buffer) if threshold <= logging.INFO else None


def _is_known(formatter: logging.Formatter | None) -> bool:
    """Tell whether uvicorn, or this module before, made a formatter."""
    return isinstance(formatter, ProcessorFormatter) or type(formatter).__module__ == "uvicorn.logging"


def _writer(render: Render, stream: BinaryIO) -> Callable[[str, EventDict], None]:
    """Write request lines, each whole and at once, and never fail the request that one tells of.

    They go to the renderer directly: structlog's way there, through a bound logger, takes as long as the rendering.
    """
    put, flush = stream.write, stream.flush

    def write(level: str, event: EventDict) -> None:
        try:
            put(render(None, level, event).encode() + b"\n")
            flush()
        except (OSError, ValueError):  # nobody reads it any more
            pass

    return write


def _handler(render: Render) -> logging.Handler:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        ProcessorFormatter(
            foreign_pre_chain=[_add_origin, ExtraAdder(_EXTRAS), structlog.processors.format_exc_info],
            processors=[ProcessorFormatter.remove_processors_meta, cast(Processor, render)],
        )
    )
    return handler


def _adopt(handler: logging.Handler, threshold: int) -> None:
    """Give a handler to everybody, and take away what a server's own configuration gave."""
    for name in _LIBRARIES:
        logger = logging.getLogger(name)
        logger.handlers = []
        logger.setLevel(threshold)
        logger.propagate = name == "uvicorn.error"  # to uvicorn
    logging.getLogger("uvicorn").handlers = [handler]
    logging.getLogger().handlers = [handler]


def _add_origin(_logger: object, _level: str, event: EventDict) -> EventDict:
    """Say which library a message is from; most are uvicorn's and ours, which share a logger."""
    name = event["_record"].name
    if not name.startswith("uvicorn"):
        event["logger"] = name
    return event


class _Clock:
    """ISO 8601 in UTC, to the millisecond; the seconds are written once each."""

    def __init__(self) -> None:
        self._now = (0, "")

    def __call__(self) -> str:
        moment = time.time()
        second, text = self._now
        if second != int(moment):
            second = int(moment)
            text = time.strftime("%Y-%m-%dT%H:%M:%S.", time.gmtime(second))
            self._now = second, text
        return f"{text}{int((moment - second) * 1000):03}Z"


_now = _Clock()


def _to_json(_logger: object, level: str, event: EventDict) -> str:
    """Write one object on one line, in ASCII: no control character gets through."""
    line = f'{{"timestamp":"{_now()}","level":"{level}","event":{_quote(event.pop("event").rstrip())}'
    for name, value in event.items():
        kind = type(value)
        written = _quote(value) if kind is str else value if kind is int or kind is float else _encode(value)
        line += f',"{name}":{written}'
    return line + "}"


def _to_text(_logger: object, level: str, event: EventDict) -> str:
    """Write ``moment LEVEL message name=value …``, and below it a traceback, indented: it cannot pass for a line."""
    message, traceback = _plain(event.pop("event").rstrip()), event.pop("exception", None)
    line = f"{_now()} {level.upper():7} {message}"
    for name, value in event.items():
        text = _plain(str(value))
        line += f" {name}={_quote(text) if ' ' in text or '=' in text else text}"  # it cannot pass for two
    for each in traceback.splitlines() if traceback else ():
        line += f"\n    {_plain(each)}"
    return line


def _plain(text: str) -> str:
    """Write characters that would end the line, or steer a terminal, as Python would."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
