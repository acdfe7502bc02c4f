"""The least that FastAPI can do: one handler without parameters that returns a prepared answer.

``benchmarks/serve.py`` runs it beside the service, for what a request costs before anything is recommended. The bytes
of the answer are those of the file that ``STATIC_BODY`` names. Where ``STATIC_SPIN_SECONDS`` is set, the handler keeps
the processor busy for as long before it answers: an app that costs what the service does, and does nothing.
"""

from __future__ import annotations

import os
from pathlib import Path
from time import perf_counter

from fastapi import FastAPI, Response

_ANSWER = Response(Path(os.environ["STATIC_BODY"]).read_bytes(), media_type="application/json")

_SPIN_SECONDS = float(os.environ.get("STATIC_SPIN_SECONDS", "0"))

app = FastAPI()


@app.get("/recommend")
async def recommend() -> Response:
    if _SPIN_SECONDS:
        until = perf_counter() + _SPIN_SECONDS
        while perf_counter() < until:
            pass
    return _ANSWER


@app.get("/readyz")
async def readyz() -> dict[str, str]:
    return {"status": "ready"}
