"""For whoever runs the service: which versions there are, and which of them is active."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Request
from fastapi.concurrency import run_in_threadpool
from pydantic import ValidationError

from app import registry
from app.routers.admin import require_admin
from app.routers.problems import responses
from app.routers.serving import serving_of
from app.schemas import Activation, ModelList, ModelVersion
from app.serving import Serving, load_warm

WAIT_SECONDS = 10.0  # for a trainer that is just publishing
_ALONE = "RECS_RELOAD_SECONDS is 0: other processes of this service do not follow until they are started again"
_ACCESS = ("unauthorized", "admin-disabled")
router = APIRouter(prefix="/models", tags=["models"], dependencies=[Depends(require_admin)])


@router.get("", summary="All versions", responses=responses(*_ACCESS))
async def models(request: Request) -> ModelList:
    """List all versions, newest first, with what they say of themselves."""
    serving = serving_of(request)
    entries = await run_in_threadpool(registry.versions, serving.artifacts_dir)
    return ModelList(
        active=next((entry.version for entry in entries if entry.is_active), None),
        previous=next((entry.version for entry in entries if entry.is_previous), None),
        serving=_served(serving),
        versions=[_listed(entry) for entry in entries],
    )


def _listed(entry: registry.Entry) -> ModelVersion:
    """Describe a version; where its files hold what no version says of itself, that is its damage."""
    try:
        listed = ModelVersion(**asdict(entry))
        listed.model_dump_json()  # which text that is no Unicode, or nested too deep, cannot become
    except (ValueError, RecursionError) as error:
        found = str(error)
        if isinstance(error, ValidationError):
            found = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        damage = f"what its files say of it cannot be shown: {found}"
        return ModelVersion(**asdict(registry.Entry(entry.version, entry.is_active, entry.is_previous, damage=damage)))
    return listed


@router.post(
    "/rollback",
    summary="Go back to the version before",
    responses=responses(*_ACCESS, "version-refused", "artifacts-unwritable"),
)
async def rollback_model(request: Request) -> Activation:
    """Make active what was active before the current version; again, and it goes further back.

    Damaged versions are passed over. 409 if no intact one is left.
    """
    return await _switch(request, lambda folder: registry.rollback(folder, WAIT_SECONDS, load_warm))


@router.post(
    "/{version}/activate",
    summary="Make a version the active one",
    responses=responses(*_ACCESS, "unknown-version", "version-refused", "artifacts-unwritable"),
)
async def activate_model(
    request: Request, version: Annotated[str, Path(description="Its id, as `GET /models` lists it.")]
) -> Activation:
    """Verify a version and make it the active one. 404 if there is none of that name, 409 if it is damaged."""
    return await _switch(
        request, lambda folder: registry.activate(folder, version, wait_seconds=WAIT_SECONDS, load=load_warm)
    )


async def _switch(request: Request, switch: Callable[..., registry.Switched]) -> Activation:
    """Move CURRENT and let this process follow at once; the others see for themselves."""
    serving = serving_of(request)
    done = await run_in_threadpool(switch, serving.artifacts_dir)
    await run_in_threadpool(serving.check, again=True)
    error = serving.now.error
    return Activation(
        version=done.version,
        replaced=done.replaced,
        serving=_served(serving),
        warnings=[*done.warnings, *([error.reason] if error else []), *([] if serving.reload_seconds else [_ALONE])],
    )


def _served(serving: Serving) -> str | None:
    recommender = serving.now.recommender
    return recommender.model.version if recommender else None
