"""npz files: numpy and scipy open them, the service maps them, and no damage or pickle gets through."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from app.npz import ALIGNMENT, map_npz, write_npz

ARRAYS: dict[str, np.ndarray] = {
    "factors": np.arange(12, dtype=np.float32).reshape(4, 3),
    "ids": np.array([1, 2**62 + 1], dtype=np.int64),
    "index": np.arange(7, dtype=np.int32),
    "format": np.array(b"csr"),
    "many_bytes": np.array([b"a", b"bcd"]),
    "zero_d": np.array(7.5),
    "empty": np.empty(0, dtype=np.int64),
    "no_columns": np.empty((3, 0), dtype=np.float32),
    "fortran": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
    "été": np.ones(1, dtype=np.int64),
}


def assert_same(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert found.tobytes() == expected.tobytes()  # NaN equals NaN here, and −0.0 is not 0.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "arrays.npz"


def test_numpy_opens_what_we_write(path: Path) -> None:
    write_npz(path, ARRAYS)
    with np.load(path, allow_pickle=False) as opened:
        assert set(opened.files) == set(ARRAYS)
        for name, array in ARRAYS.items():
            assert_same(opened[name], array)


def test_no_member_is_damaged_in_the_eyes_of_zip(path: Path) -> None:
    write_npz(path, ARRAYS)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None


def test_scipy_opens_a_matrix(path: Path) -> None:
    matrix = sp.random(5, 7, density=0.4, format="csr", dtype=np.float32, random_state=0)
    members = {"indices": matrix.indices, "indptr": matrix.indptr, "format": np.array(b"csr")}
    write_npz(path, {**members, "shape": np.array(matrix.shape), "data": matrix.data})
    opened = sp.load_npz(path)
    assert opened.format == "csr"
    assert (opened != matrix).nnz == 0


def test_maps_equal_what_was_written(path: Path) -> None:
    write_npz(path, ARRAYS)
    mapped = map_npz(path)
    assert list(mapped) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert_same(mapped[name], array)


def test_maps_are_aligned_read_only_and_not_copies(path: Path) -> None:
    write_npz(path, ARRAYS)
    for name, array in map_npz(path).items():
        if array.size == 0:
            continue
        assert isinstance(array, np.memmap), name
        assert array.flags.aligned, name
        assert array.ctypes.data % ALIGNMENT == 0, name
        assert not array.flags.writeable, name
        with pytest.raises(ValueError, match="read-only"):
            array[...] = array


@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8", exclude_characters="\0/\\:", exclude_categories=["Cc", "Cs"]), min_size=1),
        hnp.arrays(
            st.sampled_from([np.float32, np.float64, np.int64, np.int32, np.dtype("S5"), np.bool_]),
            hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5),
        ),
        max_size=4,
    )
)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_plain_arrays_come_back_aligned(path: Path, arrays: dict[str, np.ndarray]) -> None:
    write_npz(path, arrays)
    mapped = map_npz(path)
    assert mapped.keys() == arrays.keys()
    for name, array in arrays.items():
        assert_same(mapped[name], array)
        assert array.size == 0 or mapped[name].ctypes.data % ALIGNMENT == 0


def test_equal_arrays_make_equal_bytes(tmp_path: Path) -> None:
    write_npz(tmp_path / "a.npz", ARRAYS)
    write_npz(tmp_path / "b.npz", {name: np.array(array, order="C") for name, array in ARRAYS.items()})
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_a_file_in_fortran_order_is_mapped_as_such(path: Path) -> None:
    np.savez(path, fortran=ARRAYS["fortran"])
    assert_same(map_npz(path)["fortran"], ARRAYS["fortran"])


def test_objects_are_not_written(path: Path) -> None:
    with pytest.raises(ValueError, match=r"[Oo]bject"):
        write_npz(path, {"objects": np.array([{}], dtype=object)})


class Intruder:
    """Unpickling it creates a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.trace,))


def test_a_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    payload = np.array([Intruder(trace)], dtype=object)
    np.savez(tmp_path / "objects.npz", user_factors=payload)
    np.savez(tmp_path / "fields.npz", user_factors=np.array([(1, Intruder(trace))], dtype=[("a", "i4"), ("b", "O")]))
    (tmp_path / "raw.npz").write_bytes(pickle.dumps(Intruder(trace)))
    with zipfile.ZipFile(tmp_path / "member.npz", "w") as archive:
        archive.writestr("user_factors.npy", pickle.dumps(Intruder(trace)))
    for path in tmp_path.glob("*.npz"):
        with pytest.raises(ValueError, match="npz"):
            map_npz(path)
    assert not trace.exists()
    np.load(tmp_path / "objects.npz", allow_pickle=True)["user_factors"]  # the trap does work
    assert trace.exists()


def test_a_compressed_file_is_refused(path: Path) -> None:
    np.savez_compressed(path, **ARRAYS)
    with pytest.raises(ValueError, match="compressed"):
        map_npz(path)


@pytest.mark.parametrize("content", [b"", b"x", b"PK\3\4", b"PK\5\6" + bytes(18), b"\x93NUMPY\1\0", bytes(5000)])
def test_what_is_no_npz_is_refused_or_empty(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    if content.startswith(b"PK\5\6"):  # a well-formed zip without members
        assert map_npz(path) == {}
        return
    with pytest.raises(ValueError, match="npz"):
        map_npz(path)


def test_a_missing_file_is_an_os_error(path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        map_npz(path)


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000,)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387904, 8)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-1, -2)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2L,)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1,)}",
        "{'descr': '|S0', 'fortran_order': False, 'shape': (2,)}",
        "{'descr': '<q9', 'fortran_order': False, 'shape': (2,)}",
        "{'descr': '<f4'",
        "__import__('os').abort()",
        "(" * 5000,
        "\\N{",
    ],
)
def test_a_header_that_lies_about_its_array_is_refused(path: Path, header: str) -> None:
    text = header.encode()
    data = b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text + np.ones(2, np.float32).tobytes()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", data)
    with pytest.raises(ValueError, match="npz"):
        map_npz(path)


@pytest.mark.parametrize("version", [(2, 0), (9, 9)])
def test_another_npy_version_is_refused(path: Path, version: tuple[int, int]) -> None:
    stream = io.BytesIO()
    np.save(stream, np.ones(2))
    data = bytearray(stream.getvalue())
    data[6:8] = bytes(version)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", bytes(data))
    with pytest.raises(ValueError, match="npy version"):
        map_npz(path)


SMALL = {"a": np.arange(4, dtype=np.float32), "b": np.array(b"csr")}


def test_a_file_that_was_cut_off_is_refused_at_every_length(path: Path) -> None:
    write_npz(path, SMALL)
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match="npz"):
            map_npz(path)


def test_no_flipped_bit_raises_anything_but_a_value_error(path: Path) -> None:
    write_npz(path, SMALL)
    content = path.read_bytes()
    n_refused = 0
    for position in range(len(content)):
        for bit in (0, 3, 7):
            damaged = bytearray(content)
            damaged[position] ^= 1 << bit
            path.write_bytes(damaged)
            n_refused += is_refused(path)
    assert n_refused > 100


def is_refused(path: Path) -> bool:
    try:
        mapped = map_npz(path)
    except ValueError:
        return True
    for array in mapped.values():
        array.tobytes()  # whatever was accepted can be read to its end
    return False


def test_no_scrambled_bytes_raise_anything_but_a_value_error(path: Path) -> None:
    write_npz(path, SMALL)
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    n_refused = 0
    for _ in range(600):
        damaged = np.frombuffer(content, dtype=np.uint8).copy()
        where = rng.integers(len(damaged), size=rng.integers(1, 9))
        damaged[where] = rng.integers(256, size=len(where))
        path.write_bytes(damaged.tobytes())
        n_refused += is_refused(path)
    assert n_refused > 100
