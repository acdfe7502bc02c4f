"""One run of the trainer in progress: what was asked for, the screen, and the seconds of each part."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from app import core, second_stage
from app.console import Screen
from app.options import Options
from app.ranker import RankerConfig

RANKER = RankerConfig()


@dataclass
class Run:
    """Options, screen, and what is noted along the way."""

    options: Options
    screen: Screen
    show_progress: bool
    seconds: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def learner(self, dataset: core.Dataset, users: core.IdMap, items: core.IdMap) -> second_stage.Learner:
        return second_stage.Learner(dataset, users, items, self.options.config, self.options.min_rating)

    def warn(self, text: str) -> None:
        self.warnings.append(text)
        self.screen.warn(text)

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start
