"""ScaNN: a tree of asymmetric hashing with reordering, as its documentation sets it up.

Leaves are twice the square root of the rows, as in its example of 1.2 million rows; ``soar`` spills
each row to a second leaf. Reordering is by float32, its default, or bfloat16.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from contender import K, Opened, Rows, Setting, folder_bytes
from scann import ReorderType, scann_ops_pybind

_SOAR: dict[str, tuple[bool, ReorderType]] = {
    "tree-ah-bf16": (False, ReorderType.BFLOAT16),
    "tree-ah-soar-bf16": (True, ReorderType.BFLOAT16),
    "tree-ah-int8": (False, ReorderType.INT8),
}
DESIGNS = tuple(_SOAR)
_LEAVES = (8, 16, 32, 64, 128)
_REORDERED = (30, 50, 100, 200)


def build(design: str, rows: Rows, folder: Path, n_threads: int) -> dict[str, Any]:
    """Build from all rows in float32, mapped from a file, and serialize."""
    with_soar, reorder = _SOAR[design]
    n_leaves = 2 * math.isqrt(rows.n_rows)
    soar = {"soar_lambda": 1.5, "overretrieve_factor": 2.0} if with_soar else {}
    widened = folder / "rows.npy"
    np.save(widened, rows.all_rows(np.float32))
    builder = scann_ops_pybind.builder(np.load(widened, mmap_mode="r"), K, "dot_product")
    searcher = (
        builder.set_n_training_threads(n_threads)
        .tree(n_leaves, n_leaves // 20, **soar)
        .score_ah(2, anisotropic_quantization_threshold=0.2)
        .reorder(100, quantize=reorder)
        .build()
    )
    widened.unlink()
    searcher.serialize(str(folder), relative_path=True)
    return {
        "design": f"{n_leaves} leaves{', SOAR 1.5' if with_soar else ''}, AH of 2, threshold 0.2, "
        f"reordered by {reorder.name}"
    }


def open_index(design: str, rows: Rows, folder: Path, n_threads: int) -> Opened:
    """Load into memory."""
    searcher = scann_ops_pybind.load_searcher(str(folder))
    searcher.set_num_threads(n_threads)

    def find(queries: np.ndarray, setting: Setting) -> np.ndarray:
        effort = {
            "pre_reorder_num_neighbors": setting["reorder"],
            "leaves_to_search": setting["leaves"],
        }
        if len(queries) == 1:
            return np.asarray(searcher.search(queries[0], K, **effort)[0])[None]
        if n_threads == 1:
            return np.asarray(searcher.search_batched(queries, K, **effort)[0])
        found = searcher.search_batched_parallel(queries, K, batch_size=64, **effort)[0]
        return np.asarray(found)

    settings = [{"leaves": n, "reorder": m} for n in _LEAVES for m in _REORDERED]
    return Opened(find, settings, folder_bytes(folder))
