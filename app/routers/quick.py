"""Routes for answers that take microseconds: no more happens per request than has to.

``Edge ─▶ QuickLane ─▶ endpoints``; what it has no route for goes on to FastAPI. That tries one route after the other,
looks for each parameter by itself, calls each dependency, validates what an endpoint returns and encodes it: together
more than the answer costs. Here a dictionary finds the route, one Pydantic model takes all parameters at once, and the
endpoint returns bytes. FastAPI has the same routes, made of the same declarations, for its documentation and for every
request that is not a plain GET.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, get_origin, get_type_hints
from urllib.parse import parse_qsl

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import ValidationError
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from app.routers import problems
from app.routers.parameters import Parameters


class QuickRoute(APIRoute):
    """A route whose endpoint takes a request and ``Annotated[SomeQuery, fastapi.Query()]``, and returns a response."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        endpoint: Callable[[Request, Parameters], Awaitable[Response]] = self.endpoint
        (model,) = [
            hint
            for hint in get_type_hints(endpoint).values()
            if isinstance(hint, type) and issubclass(hint, Parameters)
        ]

        async def handle(request: Request) -> Response:
            return await endpoint(request, parse_query(model, request.scope["query_string"]))

        return handle


class QuickLane:
    """Middleware that answers GET requests to quick routes itself.

    Parameters
    ----------
    routes : sequence of QuickRoute
        Without parameters in their paths.
    """

    def __init__(self, app: ASGIApp, routes: Sequence[BaseRoute]) -> None:
        self._app = app
        self._routes = {
            route.path: (route, route.get_route_handler()) for route in routes if isinstance(route, QuickRoute)
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = self._routes.get(path_of(scope)) if scope["type"] == "http" and scope["method"] == "GET" else None
        if found is None:
            await self._app(scope, receive, send)
            return
        scope["route"], handle = found
        request = Request(scope, receive)
        try:
            response = await handle(request)
        except problems.EXPECTED as error:
            response = await problems.answer(request, error)
        await response(scope, receive, send)


def path_of(scope: Scope) -> str:
    """Return the path below the prefix that the server was told, where it has that."""
    path, root = scope["path"], scope.get("root_path", "")
    return str(path[len(root) :] if root and path.startswith(f"{root}/") else path)


def parse_query(model: type[Parameters], query_string: bytes) -> Parameters:
    """Parse a query string.

    Raises
    ------
    RequestValidationError
        Naming each parameter that cannot be used.
    """
    text = query_string.decode("latin-1")
    values: dict[str, Any] = {}
    repeatable = _REPEATABLE[model]
    for name, value in _pairs(text):
        if name in repeatable:
            values.setdefault(name, []).append(value)
        else:
            values[name] = value
    try:
        return model.model_validate(values)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)
        raise RequestValidationError([{**each, "loc": ("query", *each["loc"][:1])} for each in found]) from error


def _pairs(text: str) -> list[tuple[str, str]]:
    """Split into names and values, as ``parse_qsl`` does; most query strings have nothing that needs decoding."""
    if "%" in text or "+" in text:
        return parse_qsl(text, keep_blank_values=True)
    pairs = [part.partition("=") for part in text.split("&") if part]
    return [(name, value) for name, _, value in pairs]


class _Repeatable(dict[type[Parameters], frozenset[str]]):
    """The fields of each model that are tuples."""

    def __missing__(self, model: type[Parameters]) -> frozenset[str]:
        names = (name for name, field in model.model_fields.items() if get_origin(field.annotation) is tuple)
        self[model] = frozenset(names)
        return self[model]


_REPEATABLE = _Repeatable()
