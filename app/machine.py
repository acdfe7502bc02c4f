"""What a result was computed on: equal data, seed and versions give equal bits on processors of the same kind."""

from __future__ import annotations

import os
import platform
from typing import Any

import numpy as np
from threadpoolctl import threadpool_info


def describe_machine(num_threads: int) -> dict[str, Any]:
    """Describe interpreter, processor and linear algebra, for ``config.json``.

    Parameters
    ----------
    num_threads : int
        As asked for; 0 stands for all cores.
    """
    simd = np.show_config(mode="dicts")["SIMD Extensions"]
    return {
        "python": platform.python_version(),
        "system": platform.system(),
        "processor": platform.machine(),
        "n_cores": os.cpu_count(),
        "num_threads": num_threads,
        "cpu_features": [*simd["baseline"], *simd.get("found", [])],
        "blas": sorted(  # they are found in any order
            (
                {name: library.get(name) for name in ("internal_api", "version", "architecture", "num_threads")}
                for library in threadpool_info()
                if library["user_api"] == "blas"
            ),
            key=str,
        ),
    }
