"""What schemathesis finds when it holds the running service against its own OpenAPI document: nothing.

It looks for statuses and content types that are not documented, answers that do not fit their schema, faults, requests
that are refused although the document allows them, and the other way round.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.registry import publish
from tests.models import trained
from tests.servers import ROOT, Server, serving

TOKEN = "a-token-of-sixteen-characters"  # noqa: S105 - of a service that lives for this test
N_EXAMPLES = 300  # for each operation in the slow runs
# Ours in fuzz_hooks stands in for it.
REPLACED = "positive_data_acceptance"
# It expects 401 where the Authorization header is missing. A service without a token answers 403, as nobody has one.
EXPECTS_TOKEN = "missing_required_header"  # noqa: S105


@pytest.fixture(scope="module")
def artifacts_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Publish a model with both stages, twice: a rollback goes to its like."""
    folder = tmp_path_factory.mktemp("artifacts")
    _, model = trained()
    for _ in range(2):
        publish(folder, model)
    return folder


@pytest.fixture
def open_service(artifacts_dir: Path, tmp_path: Path) -> Iterator[Server]:
    with serving(artifacts_dir, tmp_path / "uvicorn.log") as server:
        yield server


@pytest.fixture
def guarded_service(artifacts_dir: Path, tmp_path: Path) -> Iterator[Server]:
    with serving(artifacts_dir, tmp_path / "uvicorn.log", admin_token=TOKEN) as server:
        yield server


def fuzz(server: Server, folder: Path, phases: str, *options: str, without: tuple[str, ...] = ()) -> str:
    """Run schemathesis, the same way each time, and return what it said; fail with its report if it found anything."""
    command = [
        *(str(Path(sys.executable).with_name("schemathesis")), "run", f"{server.url}/openapi.json", "--no-color"),
        *("--phases", phases, "--generation-deterministic", "--continue-on-failure", "--warnings", "off"),
        *("--exclude-checks", ",".join((REPLACED, *without)), *options),
    ]
    environment = {**os.environ, "SCHEMATHESIS_HOOKS": "tests.fuzz_hooks", "PYTHONPATH": str(ROOT), "NO_PROXY": "*"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    log = server.log.read_text()
    assert "Traceback" not in log, log[-5000:]
    return done.stdout


def with_token(*options: str) -> tuple[str, ...]:
    return ("--header", f"Authorization: Bearer {TOKEN}", *options)


def test_examples_and_edge_cases_of_every_parameter_keep_to_the_document(open_service: Server, tmp_path: Path) -> None:
    said = fuzz(open_service, tmp_path, "examples,coverage", without=(EXPECTS_TOKEN,))
    assert "Coverage" in said


def test_so_they_do_with_an_admin_token(guarded_service: Server, tmp_path: Path) -> None:
    fuzz(guarded_service, tmp_path, "examples,coverage", *with_token("--include-tag", "models"))


@pytest.mark.slow
def test_random_requests_and_sequences_keep_to_the_document(open_service: Server, tmp_path: Path) -> None:
    fuzz(open_service, tmp_path, "fuzzing,stateful", "--max-examples", str(N_EXAMPLES), without=(EXPECTS_TOKEN,))


@pytest.mark.slow
def test_so_they_do_with_an_admin_token_too(guarded_service: Server, tmp_path: Path) -> None:
    options = with_token("--include-tag", "models", "--max-examples", str(N_EXAMPLES))
    fuzz(guarded_service, tmp_path, "fuzzing,stateful", *options)
