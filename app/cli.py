"""The operator's command line: which models there are, which one answers, how two of them differ; all lists in a file.

    python -m app.cli models list | show | activate | rollback | prune | verify | diff
    python -m app.cli batch --out recs.parquet

A root, as ``train_als.py`` is: it reads the settings and composes. What is shown is ``models_screen``'s matter.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from app import registry, shadow
from app.artifacts import MANIFEST
from app.batch import Written, check_request, write_lists
from app.errors import (
    ArtifactError,
    ConfigError,
    NoModelError,
    RecommenderError,
    UnknownGenreError,
    UnknownVersionError,
)
from app.filters import Filter
from app.models_screen import SHOWN, open_console, show_difference, show_version, show_versions, state_of
from app.recommender import ListOptions, Recommender, log
from app.registry import Entry, Switched
from app.serving import load_warm
from app.settings import Settings
from app.verification import read_json

EXIT_FAILED, EXIT_BAD_INPUT = 1, 2
MAX_ID = 2**63 - 1
FOLLOW = "Running services follow within RECS_RELOAD_SECONDS (5 by default)."

cli = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True, rich_markup_mode="rich")
models = typer.Typer(no_args_is_help=True, help="Versions of the model: which there are, and which one is active.")
cli.add_typer(models, name="models")

ArtifactsDir = Annotated[
    Path | None,
    typer.Option(help="Folder of the versions.", show_default="$RECS_ARTIFACTS_DIR, else artifacts"),
]
ONE = "Its id, the start of it, or the start of the digest that ends it."
Version = Annotated[str, typer.Argument(help=ONE)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead.")]


@cli.callback()
def main() -> None:
    """Look after a recommender. Exit status: 0 done; 1 failed, damaged or refused; 2 bad input or options."""


@contextmanager
def opened(artifacts_dir: Path | None) -> Iterator[Path]:
    """Yield the folder that is meant, and end the command with a message if something is wrong within."""
    try:
        yield Settings().artifacts_dir if artifacts_dir is None else artifacts_dir
    except BrokenPipeError:
        raise  # whoever reads has seen enough
    except (RecommenderError, ValidationError, OSError) as error:
        say_on_stderr("Error: ", "bold red", str(error))
        is_input = isinstance(error, ConfigError | UnknownVersionError | UnknownGenreError | ValidationError)
        raise typer.Exit(EXIT_BAD_INPUT if is_input else EXIT_FAILED) from error


def say(text: str) -> None:
    open_console().print(text, soft_wrap=True)


def say_on_stderr(label: str, style: str, text: str) -> None:
    open_console(stderr=True).print(Text.assemble((label, style), text), soft_wrap=True)


def warn(text: str) -> None:
    say_on_stderr("Warning: ", "yellow", text)


def print_json(value: object) -> None:
    """Print strict JSON: a number that is none, which a damaged file may hold, becomes null."""
    plain = json.loads(json.dumps(value), parse_constant=lambda _name: None)
    typer.echo(json.dumps(plain, indent=2, allow_nan=False))


def resolve(artifacts_dir: Path, text: str) -> str:
    """Return the version that ``text`` means: its id, the start of it, or the start of the digest that ends it.

    Raises
    ------
    UnknownVersionError
        If no version fits.
    ConfigError
        If several do.
    """
    there = [entry.version for entry in registry.versions(artifacts_dir)]
    fitting = [version for version in there if text and (version.startswith(text) or f"-{text}" in version)]
    if not fitting:
        raise UnknownVersionError(text)
    if len(fitting) > 1:
        raise ConfigError(f"{text!r} may mean {', '.join(fitting)}; expected one version: write more of its id")
    return fitting[0]


def list_entries(artifacts_dir: Path) -> tuple[Entry, ...]:
    """Return all versions; NoModelError if there is none."""
    entries = registry.versions(artifacts_dir)
    if not entries:
        raise NoModelError(f"no model is published in {artifacts_dir}; make one: python train_als.py")
    return entries


@models.command("list")
def list_versions(artifacts_dir: ArtifactsDir = None, as_json: AsJson = False) -> None:
    """List all versions, newest first, by what they say of themselves; [bold]verify[/bold] looks at their files."""
    with opened(artifacts_dir) as folder:
        entries = registry.versions(folder)
        if as_json:
            print_json([{**asdict(entry), "state": state_of(entry)} for entry in entries])
        elif entries:
            show_versions(open_console(), entries)
        else:
            say(f"No model is published in {folder}. Make one: python train_als.py")
        for entry in entries:
            if entry.damage:
                warn(f"{entry.version}: {entry.damage}")
        if entries and (trouble := find_trouble_with_current(folder)):
            warn(trouble)


def find_trouble_with_current(artifacts_dir: Path) -> str | None:
    """Say why no version is active, None if one is or if none ever was."""
    try:
        registry.current_folder(artifacts_dir)
    except NoModelError:
        return None
    except ArtifactError as error:
        return str(error)
    return None


@models.command()
def show(
    version: Annotated[str | None, typer.Argument(help=ONE, show_default="the active one")] = None,
    artifacts_dir: ArtifactsDir = None,
    as_json: AsJson = False,
) -> None:
    """Show everything about one version."""
    with opened(artifacts_dir) as folder:
        chosen = registry.current_folder(folder).name if version is None else resolve(folder, version)
        (entry,) = [entry for entry in list_entries(folder) if entry.version == chosen]
        described = describe(folder, entry)
        if as_json:
            print_json(described)
        else:
            show_version(open_console(), described)


def describe(artifacts_dir: Path, entry: Entry) -> dict[str, Any]:
    """Collect what a version's files say, unverified; ArtifactError if they cannot be read."""
    if entry.damage:
        raise ArtifactError(entry.damage)
    folder = registry.find(artifacts_dir, entry.version)
    manifest, config, metrics = (read_json(folder / name) for name in (MANIFEST, "config.json", "metrics.json"))
    answers_with = "ranker" if entry.has_ranker else "als"
    intervals = metrics.get("intervals", {}).get(entry.protocol, {}).get(answers_with, {})
    return {
        **asdict(entry),
        "state": state_of(entry),
        "fingerprint": manifest.get("dataset_fingerprint"),
        "config": config,
        "answers_with": answers_with,
        "headlines": {
            metric: {"value": entry.metrics[metric], "interval": intervals.get(metric)}
            for metric in SHOWN
            if metric in entry.metrics
        },
        "folder": str(folder.resolve()),
        "files": manifest["files"],
        "libraries": manifest.get("libraries", {}),
    }


@models.command()
def activate(version: Version, artifacts_dir: ArtifactsDir = None) -> None:
    """Verify a version and make it the active one."""
    with opened(artifacts_dir) as folder:
        say_switched(registry.activate(folder, resolve(folder, version), load=load_warm))


@models.command()
def rollback(artifacts_dir: ArtifactsDir = None) -> None:
    """Go back to what was active before; again, and it goes further back. Damaged versions are passed over."""
    with opened(artifacts_dir) as folder:
        list_entries(folder)
        say_switched(registry.rollback(folder, load=load_warm))


def say_switched(switched: Switched) -> None:
    for warning in switched.warnings:
        warn(warning)
    if switched.replaced == switched.version:
        say(f"{switched.version} was active already.")
        return
    replaced = f"it replaced {switched.replaced}" if switched.replaced else "what was active before is not known"
    say(f"{switched.version} is active; {replaced}.")
    say(FOLLOW)


@models.command()
def prune(
    keep: Annotated[int, typer.Option(help="How many of the newest stay, at least 1.")] = registry.KEEP,
    artifacts_dir: ArtifactsDir = None,
) -> None:
    """Remove old versions, but never the active one or what a rollback would go to."""
    with opened(artifacts_dir) as folder:
        list_entries(folder)
        removed = registry.prune(folder, keep)
        for version in removed:
            say(f"Removed {version}")
        say(f"{len(removed)} removed, {len(registry.versions(folder))} left")


@models.command()
def verify(
    version: Annotated[str | None, typer.Argument(help=ONE, show_default="all of them")] = None,
    artifacts_dir: ArtifactsDir = None,
) -> None:
    """Read all files of one version, or of all, and let it answer, as the service does; 1 if any is damaged."""
    with opened(artifacts_dir) as folder:
        chosen = [entry.version for entry in list_entries(folder)] if version is None else [resolve(folder, version)]
        troubles = []
        for name in chosen:
            trouble = find_damage(folder, name)
            say(f"{name}  {'intact' if trouble is None else f'damaged: {trouble}'}")
            troubles.append(trouble)
        if version is None and (trouble := find_trouble_with_current(folder)):
            say(f"{registry.CURRENT}  damaged: {trouble}")
            troubles.append(trouble)
    if any(troubles):
        raise typer.Exit(EXIT_FAILED)


def find_damage(artifacts_dir: Path, version: str) -> str | None:
    """Say what is wrong with a version, its second stage included, None if nothing is."""
    try:
        load(artifacts_dir, version)
    except (ArtifactError, UnknownVersionError) as error:
        return str(error)
    return None


class Warner(logging.Handler):
    """Say what is logged, for a service, as a command does; once, where it is logged for every user."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        if record.msg in self._said:
            return
        self._said.add(record.msg)
        error = record.exc_info[1] if record.exc_info else None
        warn(f"{record.getMessage()} ({type(error).__name__}: {error})" if error else record.getMessage())


@contextmanager
def warning_of_logs() -> Iterator[None]:
    """Say as warnings what is logged within."""
    warner = Warner()
    log.addHandler(warner)
    try:
        yield
    finally:
        log.removeHandler(warner)


def load(artifacts_dir: Path, version: str) -> Recommender:
    """Load a version as the service does when CURRENT moves; errors are those of ``find`` and ``load_warm``."""
    with warning_of_logs():
        return load_warm(registry.find(artifacts_dir, version))


@models.command()
def diff(
    a: Annotated[str, typer.Argument(help=f"One version: {ONE[0].lower()}{ONE[1:]}")],
    b: Annotated[str, typer.Argument(help="The other one; differences are B less A.")],
    users: Annotated[int, typer.Option(help="How many users to ask for.")] = 500,
    k: Annotated[int, typer.Option("--k", help="Length of the lists, 1 to 100.")] = 10,
    seed: Annotated[int, typer.Option(help="Seed of the sample of users.")] = 42,
    artifacts_dir: ArtifactsDir = None,
    as_json: AsJson = False,
) -> None:
    """Show how the lists of two versions differ, for users whom both know."""
    with opened(artifacts_dir) as folder:
        one, other = (load(folder, version) for version in [resolve(folder, text) for text in (a, b)])
        report = compare(one, other, users, k, seed)
        if as_json:
            print_json(report.to_dict())
        else:
            show_difference(open_console(), report)


def compare(a: Recommender, b: Recommender, n_users: int, k: int, random_state: int) -> shadow.ShadowReport:
    """Compare with a bar on standard error, where that is a terminal."""
    console = open_console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("users", total=min(n_users, len(a.model.users), len(b.model.users)))
        return shadow.compare(a, b, n_users, k, random_state, lambda: bar.advance(task))


@cli.command()
def batch(
    out: Annotated[Path, typer.Option(help="File to write or replace: .parquet, .csv or .jsonl.")],
    k: Annotated[int, typer.Option("--k", help="Length of the lists; the second stage fills some 200 places.")] = 10,
    version: Annotated[str | None, typer.Option(help=ONE, show_default="the active one")] = None,
    ranker: Annotated[bool, typer.Option(help="Let the second stage order the lists, where there is one.")] = True,
    genre: Annotated[list[str] | None, typer.Option(help="Only movies of this genre; again, of any of these.")] = None,
    year_min: Annotated[int | None, typer.Option(min=1, help="Only movies of this year or later.")] = None,
    year_max: Annotated[int | None, typer.Option(min=1, help="Only movies of this year or earlier.")] = None,
    exclude: Annotated[
        list[int] | None, typer.Option(min=1, max=MAX_ID, help="Id of a movie to leave out; again, of more.")
    ] = None,
    artifacts_dir: ArtifactsDir = None,
) -> None:
    """Write the lists of all users to a file, as the service would answer them from what the model was trained on.

    The file takes its name when it is complete: a run that fails or is interrupted changes nothing.
    """
    with opened(artifacts_dir) as folder:
        check_request(out, k)
        wanted = make_filter(genre, year_min, year_max, exclude)
        chosen = registry.current_folder(folder).name if version is None else resolve(folder, version)
        recommender = load(folder, chosen)
        start = time.perf_counter()
        with warning_of_logs(), bar_of_users(len(recommender.model.users)) as advance:
            written = write_lists(recommender, out, k, ListOptions(ranker=ranker, filter=wanted), advance)
        say_written(written, out, time.perf_counter() - start)


def make_filter(
    genres: list[str] | None, year_min: int | None, year_max: int | None, exclude: list[int] | None
) -> Filter:
    """Return which movies may be listed; ConfigError if no year can be between the two."""
    if year_min and year_max and year_min > year_max:
        raise ConfigError(f"--year-min is {year_min}; expected a year up to --year-max, {year_max}")
    return Filter(tuple(genres or ()), year_min, year_max, tuple(exclude or ()))


class UsersPerSecond(ProgressColumn):
    """How fast it goes."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f} users/s" if task.speed else "")


@contextmanager
def bar_of_users(n_users: int) -> Iterator[Callable[[int], None]]:
    """Show a bar on standard error, where that is a terminal; the yielded function moves it on by so many users."""
    console = open_console(stderr=True)
    columns = (TextColumn("users"), BarColumn(), MofNCompleteColumn(), UsersPerSecond(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=n_users)
        yield lambda n_more: bar.update(task, advance=n_more)


def say_written(written: Written, out: Path, seconds: float) -> None:
    """Say what there is now, and where."""
    if written.n_failed:
        warn(f"the second stage failed for {written.n_failed:,} users, whose lists are of the first")
    sources = ", ".join(f"{n:,} by {source}" for source, n in written.sources.items())
    say(
        f"{written.n_users:,} users ({sources}), {written.n_movies:,} movies listed in {seconds:.1f} s, "
        f"{written.n_users / seconds:,.0f} users/s: {out}, {written.n_bytes / 2**20:,.2f} MiB"
    )


if __name__ == "__main__":
    cli()
