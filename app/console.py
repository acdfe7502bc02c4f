"""The trainer's screen: numbered steps, a progress bar, a table of figures, and what to do next.

Warnings and errors go to standard error, the rest to standard output. Nothing here decides anything.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from app.evaluation import HEADLINES, TaskResult
from app.evaluation.strata import WITHIN
from app.promotion import Verdict
from app.tuning import Tuned

N_STEPS = 7


class Screen:
    """Tell a person what the trainer does; ``quiet`` leaves only warnings and errors."""

    def __init__(self, *, quiet: bool, n_steps: int = N_STEPS) -> None:
        self._n_steps = n_steps
        self._number = 0
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="replace")  # a console that has no check mark must not end a training run
        self._out = Console(quiet=quiet, highlight=False)
        self._err = Console(stderr=True, highlight=False)

    def step(self, text: str) -> None:
        self._number += 1
        number = self._number
        self._out.print(f"[bold]\\[{number}/{self._n_steps}][/bold] {text}...")

    def done(self, text: str) -> None:
        self._out.print(Text.assemble(("  ✓ ", "green"), text), soft_wrap=True)

    def skipped(self, reason: str) -> None:
        self._out.print(Text(f"  – skipped: {reason}", style="dim"))

    def warn(self, text: str) -> None:
        self._err.print(Text.assemble(("  ! Warning: ", "yellow"), text), soft_wrap=True)

    def error(self, text: str) -> None:
        self._err.print(Text.assemble(("Error: ", "bold red"), text), soft_wrap=True)

    def announce(self, title: str, text: str) -> None:
        """Say something that nobody may miss, whatever the verbosity."""
        self._err.print(Panel(Text(text), title=title, border_style="bold yellow", style="yellow"))

    def say(self, text: str = "") -> None:
        self._out.print(text, soft_wrap=True, markup=False)

    @contextmanager
    def progress(self, label: str, total: int) -> Iterator[Callable[..., None]]:
        """Show a bar that each call of the yielded function moves on, with a new label if it is given one.

        It vanishes when done.
        """
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self._out, transient=True, disable=not self._out.is_terminal) as bar:
            task = bar.add_task(f"  {label}", total=total)
            yield lambda text=label: bar.update(task, advance=1, description=f"  {text}")

    def result(self, result: TaskResult) -> None:
        """Show one task's figures, models beside each other, and how they divide by the gap before the target."""
        task = result.task
        title = f"protocol {task.protocol}, {task.stage}, {task.n_targets:,} users"
        table = Table(title=title, title_justify="left", title_style="bold")
        table.add_column("model")
        for metric in HEADLINES:
            table.add_column(metric, justify="right")
        table.add_column("als gains, recall@10", justify="right")
        for model, means in result.means.items():
            gain = _describe_gain(result.differences[model]["recall@10"]) if model in result.differences else ""
            table.add_row(model, *(f"{means[metric]:.4f}" for metric in HEADLINES), gain)
        self._out.print(table)
        interval = result.intervals["als"]["recall@10"]
        sure = f"95 % interval {interval[0]:.3f} to {interval[1]:.3f}" if interval else "no interval"
        self.done(f"ALS Recall@10 {result.means['als']['recall@10']:.4f} ({sure})")
        if result.gains:
            gains = ", ".join(f"{metric} {_describe_gain(result.gains[metric])}" for metric in HEADLINES)
            self.done(f"Ranker less ALS: {gains}")
        self._say_gaps(result)

    def ranker(self, described: Mapping[str, Any]) -> None:
        """Show what the second stage chooses from, and what the dials cost."""
        candidates = described["candidates"]
        recall = ", ".join(f"{source} {value:.3f}" for source, value in candidates["recall"].items())
        self.done(f"Candidates: {candidates['n_mean']:.0f} a request; recall of {recall}")
        costs = ", ".join(
            f"{dial} {_describe_gain(step['changes']['ndcg@10'])}"
            for dial, steps in described["dials"].items()
            for step in steps
            if step["value"] == 0.3
        )
        self.done(f"NDCG@10 with a dial at 0.3: {costs}")

    def _say_gaps(self, result: TaskResult) -> None:
        parts = ", ".join(
            f"{name} {stratum['means']['als']['recall@10']:.3f} ({stratum['n_users']:,})"
            for name, stratum in result.strata["gap"].items()
        )
        n_within = result.strata["session"].get(WITHIN, {"n_users": 0})["n_users"]
        n_users = result.task.n_targets
        within = (
            f"{n_within:,} of {n_users:,} users ({n_within / n_users:.0%}) had rated something within an hour before"
        )
        self.done(f"{within}. ALS Recall@10 by that gap: {parts}")

    def cold_start(self, measured: Mapping[str, Any]) -> None:
        """Show how well the first likes of unseen users serve them."""
        parts = ", ".join(
            f"{n} like{'s'[: n != '1']} {found['means']['als']['recall@10']:.3f} "
            f"(popular {found['means']['popular']['recall@10']:.3f}; "
            f"{found['n_within_session'] / found['n_users']:.0%} within an hour)"
            for n, found in measured["n_liked"].items()
        )
        self.done(f"Cold start, Recall@10 of users held out as a whole: {parts}")

    def verdict(self, verdict: Verdict) -> None:
        """Show what the promotion gate compared, and what it decided."""
        if verdict.comparisons:
            table = Table(title=f"held-out run beside {verdict.against}", title_justify="left", title_style="bold")
            table.add_column("metric")
            table.add_column("users")
            for name in ("n", "candidate", "active", "difference", "p, Holm"):
                table.add_column(name, justify="right")
            for of in verdict.comparisons:
                figures = (f"{of.candidate:.4f}", f"{of.active:.4f}", f"{of.difference:+.4f}", f"{of.p_holm:.2g}")
                table.add_row(
                    of.metric,
                    of.users.removeprefix("users with "),
                    f"{of.n_users:,}",
                    *figures,
                    style="red" if of.is_worse else None,
                )
            self._out.print(table)
        if verdict.activate or verdict.promote == "never":
            self.done(f"{'May' if verdict.activate else 'Will not'} become active: {'; '.join(verdict.reasons)}")

    def not_activated(self, version: str, reasons: Sequence[str], against: str | None, artifacts_dir: Path) -> None:
        """Say that a version was published beside the active one, why, and what can be done."""
        listed = "\n".join(f"- {reason}" for reason in reasons)
        self.announce("NOT ACTIVATED", f"{version} was published, but is not active:\n{listed}")
        folder = f" --artifacts-dir {shlex.quote(str(artifacts_dir))}"
        models = "python -m app.cli models"
        if against:
            self._err.print(f"What is different:    {models} diff {against} {version}{folder}", soft_wrap=True)
        self._err.print(f"To activate it still: {models} activate {version}{folder}", soft_wrap=True)

    def tuned(self, tuned: Tuned) -> None:
        """Show what a search found, and how much of it also holds where it did not look."""
        ended = f"{tuned.n_pruned} of them pruned and {tuned.n_failed} failed"
        trials = f"{tuned.n_trials} trial{'s'[: tuned.n_trials != 1]}, {ended}"
        before = f", after {tuned.n_earlier} earlier ones" if tuned.n_earlier else ""
        self.done(f"{'Interrupted: ' if tuned.interrupted else ''}{trials}{before}, {tuned.seconds:.0f} s")
        table = Table(title="the best setting less the one it began with", title_justify="left", title_style="bold")
        for name in ("", "searched positive", "second positive", "optimism"):
            table.add_column(name, justify="right")
        for metric in HEADLINES:
            gains = (tuned.validation["gain"], tuned.second_validation["gain"], tuned.optimism)
            table.add_row(metric, *(_describe_gain(gain[metric]) for gain in gains))
        self._out.print(table)
        self.done(
            "Searched was each user's validation positive; the second is the one before it, which the search never "
            "scored. Optimism is the difference: an estimate of the gain that will not last"
        )
        self.done(f"Stored in {tuned.stored}")
        self.say(f"\nBest:  {tuned.command}")


def _describe_gain(difference: Mapping[str, Any]) -> str:
    """Write a difference and its interval as short as a table of 80 columns asks for."""
    value, *bounds = (
        f"{figure:+.3f}".replace("0.", ".", 1) for figure in (difference["difference"], *(difference["interval"] or ()))
    )
    return f"{value} ({' '.join(bounds) or 'no interval'})"
