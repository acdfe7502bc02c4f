"""Errors as RFC 9457 ``application/problem+json``: domain errors, validation, routing and faults."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from app.errors import (
    ArtifactError,
    RecommenderError,
    UnknownGenreError,
    UnknownMovieError,
    UnknownUserError,
    UnknownVersionError,
    UnwritableError,
    VersionRefusedError,
)
from app.routers.parameters import COMMA_SEPARATED, refusal
from app.schemas import Problem

MEDIA_TYPE = "application/problem+json"
# By the last part of their type; the first kind of an error that fits is what it becomes.
_OF_ERRORS: dict[str, type[RecommenderError]] = {
    "unknown-user": UnknownUserError,
    "unknown-movie": UnknownMovieError,
    "unknown-version": UnknownVersionError,
    "version-refused": VersionRefusedError,
    "artifacts-unwritable": UnwritableError,
    "no-model": ArtifactError,
}
_STATUS = {
    "invalid-parameter": HTTPStatus.UNPROCESSABLE_ENTITY,
    "unauthorized": HTTPStatus.UNAUTHORIZED,
    "admin-disabled": HTTPStatus.FORBIDDEN,
    "unknown-user": HTTPStatus.NOT_FOUND,
    "unknown-movie": HTTPStatus.NOT_FOUND,
    "unknown-version": HTTPStatus.NOT_FOUND,
    "version-refused": HTTPStatus.CONFLICT,
    "artifacts-unwritable": HTTPStatus.SERVICE_UNAVAILABLE,
    "no-model": HTTPStatus.SERVICE_UNAVAILABLE,
    "overloaded": HTTPStatus.SERVICE_UNAVAILABLE,
    "too-large": HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    "too-slow": HTTPStatus.REQUEST_TIMEOUT,
    "uri-too-long": HTTPStatus.REQUEST_URI_TOO_LONG,
}
_MAX_NAME = 40  # characters of a member's name, which the caller wrote
_REMEDIES = {  # by Pydantic's type of error, where its own words do not help
    "json_invalid": "expected JSON",
    "model_attributes_type": "expected a JSON object, sent with the header Content-Type: application/json",
}
_RETRY_AFTER = {
    "Retry-After": {"description": "Seconds, where too much is asked at a time.", "schema": {"type": "integer"}}
}
FAULT = "The service failed on this request; its log says why."
_REFUSAL = "HTTPValidationError"  # FastAPI's own, which nobody is answered with here
UNAUTHORIZED = "expected the header Authorization: Bearer followed by the token that RECS_ADMIN_TOKEN holds"
ADMIN_DISABLED = (
    "nobody may do this, because no token is configured; start the service with the environment variable "
    "RECS_ADMIN_TOKEN set to a long random text, and send it: Authorization: Bearer TEXT"
)
LIMITS = {  # what the edge says, which fills in numbers
    "too-large": "the request's body is too large, expected at most {} bytes; split it into several requests",
    "uri-too-long": "the query string has {} bytes, expected at most {}; name fewer ids",
    "overloaded": "this process is working on {} requests, as many as it takes at once; ask again after the seconds "
    "that Retry-After says",
}
_EXAMPLES = {
    "invalid-parameter": "k: expected a whole number from 1 to 100, in decimal digits, got '0'",
    "unauthorized": UNAUTHORIZED,
    "admin-disabled": ADMIN_DISABLED,
    "unknown-user": str(UnknownUserError(999_999)),
    "unknown-movie": str(UnknownMovieError(999_999)),
    "overloaded": LIMITS["overloaded"].format(256),
    "too-slow": "expected the whole body within 10 s; send it again, at once",
    "uri-too-long": LIMITS["uri-too-long"].format(61_000, 60_000),
    "too-large": LIMITS["too-large"].format(1_048_576),
    "unknown-version": str(UnknownVersionError("20200101T000000Z-00000000")),
    "version-refused": "nothing to roll back to: no version was active before 20261123T101500Z-1a2b3c4d that is intact",
    "artifacts-unwritable": "cannot write to artifacts: [Errno 30] Read-only file system: 'artifacts/.lock'",
    "no-model": "no model is loaded: no model is published in artifacts; make one: python train_als.py; this service "
    "looks again every 5 s",
}


class AccessError(Exception):
    """Somebody may not do what they asked for; ``kind`` is "unauthorized" or "admin-disabled"."""

    def __init__(self, kind: str) -> None:
        super().__init__(_EXAMPLES[kind])
        self.kind = kind


def responses(*kinds: str) -> dict[int | str, dict[str, Any]]:
    """Describe problem responses, by kind, for an endpoint's OpenAPI entry; of one status the last is the example."""
    return {
        int(_STATUS[kind]): {
            "description": _STATUS[kind].phrase,
            "content": {
                MEDIA_TYPE: {
                    "schema": {"$ref": "#/components/schemas/Problem"},
                    "example": _describe(_STATUS[kind], _EXAMPLES[kind], kind=kind),
                }
            },
        }
        for kind in kinds
    }


async def answer(request: Request, error: Exception) -> Response:
    """Answer with the problem that one of the ``EXPECTED`` errors is."""
    for of, handler in _HANDLERS.items():
        if isinstance(error, of):
            return await handler(request, error)
    raise error


def install(app: FastAPI) -> None:
    """Make every error of the application a problem, and describe problems in its OpenAPI document."""
    for expected in EXPECTED:
        app.add_exception_handler(expected, answer)
    app.add_exception_handler(Exception, _on_fault)
    describe = app.openapi

    def describe_with_problems() -> dict[str, Any]:
        """FastAPI lists only the schemas of JSON answers, and would document ours as application/json."""
        document = describe()
        for operations in document["paths"].values():
            for operation in operations.values():
                for parameter in operation.get("parameters", ()):
                    if parameter["name"] in COMMA_SEPARATED:  # for which FastAPI has no word
                        parameter |= {"style": "form", "explode": False}
                    if examples := parameter["schema"].pop("examples", None):  # where Swagger UI does not look
                        parameter["example"] = examples[0]
                if _REFUSAL in str(operation["responses"].get("422")):
                    del operation["responses"]["422"]  # a path that takes any text
                _describe_limits(operation)
        problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
        for name in (_REFUSAL, "ValidationError"):
            document["components"]["schemas"].pop(name, None)
        document["components"]["schemas"] |= {**problem.pop("$defs"), "Problem": problem}
        return document

    app.openapi = describe_with_problems  # type: ignore[method-assign]


def _describe_limits(operation: dict[str, Any]) -> None:
    """Add what the edge may answer in place of any endpoint."""
    limits = ["too-large", "uri-too-long", "invalid-parameter", "overloaded"]
    if "requestBody" in operation:
        limits.append("too-slow")
    for status, described in responses(*limits).items():
        operation["responses"].setdefault(str(status), described)
    operation["responses"]["503"]["headers"] = _RETRY_AFTER


async def _on_domain_error(request: Request, error: Exception) -> Response:
    if isinstance(error, UnknownGenreError):  # which only the model could tell
        place = "query" if request.method in ("GET", "HEAD") else "body"
        return await _on_invalid_parameter(request, refusal("genre", str(error), place))
    for kind, of in _OF_ERRORS.items():
        if isinstance(error, of):
            version = error.version if isinstance(error, UnknownUserError) else None
            return _problem(_STATUS[kind], str(error), kind=kind, version=version)
    raise error


async def _on_no_access(_request: Request, error: Exception) -> Response:
    assert isinstance(error, AccessError)
    headers = {"WWW-Authenticate": "Bearer"} if error.kind == "unauthorized" else None
    return _problem(_STATUS[error.kind], str(error), kind=error.kind, headers=headers)


async def _on_invalid_parameter(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first: dict[tuple[str, str], str] = {}  # of a thousand bad ids one is enough
    for entry in error.errors():
        first.setdefault(_where(*entry["loc"]), _what(entry))
    found = [{"parameter": name, "in": place, "detail": detail} for (place, name), detail in first.items()]
    detail = "; ".join(f"{entry['parameter']}: {entry['detail']}" for entry in found)
    return _problem(HTTPStatus.UNPROCESSABLE_ENTITY, detail, kind="invalid-parameter", errors=found)


def _where(place: str, name: str | int = 0, *_entry: int) -> tuple[str, str]:
    """Return place and name of a parameter; of a body that is no JSON object the position would be no name."""
    return place, name[:_MAX_NAME] if isinstance(name, str) else place


def _what(entry: Mapping[str, Any]) -> str:
    detail = _REMEDIES.get(entry.get("type", ""), str(entry["msg"]).removeprefix("Value error, "))
    _, *path = entry["loc"]
    return f"entry {path[1]}: {detail}" if len(path) > 1 else detail


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    status = HTTPStatus(error.status_code)
    if status is HTTPStatus.BAD_REQUEST:  # FastAPI's word for bytes that no JSON can be made of
        return await _on_invalid_parameter(request, refusal("body", _REMEDIES["json_invalid"], "body"))
    detail = (
        str(error.detail) if error.detail != status.phrase else f"{status.phrase}. The endpoints are listed at /docs"
    )
    kind = "too-slow" if status is HTTPStatus.REQUEST_TIMEOUT else None
    return _problem(status, detail, kind=kind, headers=error.headers)


_HANDLERS: dict[type[Exception], Callable[[Request, Exception], Awaitable[Response]]] = {
    RecommenderError: _on_domain_error,
    AccessError: _on_no_access,
    RequestValidationError: _on_invalid_parameter,
    HTTPException: _on_http_error,
}
EXPECTED = tuple(_HANDLERS)


async def _on_fault(_request: Request, _error: Exception) -> Response:
    # The log has the traceback; the caller learns nothing about our insides.
    return _problem(HTTPStatus.INTERNAL_SERVER_ERROR, FAULT)


def _problem(
    status: HTTPStatus,
    detail: str,
    *,
    kind: str | None = None,
    headers: Mapping[str, str] | None = None,
    **members: Any,
) -> Response:
    """Answer with a problem."""
    body = problem_body(status, detail, kind=kind, **members)
    return Response(body, status, headers=dict(headers or {}), media_type=MEDIA_TYPE)


def problem_body(status: HTTPStatus, detail: str, *, kind: str | None = None, **members: Any) -> bytes:
    """Return the JSON of a problem; ``members`` are further ones of ``Problem``."""
    problem = _describe(status, detail, kind=kind, **members)
    return json.dumps(problem, ensure_ascii=False, separators=(",", ":")).encode()


def _describe(status: HTTPStatus, detail: str, *, kind: str | None = None, **members: Any) -> dict[str, Any]:
    problem = Problem.model_validate(
        {
            "type": f"urn:movie-recommender:problem:{kind}" if kind else "about:blank",
            "title": kind.replace("-", " ").capitalize() if kind else status.phrase,
            "status": status,
            "detail": detail,
            **members,
        }
    )
    return problem.model_dump(exclude_none=True, by_alias=True)
