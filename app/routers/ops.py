"""For operators: which model is served, and the probes of an orchestrator."""

from __future__ import annotations

from http import HTTPStatus

from fastapi import APIRouter, Request

from app.routers.problems import responses
from app.routers.serving import recommender_of
from app.schemas import Health, Probe

router = APIRouter(tags=["operations"])


@router.head("/health", include_in_schema=False)
@router.get("/health", summary="The model being served", responses=responses(HTTPStatus.SERVICE_UNAVAILABLE))
async def health(request: Request) -> Health:
    """Describe the loaded model; 503 with the remedy if there is none."""
    model = recommender_of(request).model
    return Health(
        status="ok",
        model="ALS",
        n_users=len(model.users),
        n_items=len(model.items),
        version=model.version,
        trained_at=model.manifest["trained_at"],
        dataset=model.manifest["dataset"],
    )


@router.head("/livez", include_in_schema=False)
@router.get("/livez", summary="Is the process alive?")
async def livez() -> Probe:
    """Answer 200 as long as the process can answer at all."""
    return Probe(status="alive")


@router.head("/readyz", include_in_schema=False)
@router.get("/readyz", summary="Can it serve?", responses=responses(HTTPStatus.SERVICE_UNAVAILABLE))
async def readyz(request: Request) -> Probe:
    """Answer 200 when a model is loaded, else 503."""
    recommender_of(request)
    return Probe(status="ready")
