"""The online service: settings in, application out.

``uvicorn app.main:app`` loads the active version from ``RECS_ARTIFACTS_DIR``, answers from memory, and follows when
another version becomes active. A service without a model starts all the same, and says on every endpoint that needs
one how to make it.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator

from fastapi import FastAPI, Request
from fastapi.responses import RedirectResponse
from fastapi_offline import FastAPIOffline
from starlette.routing import Route
from starlette.types import ASGIApp
from threadpoolctl import threadpool_limits

from app import __version__
from app.cache import ResponseCache
from app.logs import configure_logging
from app.routers import catalog, models, ops, problems, recommend
from app.routers.answering import Answering
from app.routers.edge import Edge
from app.routers.quick import QuickLane
from app.serving import Serving
from app.settings import Settings
from app.telemetry import Telemetry

_ROUTERS = (recommend.quick, recommend.router, catalog.quick, catalog.router, models.router, ops.router)


def create_app(settings: Settings | None = None) -> FastAPI:
    """Build the application.

    Parameters
    ----------
    settings : Settings, optional
        Read from the environment if not given.
    """
    settings = settings or Settings()
    configure_logging(settings.log_format, settings.log_level)
    telemetry = Telemetry()
    url = settings.redis_url.get_secret_value() if settings.redis_url else None
    cache = ResponseCache(settings.cache_size, settings.cache_seconds, url, telemetry, settings.cache_bytes)
    serving = Serving(settings.artifacts_dir, settings.reload_seconds, telemetry)

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        telemetry.join_workers()
        # A product of 60 µs is no work to share: threads of the BLAS would wait for each other longer than it takes.
        with threadpool_limits(1, "blas"):
            serving.start()
            gc.collect()
            gc.freeze()  # what is loaded stays: to look through it for garbage again and again takes milliseconds
            watching = asyncio.create_task(serving.watch())
            try:
                yield
            finally:
                watching.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await watching
                gc.unfreeze()
                await cache.close()
                telemetry.leave_workers()

    # Swagger UI is served from here, not from a CDN: /docs works wherever the service does.
    app: FastAPI = FastAPIOffline(
        title="Movie Recommender",
        version=__version__,
        description="Movie recommendations from implicit-feedback ALS, for known users and for new ones.",
        lifespan=lifespan,
        generate_unique_id_function=lambda route: route.name,  # plain names in generated clients
    )
    app.state.telemetry = telemetry
    app.state.serving = serving
    app.state.answering = Answering(cache, telemetry)
    app.state.admin_token = settings.admin_token
    problems.install(app)
    for router in _ROUTERS:
        app.include_router(router)

    @app.get("/", include_in_schema=False)
    async def root(request: Request) -> RedirectResponse:
        return RedirectResponse(request.scope.get("root_path", "") + "/docs")

    _put_layers(app, settings, telemetry)
    return app


def _put_layers(app: FastAPI, settings: Settings, telemetry: Telemetry) -> None:
    """Put our layers around those of FastAPI, of which the answers of the quick lane need none.

    A middleware that is added to the application later sees no request that the lane answers.
    """
    build_inner_layers = app.build_middleware_stack

    def build_layers() -> ASGIApp:
        # FastAPI keeps a router that was included as one entry, without its routes.
        routes = [*app.routes, *(route for router in _ROUTERS for route in router.routes)]
        return Edge(
            QuickLane(build_inner_layers(), [*recommend.quick.routes, *catalog.quick.routes]),
            telemetry,
            max_body_bytes=settings.max_body_bytes,
            max_concurrency=settings.max_concurrency,
            cors_origins=settings.cors_origins.replace(",", " ").split(),
            paths={route.path for route in routes if isinstance(route, Route) and "{" not in route.path},
        )

    app.build_middleware_stack = build_layers  # type: ignore[method-assign]


app = create_app()
