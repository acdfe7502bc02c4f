"""Die at a chosen operation on files.

python -m tests.killer N FOLDER OPTION…  run train_als.py on FOLDER, and die at the N-th operation since it locked that;
                                         with 0 live, and say on standard error how many there were
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path


class Killer:
    """Kill this process right before its n-th operation on files of ``folder``.

    With ``from_lock`` those count that follow its first lock; ``n_seen`` says how many there were.
    """

    def __init__(self, folder: Path, n: int, *, from_lock: bool = False) -> None:
        self.folder, self.n, self.n_seen, self.counts = str(folder), n, 0, False
        sys.addaudithook(self.on_event)
        if not from_lock:
            self.begin()

    def begin(self) -> None:
        self.counts = True
        os.fsync = self.on_fsync  # which raises no audit event, as do the calls of open files
        sys.setprofile(self.on_call)

    def on_event(self, event: str, args: tuple[object, ...]) -> None:
        if not event.startswith(("open", "os.", "shutil.", "tempfile.", "fcntl.")) or event.startswith("os.putenv"):
            return
        if not self.counts and event.startswith("fcntl."):
            self.begin()
        below = any(isinstance(arg, str | os.PathLike) and os.fspath(arg).startswith(self.folder) for arg in args)
        at_open_folder = (
            event in ("os.remove", "os.rmdir") and args[-1] != -1
        )  # rmtree names files by folder descriptor
        if below or at_open_folder or event.startswith("fcntl."):
            self.count()

    def on_call(self, _frame: object, event: str, function: object) -> None:
        if event == "c_call" and getattr(function, "__name__", "") in ("write", "close", "__exit__"):
            name = getattr(getattr(function, "__self__", None), "name", None)
            # Not within .tmp-version, where one half-written file is like the next.
            if isinstance(name, str | os.PathLike) and Path(name).parent == Path(self.folder):
                self.count()

    def on_fsync(self, _descriptor: int) -> None:
        self.count()  # and no flush: what a killed process has written is not lost, only a dead machine's is

    def count(self) -> None:
        if self.counts:
            self.n_seen += 1
            if self.n_seen == self.n:
                os.kill(os.getpid(), signal.SIGKILL)


def main(n: int, folder: Path, options: list[str]) -> None:
    sys.argv = ["train_als.py", "--artifacts-dir", str(folder), *options]
    from train_als import cli

    killer = Killer(folder, n, from_lock=True)
    try:
        cli()
    finally:
        if n == 0:
            sys.stderr.write(f"operations: {killer.n_seen}\n")


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
