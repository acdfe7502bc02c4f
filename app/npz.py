"""npz files whose arrays can be mapped: uncompressed members, each array's data at a 64-byte boundary of the file.

``numpy.load`` opens such a file as any other; ``map_npz`` maps it read-only, so that all worker processes share one
copy in the page cache. Alignment is not cosmetic: BLAS on unaligned maps is several times slower.
"""

from __future__ import annotations

import math
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

ALIGNMENT = 64  # of each array's data in the file; a cache line, and what numpy pads its own header to
_LOCAL_HEADER_BYTES = 30
_ZIP64_EXTRA_BYTES = 20
_PADDING_ID = 0xD935  # the zip extra field that zipalign uses for the same purpose
_EPOCH = (1980, 1, 1, 0, 0, 0)  # zip's first moment: equal arrays make equal files


def write_npz(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays to an aligned, uncompressed npz file; equal arrays give equal bytes.

    Raises
    ------
    ValueError
        If an array holds Python objects, which only a pickle could store.
    """
    with path.open("wb") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            member = zipfile.ZipInfo(f"{name}.npy", date_time=_EPOCH)
            member.extra = _padding(file.tell(), member.filename)
            # Always zip64, so that the header has one length whatever the size of the array.
            with archive.open(member, "w", force_zip64=True) as stream:
                npy_format.write_array(stream, np.asarray(array, order="C"), allow_pickle=False)


def _padding(header_offset: int, filename: str) -> bytes:
    """Return the extra field that moves the member's data to the next boundary."""
    without = header_offset + _LOCAL_HEADER_BYTES + len(filename.encode()) + _ZIP64_EXTRA_BYTES + 4
    n_bytes = -without % ALIGNMENT
    return struct.pack("<HH", _PADDING_ID, n_bytes) + bytes(n_bytes)


def map_npz(path: Path) -> dict[str, NDArray[Any]]:
    """Map every array of an npz file that ``write_npz`` wrote, read-only.

    Returns
    -------
    dict of ndarray
        ``numpy.memmap`` arrays; empty arrays, which cannot be mapped, are plain.

    Raises
    ------
    ValueError
        If the file is no zip, is compressed, or holds something else than plain arrays.
    OSError
        If the file cannot be opened.
    """
    with path.open("rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                members = archive.infolist()
            return {info.filename.removesuffix(".npy"): _map_member(path, file, info) for info in members}
        # A damaged byte makes zipfile, struct and numpy's header parser raise nearly anything.
        except Exception as error:
            raise ValueError(f"not a readable npz file ({type(error).__name__}: {error})") from error


def _map_member(path: Path, file: Any, info: zipfile.ZipInfo) -> NDArray[Any]:
    if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"member {info.filename} is compressed; only stored members can be mapped")
    file.seek(info.header_offset)
    n_name, n_extra = struct.unpack("<HH", file.read(_LOCAL_HEADER_BYTES)[26:30])
    file.seek(info.header_offset + _LOCAL_HEADER_BYTES + n_name + n_extra)
    start = file.tell()
    version = npy_format.read_magic(file)
    if version != (1, 0):
        raise ValueError(f"member {info.filename} has npy version {version}; expected (1, 0)")
    shape, fortran_order, dtype = npy_format.read_array_header_1_0(file)
    if dtype.hasobject:
        raise ValueError(f"member {info.filename} holds pickled objects; only plain arrays are data")
    n_bytes = math.prod(shape) * dtype.itemsize
    if file.tell() - start + n_bytes != info.file_size:
        raise ValueError(f"member {info.filename} has {info.file_size} bytes, too many or too few for {dtype} {shape}")
    if n_bytes == 0:
        return np.empty(shape, dtype)
    return np.memmap(path, dtype, mode="r", offset=file.tell(), shape=shape, order="F" if fortran_order else "C")
