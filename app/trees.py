"""Whether a text model can be handed to LightGBM: found out in another process, which may die of it.

``stored_ranker ─▶ check_trees ─▶ ranker``. LightGBM believes what its text says. A damaged one can abort the process,
let it loop without end, or let it read memory that is not its own, and nothing in Python can catch that. ``python -m
app.trees N_FEATURES < model.txt`` is the other process; it prints one line and exits with 1 if the text is no good.
"""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from app.errors import ArtifactError

if TYPE_CHECKING:
    import lightgbm

TIMEOUT_SECONDS = 60
_MEMORY_BYTES = 4 * 2**30
_MAX_SCORE = float(np.finfo(np.float32).max)
_MESSAGE_LENGTH = 300
_END = "end of trees"  # what follows, importances and parameters, is nothing that LightGBM predicts with
_NUMERICAL = (0, 2, 4, 6, 8, 10)  # decision types: bit 0 is categorical, bits 1 to 3 say where which missing value goes
_PASSED: set[tuple[str, int]] = set()  # SHA-256 of texts, and their number of features


def is_available() -> bool:
    """Tell whether LightGBM is installed."""
    return find_spec("lightgbm") is not None


def check_trees(text: str, n_features: int) -> None:
    """Refuse a text model that LightGBM would not survive, before this process loads it.

    Another process checks that each tree is one, of numerical splits on the features there are; that LightGBM loads the
    text and holds exactly what stands in it; and that scores and their contributions are finite. What passed is
    remembered, what failed is not. Without LightGBM nothing is checked: nothing will load the text either.

    It is there against damage, not malice: it says nothing of how good the trees are, is no sandbox, and holds for the
    installed LightGBM. A text is refused, too, if this LightGBM would write it differently.

    Parameters
    ----------
    text : str
        LightGBM's text model.
    n_features : int
        As many as the matrix has columns that will be scored.

    Raises
    ------
    ArtifactError
        If the text fails, or no process can be started to find out.
    """
    if not is_available():
        return
    content = text.encode("utf-8", "surrogatepass")  # which the other process refuses
    key = (hashlib.sha256(content).hexdigest(), n_features)
    if key in _PASSED:
        return
    trouble = _ask(content, n_features)
    if trouble:
        raise ArtifactError(
            f"the ranker cannot be loaded ({trouble}); expected LightGBM and a text model of its, of {n_features} "
            "features and finite numbers. Install the requirements (pip install -r requirements.txt), or train again: "
            "python train_als.py"
        )
    _PASSED.add(key)


def _ask(content: bytes, n_features: int) -> str:
    """Return what another process finds wrong with the text, or how it ended; nothing if all is well."""
    # One thread for LightGBM and BLAS; and with PYTHONSAFEPATH Python would not find this package in the folder.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": ""}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "app.trees", str(n_features)],
            input=content,
            capture_output=True,
            cwd=Path(__file__).parents[1],
            env=environment,
            timeout=TIMEOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"LightGBM does not finish within {TIMEOUT_SECONDS} s"
    except OSError as error:
        return f"no process can be started to check it: {error}"
    if done.returncode == 0:
        return ""
    if done.returncode < 0:
        return f"LightGBM dies on it (signal {signal.Signals(-done.returncode).name})"
    said = (done.stdout or done.stderr).decode("utf-8", "replace").strip().splitlines() or ["nothing"]
    line = said[-1][:_MESSAGE_LENGTH]
    return line if done.returncode == 1 else f"its check ended with exit status {done.returncode}: {line}"


# --- in the other process


def _main() -> int:
    _limit_this_process()
    try:
        _inspect(sys.stdin.buffer.read().decode("utf-8"), int(sys.argv[1]))
    except Exception as error:
        line = str(error) if isinstance(error, ArtifactError) else f"{type(error).__name__}: {error}"
        sys.stdout.write(f"\n{ascii(line)[1:-1][:_MESSAGE_LENGTH]}\n")  # it may quote the text, which may be anything
        return 1
    return 0


def _limit_this_process() -> None:
    """Leave no core file, leave memory to the service, and end even if nobody waits any more."""
    if sys.platform == "win32":
        return
    import resource

    signal.alarm(TIMEOUT_SECONDS + 5)
    for limit, value in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_AS, _MEMORY_BYTES)):
        with suppress(ValueError, OSError):  # a lower limit stands already, or the system knows none
            resource.setrlimit(limit, (value, value))


def _inspect(text: str, n_features: int) -> None:
    """Look at the text first, so that LightGBM sees only what seems sound, then at what LightGBM makes of it."""
    model, _, rest = text.partition(_END)
    _check_model(model, n_features)
    _check_parameters(rest)
    for optional in ("pandas", "sklearn", "matplotlib", "dask"):  # of no use here, and slow to import
        sys.modules[optional] = None  # type: ignore[assignment]
    import lightgbm

    booster = lightgbm.Booster(model_str=text)
    # Equal, what was checked is what LightGBM holds, and its parser has read nothing but the text.
    if booster.model_to_string(num_iteration=-1).partition(_END)[0] != model:
        raise ArtifactError(f"LightGBM {lightgbm.__version__} would not write it so: damaged, or another release's")
    if len(booster.feature_name()) != n_features:
        raise ArtifactError(f"it names {len(booster.feature_name())} features")
    _check_predictions(booster, n_features)


def _check_model(model: str, n_features: int) -> None:
    header, *trees = model.split("\nTree=")
    stated = _fields(header)
    if not trees or "max_feature_idx" not in stated:
        raise ArtifactError("it is no text model with trees")
    if int(stated["max_feature_idx"]) + 1 != n_features:
        raise ArtifactError(f"it is of {int(stated['max_feature_idx']) + 1} features")
    if (stated.get("num_class"), stated.get("num_tree_per_iteration")) != ("1", "1"):
        raise ArtifactError("it does not say that it gives one score for each row")
    largest = 0.0
    for n, tree in enumerate(trees):
        try:
            largest += _check_tree(_fields(tree), n_features)
        except KeyError as error:
            raise ArtifactError(f"tree {n}: {error} is missing") from error
        except (ArtifactError, ValueError) as error:
            raise ArtifactError(f"tree {n}: {error}") from error
    if largest > _MAX_SCORE:
        raise ArtifactError(f"its leaves add up to {largest:.3g}, which is no float32")


def _check_parameters(rest: str) -> None:
    """Check the lines with what the trees were trained by, which LightGBM takes apart as "[name: value]" unchecked."""
    lines = re.split(r"[\r\n\0]", rest)
    if "parameters:" not in lines:
        return
    for line in lines[lines.index("parameters:") + 1 :]:
        if line == "end of parameters":
            return
        if line and not re.fullmatch(r"\[\w+: .*\]", line):
            raise ArtifactError(f"{line[:80]!r} is no parameter")
    raise ArtifactError("its parameters have no end")


def _fields(lines: str) -> dict[str, str]:
    return {name: value for name, _, value in (line.partition("=") for line in lines.split("\n"))}


def _check_tree(tree: Mapping[str, str], n_features: int) -> float:
    """Check one tree; returns the largest of its leaves in absolute value."""
    leaves = _numbers(tree["leaf_value"])
    n_leaves = int(tree["num_leaves"])
    if len(leaves) != n_leaves or n_leaves < 1 or not np.isfinite(leaves).all():
        raise ArtifactError("its leaves are not as many finite numbers as it says")
    if tree["num_cat"] != "0" or tree["is_linear"] != "0":
        raise ArtifactError("it has categories or linear leaves, which the ranker's trees have not")
    if n_leaves > 1:  # of a single leaf LightGBM reads nothing more
        _check_splits(tree, n_leaves, n_features)
    return float(np.abs(leaves).max())


def _check_splits(tree: Mapping[str, str], n_leaves: int, n_features: int) -> None:
    n_splits = n_leaves - 1
    names = ("split_feature", "threshold", "decision_type", "left_child", "right_child", "internal_count")
    columns = [_numbers(tree[name]) for name in names]
    leaf_count = _numbers(tree["leaf_count"])
    if [len(column) for column in (*columns, leaf_count)] != [n_splits] * len(columns) + [n_leaves]:
        raise ArtifactError(f"it has not {n_splits} splits and {n_leaves} leaves, as it says")
    split_feature, threshold, decision_type, left, right, internal_count = columns
    if not np.isin(split_feature, np.arange(n_features)).all():
        raise ArtifactError(f"it splits on a feature outside 0 to {n_features - 1}")
    if np.isnan(threshold).any():  # infinite ones are LightGBM's own, where only NaN goes the other way
        raise ArtifactError("a threshold is NaN")
    if not np.isin(decision_type, _NUMERICAL).all():
        raise ArtifactError("a split is none of numbers")
    # Leaf i is ~i. LightGBM appends, so a node is younger than its parent: each is reached, and there is no cycle.
    children = np.array([left, right])
    is_older = (children >= 0) & (children <= np.arange(n_splits))
    if sorted(children.ravel()) != [*range(-n_leaves, 0), *range(1, n_splits)] or is_older.any():
        raise ArtifactError("its children make no tree")
    if not (np.concatenate([internal_count, leaf_count]) >= 1).all():  # contributions divide by them
        raise ArtifactError("a node counts no rows")


def _numbers(values: str) -> NDArray[np.float64]:
    return np.array(values.split(), dtype=np.float64)  # exact for LightGBM's int32, too


def _check_predictions(booster: lightgbm.Booster, n_features: int) -> None:
    """Score rows that are usual and rows that are not."""
    rng = np.random.default_rng(0)
    alike = np.repeat([[0.0], [1.0], [-1.0], [np.nan], [1e30], [-1e30]], n_features, axis=1)
    spread = rng.normal(size=(30, n_features)) * np.logspace(-2, 4, 30)[:, None]
    holes = np.where(rng.random((10, n_features)) < 0.3, np.nan, rng.normal(size=(10, n_features)))
    rows = np.concatenate([alike, spread, holes]).astype(np.float32)
    for name, width in (("raw_score", ()), ("pred_contrib", (n_features + 1,))):
        found = np.asarray(booster.predict(rows, num_threads=1, **{name: True}))
        if found.shape != (len(rows), *width) or not np.isfinite(found.astype(np.float32)).all():
            raise ArtifactError(f"its predictions ({name}) are not finite numbers, {width or 'one'} for each row")


if __name__ == "__main__":
    sys.exit(_main())
