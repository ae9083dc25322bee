"""Sizes as people write them, ``32GiB``, and as code computes with them, in bytes."""

from __future__ import annotations

import re

from .errors import SizeError

_BINARY = ("KiB", "MiB", "GiB", "TiB", "PiB")
_DECIMAL = ("kB", "MB", "GB", "TB", "PB")
_BYTES_OF_UNIT = {
    "": 1,
    "b": 1,
    **{unit.lower(): 1024**power for power, unit in enumerate(_BINARY, start=1)},
    **{unit.lower(): 1000**power for power, unit in enumerate(_DECIMAL, start=1)},
}
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*")


def parse_size(text: str) -> int:
    """Return a size in bytes; ``"32GiB"`` is binary, ``"32GB"`` decimal, ``"344400"`` bytes.

    Raises
    ------
    SizeError
        If the number or the unit can't be read, or the size is zero. ``"32G"`` is refused, for it
        means either.
    """
    match = _SIZE.fullmatch(text)
    if not match:
        raise SizeError(f"{text!r} is not a size; write a number and a unit, such as 32GiB.")
    number, unit = match.groups()
    if unit.lower() not in _BYTES_OF_UNIT:
        raise SizeError(
            f"{text!r} has the unit {unit!r}; expected B, {', '.join(_BINARY)} (powers of 1024) "
            f"or {', '.join(_DECIMAL)} (powers of 1000)."
        )
    n_bytes = int(float(number) * _BYTES_OF_UNIT[unit.lower()])
    if n_bytes < 1:
        raise SizeError(f"{text!r} is less than one byte.")
    return n_bytes


def format_size(n_bytes: int) -> str:
    """Return bytes as people read them, in binary units with three significant digits."""
    if n_bytes < 1024:
        return f"{n_bytes} B"
    size = float(n_bytes)
    for unit in _BINARY:
        size /= 1024
        # 1023.5 KiB would round to four digits; it reads better as 1.00 MiB.
        if size < 999.5 or unit == _BINARY[-1]:
            break
    digits = 2 if size < 9.995 else 1 if size < 99.95 else 0
    return f"{size:.{digits}f} {unit}"
