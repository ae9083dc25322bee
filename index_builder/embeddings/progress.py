"""Progress of long work: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

_Item = TypeVar("_Item")
_SECONDS_BETWEEN_LINES = 10.0
logger = logging.getLogger("voxseek")


def track(
    items: Iterable[_Item], *, label: str, total: int, unit: str, n_done: int = 0
) -> Iterator[_Item]:
    """Yield ``items`` and report how many are done on stderr.

    Parameters
    ----------
    items : iterable
    label : str
        What is being done: ``"embed"``.
    total : int
        How many items there are in all, the ones already done included.
    unit : str
        Name of one item: ``"image"``.
    n_done : int
        Items finished by an earlier run that this one resumes.
    """
    if sys.stderr.isatty():
        yield from tqdm(items, desc=label, total=total, unit=unit, initial=n_done, leave=False)
        return
    started = last = time.monotonic()
    for count, item in enumerate(items, start=n_done + 1):
        yield item
        now = time.monotonic()
        if now - last >= _SECONDS_BETWEEN_LINES:
            last = now
            logger.info("%s: %d of %d %ss, %.0f s", label, count, total, unit, now - started)
