"""Errors as RFC 9457 ``application/problem+json``: domain errors, validation, routing and faults."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from app.errors import (
    ArtifactError,
    RecommenderError,
    UnknownUserError,
    UnknownVersionError,
    UnwritableError,
    VersionRefusedError,
)
from app.schemas import Problem

MEDIA_TYPE = "application/problem+json"
# By the last part of their type; the first kind of an error that fits is what it becomes.
_OF_ERRORS: dict[str, type[RecommenderError]] = {
    "unknown-user": UnknownUserError,
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
    "unknown-version": HTTPStatus.NOT_FOUND,
    "version-refused": HTTPStatus.CONFLICT,
    "artifacts-unwritable": HTTPStatus.SERVICE_UNAVAILABLE,
    "no-model": HTTPStatus.SERVICE_UNAVAILABLE,
}
_REFUSAL = "HTTPValidationError"  # FastAPI's own, which nobody is answered with here
UNAUTHORIZED = "expected the header Authorization: Bearer followed by the token that RECS_ADMIN_TOKEN holds"
ADMIN_DISABLED = (
    "nobody may do this, because no token is configured; start the service with the environment variable "
    "RECS_ADMIN_TOKEN set to a long random text, and send it: Authorization: Bearer TEXT"
)
_EXAMPLES = {
    "invalid-parameter": "k: expected a whole number from 1 to 100, in decimal digits, got '0'",
    "unauthorized": UNAUTHORIZED,
    "admin-disabled": ADMIN_DISABLED,
    "unknown-user": str(UnknownUserError(999_999)),
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


def install(app: FastAPI) -> None:
    """Make every error of the application a problem, and describe problems in its OpenAPI document."""
    app.add_exception_handler(RecommenderError, _on_domain_error)
    app.add_exception_handler(AccessError, _on_no_access)
    app.add_exception_handler(RequestValidationError, _on_invalid_parameter)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(Exception, _on_fault)
    describe = app.openapi

    def describe_with_problems() -> dict[str, Any]:
        """FastAPI lists only the schemas of JSON answers, and would document ours as application/json."""
        document = describe()
        for operations in document["paths"].values():
            for operation in operations.values():
                if _REFUSAL in str(operation["responses"].get("422")):
                    del operation["responses"]["422"]  # a path that takes any text
        problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
        for name in (_REFUSAL, "ValidationError"):
            document["components"]["schemas"].pop(name, None)
        document["components"]["schemas"] |= {**problem.pop("$defs"), "Problem": problem}
        return document

    app.openapi = describe_with_problems  # type: ignore[method-assign]


async def _on_domain_error(_request: Request, error: Exception) -> JSONResponse:
    for kind, of in _OF_ERRORS.items():
        if isinstance(error, of):
            version = error.version if isinstance(error, UnknownUserError) else None
            return _problem(_STATUS[kind], str(error), kind=kind, version=version)
    raise error


async def _on_no_access(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, AccessError)
    headers = {"WWW-Authenticate": "Bearer"} if error.kind == "unauthorized" else None
    return _problem(_STATUS[error.kind], str(error), kind=error.kind, headers=headers)


async def _on_invalid_parameter(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    found = [
        {
            "parameter": str(entry["loc"][-1]),
            "in": str(entry["loc"][0]),
            "detail": str(entry["msg"]).removeprefix("Value error, "),
        }
        for entry in error.errors()
    ]
    detail = "; ".join(f"{entry['parameter']}: {entry['detail']}" for entry in found)
    return _problem(HTTPStatus.UNPROCESSABLE_ENTITY, detail, kind="invalid-parameter", errors=found)


async def _on_http_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    status = HTTPStatus(error.status_code)
    detail = (
        str(error.detail) if error.detail != status.phrase else f"{status.phrase}. The endpoints are listed at /docs"
    )
    return _problem(status, detail, headers=error.headers)


async def _on_fault(_request: Request, _error: Exception) -> JSONResponse:
    # The server logs the traceback; the caller learns nothing about our insides.
    return _problem(HTTPStatus.INTERNAL_SERVER_ERROR, "The service failed on this request; its log says why.")


def _problem(
    status: HTTPStatus,
    detail: str,
    *,
    kind: str | None = None,
    headers: Mapping[str, str] | None = None,
    **members: Any,
) -> JSONResponse:
    """Answer with a problem; ``members`` are further ones of ``Problem``."""
    body = _describe(status, detail, kind=kind, **members)
    return JSONResponse(body, status, headers=dict(headers or {}), media_type=MEDIA_TYPE)


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
