"""Search ALS hyper-parameters on validation, and measure how much of the gain the search only imagined.

``Dataset ─▶ validation_tasks ─▶ tune (optuna) ─▶ Tuned ─▶ a command line``. Each user's test positive, and all that the
user rated from its second on, is dropped before anything else: there is no task here that could show it. Trials run one
after another, so that a search can be repeated; the seeds of one run side by side, which uses the cores. optuna is
imported when a search begins. Nothing is trained for serving or drawn on a screen.
"""

from __future__ import annotations

from app.tuning.search import TrialReport, Tuned, to_command_line, tune

__all__ = ["TrialReport", "Tuned", "to_command_line", "tune"]
