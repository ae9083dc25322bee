"""Ranges of a recipe's numbers, and sizes as people write them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, get_type_hints

from ..errors import RecipeError

LARGE = 10**9
_SIZE_UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}


@dataclass(frozen=True)
class Within:
    """The range of a number, both ends included."""

    low: float
    high: float


def check_ranges(section: Any, name: str) -> None:
    """Raise unless every number of a section lies in its range.

    Raises
    ------
    RecipeError
        Names the field, what it is and what it may be.
    """
    for field, hint in get_type_hints(type(section), include_extras=True).items():
        value = getattr(section, field)
        for limit in getattr(hint, "__metadata__", ()):
            if not limit.low <= value <= limit.high:
                raise RecipeError(
                    f"recipe field {name}.{field} is {value}, expected {limit.low} to {limit.high}."
                )


def parse_memory(size: str | int) -> int:
    """Return a number of bytes from ``"4GiB"`` or an int.

    Raises
    ------
    RecipeError
    """
    if isinstance(size, int):
        if size < 0:
            raise RecipeError(f"recipe field data.memory is {size}, expected 0 bytes or more.")
        return size
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]iB|B)\s*", size)
    if match is None:
        raise RecipeError(
            f"recipe field data.memory is {size!r}, expected a number of bytes or a size with a "
            f"unit of {', '.join(_SIZE_UNITS)}, for example '4GiB'."
        )
    return int(float(match[1]) * _SIZE_UNITS[match[2]])
