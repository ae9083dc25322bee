"""Which devices hold the rows of an index, and what is said where none can.

cpu             the processor, by the codes of the index
cuda            all CUDA devices that torch sees
cuda:0,cuda:2   those
auto            as cuda where the rows fit, otherwise as cpu
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Literal

import numpy as np

from index_builder.embeddings.collection import Collection

from ..errors import SearchError
from .device_nominator import WORK_BYTES, DeviceNominator
from .device_rows import free_bytes, row_bytes

SPARE_BYTES = 1 << 30  # of a device, left to CUDA's own needs and to others

logger = logging.getLogger("voxseek")


def hold_on_devices(
    spec: str,
    embeddings: Collection,
    *,
    bad_rows: Literal["error", "tombstone"],
    deleted: np.ndarray,
    spare_bytes: int = SPARE_BYTES,
    work_bytes: int = WORK_BYTES,
) -> DeviceNominator | None:
    """Load the rows of an index into the memory of GPUs; where that can't be, say why, once.

    Parameters
    ----------
    spec : str
        ``cpu``, ``cuda``, ``auto``, or CUDA devices by number: ``cuda:0,cuda:2``.
    embeddings : Collection
    bad_rows, deleted
        As for `DeviceNominator.load`.
    spare_bytes : int
        Of each device's free memory, left free.
    work_bytes : int
        Limit for the estimates of a search on each device.

    Returns
    -------
    nominator : DeviceNominator or None
        None where the processor shall search: that is asked for, there is no such device, or the
        rows don't fit.

    Raises
    ------
    SearchError
        If the spec can't be read.
    """
    names = parse_devices(spec)
    if names == ():
        return None
    free = free_bytes(names)
    if isinstance(free, str):
        return _say_why_not(spec, free)
    n_rows, width = embeddings.n_rows, embeddings.space.width
    room = {name: n_bytes - spare_bytes - work_bytes for name, n_bytes in free.items()}
    parts = cut_rows(n_rows, width, room)
    if parts is None:
        found = ", ".join(f"{name} has {n_bytes >> 20}" for name, n_bytes in free.items())
        return _say_why_not(
            spec,
            f"{n_rows} rows of {width} take {n_rows * row_bytes(width) >> 20} MiB beside "
            f"{spare_bytes + work_bytes >> 20} MiB to work in, and {found} MiB free",
        )
    try:
        held = DeviceNominator.load(
            embeddings, parts, bad_rows=bad_rows, deleted=deleted, work_bytes=work_bytes
        )
    except MemoryError as error:  # somebody took what was free
        return _say_why_not(spec, str(error))
    logger.info("%d rows on %s", n_rows, ", ".join(name for name, _, _ in parts))
    return held


def parse_devices(spec: str) -> tuple[str, ...] | None:
    """Return the devices that a spec names; none for ``cpu``, None for all that there are.

    Raises
    ------
    SearchError
        If it can't be read, or names one twice.
    """
    if spec == "cpu":
        return ()
    if spec in ("auto", "cuda"):
        return None
    names = tuple(spec.split(","))
    are_devices = all(re.fullmatch(r"cuda:(0|[1-9]\d{0,3})", name) for name in names)
    if not are_devices or len(set(names)) < len(names):
        raise SearchError(
            f"device is {spec!r}, expected cpu, auto, cuda, or CUDA devices that differ, such as "
            f"cuda:0,cuda:1."
        )
    return names


def cut_rows(n_rows: int, width: int, room: Mapping[str, int]) -> list[tuple[str, int, int]] | None:
    """Share rows out among devices in proportion to their room.

    Parameters
    ----------
    n_rows, width : int
    room : mapping of str to int
        Bytes that rows may take on each device; strict.

    Returns
    -------
    parts : list of (device, first row, end), or None
        None where they don't fit.
    """
    most = [max(0, n_bytes) // row_bytes(width) for n_bytes in room.values()]
    if sum(most) < n_rows:
        return None
    parts, start, left = [], 0, sum(most)
    for name, n_most in zip(room, most, strict=True):
        # Rounded up, what is left never exceeds the room of the devices to come.
        n_here = -(-(n_rows - start) * n_most // left) if n_most else 0
        if n_here:
            parts.append((name, start, start + n_here))
        start, left = start + n_here, left - n_most
    return parts


def _say_why_not(spec: str, reason: str) -> DeviceNominator | None:
    level = logging.INFO if spec == "auto" else logging.WARNING
    logger.log(level, "searching on the processor, not on %s: %s", spec, reason)
    return None
