"""Fixtures that several rooms' tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def no_deployment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the settings of the developer's own service out of the tests, and the tests out of its artifacts."""
    for name in [name for name in os.environ if name.startswith("RECS_")]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)


@pytest.fixture(scope="session")
def movielens_dir() -> Path:
    """Folder of the real ml-latest-small; without it the test is skipped, under CI=true it fails."""
    folder = Path(os.environ.get("MOVIELENS_DIR", "data_small/ml-latest-small")).resolve()
    if (folder / "ratings.csv").is_file():
        return folder
    reason = f"real MovieLens data not found in {folder}; set MOVIELENS_DIR to a folder with ratings.csv"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)
