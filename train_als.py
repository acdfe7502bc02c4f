"""Learn from MovieLens ratings with ALS, evaluate honestly, publish a model: the offline half.

    python train_als.py                      finds or downloads MovieLens, trains, evaluates, publishes to artifacts/
    python train_als.py --data-dir FOLDER    the same with your own ratings.csv and movies.csv

load → split → fit → evaluate → refit on everything → publish. This file only composes; the work is done in app/.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from app.als import PRESETS, AlsConfig, Device
from app.console import Screen
from app.core import MIN_RATING
from app.datasets.locate import DATASETS
from app.errors import ArtifactError, ConfigError, RecommenderError
from app.settings import Settings
from app.training import Evaluate, Options, Training, find_up_to_date

EXIT_FAILED, EXIT_BAD_INPUT, EXIT_NOT_ACTIVATED = 1, 2, 3


def _from_preset(preset: str, **chosen: Any) -> AlsConfig:
    if preset not in PRESETS:
        raise ConfigError(f"--preset is {preset!r}; expected one of {', '.join(PRESETS)}")
    return replace(PRESETS[preset], **{name: value for name, value in chosen.items() if value is not None})


def _default(name: str) -> str:
    values = ", ".join(f"{preset}: {getattr(config, name)}" for preset, config in PRESETS.items())
    return f"[dim]\\[{values}][/dim]"


DATA, MODEL, EVALUATION, OUTPUT = "Data", "Model", "Evaluation", "Output"


def main(
    data_dir: Annotated[
        Path | None,
        typer.Option(
            help="Folder with ratings.csv and movies.csv. "
            "[dim]\\[$MOVIELENS_DIR, then data_small/, then download][/dim]",
            rich_help_panel=DATA,
        ),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            help=f"Insist on a data set by name, without fallback: {', '.join(DATASETS)}.", rich_help_panel=DATA
        ),
    ] = None,
    synthetic_ratings: Annotated[
        int, typer.Option(help="Size of the synthetic data set, where that is used.", rich_help_panel=DATA)
    ] = 100_000,
    min_rating: Annotated[
        float, typer.Option(help="Least rating that counts as a positive.", rich_help_panel=DATA)
    ] = MIN_RATING,
    preset: Annotated[
        str, typer.Option(help=f"Hyper-parameters to start from: {', '.join(PRESETS)}.", rich_help_panel=MODEL)
    ] = "default",
    factors: Annotated[
        int | None, typer.Option(help=f"Length of the factors. {_default('factors')}", rich_help_panel=MODEL)
    ] = None,
    regularization: Annotated[
        float | None, typer.Option(help=f"λ of the loss. {_default('regularization')}", rich_help_panel=MODEL)
    ] = None,
    alpha: Annotated[
        float | None, typer.Option(help=f"Confidence of a positive. {_default('alpha')}", rich_help_panel=MODEL)
    ] = None,
    iterations: Annotated[
        int | None, typer.Option(help=f"Sweeps of the fit. {_default('iterations')}", rich_help_panel=MODEL)
    ] = None,
    random_state: Annotated[int, typer.Option(help="Seed of everything random.", rich_help_panel=MODEL)] = 42,
    num_threads: Annotated[
        int,
        typer.Option(
            help="Threads of the fit, 0 for all cores; the result does not depend on it.", rich_help_panel=MODEL
        ),
    ] = 0,
    device: Annotated[
        Device, typer.Option(help="Where to fit; auto takes a CUDA device if there is one.", rich_help_panel=MODEL)
    ] = "cpu",
    evaluate: Annotated[
        Evaluate,
        typer.Option(
            help="all: both protocols on test. rated: that protocol alone. validation: both on validation, with test "
            "unseen. none: no evaluation.",
            rich_help_panel=EVALUATION,
        ),
    ] = "all",
    export_run: Annotated[
        Path | None,
        typer.Option(help="Folder for the held-out truths and rankings as TREC files.", rich_help_panel=EVALUATION),
    ] = None,
    refit: Annotated[
        bool,
        typer.Option(
            "--refit/--no-refit", help="Serve a fit on all data, or the rated test fit.", rich_help_panel=EVALUATION
        ),
    ] = True,
    artifacts_dir: Annotated[
        Path | None,
        typer.Option(
            help="Folder to publish to. [dim]\\[$RECS_ARTIFACTS_DIR, then artifacts/][/dim]", rich_help_panel=OUTPUT
        ),
    ] = None,
    if_needed: Annotated[
        bool,
        typer.Option(
            "--if-needed",
            help="Do nothing if a model is published, unless it is synthetic and real data is here now.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="Print warnings and errors only.", rich_help_panel=OUTPUT)
    ] = False,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", help="Print one JSON object with version, metrics and timings instead.", rich_help_panel=OUTPUT
        ),
    ] = False,
) -> None:
    """Learn from MovieLens ratings, evaluate, and publish a model for the service.

    Exit status: 0 published; 1 could not publish; 2 bad input or options, nothing changed; 3 published but not
    activated.
    """
    screen = Screen(quiet=quiet or as_json)
    try:
        settings = Settings()
        config = _from_preset(
            preset,
            factors=factors,
            regularization=regularization,
            alpha=alpha,
            iterations=iterations,
            random_state=random_state,
            num_threads=num_threads,
            device=device,
        )
        options = Options(
            config=config,
            preset=preset,
            data_dir=data_dir,
            dataset=dataset,
            synthetic_ratings=synthetic_ratings,
            min_rating=min_rating,
            evaluate=evaluate,
            export_run=export_run,
            refit=refit,
            artifacts_dir=artifacts_dir or settings.artifacts_dir,
            movielens_dir=settings.movielens_dir,
            movielens_url=settings.movielens_url,
        )
        if if_needed and (model := find_up_to_date(options, screen)):
            screen.done(f"Version {model.version} ({model.manifest['dataset']}) is published; nothing to train")
            if as_json:
                _print_json({"version": model.version, "trained": False})
            return
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_args, **_kwargs: screen.warn(str(message))
            result = Training(options, screen, show_progress=not (quiet or as_json)).run()
    except (RecommenderError, ValidationError) as error:
        screen.error(str(error))
        raise typer.Exit(EXIT_FAILED if isinstance(error, ArtifactError) else EXIT_BAD_INPUT) from error
    if as_json:
        _print_json({**result, "trained": True})
    if not result["activated"]:
        raise typer.Exit(EXIT_NOT_ACTIVATED)
    if not if_needed:  # who asks for this goes on to serve by itself
        place = (
            "" if options.artifacts_dir == Path("artifacts") else f"  with RECS_ARTIFACTS_DIR={options.artifacts_dir}"
        )
        screen.say(f"\nNext:  python -m uvicorn app.main:app{place}")
        screen.say("       then open http://127.0.0.1:8000/docs")


def _print_json(result: dict[str, Any]) -> None:
    print(json.dumps(result, indent=2))  # noqa: T201 - the one output that --json promises


cli = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
cli.command()(main)

if __name__ == "__main__":
    cli()
