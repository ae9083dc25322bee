"""voyager: its graph with its own defaults, over 8-bit floats (E4M3)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from contender import DIM, K, Opened, Rows, Setting
from voyager import Index, Space, StorageDataType

DESIGNS = ("e4m3",)
_IN_VIEW = (16, 24, 32, 48, 64, 96, 128, 256, 512)


def build(design: str, rows: Rows, folder: Path, n_threads: int) -> dict[str, Any]:
    """Add all rows in blocks, and save."""
    index = Index(
        Space.Cosine,
        num_dimensions=DIM,
        max_elements=rows.n_rows,
        storage_data_type=StorageDataType.E4M3,
    )
    start = 0
    for block in rows.blocks(50_000):
        numbers = list(range(start, start + len(block)))
        index.add_items(block.astype(np.float32), ids=numbers, num_threads=n_threads)
        start += len(block)
    index.save(str(folder / "index.voy"))
    return {"design": f"HNSW, E4M3, M {index.M}, ef_construction {index.ef_construction}"}


def open_index(design: str, rows: Rows, folder: Path, n_threads: int) -> Opened:
    """Load into memory."""
    file = folder / "index.voy"
    index = Index.load(str(file))

    def find(queries: np.ndarray, setting: Setting) -> np.ndarray:
        found = index.query(queries, K, num_threads=n_threads, query_ef=setting["query_ef"])[0]
        return np.asarray(found).astype(np.int64)

    return Opened(find, [{"query_ef": value} for value in _IN_VIEW], file.stat().st_size)
