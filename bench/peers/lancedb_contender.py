"""LanceDB: a table on disk with one of its vector indexes, re-ranked by its stored float16 rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
from contender import DIM, K, Opened, Rows, Setting, folder_bytes

# Index type, its options beside LanceDB's defaults, and what is swept.
_INDEXES: dict[str, tuple[str, dict[str, int]]] = {
    "ivf-pq": ("IVF_PQ", {"num_sub_vectors": DIM // 8}),
    "ivf-rq": ("IVF_RQ", {"num_bits": 1}),
    "ivf-hnsw-sq": ("IVF_HNSW_SQ", {}),
}
DESIGNS = tuple(_INDEXES)
_PROBES = (2, 4, 8, 16, 32)
_FACTORS = {"ivf-pq": (20, 40), "ivf-rq": (10, 20, 40), "ivf-hnsw-sq": (2,)}
_IN_VIEW = (32, 64, 128)


def build(design: str, rows: Rows, folder: Path, n_threads: int) -> dict[str, Any]:
    """Write the table in blocks, and let it build the index."""
    schema = pa.schema({"row": pa.int64(), "vector": pa.list_(pa.float16(), DIM)})
    table = lancedb.connect(folder).create_table("gallery", schema=schema)
    start = 0
    for block in rows.blocks(100_000):
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(block.reshape(-1)), DIM)
        numbers = pa.array(np.arange(start, start + len(block)))
        table.add(pa.table([numbers, vectors], schema=schema))
        start += len(block)
    kind, options = _INDEXES[design]
    table.create_index("cosine", vector_column_name="vector", index_type=kind, **options)
    return {"design": f"{kind}, {options or 'defaults'}, cosine"}


def open_index(design: str, rows: Rows, folder: Path, n_threads: int) -> Opened:
    """Open the table; it reads its index as it searches, and keeps it."""
    table = lancedb.connect(folder).open_table("gallery")

    def find(queries: np.ndarray, setting: Setting) -> np.ndarray:
        asked = table.search(queries[0] if len(queries) == 1 else list(queries))
        asked = asked.distance_type("cosine").nprobes(setting["nprobes"]).limit(K)
        asked = asked.refine_factor(setting["refine_factor"])
        if "ef" in setting:
            asked = asked.ef(setting["ef"])
        found = asked.select(["row", "_distance"]).to_arrow()
        rows_found = np.full((len(queries), K), -1, np.int64)
        numbers = found["row"].to_numpy()
        if len(queries) == 1:
            rows_found[0, : len(numbers)] = numbers
            return rows_found
        query_of = found["query_index"].to_numpy()
        for i in range(len(queries)):
            hits = numbers[query_of == i]
            rows_found[i, : len(hits)] = hits
        return rows_found

    settings = [
        {"nprobes": n, "refine_factor": factor, **ef}
        for n in _PROBES
        for factor in _FACTORS[design]
        for ef in ([{"ef": v} for v in _IN_VIEW] if design == "ivf-hnsw-sq" else [{}])
    ]
    index_files = [path for path in folder.rglob("_indices") if path.is_dir()]
    held = sum(folder_bytes(path) for path in index_files)
    data_files = [file for file in folder.rglob("*.lance") if "_indices" not in file.parts]
    return Opened(find, settings, held, [file for file in data_files if file.is_file()])
