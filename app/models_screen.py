"""What ``python -m app.cli models …`` shows: versions, one version, and how two differ.

Nothing here reads a file or decides anything. Everything fits 80 columns, so that a version id, which people copy, is
whole on any terminal and in any file.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from app.registry import Entry
from app.shadow import DEPTH, Exposure, ShadowReport, Shared

WIDTH = 80  # at least; a narrower terminal folds lines itself, which cuts nothing off
DESCRIBED = ("model", "preset", "fitted_on", "min_rating")  # of config.json; the rest has lines of its own
LISTED = ("recall@10", "ndcg@10")
SHOWN = ("recall@10", "recall@20", "ndcg@10", "ndcg@20")  # evaluation.HEADLINES, whose room loads pandas
NOTHING = "–"


def open_console(*, stderr: bool = False) -> Console:
    """Return a console that takes text as it is: a movie is called "[REC]"."""
    stream = sys.stderr if stderr else sys.stdout
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="replace")  # a console that has no – must not end a command
    console = Console(stderr=stderr, highlight=False, markup=False, emoji=False)
    console.width = max(console.width, WIDTH)
    return console


def state_of(entry: Entry) -> str:
    """Say what a version is here for; empty if it is neither active nor anything else that matters."""
    if entry.is_active or entry.is_previous:
        place = "active" if entry.is_active else "previous"
    else:
        place = "not promoted" if entry.promotion.get("activate") is False else ""
    return ", ".join(filter(None, (place, "damaged" if entry.damage else "")))


# --- list


def show_versions(console: Console, entries: Sequence[Entry]) -> None:
    """Show a table of versions, two lines for each."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("version\ntrained at", no_wrap=True)
    table.add_column("dataset\nratings", max_width=17, overflow="fold")
    for metric in LISTED:
        table.add_column(metric.replace("@", "\n@"), justify="right", no_wrap=True)
    table.add_column("second\nstage")
    table.add_column("state", max_width=8)
    for entry in entries:
        unknown = entry.damage is not None
        table.add_row(
            f"{entry.version}\n{_moment(entry.trained_at)}",
            f"{entry.dataset or NOTHING}\n{_count(entry.n_ratings)}",
            *(_figure(entry.metrics.get(metric)) for metric in LISTED),
            NOTHING if unknown else _yes(entry.has_ranker),
            state_of(entry).replace(", ", "\n"),
            style="bold" if entry.is_active else "red" if unknown else "",
        )
    console.print(table)


def _moment(trained_at: str | None) -> str:
    return (trained_at or NOTHING).replace("T", " ").replace("+00:00", " UTC")


def _count(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else NOTHING


def _figure(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, int | float) else NOTHING


def _yes(value: bool) -> str:
    return "yes" if value else "no"


# --- show


def show_version(console: Console, version: Mapping[str, Any]) -> None:
    """Show all that is known about one version, as ``cli`` describes it."""
    config = version["config"]
    sizes = (("n_users", "users"), ("n_items", "movies"), ("n_ratings", "ratings"))
    state = version["state"] or "neither active nor previous"
    rows = {
        "version": f"{version['version']} ({state})",
        "trained at": _moment(version["trained_at"]),
        "dataset": version["dataset"],
        "fingerprint": version["fingerprint"] or NOTHING,
        "sizes": ", ".join(f"{_count(version[name])} {what}" for name, what in sizes),
        "model": _settings({name: config[name] for name in DESCRIBED if name in config}),
        "first stage": _settings(config.get("als", {})),
        "second stage": _settings(config["ranker"]) if "ranker" in config else "none",
        "metrics": _headlines(version),
        "gate": _gate(version["promotion"]),
        "folder": version["folder"],
        "files": "\n".join(f"{_size(stated['size']):>9}  {name}" for name, stated in version["files"].items()),
        "made with": _settings(version["libraries"]),
    }
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True, style="bold")
    grid.add_column(overflow="fold")
    for name, text in rows.items():
        grid.add_row(name, Text(text))
    console.print(grid)


def _settings(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items()) or NOTHING


def _headlines(version: Mapping[str, Any]) -> str:
    if not version["headlines"]:
        return "not evaluated"
    lines = [f"of {version['answers_with']}, protocol {version['protocol']}, {version['stage']}:"]
    for metric, found in version["headlines"].items():
        interval = found["interval"]
        sure = f"95 % interval {interval[0]:.4f} to {interval[1]:.4f}" if interval else "no interval"
        lines.append(f"{metric:9}  {_figure(found['value'])}  ({sure})")
    return "\n".join(lines)


def _gate(promotion: Mapping[str, Any]) -> str:
    if not promotion:
        return "not asked"
    refused = "not asked to decide" if promotion.get("promote") == "never" else "refused"
    verdict = "passed" if promotion.get("activate") else refused
    return f"{verdict}: {'; '.join(map(str, promotion.get('reasons', []))) or 'no reason given'}"


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 2**20:.1f} MiB" if n_bytes >= 2**20 else f"{n_bytes / 2**10:.1f} KiB"


# --- diff


def show_difference(console: Console, report: ShadowReport) -> None:
    """Show how two versions differ."""
    console.print(f"A  {report.a.version}\nB  {report.b.version}\n")
    console.print(_table_of_sides(report))
    console.print(
        f"\nThe first {report.k} movies of {report.n_sampled:,} of the {report.users.both:,} users whom both know "
        f"(seed {report.random_state}); differences are B less A"
    )
    for line in _measures(report):
        console.print(f"  {line}", soft_wrap=True)
    for title, moved in (("gained", report.gained), ("lost", report.lost)):
        console.print(f"\nMovies that {title} most: share of lists that show them")
        console.print(_table_of_moved(moved) if moved else "  none")


def _table_of_sides(report: ShadowReport) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("")
    for name in ("A", "B", "only A", "only B", "both"):
        table.add_column(name, justify="right")
    table.add_row("users", *_shared(report.a.n_users, report.b.n_users, report.users))
    table.add_row("movies", *_shared(report.a.n_movies, report.b.n_movies, report.movies))
    sides = (report.a, report.b)
    table.add_row("second stage", *(_yes(side.has_ranker) for side in sides))
    for source in sorted({*report.a.sources, *report.b.sources}):
        table.add_row(f"lists by {source}", *(f"{side.sources.get(source, 0):,}" for side in sides))
    table.add_row(f"coverage@{report.k}", *(_share(side.coverage) for side in sides))
    return table


def _shared(n_a: int, n_b: int, shared: Shared) -> list[str]:
    return [f"{n:,}" for n in (n_a, n_b, shared.a_only, shared.b_only, shared.both)]


def _share(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.1%}"


def _measures(report: ShadowReport) -> list[str]:
    same = f"{_share(report.identical)} of lists are the same"
    depth = f"Kendall's τ of the first {DEPTH}, {report.n_correlated:,} users"
    drifts = [
        f"{drift.mean:+.3g}, absolute {drift.mean_absolute:.3g} ({drift.n_scores:,} scores by {source})"
        for source, drift in (report.score_drift or {}).items()
    ]
    return [
        f"overlap@{report.k:<9}  {_share(report.overlap)} of the movies; {same}",
        f"rank correlation   {_figure(report.rank_correlation)} ({depth})",
        *(f"score drift        {text}" for text in drifts or [f"{NOTHING} (no two scores can be compared)"]),
    ]


def _table_of_moved(moved: Sequence[Exposure]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("A", "B", "B less A", "movie_id"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("title", overflow="fold")
    for of in moved:
        where = "" if of.in_a and of.in_b else " (not in B)" if of.in_a else " (not in A)"
        cells = (f"{of.a:.1%}", f"{of.b:.1%}", f"{of.difference:+.1%}", str(of.movie_id))
        table.add_row(*cells, Text(of.title + where))
    return table
