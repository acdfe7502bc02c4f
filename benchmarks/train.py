"""How long the whole of train_als.py takes, beside one bare fit of implicit plus reading the CSV files.

    python benchmarks/train.py [--rounds 5]

Both run as fresh processes, in turn, on the data of $MOVIELENS_DIR (or data_small/ml-latest-small). ``train_als.py``
fits three times (for each protocol and for the served model), evaluates, and publishes; the bare script reads the same
files and fits once. Prints medians, the parts, and two ratios: of whole processes, and of the work alone, without
starting Python and importing libraries.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TARGET_RATIO = 5.0

BARE = """
import json, sys, time
start = time.perf_counter()
import numpy as np, pandas as pd, scipy.sparse as sp
from implicit.cpu.als import AlternatingLeastSquares
from threadpoolctl import threadpool_limits
imported = time.perf_counter()
folder, config = sys.argv[1], json.loads(sys.argv[2])
ratings = pd.read_csv(f"{folder}/ratings.csv")
pd.read_csv(f"{folder}/movies.csv")
pd.read_csv(f"{folder}/links.csv")
read = time.perf_counter()
liked = ratings[ratings["rating"] >= 4.0]
users, rows = np.unique(liked["userId"], return_inverse=True)
items, columns = np.unique(liked["movieId"], return_inverse=True)
values = np.full(len(liked), config.pop("alpha"), dtype=np.float32)
matrix = sp.csr_matrix((values, (columns, rows)), shape=(len(items), len(users)))
with threadpool_limits(1, "blas"):
    AlternatingLeastSquares(**config).fit(matrix, show_progress=False)
fitted = time.perf_counter()
print(json.dumps({"import": imported - start, "read": read - imported, "fit": fitted - read}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="counted runs of each, after one that is not counted")
    parser.add_argument("--out", type=Path, help="write the figures as JSON here too")
    arguments = parser.parse_args()
    folder = Path(os.environ.get("MOVIELENS_DIR", ROOT / "data_small" / "ml-latest-small")).resolve()
    with tempfile.TemporaryDirectory() as artifacts:
        rounds = [(_bare(folder), _train(folder, artifacts)) for _ in range(arguments.rounds + 1)][1:]
    figures = _summarise(rounds)
    _print(figures)
    if arguments.out:
        arguments.out.write_text(json.dumps(figures, indent=2) + "\n")


def _bare(folder: Path) -> dict[str, float]:
    sys.path.insert(0, str(ROOT))
    from app.als import AlsConfig

    config = AlsConfig()
    options = {name: getattr(config, name) for name in ("factors", "regularization", "alpha", "iterations")}
    command = [sys.executable, "-c", BARE, str(folder), json.dumps({**options, "random_state": config.random_state})]
    return _timed(command)


def _train(folder: Path, artifacts: str) -> dict[str, float]:
    command = [sys.executable, "train_als.py", "--data-dir", str(folder), "--artifacts-dir", artifacts, "--json"]
    return _timed(command)


def _timed(command: list[str]) -> dict[str, float]:
    """Run a command that prints its parts' seconds as JSON; add the seconds of the whole process."""
    start = time.perf_counter()
    output = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    whole = time.perf_counter() - start
    printed: dict[str, Any] = json.loads(output)
    return {**printed.get("seconds", printed), "process": whole}


def _summarise(rounds: list[tuple[dict[str, float], dict[str, float]]]) -> dict[str, Any]:
    def medians(side: int) -> dict[str, float]:
        return {part: statistics.median(each[side][part] for each in rounds) for part in rounds[0][side]}

    work = [
        sum(seconds for part, seconds in train.items() if part != "process") / (bare["read"] + bare["fit"])
        for bare, train in rounds
    ]
    process = [train["process"] / bare["process"] for bare, train in rounds]
    return {
        "rounds": len(rounds),
        "bare_seconds": medians(0),
        "train_seconds": medians(1),
        "ratio_process": {"median": statistics.median(process), "min": min(process), "max": max(process)},
        "ratio_work": {"median": statistics.median(work), "min": min(work), "max": max(work)},
    }


def _print(figures: dict[str, Any]) -> None:
    for name in ("bare_seconds", "train_seconds"):
        parts = ", ".join(f"{part} {seconds:.3f}" for part, seconds in figures[name].items())
        print(f"{name:14} {parts}")
    for name, meaning in (("ratio_process", "whole processes"), ("ratio_work", "reading and computing alone")):
        ratio = figures[name]
        verdict = "under" if ratio["median"] < TARGET_RATIO else "NOT under"
        print(
            f"{meaning}: {ratio['median']:.2f} (min {ratio['min']:.2f}, max {ratio['max']:.2f}) times a bare fit plus "
            f"reading; {verdict} the target of {TARGET_RATIO:g}; {figures['rounds']} rounds"
        )


if __name__ == "__main__":
    main()
