"""The trainer's screen: six numbered steps, a progress bar, a table of figures, and what to do next.

Warnings and errors go to standard error, the rest to standard output. Nothing here decides anything.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

N_STEPS = 6
TABLE_METRICS = ("recall@5", "recall@10", "recall@20", "ndcg@10", "ndcg@20")


class Screen:
    """Tell a person what the trainer does; ``quiet`` leaves only warnings and errors."""

    def __init__(self, *, quiet: bool) -> None:
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="replace")  # a console that has no check mark must not end a training run
        self._out = Console(quiet=quiet, highlight=False)
        self._err = Console(stderr=True, highlight=False)

    def step(self, number: int, text: str) -> None:
        self._out.print(f"[bold]\\[{number}/{N_STEPS}][/bold] {text}...")

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
    def progress(self, label: str, total: int) -> Iterator[Callable[[], None]]:
        """Show a bar that each call of the yielded function moves on by one; it vanishes when done."""
        columns = (TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self._out, transient=True, disable=not self._out.is_terminal) as bar:
            task = bar.add_task(label, total=total)
            yield lambda: bar.advance(task)

    def metrics(self, protocol: str, means: Mapping[str, Mapping[str, float]], n_users: int) -> None:
        """Show one protocol's figures, models beside each other."""
        table = Table(title=f"protocol {protocol}, {n_users:,} users", title_justify="left", title_style="bold")
        table.add_column("model")
        for metric in TABLE_METRICS:
            table.add_column(metric, justify="right")
        for model, values in means.items():
            table.add_row(model, *(f"{values[metric]:.4f}" for metric in TABLE_METRICS))
        self._out.print(table)
