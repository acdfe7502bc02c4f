"""The online service: settings in, application out.

``uvicorn app.main:app`` loads the active version from ``RECS_ARTIFACTS_DIR``, answers from memory, and follows when
another version becomes active. A service without a model starts all the same, and says on every endpoint that needs
one how to make it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from fastapi import FastAPI, Request
from fastapi.responses import RedirectResponse
from fastapi_offline import FastAPIOffline

from app import __version__
from app.routers import models, ops, problems, recommend
from app.serving import Serving
from app.settings import Settings
from app.telemetry import Telemetry


def create_app(settings: Settings | None = None) -> FastAPI:
    """Build the application.

    Parameters
    ----------
    settings : Settings, optional
        Read from the environment if not given.
    """
    settings = settings or Settings()
    telemetry = Telemetry()
    serving = Serving(settings.artifacts_dir, settings.reload_seconds, telemetry)

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        serving.start()
        watching = asyncio.create_task(serving.watch())
        try:
            yield
        finally:
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching

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
    app.state.admin_token = settings.admin_token
    problems.install(app)
    app.include_router(recommend.router)
    app.include_router(models.router)
    app.include_router(ops.router)

    @app.get("/", include_in_schema=False)
    async def root(request: Request) -> RedirectResponse:
        return RedirectResponse(request.scope.get("root_path", "") + "/docs")

    return app


app = create_app()
