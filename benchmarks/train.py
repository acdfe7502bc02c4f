"""How long train_als.py takes, beside one bare fit of implicit plus reading the CSV files.

    python benchmarks/train.py [--rounds 5]

All run as fresh processes, in turn, on the data of $MOVIELENS_DIR (or data_small/ml-latest-small):

- bare: reads the files and fits once, with the default configuration;
- lean: ``train_als.py`` without the costly baselines and without the report; still every protocol, the reference ALS,
  cold start, intervals, the refit and publishing;
- alone: the same without any baseline, to compare the evaluation of one model with its fits;
- full: ``train_als.py`` as it is.

Prints medians, their parts, and the ratios with their targets.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from data import FOLDER, ROOT

TARGETS = {"lean_process": 12.0, "lean_work": 12.0, "evaluate_to_fit": 1.5, "full_seconds": 60.0}
VARIANTS = {
    "lean": ("--baselines", "reference,popular,random", "--no-report"),
    "alone": ("--baselines", "none", "--no-report"),
    "full": (),
}

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
    with tempfile.TemporaryDirectory() as artifacts:
        rounds = [_round(artifacts) for _ in range(arguments.rounds + 1)][1:]
    figures = _summarise(rounds)
    _print(figures)
    if arguments.out:
        arguments.out.write_text(json.dumps(figures, indent=2) + "\n")


def _round(artifacts: str) -> dict[str, dict[str, float]]:
    return {"bare": _bare(FOLDER), **{name: _train(FOLDER, artifacts, *VARIANTS[name]) for name in VARIANTS}}


def _bare(folder: Path) -> dict[str, float]:
    from app.als import AlsConfig

    config = AlsConfig()
    options = {name: getattr(config, name) for name in ("factors", "regularization", "alpha", "iterations")}
    command = [sys.executable, "-c", BARE, str(folder), json.dumps({**options, "random_state": config.random_state})]
    return _timed(command)


def _train(folder: Path, artifacts: str, *options: str) -> dict[str, float]:
    where = ["--data-dir", str(folder), "--artifacts-dir", artifacts]
    return _timed([sys.executable, "train_als.py", *where, *options, "--json"])


def _timed(command: list[str]) -> dict[str, float]:
    """Run a command that prints its parts' seconds as JSON; add the seconds of the whole process."""
    start = time.perf_counter()
    output = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    whole = time.perf_counter() - start
    printed: dict[str, Any] = json.loads(output)
    return {**printed.get("seconds", printed), "process": whole}


def _summarise(rounds: list[dict[str, dict[str, float]]]) -> dict[str, Any]:
    measured = {
        "lean_process": [each["lean"]["process"] / each["bare"]["process"] for each in rounds],
        "lean_work": [_work(each["lean"]) / (each["bare"]["read"] + each["bare"]["fit"]) for each in rounds],
        "evaluate_to_fit": [each["alone"]["evaluate"] / each["alone"]["fit"] for each in rounds],
        "full_seconds": [each["full"]["process"] for each in rounds],
    }
    return {
        "rounds": len(rounds),
        "seconds": {
            name: {part: statistics.median(each[name][part] for each in rounds) for part in rounds[0][name]}
            for name in rounds[0]
        },
        "measured": {
            name: {"median": statistics.median(values), "min": min(values), "max": max(values)}
            for name, values in measured.items()
        },
    }


def _work(train: dict[str, float]) -> float:
    """Return the seconds of all parts: without starting Python and importing libraries."""
    return sum(seconds for part, seconds in train.items() if part != "process")


def _print(figures: dict[str, Any]) -> None:
    for name, parts in figures["seconds"].items():
        print(f"{name:6} seconds: " + ", ".join(f"{part} {seconds:.3f}" for part, seconds in parts.items()))
    for name, meaning in (
        ("lean_process", "lean, whole processes: times bare"),
        ("lean_work", "lean, without starting Python and imports: times bare reading and fitting"),
        ("evaluate_to_fit", "evaluation of one model under both protocols: times its fits"),
        ("full_seconds", "full, whole process: seconds"),
    ):
        value, target = figures["measured"][name], TARGETS[name]
        verdict = "within" if value["median"] <= target else "NOT within"
        print(
            f"{meaning}: {value['median']:.2f} (min {value['min']:.2f}, max {value['max']:.2f}), {verdict} {target:g}; "
            f"{figures['rounds']} rounds"
        )


if __name__ == "__main__":
    main()
