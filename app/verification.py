"""What the files of a version must be, and the words for those that are not.

Used by ``artifacts`` and ``stored_ranker``. Nothing here knows which files there are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.errors import ArtifactError
from app.npz import map_npz


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        json.dumps(values, ensure_ascii=False).encode()  # which halves of characters fail: nobody could be shown them
    except FileNotFoundError as error:
        raise damaged(path, "is missing", "a JSON object") from error
    except (ValueError, OSError, RecursionError) as error:
        raise damaged(path, str(error), "a JSON object") from error
    if not isinstance(values, dict):
        raise damaged(path, f"holds a {type(values).__name__}", "a JSON object")
    return values


def map_arrays(path: Path) -> dict[str, NDArray[Any]]:
    try:
        return map_npz(path)
    except (ValueError, OSError) as error:
        raise damaged(path, str(error), "an npz file of plain arrays") from error


def check_rows(path: Path, indptr: NDArray[Any], item_index: NDArray[Any], n_users: int, n_items: int) -> None:
    """Check that ragged rows are well formed: an index outside would read another user's movies."""
    for name, array in (("indptr", indptr), ("item indices", item_index)):
        if array.ndim != 1 or array.dtype.kind != "i":
            raise damaged(path, f"{name} are {array.dtype} {array.shape}", "integers in one dimension")
    if indptr.shape != (n_users + 1,) or indptr[0] != 0 or indptr[-1] != len(item_index) or falls(indptr):
        raise damaged(path, "indptr is not the row structure of its entries", f"{n_users} rows")
    if len(item_index) and (item_index.min() < 0 or item_index.max() >= n_items):
        found = f"item indices run from {item_index.min()} to {item_index.max()}"
        raise damaged(path, found, f"0 to {n_items - 1}")


def falls(values: NDArray[np.integer[Any]]) -> bool:
    """Tell whether a value is smaller than the one before; their difference might overflow."""
    return bool((values[1:] < values[:-1]).any())


def damaged(path: Path, found: str, expected: str) -> ArtifactError:
    return ArtifactError(
        f"{path}: {found}; expected {expected}. This version is damaged: go back to the one before (python -m app.cli "
        "models rollback), train again (python train_als.py), or restore its folder from a copy."
    )
