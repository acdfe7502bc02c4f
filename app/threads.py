"""Threads that fits share: pools that Ctrl-C ends, cores that may be used, and a BLAS that does not get in the way."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event, local

from threadpoolctl import threadpool_limits

_THREAD = local()  # .stop of a pool's thread is set when its fit is to end


@contextmanager
def cancelling_pool(n_workers: int) -> Iterator[ThreadPoolExecutor]:
    """Make a pool whose fits end at their next iteration when the body fails: Ctrl-C must not wait for all of them."""
    stop = Event()
    pool = ThreadPoolExecutor(n_workers, initializer=lambda: setattr(_THREAD, "stop", stop))
    try:
        yield pool
    except BaseException:
        stop.set()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def count_cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Hold BLAS to one thread: the last bits of its products depend on their number."""
    import implicit.cpu.als  # noqa: F401 - brings a BLAS of its own, and a limit holds only for what is loaded

    with threadpool_limits(1, "blas"):
        yield


def raise_if_cancelled() -> None:
    """Raise CancelledError in a thread of a pool whose body has failed."""
    if hasattr(_THREAD, "stop") and _THREAD.stop.is_set():
        raise CancelledError
