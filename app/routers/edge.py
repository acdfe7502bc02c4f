"""The outermost layer of the service: what holds for every request, whoever answers it.

``server ─▶ Edge ─▶ (CORS) ─▶ QuickLane ─▶ routers``. It names the request, refuses what is too large or too much,
bounds how many are worked on at once, adds security headers, turns what nobody caught into a problem, and counts, times
and logs how it went. It does not look at what is asked; handlers tell it what they answered in the dict
``scope["recs"]``: ``version``, ``source``, ``cache`` ("local", "shared" or "miss") and ``user_id``.

All of this costs a few µs per request: no context variables, no copies, one object per request.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import re
from base64 import b64encode
from collections.abc import Awaitable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from itertools import count
from time import perf_counter
from typing import Any

from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.logs import log_request
from app.routers.problems import FAULT, LIMITS, MEDIA_TYPE, problem_body
from app.routers.quick import path_of
from app.telemetry import Telemetry

MAX_QUERY_BYTES = 60_000  # 500 liked and 1,000 excluded ids of 19 digits, each in a parameter of its own, are 41,000
MAX_PARAMETERS = 2_000
PROBES = frozenset({"/livez", "/readyz", "/health", "/metrics"})  # an overloaded service still answers these
UNMATCHED = "unmatched"
CALLER_LEFT = 499  # nginx's word for it; nobody is answered with it

READ_SECONDS = 10.0  # for a body to arrive
_LINGER_SECONDS = 2.0  # for the rest of a body that is too large
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_INLINE_SCRIPT = re.compile(rb"<script>(.*?)</script>", re.DOTALL)
_PAGES = ("/docs", "/docs/oauth2-redirect", "/redoc")
_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
)
_POLICY = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")
# Swagger UI and ReDoc set styles from scripts, draw with data: pictures, and search in a worker made from a blob.
_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'{hashes}; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "font-src data:; connect-src 'self'; worker-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
log = logging.getLogger("uvicorn.error")


class Edge:
    """ASGI middleware around the whole application.

    Parameters
    ----------
    app : ASGIApp
    telemetry : Telemetry
    max_body_bytes : int
        Longest body of a request; 413 beyond it.
    max_concurrency : int
        Most requests that this process works on at the same time, probes aside; 503 beyond it. Those with a body are
        counted by themselves: who is slow to send one must not keep out those who only ask.
    cors_origins : sequence of str
        Whose pages may call the service from a browser, "*" for everybody's; none may by default. It is answered here,
        so that a page can also read what the edge refuses.
    paths : collection of str
        Of routes without parameters: what is refused before it comes to a route counts as theirs.
    """

    def __init__(
        self,
        app: ASGIApp,
        telemetry: Telemetry,
        *,
        max_body_bytes: int,
        max_concurrency: int,
        cors_origins: Sequence[str] = (),
        paths: Collection[str] = (),
    ) -> None:
        self._cors: dict[str, Any] | None = None
        if cors_origins:
            self._cors = {
                "allow_origins": list(cors_origins),
                "allow_methods": ["GET", "POST"],
                "allow_headers": ["X-Request-ID"],
                "expose_headers": ["X-Request-ID", "Retry-After"],
            }
        self._app = self._with_cors(app)
        self._telemetry = telemetry
        self._paths = paths
        self._max_body_bytes = max_body_bytes
        self._max_concurrency = max_concurrency
        self._n_working = [0, 0]  # without a body, and with one
        self._prefix = os.urandom(6).hex().encode()  # made in the worker: an application is wrapped when it starts
        self._next = count(1).__next__

    def _with_cors(self, app: ASGIApp) -> ASGIApp:
        return CORSMiddleware(app, **self._cors) if self._cors else app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; other scopes pass through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = perf_counter()
        headers = dict(scope["headers"])
        has_body = b"content-length" in headers or b"transfer-encoding" in headers
        path = path_of(scope)
        request_id = headers.get(b"x-request-id")
        if request_id is None or not _REQUEST_ID.fullmatch(request_id):
            request_id = b"%b-%x" % (self._prefix, self._next())
        exchange = _EXCHANGES.get(path, _Exchange)(receive, send, request_id, self._max_body_bytes)
        scope["recs"] = {}
        is_probe = path in PROBES
        try:
            is_full = self._n_working[has_body] >= self._max_concurrency and not is_probe
            refusal = self._refusal(scope, headers, is_full)
            if refusal:
                await self._refuse(refusal, scope, exchange)
            elif is_probe:
                await self._app(scope, exchange.receive, exchange.send)
            else:  # it takes one of the places meanwhile
                numbers, at = self._telemetry.in_flight
                self._n_working[has_body] += 1
                numbers[at] = sum(self._n_working)
                try:
                    await self._app(scope, exchange.receive, exchange.send)
                finally:
                    self._n_working[has_body] -= 1
                    numbers[at] = sum(self._n_working)
            if exchange.is_too_large:
                await self._refuse_body(scope, exchange)
        except Exception as error:  # the server would log it without the request's id
            await self._fail(error, scope, exchange)
        finally:
            self._record(scope, path, is_probe, exchange, perf_counter() - began)

    def _refusal(self, scope: Scope, headers: Mapping[bytes, bytes], is_full: bool) -> _Refusal | None:
        """Say why a request is not to be worked on, before anything is read of it."""
        length = headers.get(b"content-length")
        if length is not None and _is_above(length, self._max_body_bytes):
            # Who expects to be told whether to send the body has not sent it.
            return _too_large(self._max_body_bytes, lingers=b"expect" not in headers)
        query: bytes = scope["query_string"]
        if len(query) > MAX_QUERY_BYTES:
            return _too_long(len(query))
        if query.count(b"&") >= MAX_PARAMETERS:
            return _too_many(query.count(b"&") + 1)
        if is_full:
            return _overloaded(self._max_concurrency)
        return None

    async def _refuse(self, refusal: _Refusal, scope: Scope, exchange: _Exchange) -> None:
        self._telemetry.count_refusal(refusal.reason)
        await self._with_cors(refusal)(scope, exchange.rest, exchange.send)

    async def _refuse_body(self, scope: Scope, exchange: _Exchange) -> None:
        """Refuse what turned out to be too large; whatever the application made of it has been dropped."""
        if exchange.status == 0:
            exchange.is_too_large = False
            await self._refuse(_too_large(self._max_body_bytes, lingers=True), scope, exchange)

    async def _fail(self, error: Exception, scope: Scope, exchange: _Exchange) -> None:
        """Make of an error that nobody caught a problem, and one entry in the log."""
        if exchange.is_too_large:
            await self._refuse_body(scope, exchange)
            return
        if not isinstance(error, ClientDisconnect):
            route, method, request_id = _template(scope, UNMATCHED), scope["method"], exchange.request_id.decode()
            extra = {"request_id": request_id, "method": method, "route": route}
            log.error("%s %s failed, request %s", method, route, request_id, exc_info=error, extra=extra)
        if not (exchange.status or exchange.is_gone):
            status = HTTPStatus.INTERNAL_SERVER_ERROR
            fault = _Refusal(status, "fault", problem_body(status, FAULT))
            await self._with_cors(fault)(scope, exchange.rest, exchange.send)

    def _record(self, scope: Scope, path: str, is_probe: bool, exchange: _Exchange, seconds: float) -> None:
        """Count and log how it went."""
        status = exchange.status or (CALLER_LEFT if exchange.is_gone else 500)
        if exchange.is_gone:
            self._telemetry.count_disconnect()
        route, method = _template(scope, path), scope["method"]
        if route == UNMATCHED and path in self._paths:
            route = path
        self._telemetry.count_request(route, method, status, seconds)
        log_request(exchange.request_id, method, route, status, seconds, scope["recs"], path, quietly=is_probe)


class _Exchange:
    """One request and its answer, as they pass: counts the one, adds headers to the other, and keeps what became of it.

    ``status`` is 0 until an answer has begun; ``is_gone`` says that the caller left before its end.
    """

    status = 0
    is_complete = is_gone = is_too_large = _is_read = False
    _deadline: float | None = None
    policy = _POLICY

    def __init__(self, receive: Receive, send: Send, request_id: bytes, max_body_bytes: int) -> None:
        self.rest = receive  # without a limit: for who discards it
        self._send = send
        self.request_id = request_id
        self._n_left = max_body_bytes

    async def receive(self) -> Message:
        """Hand on a piece of the request.

        Raises
        ------
        HTTPException
            413 when the body has grown beyond its limit. Whatever the application makes of it is not sent. 408 when it
            is not there in time: it would keep its place among the requests that are worked on, and hold up a shutdown.
        """
        message = await (self.rest() if self._is_read else self._receive_in_time())
        if message["type"] == "http.request":
            self._is_read = not message.get("more_body")
            self._n_left -= len(message.get("body", b""))
            if self._n_left < 0:
                self.is_too_large = True
                raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        elif not self.is_complete:
            self.is_gone = True
        return message

    async def _receive_in_time(self) -> Message:
        if self._deadline is None:
            self._deadline = asyncio.get_running_loop().time() + READ_SECONDS
        try:
            async with asyncio.timeout_at(self._deadline):
                return await self.rest()
        except TimeoutError:
            detail = f"expected the whole body within {READ_SECONDS:g} s; send it again, at once"
            raise HTTPException(HTTPStatus.REQUEST_TIMEOUT, detail, {"Connection": "close"}) from None

    def send(self, message: Message) -> Awaitable[None]:
        """Hand on a piece of the answer."""
        if message["type"] == "http.response.start":
            if self.is_too_large:
                return _nothing()
            if not self.is_gone:
                self.status = message["status"]
            ours = (*_HEADERS, self.policy, (b"x-request-id", self.request_id))
            message["headers"] = [*message.get("headers", ()), *ours]
        elif self.is_too_large and not self.status:
            return _nothing()
        elif not message.get("more_body"):
            self.is_complete = True
        return self._send(message)


class _PageExchange(_Exchange):
    """A page of the documentation: its policy names its inline scripts by their hashes, so it is made from the body."""

    _start: Message | None = None

    def send(self, message: Message) -> Awaitable[None]:
        """Hand on the answer; its start waits for the page."""
        if message["type"] == "http.response.start":
            self._start = message
            return _nothing()
        return self._send_page(message)

    async def _send_page(self, message: Message) -> None:
        start, self._start = self._start, None
        if start:
            self.policy = (b"content-security-policy", _policy_of(message.get("body", b"")))
            await super().send(start)
        await super().send(message)


_EXCHANGES: dict[str, type[_Exchange]] = dict.fromkeys(_PAGES, _PageExchange)


def _policy_of(page: bytes) -> bytes:
    digests = (b64encode(hashlib.sha256(script).digest()).decode() for script in _INLINE_SCRIPT.findall(page))
    return _PAGE_POLICY.format(hashes="".join(f" 'sha256-{digest}'" for digest in digests)).encode()


async def _nothing() -> None:
    """Drop a message."""


def _template(scope: Scope, path: str) -> str:
    """Return the route that answered, as it was declared: never what the caller wrote in its place.

    ``path`` is returned where a plain route took it that has no parameters, and which does not name itself.
    """
    route = scope.get("route")
    if route is not None:
        return getattr(route, "path", UNMATCHED)
    if "endpoint" not in scope:
        return UNMATCHED
    if "app_root_path" in scope:  # inside a mounted application
        return str(scope["root_path"].removeprefix(scope["app_root_path"])) or "/"
    return UNMATCHED if scope.get("path_params") else path  # a plain route, which is its own template


@dataclass(frozen=True)
class _Refusal:
    """A problem as an ASGI application.

    Where a body is not to be read, the connection ends with the answer. To close it with bytes unread would reset it,
    which may cost the caller the answer, so the rest is discarded for a while: ``lingers``.
    """

    status: HTTPStatus
    reason: str
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ()
    lingers: bool = False

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", MEDIA_TYPE.encode()), (b"content-length", b"%d" % len(self.body)), *self.headers]
        await send({"type": "http.response.start", "status": int(self.status), "headers": headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": self.lingers})
        if self.lingers:
            await _discard(receive)
            await send({"type": "http.response.body", "body": b""})


async def _discard(receive: Receive) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(_LINGER_SECONDS):
            while (await receive()).get("more_body"):
                pass


def _is_above(length: bytes, limit: int) -> bool:
    """Compare a Content-Length; what is none is the server's business, and of what follows the bytes are counted."""
    digits = length.lstrip(b"0")
    return length.isdigit() and (len(digits), digits) > (len(str(limit)), str(limit).encode())


def _too_large(max_body_bytes: int, *, lingers: bool) -> _Refusal:
    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    body = problem_body(status, LIMITS["too-large"].format(max_body_bytes), kind="too-large")
    return _Refusal(status, "too-large", body, ((b"connection", b"close"),), lingers)


def _too_long(n_bytes: int) -> _Refusal:
    detail = LIMITS["uri-too-long"].format(n_bytes, MAX_QUERY_BYTES)
    status = HTTPStatus.REQUEST_URI_TOO_LONG
    return _Refusal(status, "uri-too-long", problem_body(status, detail, kind="uri-too-long"))


def _too_many(n_parameters: int) -> _Refusal:
    found = f"expected at most {MAX_PARAMETERS} parameters, got {n_parameters}; list ids in one, separated by commas"
    status, errors = HTTPStatus.UNPROCESSABLE_ENTITY, [{"parameter": "query", "in": "query", "detail": found}]
    body = problem_body(status, f"query: {found}", kind="invalid-parameter", errors=errors)
    return _Refusal(status, "too-many-parameters", body)


def _overloaded(max_concurrency: int) -> _Refusal:
    detail = LIMITS["overloaded"].format(max_concurrency)
    status = HTTPStatus.SERVICE_UNAVAILABLE
    return _Refusal(status, "overloaded", problem_body(status, detail, kind="overloaded"), ((b"retry-after", b"1"),))
