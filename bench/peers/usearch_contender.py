"""usearch: its graph with its own defaults, over float16 or int8."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from contender import DIM, K, Opened, Rows, Setting
from usearch.index import Index

DESIGNS = ("f16", "i8")
_IN_VIEW = (16, 24, 32, 48, 64, 96, 128, 256, 512)


def build(design: str, rows: Rows, folder: Path, n_threads: int) -> dict[str, Any]:
    """Add all rows in blocks, and save."""
    index = Index(ndim=DIM, metric="cos", dtype=design)
    start = 0
    for block in rows.blocks(50_000):
        index.add(np.arange(start, start + len(block)), block, threads=n_threads)
        start += len(block)
    index.save(str(folder / "index.usearch"))
    links, breadth = index.connectivity, index.expansion_add
    return {"design": f"HNSW, {design}, connectivity {links}, expansion {breadth} at the build"}


def open_index(design: str, rows: Rows, folder: Path, n_threads: int) -> Opened:
    """Load into memory."""
    file = folder / "index.usearch"
    index = Index(ndim=DIM, metric="cos", dtype=design)
    index.load(str(file))

    def find(queries: np.ndarray, setting: Setting) -> np.ndarray:
        index.expansion_search = setting["expansion_search"]
        keys = np.asarray(index.search(queries, K, threads=n_threads).keys)
        return keys.reshape(len(queries), -1)

    settings = [{"expansion_search": value} for value in _IN_VIEW]
    return Opened(find, settings, file.stat().st_size)
