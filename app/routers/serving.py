"""What endpoints take from the application: the recommender of this moment, and what counts."""

from __future__ import annotations

from fastapi import Request

from app.errors import ArtifactError
from app.recommender import Recommender
from app.serving import Served, Serving
from app.telemetry import Telemetry


def telemetry_of(request: Request) -> Telemetry:
    """Return what this application counts with."""
    telemetry: Telemetry = request.app.state.telemetry
    return telemetry


def serving_of(request: Request) -> Serving:
    """Return what this application serves from."""
    serving: Serving = request.app.state.serving
    return serving


def recommender_of(request: Request, now: Served | None = None) -> Recommender:
    """Return the recommender that answers this request; taken once, it answers all of it.

    Parameters
    ----------
    now : Served, optional
        Where it has been taken already.

    Raises
    ------
    ArtifactError
        If no model is loaded, with the command that makes one.
    """
    serving = serving_of(request)
    now = now or serving.now
    if now.recommender is None:
        reason = now.error.reason if now.error else "not yet"
        then = (
            f"this service looks again every {serving.reload_seconds:g} s"
            if serving.reload_seconds
            else "then restart this service, which does not look for new versions (RECS_RELOAD_SECONDS is 0)"
        )
        raise ArtifactError(f"no model is loaded: {reason}; {then}")
    return now.recommender
