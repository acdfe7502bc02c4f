"""Learn from MovieLens ratings with ALS, evaluate honestly, publish a model: the offline half.

    python train_als.py                      finds or downloads MovieLens, trains, evaluates, publishes to artifacts/
    python train_als.py --data-dir FOLDER    the same with your own ratings.csv and movies.csv

load → split → fit → evaluate → refit on everything → publish. This file only composes; the work is done in app/.
"""

from __future__ import annotations

import json
import shlex
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from app.als import PRESETS, AlsConfig, Device
from app.console import N_STEPS, Screen
from app.core import MIN_RATING
from app.datasets.locate import DATASETS
from app.errors import ArtifactError, ConfigError, RecommenderError
from app.evaluation import BASELINES
from app.options import Evaluate, Options, SplitName
from app.promotion import Promote
from app.registry import KEEP
from app.settings import Settings
from app.training import Training, find_up_to_date

EXIT_FAILED, EXIT_BAD_INPUT, EXIT_NOT_ACTIVATED = 1, 2, 3


def _from_preset(preset: str, **chosen: Any) -> AlsConfig:
    if preset not in PRESETS:
        raise ConfigError(f"--preset is {preset!r}; expected one of {', '.join(PRESETS)}")
    return replace(PRESETS[preset], **{name: value for name, value in chosen.items() if value is not None})


def _names(baselines: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in baselines.split(",") if name.strip()))
    return () if names == ("none",) else names


def _option(panel: str, text: str, *names: str, default: str | bool = True) -> Any:
    """Describe an option; ``default`` says in words what holds where it is not given."""
    return typer.Option(*names, help=text, rich_help_panel=panel, show_default=default)


def _by_preset(name: str) -> str:
    return ", ".join(f"{getattr(config, name)} in {preset}" for preset, config in PRESETS.items())


DATA, MODEL, EVALUATION, OUTPUT = "Data", "Model", "Evaluation", "Output"
EVALUATE_HELP = (
    "all: every protocol of the split, and cold start, on test. rated: that protocol alone. validation: on validation, "
    "with test unseen. none: no evaluation."
)


def main(
    data_dir: Annotated[
        Path | None,
        _option(
            DATA,
            "Folder with ratings.csv and movies.csv.",
            default="$MOVIELENS_DIR, else data_small/, else a download",
        ),
    ] = None,
    dataset: Annotated[
        str | None,
        _option(DATA, f"Insist on one, without fallback: {', '.join(DATASETS)}.", default="whatever is found"),
    ] = None,
    synthetic_ratings: Annotated[int, _option(DATA, "Size of the synthetic data set, where that is used.")] = 100_000,
    min_rating: Annotated[float, _option(DATA, "Least rating that counts as a positive.")] = MIN_RATING,
    preset: Annotated[str, _option(MODEL, f"Hyper-parameters to start from: {', '.join(PRESETS)}.")] = "default",
    factors: Annotated[int | None, _option(MODEL, "Length of the factors.", default=_by_preset("factors"))] = None,
    regularization: Annotated[
        float | None, _option(MODEL, "λ of the loss.", default=_by_preset("regularization"))
    ] = None,
    alpha: Annotated[float | None, _option(MODEL, "Confidence of a positive.", default=_by_preset("alpha"))] = None,
    iterations: Annotated[int | None, _option(MODEL, "Sweeps of the fit.", default=_by_preset("iterations"))] = None,
    grading: Annotated[
        float | None,
        _option(MODEL, "How much more a higher rating counts, 0 to below 1.", default=_by_preset("grading")),
    ] = None,
    half_life: Annotated[
        float | None,
        _option(
            MODEL, "Half-life of a positive in its user's factor, in movies; 0: none.", default=_by_preset("half_life")
        ),
    ] = None,
    random_state: Annotated[int, _option(MODEL, "Seed of everything random.")] = 42,
    num_threads: Annotated[
        int, _option(MODEL, "Threads of the fit, 0 for all cores; the result does not depend on it.")
    ] = 0,
    device: Annotated[Device, _option(MODEL, "Where to fit; auto takes a CUDA device if there is one.")] = "cpu",
    split: Annotated[
        SplitName,
        _option(EVALUATION, "leave-one-out: each user's last positives. temporal: all after one moment."),
    ] = "leave-one-out",
    evaluate: Annotated[
        Evaluate | None, _option(EVALUATION, EVALUATE_HELP, default="all, with --tune validation")
    ] = None,
    baselines: Annotated[str, _option(EVALUATION, "Models to compare with, comma-separated, or none.")] = ",".join(
        BASELINES
    ),
    export_run: Annotated[
        Path | None,
        _option(EVALUATION, "Folder for the held-out truths and rankings as TREC files.", default="not written"),
    ] = None,
    tune: Annotated[
        int | None,
        _option(
            EVALUATION,
            "Search hyper-parameters on validation with N more trials, print the best, and publish nothing.",
            default="off",
        ),
    ] = None,
    study: Annotated[
        Path | None,
        _option(EVALUATION, "File of the search, which goes on where it ended.", default="artifacts/tuning.sqlite3"),
    ] = None,
    ranker: Annotated[
        bool,
        _option(
            MODEL,
            "Train a second stage, too, which orders the best candidates by content and what was rated just before.",
            "--ranker",
            default="off",
        ),
    ] = False,
    report: Annotated[bool, _option(OUTPUT, "Draw report/index.html into the version.", "--report/--no-report")] = True,
    refit: Annotated[
        bool, _option(EVALUATION, "Serve a fit on all data, or the rated test fit.", "--refit/--no-refit")
    ] = True,
    artifacts_dir: Annotated[
        Path | None, _option(OUTPUT, "Folder to publish to.", default="$RECS_ARTIFACTS_DIR, else artifacts")
    ] = None,
    promote: Annotated[
        Promote,
        _option(
            OUTPUT,
            "Whether the new version becomes active. auto: unless the promotion gate refuses it. always: whatever it "
            "is. never: it is published beside the active one.",
        ),
    ] = "auto",
    keep: Annotated[
        int, _option(OUTPUT, "Newest versions to keep; the active and the previous one stay in any case.")
    ] = KEEP,
    if_needed: Annotated[
        bool,
        _option(
            OUTPUT,
            "Do nothing if a model is published, unless it is synthetic and real data is here now.",
            "--if-needed",
            default="off",
        ),
    ] = False,
    quiet: Annotated[bool, _option(OUTPUT, "Print warnings and errors only.", "--quiet", default="off")] = False,
    as_json: Annotated[
        bool,
        _option(OUTPUT, "Print one JSON object with version, metrics and timings instead.", "--json", default="off"),
    ] = False,
) -> None:
    """Learn from MovieLens ratings, evaluate, and publish a model for the service.

    Exit status: 0 published; 1 could not publish; 2 bad input or options, nothing published; 3 published but not
    activated, because the promotion gate refused it.
    """
    screen = Screen(quiet=quiet or as_json, n_steps=2 if tune is not None else N_STEPS + ranker)
    try:
        settings = Settings()
        config = _from_preset(
            preset,
            factors=factors,
            regularization=regularization,
            alpha=alpha,
            iterations=iterations,
            grading=grading,
            half_life=half_life,
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
            split=split,
            evaluate=evaluate or ("all" if tune is None else "validation"),
            baselines=_names(baselines),
            export_run=export_run,
            report=report,
            tune=tune,
            study=study,
            refit=refit,
            ranker=ranker,
            promote=promote,
            keep=keep,
            artifacts_dir=artifacts_dir or settings.artifacts_dir,
            movielens_dir=settings.movielens_dir,
            movielens_url=settings.movielens_url,
        )
        if if_needed and tune is None and (model := find_up_to_date(options, screen)):
            screen.done(f"Version {model.version} ({model.manifest['dataset']}) is published; nothing to train")
            if as_json:
                _print_json({"version": model.version, "trained": False})
            return
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_args, **_kwargs: screen.warn(str(message))
            training = Training(options, screen, show_progress=not (quiet or as_json))
            if tune is not None:
                tuned = training.search()
                if as_json:
                    _print_json({**asdict(tuned), "stored": str(tuned.stored), "trained": False})
                return
            result = training.run()
    except (RecommenderError, ValidationError) as error:
        screen.error(str(error))
        raise typer.Exit(EXIT_FAILED if isinstance(error, ArtifactError) else EXIT_BAD_INPUT) from error
    if as_json:
        _print_json({**result, "trained": True})
    if not result["activated"] and promote != "never":
        raise typer.Exit(EXIT_NOT_ACTIVATED)
    if result["activated"] and not if_needed:  # who asks for this goes on to serve by itself
        is_default = options.artifacts_dir == settings.artifacts_dir
        place = "" if is_default else f"RECS_ARTIFACTS_DIR={shlex.quote(str(options.artifacts_dir))} "
        screen.say(f"\nNext:  {place}python -m uvicorn app.main:app")
        screen.say("       then open http://127.0.0.1:8000/docs")


def _print_json(result: dict[str, Any]) -> None:
    print(json.dumps(result, indent=2))  # noqa: T201 - the one output that --json promises


cli = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
cli.command()(main)

if __name__ == "__main__":
    cli()
