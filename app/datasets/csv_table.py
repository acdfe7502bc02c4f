"""One CSV file as a typed frame, or a message that says which line is wrong.

Used by ``movielens``. The whole file is parsed at once by pandas' C engine and checked as columns; only when that
finds something wrong is the file walked again line by line to name the first bad one, so a good file of thirty million
rows pays nothing for it. This module knows neither which files a data set has nor what ids mean.
"""

from __future__ import annotations

import csv
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from app.errors import DataError

_WHOLE = re.compile(r"\s*[+-]?[0-9]+\s*")
_DECIMAL = re.compile(r"\s*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?\s*")


@dataclass(frozen=True)
class Column:
    """One column: its header on disk, its name inside, and for numbers the range that is accepted.

    ``dtype`` is "int64", "float32" or "str"; ``low`` and ``high`` are inclusive and mean nothing for text.
    """

    header: str
    name: str
    dtype: str = "str"
    low: float = 0
    high: float = 0
    expected: str = "text"
    hint: str = ""  # said in addition when the value lies above ``high``

    def complaint(self, text: str) -> str:
        """Say what is wrong with one cell, or "" when it is fine."""
        if self.dtype == "str":
            return ""
        if not text.strip():
            return f"the cell is empty, expected {self.expected}"
        if not (_WHOLE if self.dtype == "int64" else _DECIMAL).fullmatch(text):
            return f"found {_shorten(text)}, expected {self.expected}"
        value = int(text) if self.dtype == "int64" else float(text)
        if self.low <= value <= self.high:
            return ""
        return f"found {_shorten(text)}, expected {self.expected}" + (self.hint if value > self.high else "")


def read_table(path: Path, columns: tuple[Column, ...]) -> pd.DataFrame:
    """Read and validate one CSV file.

    UTF-8 with or without byte order mark, any line ends, and columns beyond the expected ones are accepted. Empty lines
    are skipped. Text is taken literally: a movie called "NA" stays one.

    Parameters
    ----------
    path : Path
    columns : tuple of Column
        The columns that must be there, in the order wanted.

    Returns
    -------
    DataFrame
        One row per line in file order, columns named ``Column.name``.

    Raises
    ------
    DataError
        The file cannot be read, is not UTF-8, lacks a column, or a line is wrong. The message names file, line, column,
        value, expectation and remedy.
    """
    try:
        _check_header(path, columns)
        return _parse(path, columns)
    except UnicodeDecodeError:
        raise DataError(_encoding_complaint(path)) from None
    except OSError as error:
        raise DataError(_os_complaint(path, error)) from error


def check_lines(path: Path, columns: tuple[Column, ...]) -> None:
    """Walk the file line by line and raise DataError at the first bad one; slow, for diagnosis."""
    rows = _rows(path)
    _, header = next(rows)
    positions = [(header.index(column.header), column) for column in columns]
    for line, row in rows:
        if len(row) != len(header):
            raise DataError(
                f"{path}, line {line}: found {len(row)} fields, expected {len(header)} as in the header; "
                'complete or remove this line, and put text that contains a comma in double quotes ("...")'
            )
        for position, column in positions:
            if complaint := column.complaint(row[position]):
                raise DataError(
                    f"{path}, line {line}, column {column.header}: {complaint}; correct or remove this line"
                )


def _parse(path: Path, columns: tuple[Column, ...]) -> pd.DataFrame:
    """Read everything in one go; on any doubt let the slow walk name the line."""
    try:
        frame = _read_fast(path, columns)
        if all(_is_sound(frame[column.header], column) for column in columns):
            return _rename(frame, columns)
        reason = "a value is outside its range"
    except UnicodeDecodeError:
        raise
    except (ValueError, OverflowError) as error:  # pandas.errors.ParserError is a ValueError
        reason = str(error).strip()
    check_lines(path, columns)
    raise DataError(f"{path} cannot be read as a table: {reason}; export the file again as comma-separated UTF-8")


def _read_fast(path: Path, columns: tuple[Column, ...]) -> pd.DataFrame:
    """Parse with the C engine; numbers are inferred, since a given integer dtype would take 1.0 and True silently."""
    text = {column.header: "str" for column in columns if column.dtype == "str"}
    with warnings.catch_warnings():
        # A column of mixed types is refused below in our own words.
        warnings.simplefilter("ignore", pd.errors.DtypeWarning)
        # No usecols: with it the parser drops surplus fields without a word.
        return pd.read_csv(path, dtype=text, index_col=False, na_filter=False, encoding="utf-8-sig")


def _is_sound(values: pd.Series, column: Column) -> bool:
    """Check dtype and range of a whole column; an empty one is sound."""
    if column.dtype == "str" or values.empty:
        return True
    if values.dtype.kind not in ("i" if column.dtype == "int64" else "if"):
        return False
    numbers = values.to_numpy()
    return bool(numbers.min() >= column.low and numbers.max() <= column.high)  # false for NaN too


def _rename(frame: pd.DataFrame, columns: tuple[Column, ...]) -> pd.DataFrame:
    """Keep the wanted columns under their inner names and dtypes."""
    return pd.DataFrame({column.name: _cast(frame[column.header], column) for column in columns})


def _cast(values: pd.Series, column: Column) -> pd.Series:
    """Give a sound column its dtype; an empty one was inferred as text."""
    if column.dtype == "str":  # in one line: control characters and line ends have no place in a title
        return values.str.replace(r"[\x00-\x1f\x7f]+", " ", regex=True).str.strip()
    return values.astype(np.dtype(column.dtype))


def _check_header(path: Path, columns: tuple[Column, ...]) -> None:
    """Refuse a file without the expected header, and a first line that is longer than it.

    The C engine takes a surplus in the first line for an index, and then everywhere, so that it is asked about here.
    """
    rows = _rows(path)
    expected = ",".join(column.header for column in columns)
    _, header = next(rows, (0, []))
    if not header:
        raise DataError(f"{path} is empty; expected a CSV file with the header {expected}")
    if any("\0" in name for name in header):
        raise DataError(_encoding_complaint(path))
    missing = [column.header for column in columns if column.header not in header]
    if missing:
        found = _shorten(",".join(header), 120)
        raise DataError(
            f"{path}, line 1: column {', '.join(missing)} is missing, found {found}; "
            f"the first line must be the comma-separated header {expected}"
        )
    _, first = next(rows, (0, []))
    if len(first) > len(header):
        check_lines(path, columns)


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield (line where the record starts, its fields) for every line that is not blank."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        start = 1
        try:
            for row in reader:
                if len(row) > 1 or (row and row[0].strip()):
                    yield start, row
                start = reader.line_num + 1
        except csv.Error as error:
            raise DataError(
                f"{path}, line {start}: the quotation marks do not match ({error}); "
                'close the one that opens in this line, and double those inside a quoted text ("")'
            ) from error


def _encoding_complaint(path: Path) -> str:
    """Say where a file stops being UTF-8 and how to convert it."""
    with path.open("rb") as file:
        if file.read(2) in (b"\xff\xfe", b"\xfe\xff") or b"\0" in file.read(200):
            where, encoding = "line 1", "UTF-16"
        else:
            file.seek(0)
            where, encoding = f"line {_first_undecodable_line(file)}", "LATIN1"
    converted = f"{path.stem}-utf8.csv"
    return (
        f"{path}, {where}: found bytes that are not UTF-8 (they look like {encoding}), expected UTF-8 text; "
        f"convert the file with: iconv -f {encoding} -t UTF-8 {path.name} > {converted} && mv {converted} {path.name}"
    )


def _first_undecodable_line(lines: Iterator[bytes]) -> int:
    """Count to the first line that is not UTF-8."""
    for number, line in enumerate(lines, start=1):
        try:
            line.decode()
        except UnicodeDecodeError:
            return number
    return 1


def _os_complaint(path: Path, error: OSError) -> str:
    """Say in one line why the operating system refuses a file."""
    if isinstance(error, FileNotFoundError):
        return f"{path} does not exist; name a folder in MovieLens format that holds {path.name}"
    if isinstance(error, IsADirectoryError):
        return f"{path} is a folder, expected a CSV file; move the folder away and put the file in its place"
    return f"{path} cannot be read ({error.strerror or error}); check its permissions and the disk"


def _shorten(text: str, limit: int = 40) -> str:
    """Quote a value, cut so that one wild cell does not fill the screen."""
    return repr(text if len(text) <= limit else text[:limit] + "…")
