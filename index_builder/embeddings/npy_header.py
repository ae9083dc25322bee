"""The header of an npy file, read without Python's parser.

NumPy hands the header to `ast.literal_eval`. Under CPython 3.11 two threads that parse at once can
end in "SystemError: AST constructor recursion depth mismatch", and parts are opened by threads.
"""

from __future__ import annotations

import re
from typing import IO, Any

import numpy as np

_FIELDS = {
    "descr": re.compile(r"""(['"])descr\1\s*:\s*(['"])(?P<value>[^'"]*)\2\s*(,|(?=\}))"""),
    "fortran_order": re.compile(
        r"""(['"])fortran_order\1\s*:\s*(?P<value>True|False)\s*(,|(?=\}))"""
    ),
    "shape": re.compile(r"""(['"])shape\1\s*:\s*\((?P<value>[\d,\sL]*)\)\s*(,|(?=\}))"""),
}
_LENGTH_BYTES = {(1, 0): 2, (2, 0): 4, (3, 0): 4}


def read_npy_header(handle: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return shape, whether in Fortran order, and dtype; the handle then is at the first number.

    The format is that of NumPy Enhancement Proposal 1, versions 1.0 to 3.0.

    Raises
    ------
    ValueError
        If the bytes are not the header of an array of one dtype, or end too soon.
    """
    version = np.lib.format.read_magic(handle)
    if version not in _LENGTH_BYTES:
        raise ValueError(f"npy version is {version}, expected (1, 0) to (3, 0)")
    length = int.from_bytes(_read(handle, _LENGTH_BYTES[version]), "little")
    encoded = _read(handle, length)
    text = encoded.decode("utf-8" if version == (3, 0) else "latin-1")
    values = {}
    for name, pattern in _FIELDS.items():
        found = pattern.search(text)
        if found is None:
            raise ValueError(f"its header has no {name}, or one of another form: {text[:200]!r}")
        values[name] = found["value"]
        text = text[: found.start()] + text[found.end() :]
    if not re.fullmatch(r"\s*\{\s*\}\s*", text):
        raise ValueError(f"its header has more than dtype, order and shape: {text[:200]!r}")
    try:
        dtype = np.dtype(values["descr"])
    except TypeError as error:
        raise ValueError(f"its dtype is {values['descr']!r}: {error}") from error
    sizes = [size.strip().rstrip("L") for size in values["shape"].split(",")]
    return tuple(int(size) for size in sizes if size), values["fortran_order"] == "True", dtype


def _read(handle: IO[bytes], n_bytes: int) -> bytes:
    found = handle.read(n_bytes)
    if len(found) < n_bytes:
        raise ValueError(f"EOF: its header has {len(found)} bytes of {n_bytes}")
    return found
