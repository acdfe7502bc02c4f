"""Fetch one MovieLens archive and put its files in place as one folder, completely or not at all.

``locate`` decides what to fetch and what a failure means; ``movielens`` reads the result. The bytes travel through
pooch (retries, progress bar) into a hidden folder beside the target, which is renamed into place when every file is
complete. Whether the files are the known ones is for ``locate`` to say.
"""

from __future__ import annotations

import logging
import os
import shutil
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import Any

import pooch
import requests
from filelock import FileLock

from app.errors import DataError, DownloadError

TIMEOUT_SECONDS = (5.0, 20.0)  # to connect; between two pieces of the answer
RETRIES = 2  # after 1 and 2 seconds
_PREFIX = ".download-"
_REQUIRED = ("ratings.csv", "movies.csv")
_WANTED = (*_REQUIRED, "links.csv", "tags.csv", "README.txt")
# OSError covers requests' errors, a full disk and missing rights.
_FAILURES = (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)


def download(
    name: str,
    target: Path,
    base_url: str,
    *,
    progress: bool,
    timeout: tuple[float, float] = TIMEOUT_SECONDS,
    retries: int = RETRIES,
) -> None:
    """Fetch ``<base_url>/<name>.zip`` and put its files into the folder ``target``.

    Of two runs at once the second waits and finds the data in place. A target that already holds ratings.csv is used as
    it is.

    Parameters
    ----------
    name : str
        The data set, for example "ml-latest-small".
    target : Path
        Does not exist yet, or is empty. Its parent is created.
    base_url : str
        Without the file name.
    progress : bool
        Whether to draw a progress bar on standard error.
    timeout : tuple of float
        Seconds to connect, and seconds between two pieces of the answer.
    retries : int
        How often to ask again when the connection, the answer or its body fails.

    Raises
    ------
    DataError
        The target holds other files, but no ratings.csv.
    DownloadError
        Anything else: network, server, archive or disk. The message gives URL, reason and remedy.
    """
    url = f"{base_url.rstrip('/')}/{name}.zip"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.parent / f"{_PREFIX}lock"):
            _remove_leftovers(target.parent)
            if not _is_there(target):
                _fetch_into(target, url, _Downloader(progressbar=progress, timeout=timeout), retries)
    except _FAILURES as error:
        raise DownloadError(
            f"{url} could not be downloaded to {target}: {_reason(error)}; check the network, or download the file by "
            "hand, unpack it and pass the folder with --data-dir"
        ) from error


class _Downloader(pooch.HTTPDownloader):  # type: ignore[misc]
    """Close the connection of a refused request, which pooch leaves open."""

    def __call__(self, *arguments: Any, **options: Any) -> bool | None:
        try:
            return super().__call__(*arguments, **options)  # type: ignore[no-any-return]
        except requests.HTTPError as error:
            if error.response is not None:
                error.response.close()
            raise


def _remove_leftovers(parent: Path) -> None:
    """Remove the folders of killed runs; we hold the lock, so nobody is still filling one."""
    for path in parent.glob(f"{_PREFIX}*"):
        if path.is_dir():
            shutil.rmtree(path)


def _is_there(target: Path) -> bool:
    """Tell whether the data is in place already; refuse a folder that something else occupies."""
    if (target / "ratings.csv").is_file():
        return True
    if target.exists() and not (target.is_dir() and next(target.iterdir(), None) is None):
        raise DataError(
            f"{target} exists but holds no ratings.csv, so the download cannot be put there; move it away or delete it"
        )
    return False


def _fetch_into(target: Path, url: str, downloader: _Downloader, retries: int) -> None:
    folder = target.with_name(f"{_PREFIX}{target.name}")
    try:
        archive = _fetch(url, folder, downloader, retries)
        complete = _extract(archive, folder / "complete")
        if target.exists():
            target.rmdir()  # empty; Windows renames nothing onto an existing folder
        complete.rename(target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _fetch(url: str, folder: Path, downloader: _Downloader, retries: int) -> Path:
    """Download the archive into the folder and return its path."""
    pooch.get_logger().setLevel(logging.CRITICAL)  # it writes to standard error
    base_url, _, file_name = url.rpartition("/")
    fetcher = pooch.create(folder, f"{base_url}/", registry={file_name: None}, retry_if_failed=retries)
    return Path(fetcher.fetch(file_name, downloader=downloader))


def _extract(archive: Path, folder: Path) -> Path:
    """Unpack the wanted files under their bare names, so that no member can be written elsewhere."""
    if not zipfile.is_zipfile(archive):
        with archive.open("rb") as file:
            raise ValueError(f"the answer is not a complete zip file, it begins with {file.read(32)!r}")
    folder.mkdir()
    with zipfile.ZipFile(archive) as source:
        for name, member in _find_members(source).items():
            with source.open(member) as packed, (folder / name).open("xb") as file:
                shutil.copyfileobj(packed, file, 1 << 20)  # verifies the CRC at its end
                file.flush()
                os.fsync(file.fileno())  # before the rename, or a power cut could leave empty files in place
    return folder


def _find_members(source: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Map each wanted file name to the member beside the first ratings.csv, at the top or one folder below."""
    paths = {PurePosixPath(info.filename): info for info in source.infolist()}
    top = next((path.parent for path in paths if path.name == "ratings.csv" and len(path.parts) <= 2), None)
    members = {path.name: info for path, info in paths.items() if path.parent == top and path.name in _WANTED}
    missing = [name for name in _REQUIRED if name not in members]
    if missing:
        raise ValueError(f"the archive holds no {' and no '.join(missing)}")
    return members


def _reason(error: BaseException) -> str:
    """Say in one line what went wrong; urllib3 hides the cause of a failed connection inside its error."""
    cause = getattr(error.args[0], "reason", None) if error.args else None
    return " ".join(str(cause or error).split()) or type(error).__name__
