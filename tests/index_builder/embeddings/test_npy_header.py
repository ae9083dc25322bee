from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from index_builder.embeddings.npy_header import read_npy_header


def saved(array: np.ndarray, version: tuple[int, int] | None = None) -> io.BytesIO:
    handle = io.BytesIO()
    np.lib.format.write_array(handle, array, version=version, allow_pickle=False)
    handle.seek(0)
    return handle


def with_header(text: str, version: tuple[int, int] = (1, 0)) -> io.BytesIO:
    encoded = text.encode()
    length = len(encoded).to_bytes(2 if version == (1, 0) else 4, "little")
    return io.BytesIO(np.lib.format.magic(*version) + length + encoded)


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
@pytest.mark.parametrize("dtype", ["<f2", "<f4", ">f8", "|u1", "<i8", "<U7"])
@pytest.mark.parametrize("shape", [(), (0,), (7,), (3, 4), (2, 5, 3)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_headers_are_read_as_numpy_reads_them(
    version: tuple[int, int], dtype: str, shape: tuple[int, ...], order: str
) -> None:
    array = np.zeros(shape, dtype, order=order)  # type: ignore[call-overload]  # literals
    handle = saved(array, version)
    found = read_npy_header(handle)
    first = handle.tell()
    handle.seek(0)
    assert np.lib.format.read_magic(handle) == version
    read = getattr(np.lib.format, f"read_array_header_{min(version[0], 2)}_0")
    assert found == read(handle)
    assert first == handle.tell()


def test_other_writers_headers() -> None:
    texts = [
        '{"shape": (10L, 8L), "descr": "<f2", "fortran_order": False}\n',
        "{'fortran_order':False,'shape':(10,8),'descr':'<f2'}",
        "{ 'descr' : '<f2' ,  'fortran_order' : False , 'shape' : ( 10 , 8 , ) , }   \n",
    ]
    for text in texts:
        assert read_npy_header(with_header(text)) == ((10, 8), False, np.dtype("<f2"))


@pytest.mark.parametrize(
    ("handle", "message"),
    [
        (io.BytesIO(b""), "EOF"),
        (io.BytesIO(b"PK\x03\x04 a zip file"), "magic string"),
        (io.BytesIO(np.lib.format.magic(1, 0) + b"\x76"), "EOF: its header has 1 bytes of 2"),
        (io.BytesIO(np.lib.format.magic(1, 0) + b"\x76\x00{'de"), "EOF: .* has 4 bytes of 118"),
        (with_header("{'descr': '<f2', 'shape': (3,), }"), "no fortran_order"),
        (with_header("{'descr': [('a', '<f2')], 'fortran_order': False, 'shape': (3,)}"), "descr"),
        (with_header("{'descr': '<f2', 'fortran_order': False, 'shape': (-3,)}"), "no shape"),
        (with_header("{'descr': '<q9', 'fortran_order': False, 'shape': (3,)}"), "dtype is '<q9'"),
        (with_header("{'descr': '<f2', 'fortran_order': False, 'shape': (3,), 'x': 1}"), "more"),
        (with_header("{'descr': '<f2', 'fortran_order': False, 'shape': (3 4)}"), "invalid lit"),
        (io.BytesIO(np.lib.format.magic(9, 0) + b"\x00" * 20), r"version is \(9, 0\)"),
    ],
)
def test_other_bytes_are_refused(handle: io.BytesIO, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_npy_header(handle)


@pytest.fixture
def eager_switching() -> Iterator[None]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("eager_switching")
def test_threads_read_side_by_side() -> None:
    """With NumPy's own reader some of these fail under CPython 3.11."""
    content = saved(np.zeros((13, 8), np.float16)).getvalue()
    with ThreadPoolExecutor(4) as pool:
        headers = pool.map(lambda _: read_npy_header(io.BytesIO(content)), range(4000))
        assert set(headers) == {((13, 8), False, np.dtype("<f2"))}
