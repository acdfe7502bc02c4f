"""Decide where ratings come from, then read them.

The first source that applies wins: what a caller named (folder, $MOVIELENS_DIR, data set), what lies in the default
folder, a download of ml-latest-small, invented data. What was named is never replaced by something else. Importing this
module costs neither pandas nor pooch; the modules that need them are imported when they are used.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from app.errors import ConfigError, DataError, DownloadError

if TYPE_CHECKING:
    from app.datasets.movielens import RawData

DATASETS = ("ml-latest-small", "ml-latest", "ml-25m", "ml-32m", "synthetic")

_SMALL = "ml-latest-small"
SYNTHETIC = "synthetic"  # the name of generated data, wherever a data set is named
_DOWNLOADABLE = DATASETS[:-1]

# ml-latest-small as published in September 2018. GroupLens may replace it under the same name.
_SMALL_SHA256 = {
    "ratings.csv": "aa289ca83157595d0df6aea1be6a4ded676ddc4385472e8313a8ed9805352646",
    "movies.csv": "5a5f32dd9bb3797b8e728a1b98958789d2b13f294a69fdfbc5727f8a9611aa07",
    "links.csv": "97ad18e4e56a09363c65676b6cb3482ce3e2cea2372a24620c1599c843325f31",
    "tags.csv": "92a9f8bb7916dceef6151209845788c3643f794dfa79d1feaec7121b5960399d",
}


@dataclass(frozen=True)
class Source:
    """Where ratings will be read from.

    Attributes
    ----------
    name : str or None
        The data set that it is said to be; None: it is named after reading, see `read`.
    folder : Path or None
        None for synthetic data.
    warnings : tuple of str
        Why this source and not a better one. They are not repeated in ``RawData.warnings``.
    """

    name: str | None
    folder: Path | None
    warnings: tuple[str, ...] = ()


def locate(
    *,
    dataset: str | None,
    data_dir: Path | None,
    movielens_dir: Path | None,
    default_dir: Path,
    base_url: str,
    progress: bool = True,
) -> Source:
    """Decide on a source, and download it when nothing local applies.

    The order is: "synthetic" when asked for; `data_dir`; `movielens_dir`; for a named data set its folder in
    `default_dir`, or its download; else `default_dir` itself, ml-latest-small inside it, its download, synthetic data.

    Parameters
    ----------
    dataset : str or None
        One of `DATASETS`.
    data_dir : Path or None
        Folder given with --data-dir.
    movielens_dir : Path or None
        Folder given in the environment as MOVIELENS_DIR.
    default_dir : Path
        Where downloads are kept; need not exist.
    base_url : str
        Downloads come from ``<base_url>/<name>.zip``.
    progress : bool
        Whether to draw a progress bar on standard error.

    Returns
    -------
    Source

    Raises
    ------
    ConfigError
        Unknown `dataset`, or "synthetic" together with `data_dir`.
    DataError
        A named folder holds no ratings.csv, or `default_dir` holds other files.
    DownloadError
        The named `dataset` cannot be fetched.
    """
    check_dataset(dataset, data_dir)
    if dataset == SYNTHETIC:
        return Source(SYNTHETIC, None)
    if folder := _find_named(data_dir, movielens_dir):
        return Source(dataset, folder)
    if dataset is not None:
        return _stored_or_fetched(dataset, default_dir, base_url, progress)
    if folder := _find_default(default_dir):
        return Source(None, folder)
    _require_unused(default_dir)
    try:
        return _stored_or_fetched(_SMALL, default_dir, base_url, progress)
    except DownloadError as error:
        return Source(SYNTHETIC, None, (f"invented ratings are used instead of MovieLens: {error}",))


def find_local(*, data_dir: Path | None, movielens_dir: Path | None, default_dir: Path) -> Path | None:
    """Return the folder that would be used now if no data set is named, or None; without network or reading.

    Parameters
    ----------
    data_dir, movielens_dir, default_dir
        As for `locate`.

    Raises
    ------
    DataError
        A named folder holds no ratings.csv.
    """
    return _find_named(data_dir, movielens_dir) or _find_default(default_dir)


def read(source: Source, *, n_ratings: int, random_state: int, with_tags: bool = True) -> tuple[str, RawData]:
    """Read or invent the data of a source.

    Parameters
    ----------
    source : Source
    n_ratings, random_state : int
        Size and seed of synthetic data; not used otherwise.
    with_tags : bool
        Whether to read tags.csv, where there is one.

    Returns
    -------
    name : str
        The source's name; without one "ml-latest-small" when ratings.csv is known to be it, else the folder's name.
    data : RawData
        Its warnings include files that differ from the data set that the source is said to be.

    Raises
    ------
    DataError
        The files cannot be used.
    ConfigError
        The synthetic size or seed is out of range.
    """
    if source.folder is None:
        from app.datasets.synthetic import synthesize

        return SYNTHETIC, synthesize(n_ratings, random_state)
    from app.datasets.movielens import read_movielens

    data = read_movielens(source.folder, with_tags=with_tags)
    is_small = data.fingerprint == _SMALL_SHA256["ratings.csv"]
    name = source.name or (_SMALL if is_small else _name_of(source.folder))
    if name == _SMALL:
        return name, replace(data, warnings=data.warnings + _differences(source.folder))
    if is_small:
        raise DataError(f"{source.folder} holds {_SMALL}, not {name}; name the folder of {name}")
    return name, data


def _name_of(folder: Path) -> str:
    """Name real data after its folder, but never as what is generated."""
    name = folder.resolve().name.encode(errors="replace").decode()
    return name if name not in ("", SYNTHETIC) else "local"


def check_dataset(dataset: str | None, data_dir: Path | None) -> None:
    """Refuse an unknown name, and a folder for data that is invented."""
    if dataset is not None and dataset not in DATASETS:
        raise ConfigError(
            f"unknown dataset {dataset!r}, expected one of {', '.join(DATASETS)}; "
            "for a folder of your own use --data-dir instead"
        )
    if dataset == SYNTHETIC and data_dir is not None:
        raise ConfigError(
            f"--dataset synthetic contradicts --data-dir {data_dir}: invented ratings are read from no folder; "
            "leave one of the two out"
        )


def _find_named(data_dir: Path | None, movielens_dir: Path | None) -> Path | None:
    """Return the folder that the caller named; it must hold ratings.csv."""
    for origin, folder in (("--data-dir", data_dir), ("the environment variable MOVIELENS_DIR", movielens_dir)):
        if folder is not None:
            if not _has_ratings(folder):
                raise DataError(_no_ratings_complaint(origin, folder))
            return folder
    return None


def _no_ratings_complaint(origin: str, folder: Path) -> str:
    """Say who named the folder, and where the file may be instead."""
    state = "holds no ratings.csv" if folder.is_dir() else "is not a folder" if folder.exists() else "does not exist"
    below = [name for name in _DOWNLOADABLE if _has_ratings(folder / name)]
    remedy = (
        f"did you mean {folder / below[0]}?" if below else "name the folder that has ratings.csv and movies.csv in it"
    )
    return f"{folder.resolve()}, named by {origin}, {state}; {remedy}"


def _find_default(default_dir: Path) -> Path | None:
    """Return the default folder, or ml-latest-small inside it."""
    return next((folder for folder in (default_dir, default_dir / _SMALL) if _has_ratings(folder)), None)


def _stored_or_fetched(name: str, default_dir: Path, base_url: str, progress: bool) -> Source:
    """Return a data set's own folder, downloading it when it is not there."""
    folder = default_dir / name
    if not _has_ratings(folder):
        from app.datasets.download import download

        download(name, folder, base_url, progress=progress)
    return Source(name, folder)


def _require_unused(default_dir: Path) -> None:
    """Refuse a default folder with somebody's files but no ratings.csv: they may well be data that lacks one file."""
    if not default_dir.exists():
        return
    if not default_dir.is_dir():
        raise DataError(f"{default_dir.resolve()} is not a folder; move it away, or pass your data with --data-dir")
    try:
        found = sorted(path.name for path in default_dir.iterdir() if not _is_expected(path))
    except OSError as error:
        raise DataError(f"{default_dir} cannot be listed ({error.strerror or error}); check its permissions") from error
    if found:
        listed = ", ".join(found[:5]) + (", …" if len(found) > 5 else "")
        raise DataError(
            f"{default_dir.resolve()} holds {listed} but no ratings.csv; add ratings.csv and movies.csv, "
            "empty the folder to have MovieLens downloaded there, or pass your data with --data-dir"
        )


def _is_expected(path: Path) -> bool:
    """Tell what may lie in the default folder without being data that somebody put there."""
    return path.name.startswith(".") or (path.name in _DOWNLOADABLE and path.is_dir())


def _has_ratings(folder: Path) -> bool:
    """Tell whether ratings.csv is there; not being allowed to look is an error, not a no."""
    try:
        return (folder / "ratings.csv").is_file()
    except OSError as error:
        raise DataError(f"{folder} cannot be opened ({error.strerror or error}); check its permissions") from error


def _differences(folder: Path) -> tuple[str, ...]:
    """Warn of each file that differs from ml-latest-small as of 2018."""
    from app.datasets.movielens import sha256_of

    warnings = []
    for name, expected in _SMALL_SHA256.items():
        if (folder / name).is_file() and (found := sha256_of(folder / name)) != expected:
            warnings.append(
                f"{folder / name} differs from {_SMALL} of 2018: expected SHA-256 {expected}, found {found}; "
                "published figures for it do not apply"
            )
    return tuple(warnings)
