"""What every contender of bench_search.py has in common: the rows, and an opened index.

A contender is a module ``<library>_contender.py`` beside this one, run by the Python of an
environment of its own. It has

    DESIGNS                                            names of what it builds
    build(design, rows, folder, n_threads) -> dict     makes the index in an empty folder
    open_index(design, rows, folder, n_threads)        returns an `Opened`

Only NumPy and the standard library may be imported here: all environments have them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

K = 10
DIM = 768
Setting = dict[str, int]
Find = Callable[[np.ndarray, Setting], np.ndarray]


class Rows:
    """The gallery as every contender gets it: float16 parts, memory-mapped, in row order.

    Parameters
    ----------
    work : Path
        Folder of the benchmark, with the gallery in LAION's layout.
    """

    def __init__(self, work: Path) -> None:
        self.work = work
        self.gallery = work / "gallery"
        self.files = sorted((self.gallery / "img_emb").glob("*.npy"))
        self._parts = [np.load(file, mmap_mode="r") for file in self.files]
        self._starts = np.cumsum([0, *map(len, self._parts)])
        self.n_rows = int(self._starts[-1])

    def blocks(self, n_rows: int) -> Iterator[np.ndarray]:
        """Yield all rows in order, ``n_rows`` or fewer at a time, float16 (n, DIM)."""
        for part in self._parts:
            for start in range(0, len(part), n_rows):
                yield np.array(part[start : start + n_rows])

    def all_rows(self, dtype: Any) -> np.ndarray:
        """Return all rows (n_rows, DIM) in memory."""
        held = np.empty((self.n_rows, DIM), dtype)
        start = 0
        for block in self.blocks(16_384):
            held[start : start + len(block)] = block
            start += len(block)
        return held

    def sample(self, n_rows: int, seed: int) -> np.ndarray:
        """Return a random sample (n, DIM), float32, in row order."""
        rng = np.random.default_rng(seed)
        chosen = np.sort(rng.choice(self.n_rows, min(n_rows, self.n_rows), replace=False))
        part_of = np.searchsorted(self._starts, chosen, side="right") - 1
        pieces = [
            part[chosen[part_of == i] - self._starts[i]].astype(np.float32)
            for i, part in enumerate(self._parts)
        ]
        return np.concatenate(pieces)


@dataclass(frozen=True)
class Opened:
    """An opened index.

    Parameters
    ----------
    find : callable
        ``find(queries, setting)`` returns rows (n, K), int; one query is a batch of one.
    settings : list of dict
        Efforts to sweep, from quick to thorough.
    index_bytes : int
        What the index keeps in memory by arithmetic, or by the size of the files it loads.
    read_files : list of Path
        Files that a search reads from at random and doesn't hold: it relies on the page cache.
    """

    find: Find
    settings: list[Setting]
    index_bytes: int
    read_files: list[Path] = field(default_factory=list)


def folder_bytes(folder: Path) -> int:
    """Return the bytes of all files in a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
