"""README is part of the product: what exists is documented, and what is documented exists."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from app.main import create_app
from app.settings import Settings
from train_als import cli

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def variables() -> list[str]:
    prefix = Settings.model_config["env_prefix"]
    return [str(field.validation_alias or prefix + name.upper()) for name, field in Settings.model_fields.items()]


@pytest.mark.parametrize("variable", variables())
def test_every_setting_is_in_the_table(variable: str) -> None:
    assert f"| `{variable}` |" in README


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_default_in_the_table_is_true(name: str) -> None:
    default = Settings.model_fields[name].default
    row = next(line for line in README.splitlines() if line.startswith("| `") and name.upper() in line.split("|")[1])
    assert row.split("|")[2].strip() == (f"`{default}`" if default is not None else "")


def test_every_endpoint_is_in_the_table() -> None:
    paths = create_app().openapi()["paths"]
    assert len(paths) >= 5
    for path in paths:
        assert f"`{path}`" in README, path


def test_options_that_readme_names_exist() -> None:
    callback = cli.registered_commands[0].callback
    assert callback is not None
    known = {"--" + name.replace("_", "-") for name in callback.__annotations__} | {"--json", "--no-refit", "--help"}
    of_other_programs = {"--workers", "--rm", "--rounds"}
    assert set(re.findall(r"--[a-z][a-z-]+", README)) - of_other_programs <= known


def test_local_links_resolve() -> None:
    targets = [target for target in re.findall(r"\]\(([^)]+)\)", README) if "://" not in target]
    assert targets
    for target in targets:
        assert (ROOT / target).exists(), target


def test_results_are_those_of_the_code(movielens_dir: Path, tmp_path: Path) -> None:
    def measure(preset: str) -> dict[str, dict[str, dict[str, float]]]:
        arguments = ["--data-dir", movielens_dir, "--artifacts-dir", tmp_path, "--preset", preset, "--json"]
        printed = CliRunner().invoke(cli, list(map(str, arguments))).stdout
        protocols: dict[str, dict[str, dict[str, float]]] = json.loads(printed)["metrics"]["protocols"]
        return protocols

    default, reference = measure("default"), measure("reference")
    expected = {
        "ALS, default": (default, "als", 0.002),  # about one user in 573: other processors round otherwise
        "ALS, `--preset reference`": (reference, "als", 0.002),
        "most popular": (default, "popular", 0.0006),
        "random": (default, "random", 0.0006),
    }
    tables = [table for table in README.split("\n\n") if table.startswith("| model | Recall@10 |")]
    assert len(tables) == 2
    for table, protocol in zip(tables, ("rated", "positives"), strict=True):
        rows = {row.split("|")[1].strip(): row.split("|")[2:6] for row in table.splitlines()}
        for name, (measured, model, tolerance) in expected.items():
            printed = [float(cell.split()[0]) for cell in rows[name]]
            found = [measured[protocol][model][metric] for metric in ("recall@10", "recall@20", "ndcg@10", "ndcg@20")]
            assert printed == pytest.approx(found, abs=tolerance)
