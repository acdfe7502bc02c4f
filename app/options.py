"""What one training run was asked to do, checked before it begins.

``train_als.py ─▶ Options ─▶ training``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from app.als import AlsConfig, uses_gpu
from app.core import Stage
from app.datasets.locate import check_dataset
from app.errors import ConfigError
from app.evaluation import BASELINES
from app.promotion import Promote
from app.protocols import LeaveOneOut
from app.trees import is_available

Evaluate = Literal["all", "rated", "validation", "none"]
SplitName = Literal["leave-one-out", "temporal"]
TASKS: dict[Evaluate, tuple[tuple[LeaveOneOut, Stage], ...]] = {
    "all": (("rated", "test"), ("positives", "test")),
    "rated": (("rated", "test"),),
    "validation": (("rated", "validation"), ("positives", "validation")),
    "none": (),
}


@dataclass(frozen=True)
class Options:
    """What one training run was asked to do."""

    config: AlsConfig
    preset: str
    data_dir: Path | None
    dataset: str | None
    synthetic_ratings: int
    min_rating: float
    split: SplitName
    evaluate: Evaluate
    baselines: tuple[str, ...]
    export_run: Path | None
    report: bool
    refit: bool
    ranker: bool
    tune: int | None
    study: Path | None
    promote: Promote
    keep: int
    artifacts_dir: Path
    movielens_dir: Path | None
    movielens_url: str
    default_data_dir: Path = Path("data_small")

    def __post_init__(self) -> None:
        uses_gpu(self.config.device)
        check_dataset(self.dataset, self.data_dir)
        if not 0.5 <= self.min_rating <= 5:
            raise ConfigError(f"--min-rating is {self.min_rating:g}; expected 0.5 to 5")
        if self.keep < 1:
            raise ConfigError(f"--keep is {self.keep}; expected a whole number of versions, at least 1")
        if self.tune is not None and self.tune < 1:
            raise ConfigError(f"--tune is {self.tune}; expected a whole number of trials from 1")
        if self.study and self.tune is None:
            raise ConfigError("--study names the file of a search, which only --tune N makes")
        if self.tune is not None and self.evaluate != "validation":
            raise ConfigError(
                f"--tune searches on validation and must not see test; --evaluate is {self.evaluate}. Leave that out, "
                "and evaluate what was found in a run of its own"
            )
        if self.tune is not None and (self.split == "temporal" or self.export_run):
            raise ConfigError("--tune searches on leave-one-out, and exports nothing: without --split and --export-run")
        for baseline in self.baselines:
            if baseline not in BASELINES:
                known = ", ".join(BASELINES)
                raise ConfigError(f"--baselines names {baseline!r}; expected some of {known}, or none")
        if self.split == "temporal" and self.evaluate == "rated":
            raise ConfigError("--evaluate rated is a protocol of --split leave-one-out; with temporal use all")
        if not self.refit and (self.split == "temporal" or ("rated", "test") not in TASKS[self.evaluate]):
            if self.tune is not None:
                raise ConfigError("--tune serves nothing, so there is nothing for --no-refit to keep")
            made = f"--split {self.split} --evaluate {self.evaluate}"
            raise ConfigError(f"--no-refit keeps the rated test fit, which {made} does not make")
        if self.ranker and self.tune is not None:
            raise ConfigError("--tune searches the settings of the first stage alone: leave --ranker out")
        if self.ranker and not is_available():
            raise ConfigError("--ranker needs LightGBM, which is not installed: pip install -r requirements.txt")
        if self.export_run and self.evaluate == "none":
            raise ConfigError("--export-run writes the held-out rankings, which --evaluate none does not make")
