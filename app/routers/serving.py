"""What the application serves from: the loaded model, or the reason why there is none."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import Request

from app.errors import ArtifactError
from app.recommender import Recommender
from app.telemetry import Telemetry


@dataclass(frozen=True)
class Serving:
    """The state of a running service: exactly one of the two is set."""

    recommender: Recommender | None = None
    error: ArtifactError | None = None


def telemetry_of(request: Request) -> Telemetry:
    """Return what this application counts with."""
    telemetry: Telemetry = request.app.state.telemetry
    return telemetry


def recommender_of(request: Request) -> Recommender:
    """Return the recommender that answers this request.

    Raises
    ------
    ArtifactError
        If no model is loaded, with the command that makes one.
    """
    serving: Serving = request.app.state.serving
    if serving.recommender is None:
        # A new exception each time: raising the stored one would let its traceback grow with every request.
        raise ArtifactError(f"no model was loaded when the service started: {serving.error}; then restart the service")
    return serving.recommender
