# mypy: disable-error-code="no-untyped-call"
"""Numbers that count, in one process or in all worker processes of a service together.

``telemetry ─▶ Family ─▶ Prometheus' metrics``. A number is one double that the process adds to in place: a tenth of the
cost of prometheus-client's locked values. Workers keep these doubles in mapped files, in the layout of that library's
multi-process mode, and whichever worker is asked merges all files with that library's collector. So nothing is
batched, and a worker that is killed takes no count with it.

Counting takes no lock: a number may be changed by one thread only. What is counted is ``app.telemetry``'s business.
"""

from __future__ import annotations

import hashlib
import mmap
import multiprocessing
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from filelock import FileLock, Timeout
from prometheus_client.metrics_core import Metric
from prometheus_client.mmap_dict import MmapedDict, mmap_key
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

Labels: TypeAlias = tuple[str, ...]
Cell: TypeAlias = tuple["list[float] | memoryview[float]", int]  # where a number stands: numbers[index]

_FOLDER = "recs-metrics-"
_FILE_BYTES = 1 << 16  # a multiple of the page size, as a file of MmapedDict begins
_YOUNG_SECONDS = 60.0  # a folder whose first worker may be just about to take its lock


@dataclass(eq=False)
class Family:
    """Numbers of one name, one for each combination of label values.

    Parameters
    ----------
    name : str
        Without the suffix of its samples.
    labels : tuple of str
        The labels' names; where numbers are made, ``labels`` are their values, in this order.
    merge : str
        How the gauges of several workers become one; those of workers that are gone count no more. Counts are added.
    suffix : str
        What is counted of a histogram: "_bucket", which has the label "le", or "_sum".
    """

    kind: Literal["counter", "gauge", "histogram"]
    name: str
    text: str
    labels: Labels = ()
    merge: Literal["", "livesum", "livemax", "livemin"] = ""
    suffix: str = ""
    cells: dict[Labels, Cell] = field(default_factory=dict)
    files: WorkerFiles | None = None

    def add(self, *labels: str, amount: float = 1.0) -> None:
        """Count."""
        try:
            numbers, at = self.cells[labels]
        except KeyError:
            numbers, at = self.cell(*labels)
        numbers[at] += amount

    def set(self, value: float, *labels: str) -> None:
        """Set a gauge."""
        numbers, at = self.cell(*labels)
        numbers[at] = value

    def cell(self, *labels: str) -> Cell:
        """Return where a number stands; it is made, as 0, where there is none yet."""
        if labels not in self.cells:
            try:
                self.cells[labels] = self.files.cell(self, labels) if self.files else ([0.0], 0)
            except OSError:  # no space left: this number goes unseen, and the work goes on
                self.cells[labels] = ([0.0], 0)
        return self.cells[labels]

    def move(self, files: WorkerFiles) -> None:
        """Keep the numbers in files from now on; cells that were given out before are out of use."""
        self.files, before = files, self.cells
        self.cells = {}
        for labels, (numbers, at) in before.items():
            if self.kind == "gauge":
                self.set(numbers[at], *labels)
            else:
                self.add(*labels, amount=numbers[at])

    @property
    def sample(self) -> str:
        """The name of its samples."""
        return self.name + ("_total" if self.kind == "counter" else self.suffix)


def gather(families: Iterable[Family]) -> Iterator[Metric]:
    """Collect the numbers of a single process; families of one name, a histogram's parts, stand side by side."""
    metrics: dict[str, Metric] = {}
    for family in families:
        metric = metrics.setdefault(family.name, Metric(family.name, family.text, family.kind))
        n_below: dict[Labels, float] = {}
        for values, (numbers, at) in list(family.cells.items()):
            value = numbers[at]
            labels = dict(zip(family.labels, values, strict=True))
            if family.suffix == "_bucket":  # which Prometheus wants cumulated, in the order in which they were made
                value = n_below[values[:-1]] = n_below.get(values[:-1], 0.0) + value
                if values[-1] == "+Inf":
                    metric.add_sample(
                        f"{family.name}_count", dict(zip(family.labels, values[:-1], strict=False)), value
                    )
            metric.add_sample(family.sample, labels, value)
    yield from metrics.values()


class WorkerFiles:
    """One worker's numbers, in mapped files of a folder that all workers of the service read.

    Whoever holds the lock of a worker's id lives: the system lets go of it with the process, however that ends.

    Raises
    ------
    OSError
        If the folder cannot be used.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder
        self._lock, self._id = _take_id(folder)
        mark_process_dead(self._id, str(folder))  # an earlier process of that number, whose counts go on
        self._files: dict[Path, MmapedDict] = {}
        self._views: dict[Path, memoryview[float]] = {}
        self._one_at_a_time = threading.Lock()  # numbers have their thread each, but a file has many numbers

    def cell(self, family: Family, labels: Labels) -> Cell:
        """Return where a number stands, which an earlier process of this one's number may have begun."""
        path = self._folder / f"{f'gauge_{family.merge}' if family.merge else family.kind}_{self._id}.db"
        key = mmap_key(family.name, family.sample, list(family.labels), list(labels), family.text)
        with self._one_at_a_time:
            if path not in self._files:
                self._files[path] = _open(path)
            self._files[path].read_value(key)  # which makes it
            entries = MmapedDict.read_all_values_from_file(path)
            at = next(at for found, _, _, at in entries if found == key)
            return self._view(path, at + 8), at // 8

    def _view(self, path: Path, n_bytes: int) -> memoryview[float]:
        """Map a file once more when it has grown; numbers in the older map are the same memory."""
        if path not in self._views or self._views[path].nbytes < n_bytes:
            with path.open("r+b") as file:
                self._views[path] = memoryview(mmap.mmap(file.fileno(), 0)).cast("d")
        return self._views[path]

    def gather(self) -> Iterable[Metric]:
        """Merge what all workers have counted, after leaving out the gauges of those that are gone."""
        for path in self._folder.glob("gauge_live*_*.db"):
            worker = path.stem.rpartition("_")[2]
            if worker != self._id and _is_gone(self._folder / f"{worker}.lock"):
                with suppress(FileNotFoundError):  # another worker was faster
                    mark_process_dead(worker, str(self._folder))
        found: Iterable[Metric] = MultiProcessCollector(None, str(self._folder)).collect()
        return found

    def close(self) -> None:
        """Take this worker's gauges away; its counts stay."""
        if self._lock.is_locked:
            mark_process_dead(self._id, str(self._folder))
            for values in self._files.values():
                values.close()
            self._lock.release()


def _take_id(folder: Path) -> tuple[FileLock, str]:
    """Take the first free one of 4711, 4711-1, …: a process may hold several applications."""
    n = 0
    while True:
        worker = f"{os.getpid()}-{n}" if n else str(os.getpid())
        lock = FileLock(folder / f"{worker}.lock", thread_local=False)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            n += 1
        else:
            return lock, worker


def _is_gone(lock_path: Path) -> bool:
    """Say whether the process that made this lock has ended; one without a lock is not ours to judge."""
    if not lock_path.exists():
        return False
    lock = FileLock(lock_path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    lock.release()
    return True


def _open(path: Path) -> MmapedDict:
    """Open a file, made under another name, as nobody must read an empty one, and of bytes that the disk has given:

    a hole in a mapped file on a full disk would end the process.
    """
    if not path.exists():
        new = path.with_suffix(".new")
        new.write_bytes(bytes(_FILE_BYTES))
        new.replace(path)
    return MmapedDict(str(path))


def shared_folder() -> Path | None:
    """Return where the workers of this service meet; None for a process that has no siblings.

    Workers of one uvicorn have a random key in common, which their supervisor made. Others, such as gunicorn's, are
    told the folder in prometheus-client's own variable, PROMETHEUS_MULTIPROC_DIR.
    """
    told = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    if told:
        return Path(told)
    if multiprocessing.parent_process() is None:
        return None
    digest = hashlib.sha256(multiprocessing.current_process().authkey).hexdigest()
    return Path(tempfile.gettempdir()) / f"{_FOLDER}{digest[:32]}"


def remove_leftovers() -> None:
    """Remove the folders of supervisors whose workers are all gone."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_FOLDER}*"):
        with suppress(OSError):  # it is another user's, or another worker is removing it
            is_old = time.time() - folder.stat().st_mtime > _YOUNG_SECONDS
            if is_old and all(map(_is_gone, folder.glob("*.lock"))):
                shutil.rmtree(folder)
