"""hnswlib: float32, with the links and breadth of its README."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hnswlib
import numpy as np
from contender import DIM, K, Opened, Rows, Setting

DESIGNS = ("m16",)
_IN_VIEW = (16, 24, 32, 48, 64, 96, 128, 256, 512)


def build(design: str, rows: Rows, folder: Path, n_threads: int) -> dict[str, Any]:
    """Add all rows in blocks, and save."""
    index = hnswlib.Index(space="ip", dim=DIM)
    index.init_index(max_elements=rows.n_rows, M=16, ef_construction=200, random_seed=7)
    start = 0
    for block in rows.blocks(50_000):
        numbers = np.arange(start, start + len(block))
        index.add_items(block.astype(np.float32), numbers, num_threads=n_threads)
        start += len(block)
    index.save_index(str(folder / "index.bin"))
    return {"design": "HNSW, float32, M 16, ef_construction 200"}


def open_index(design: str, rows: Rows, folder: Path, n_threads: int) -> Opened:
    """Load into memory."""
    file = folder / "index.bin"
    index = hnswlib.Index(space="ip", dim=DIM)
    index.load_index(str(file))

    def find(queries: np.ndarray, setting: Setting) -> np.ndarray:
        index.set_ef(setting["ef"])
        found: np.ndarray = index.knn_query(queries, K, num_threads=n_threads)[0]
        return found.astype(np.int64)

    return Opened(find, [{"ef": value} for value in _IN_VIEW], file.stat().st_size)
