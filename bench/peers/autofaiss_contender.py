"""autofaiss: its own choice of an index for a number of bytes a vector, at efforts of FAISS."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from autofaiss import build_index
from contender import K, Opened, Rows, Setting

_BYTES_PER_VECTOR = {"144": 144, "3600": 3600}
DESIGNS = tuple(_BYTES_PER_VECTOR)
_PROBES = (16, 64, 256, 1024)
_IN_VIEW = (16, 32, 64, 128, 256)


def build(design: str, rows: Rows, folder: Path, n_threads: int) -> dict[str, Any]:
    """Let it choose, train and tune."""
    _, infos = build_index(
        embeddings=str(rows.gallery / "img_emb"),
        index_path=str(folder / "knn.index"),
        index_infos_path=str(folder / "infos.json"),
        max_index_memory_usage=f"{_BYTES_PER_VECTOR[design] * rows.n_rows / 1e6:.3f}MB",
        current_memory_available="8GB",
        metric_type="ip",
        nb_cores=n_threads,
    )
    return {"design": infos["index_key"], "effort": infos["index_param"]}


def open_index(design: str, rows: Rows, folder: Path, n_threads: int) -> Opened:
    """Load into memory."""
    faiss.omp_set_num_threads(n_threads)
    file = folder / "knn.index"
    index = faiss.read_index(str(file))
    key = json.loads((folder / "infos.json").read_text())["index_key"]
    space = faiss.ParameterSpace()

    def find(queries: np.ndarray, setting: Setting) -> np.ndarray:
        effort = ",".join(f"{name}={value}" for name, value in setting.items())
        space.set_index_parameters(index, effort)
        found: np.ndarray = index.search(queries, K)[1]
        return found

    if key.startswith("HNSW"):
        settings: list[Setting] = [{"efSearch": value} for value in _IN_VIEW]
    elif "_HNSW" in key:
        settings = [{"nprobe": n, "quantizer_efSearch": 2 * n} for n in _PROBES]
    else:
        settings = [{"nprobe": n} for n in _PROBES]
    return Opened(find, settings, os.stat(file).st_size)
