"""The online service: settings in, application out.

``uvicorn app.main:app`` loads the active version from ``RECS_ARTIFACTS_DIR`` and answers from memory. A service
without a model starts all the same, and says on every endpoint that needs one how to make it.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import RedirectResponse
from fastapi_offline import FastAPIOffline

from app import __version__
from app.errors import ArtifactError
from app.recommender import load_recommender
from app.registry import load_current
from app.routers import ops, problems, recommend
from app.routers.serving import Serving
from app.settings import Settings
from app.telemetry import Telemetry

log = logging.getLogger("uvicorn.error")


def create_app(settings: Settings | None = None) -> FastAPI:
    """Build the application.

    Parameters
    ----------
    settings : Settings, optional
        Read from the environment if not given.
    """
    settings = settings or Settings()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.serving = _load(settings.artifacts_dir)
        yield

    # Swagger UI is served from here, not from a CDN: /docs works wherever the service does.
    app: FastAPI = FastAPIOffline(
        title="Movie Recommender",
        version=__version__,
        description="Movie recommendations from implicit-feedback ALS, for known users and for new ones.",
        lifespan=lifespan,
        generate_unique_id_function=lambda route: route.name,  # plain names in generated clients
    )
    app.state.telemetry = Telemetry()
    problems.install(app)
    app.include_router(recommend.router)
    app.include_router(ops.router)

    @app.get("/", include_in_schema=False)
    async def root(request: Request) -> RedirectResponse:
        return RedirectResponse(request.scope.get("root_path", "") + "/docs")

    return app


def _load(artifacts_dir: Path) -> Serving:
    try:
        recommender = load_recommender(load_current(artifacts_dir))
    except ArtifactError as error:
        log.error("Serving without a model, looked for in %s: %s", artifacts_dir.resolve(), error)
        return Serving(error=error)
    model = recommender.model
    log.info(
        "Serving %s: %s users, %s movies, trained on %s",
        model.version,
        len(model.users),
        len(model.items),
        model.manifest["dataset"],
    )
    return Serving(recommender=recommender)


app = create_app()
