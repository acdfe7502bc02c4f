"""The least that FastAPI can do: one handler without parameters that returns a prepared answer.

``benchmarks/serve.py`` runs it beside the service, for what a request costs before anything is recommended. The bytes
of the answer are those of the file that ``STATIC_BODY`` names.
"""

from __future__ import annotations

import os
from pathlib import Path

from fastapi import FastAPI, Response

_ANSWER = Response(Path(os.environ["STATIC_BODY"]).read_bytes(), media_type="application/json")

app = FastAPI()


@app.get("/recommend")
async def recommend() -> Response:
    return _ANSWER


@app.get("/readyz")
async def readyz() -> dict[str, str]:
    return {"status": "ready"}
