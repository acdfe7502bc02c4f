"""For operators: which model is served, and the probes of an orchestrator."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool

from app.routers.problems import responses
from app.routers.serving import recommender_of, serving_of, telemetry_of
from app.schemas import Health, Probe, ReloadProblem
from app.telemetry import CONTENT_TYPE

router = APIRouter(tags=["operations"])

_METRICS: dict[int | str, dict[str, Any]] = {
    200: {"description": "Prometheus text", "content": {"text/plain": {"schema": {"type": "string"}}}}
}


@router.head("/health", include_in_schema=False)
@router.get("/health", summary="The model being served", responses=responses("no-model"))
async def health(request: Request) -> Health:
    """Describe the loaded model; 503 with the remedy if there is none.

    `reload_error` says why that is not the active version, where it is not.
    """
    now = serving_of(request).now  # once: what it holds belongs together
    recommender = recommender_of(request, now)
    model, error = recommender.model, now.error
    return Health(
        status="ok",
        model="ALS",
        n_users=len(model.users),
        n_items=len(model.items),
        version=model.version,
        trained_at=model.manifest["trained_at"],
        dataset=model.manifest["dataset"],
        ranker=recommender.ranker is not None,
        index=model.index.description if model.index else "exact",
        dials=_dial_costs(model.metrics),
        reload_error=ReloadProblem(reason=error.reason, since=error.since) if error else None,
    )


def _dial_costs(metrics: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Return by dial and setting what NDCG@10 changes by, to four digits; nothing if metrics.json says it otherwise."""
    try:
        dials = metrics.get("second_stage", {}).get("dials", {})
        return {
            dial: {f"{step['value']:g}": round(float(step["changes"]["ndcg@10"]["difference"]), 4) for step in steps}
            for dial, steps in dials.items()
        }
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError):
        return {}


@router.get("/metrics", summary="What is counted, for Prometheus", response_class=Response, responses=_METRICS)
async def metrics(request: Request) -> Response:
    """Answer with the metrics of all worker processes together, in Prometheus' text format."""
    body = await run_in_threadpool(telemetry_of(request).render)
    return Response(body, media_type=CONTENT_TYPE)


@router.head("/livez", include_in_schema=False)
@router.get("/livez", summary="Is the process alive?")
async def livez() -> Probe:
    """Answer 200 as long as the process can answer at all."""
    return Probe(status="alive")


@router.head("/readyz", include_in_schema=False)
@router.get("/readyz", summary="Can it serve?", responses=responses("no-model"))
async def readyz(request: Request) -> Probe:
    """Answer 200 when a model is loaded, else 503."""
    recommender_of(request)
    return Probe(status="ready")
