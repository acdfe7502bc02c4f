"""Errors as RFC 9457 ``application/problem+json``: domain errors, validation, routing and faults."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from app.errors import ArtifactError, RecommenderError, UnknownUserError
from app.schemas import Problem

MEDIA_TYPE = "application/problem+json"
_STATUS: dict[type[RecommenderError], tuple[HTTPStatus, str]] = {
    UnknownUserError: (HTTPStatus.NOT_FOUND, "unknown-user"),
    ArtifactError: (HTTPStatus.SERVICE_UNAVAILABLE, "no-model"),
}
_EXAMPLES = {
    HTTPStatus.NOT_FOUND: ("unknown-user", str(UnknownUserError(999_999))),
    HTTPStatus.UNPROCESSABLE_ENTITY: (
        "invalid-parameter",
        "k: expected a whole number from 1 to 100, in decimal digits, got '0'",
    ),
    HTTPStatus.SERVICE_UNAVAILABLE: (
        "no-model",
        "no model was loaded when the service started: no model is published in artifacts; "
        "make one: python train_als.py; then restart the service",
    ),
}


def responses(*statuses: HTTPStatus) -> dict[int | str, dict[str, Any]]:
    """Describe problem responses for an endpoint's OpenAPI entry."""
    return {
        int(status): {
            "description": status.phrase,
            "content": {
                MEDIA_TYPE: {
                    "schema": {"$ref": "#/components/schemas/Problem"},
                    "example": _describe(status, _EXAMPLES[status][1], kind=_EXAMPLES[status][0]),
                }
            },
        }
        for status in statuses
    }


def install(app: FastAPI) -> None:
    """Make every error of the application a problem, and describe problems in its OpenAPI document."""
    app.add_exception_handler(RecommenderError, _on_domain_error)
    app.add_exception_handler(RequestValidationError, _on_invalid_parameter)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(Exception, _on_fault)
    describe = app.openapi

    def describe_with_problems() -> dict[str, Any]:
        """FastAPI lists only the schemas of JSON answers, and would document ours as application/json."""
        document = describe()
        problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
        document["components"]["schemas"] |= {**problem.pop("$defs"), "Problem": problem}
        return document

    app.openapi = describe_with_problems  # type: ignore[method-assign]


async def _on_domain_error(_request: Request, error: Exception) -> JSONResponse:
    for kind, (status, name) in _STATUS.items():
        if isinstance(error, kind):
            return _problem(status, str(error), kind=name)
    raise error


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
    errors: list[dict[str, str]] | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    body = _describe(status, detail, kind=kind, errors=errors)
    return JSONResponse(body, status, headers=dict(headers or {}), media_type=MEDIA_TYPE)


def _describe(
    status: HTTPStatus, detail: str, *, kind: str | None = None, errors: list[dict[str, str]] | None = None
) -> dict[str, Any]:
    problem = Problem.model_validate(
        {
            "type": f"urn:movie-recommender:problem:{kind}" if kind else "about:blank",
            "title": kind.replace("-", " ").capitalize() if kind else status.phrase,
            "status": status,
            "detail": detail,
            "errors": errors,
        }
    )
    return problem.model_dump(exclude_none=True, by_alias=True)
