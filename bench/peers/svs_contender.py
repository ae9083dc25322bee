"""scalable-vs (module svs): a Vamana graph over LVQ or LeanVec, as its documentation sets it up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import svs
from contender import DIM, K, Opened, Rows, Setting, folder_bytes

DESIGNS = ("lvq4x8", "lvq4x4", "leanvec")
_WINDOWS = (10, 16, 24, 32, 48, 64, 96, 128, 256)


def build(design: str, rows: Rows, folder: Path, n_threads: int) -> dict[str, Any]:
    """Write the rows in its format, compress and link them, and save."""
    source = folder / "rows.fvecs"
    svs.write_vecs(rows.all_rows(np.float32), str(source))
    loader = svs.VectorDataLoader(str(source), svs.DataType.float32, dims=DIM)
    parameters = svs.VamanaBuildParameters(graph_max_degree=64, window_size=128)
    index = svs.Vamana.build(
        parameters, _compress(design, loader), svs.DistanceType.MIP, num_threads=n_threads
    )
    index.save(*(str(folder / name) for name in ("config", "graph", "data")))
    source.unlink()
    return {"design": f"Vamana, degree 64, window 128, {design}, inner product"}


def open_index(design: str, rows: Rows, folder: Path, n_threads: int) -> Opened:
    """Load into memory."""
    data = str(folder / "data")
    loader = svs.LeanVecLoader(data) if design == "leanvec" else svs.LVQLoader(data)
    index = svs.Vamana(
        str(folder / "config"),
        svs.GraphLoader(str(folder / "graph")),
        loader,
        svs.DistanceType.MIP,
        num_threads=n_threads,
    )

    def find(queries: np.ndarray, setting: Setting) -> np.ndarray:
        index.search_window_size = setting["search_window_size"]
        return np.asarray(index.search(queries, K)[0]).astype(np.int64)

    settings = [{"search_window_size": value} for value in _WINDOWS]
    return Opened(find, settings, folder_bytes(folder))


def _compress(design: str, loader: Any) -> Any:
    if design == "leanvec":
        kinds = svs.LeanVecKind.lvq4, svs.LeanVecKind.lvq8
        return svs.LeanVecLoader(
            loader, leanvec_dims=DIM // 4, primary_kind=kinds[0], secondary_kind=kinds[1]
        )
    return svs.LVQLoader(loader, primary=4, residual=int(design[-1]))
