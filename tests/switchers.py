"""Processes that move CURRENT, watch it, or hold the lock, for tests in which several are at one folder.

python -m tests.switchers publish FOLDER SEED…  publish models
python -m tests.switchers switch FOLDER SEED    roll back, or activate any version, until standard input ends
python -m tests.switchers read FOLDER           load what CURRENT names, over and over, until standard input ends
python -m tests.switchers activate FOLDER       activate the version that each line names
python -m tests.switchers hold FOLDER           lock the folder, and keep it locked

Each says "ready", begins with the next line of standard input, and prints JSON at its end. ``Child`` is one of them
as a test sees it.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from app.artifacts import load_version
from app.errors import VersionRefusedError
from app.registry import VERSIONS, Switched, activate, current, publish, rollback
from app.registry.disk import locked
from tests.models import make_model

ROOT = Path(__file__).parents[1]


class Child:
    """A process that has said "ready"; killed at the end of a ``with`` block if it is still there."""

    def __init__(self, *arguments: object, module: str = "tests.switchers") -> None:
        command = [sys.executable, "-W", "error", "-m", module, *map(str, arguments)]
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Child:
        assert self.process.stdout is not None
        if (line := self.process.stdout.readline()) != "ready\n":
            raise AssertionError(line + self.process.communicate()[1])
        return self

    def __exit__(self, *_error: object) -> None:
        self.process.kill()
        self.process.communicate()

    def tell(self, line: str = "") -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def ask(self, line: str) -> str:
        """Send a line and return the one that answers it."""
        self.tell(line)
        assert self.process.stdout is not None
        answer = self.process.stdout.readline()
        if not answer:
            raise AssertionError(self.process.communicate()[1])
        return answer.strip()

    def end(self) -> Any:
        """End its input, and return what it prints."""
        said, errors = self.process.communicate(timeout=300)
        assert (self.process.returncode, errors) == (0, ""), errors
        return json.loads(said)


# --- in the other process


def until_input_ends(step: Callable[[], object]) -> None:
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    while not ended.is_set():
        step()


def publish_all(folder: Path, seeds: list[str]) -> list[tuple[str, str]]:
    """Return (version, why) of each move of CURRENT."""
    return [(publish(folder, make_model(random_state=int(seed))).version, "trained") for seed in seeds]


def switch(folder: Path, seed: str) -> dict[str, Any]:
    rng = random.Random(seed)  # noqa: S311
    moves: list[tuple[str | None, str, str]] = []
    counts: Counter[str] = Counter()

    def step() -> None:
        time.sleep(rng.random() / 20)  # who waits for the lock looks every 1/20 s, and would hardly find it free
        go_back = rng.random() < 0.5
        try:
            done = rollback(folder) if go_back else activate_any()
        except VersionRefusedError as error:
            if "nothing to roll back to" not in str(error):
                raise
            counts["refused"] += 1
            return
        assert done.warnings == (), done
        if done.version != done.replaced:
            moves.append((done.replaced, done.version, "rolled back" if go_back else "activated"))

    def activate_any() -> Switched:
        return activate(folder, rng.choice(sorted(path.name for path in (folder / VERSIONS).iterdir())))

    until_input_ends(step)
    return {"moves": moves, "refused": counts["refused"]}


def read(folder: Path) -> dict[str, int]:
    found: Counter[str] = Counter()

    def step() -> None:
        version = current(folder)
        assert version is not None
        load_version(folder / VERSIONS / version)
        found[version] += 1

    until_input_ends(step)
    return {"reads": found.total(), "versions": len(found)}


def activate_as_told(folder: Path) -> None:
    for line in sys.stdin:
        if version := line.strip():
            print(json.dumps(activate(folder, version).version), flush=True)  # noqa: T201


def hold(folder: Path) -> None:
    with locked(folder, wait_seconds=1):
        print("ready", flush=True)  # noqa: T201
        sys.stdin.read()


def main(command: str, folder: Path, arguments: list[str]) -> None:
    if command == "hold":
        hold(folder)
        return
    print("ready", flush=True)  # noqa: T201
    if command == "activate":
        activate_as_told(folder)
        return
    sys.stdin.readline()
    if command == "publish":
        done: Any = publish_all(folder, arguments)
    else:
        done = switch(folder, *arguments) if command == "switch" else read(folder)
    print(json.dumps(done))  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
