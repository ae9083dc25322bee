"""voxseek itself: codes in memory nominate, the float16 rows of the gallery on disk rank."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from contender import K, Opened, Rows, Setting

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from retrieval.searching.engine import SearchEngine  # noqa: E402
from retrieval.searching.request import SearchRequest  # noqa: E402

# Options of `voxseek index build` beside --memory, and that: GiB for a million rows.
_OPTIONS: dict[str, tuple[list[str], float]] = {
    "rabitq1": (["--code", "ivf-rabitq", "--bits", "1"], 1),
    "rabitq2": (["--code", "ivf-rabitq", "--bits", "2"], 1),
    "rabitq4": (["--code", "ivf-rabitq", "--bits", "4"], 1),
    "hnsw-sq8": (["--code", "hnsw-sq8"], 2),
    "flat": (["--code", "flat", "--tier", "memory"], 2),
}
DESIGNS = tuple(_OPTIONS)
_PROBES = (2, 4, 8, 16, 32, 64)
_CANDIDATES = {
    "rabitq1": (50, 100, 200, 400),
    "rabitq2": (25, 50, 100, 200),
    "rabitq4": (12, 20, 40),
}
_IN_VIEW = (16, 24, 32, 48, 64, 96, 128, 256)
_GRAPH_CANDIDATES = (12, 20, 40)


def build(design: str, rows: Rows, folder: Path, n_threads: int) -> dict[str, Any]:
    """Run the command, told of other queries of the *shrunk* kind."""
    options, gibibytes = _OPTIONS[design]
    mebibytes = 1024 * gibibytes * max(1.0, rows.n_rows / 1e6)
    command = [
        *(sys.executable, str(ROOT / "cli.py"), "index", "build"),
        *(str(rows.gallery), str(folder), "--space", "simulated:final:1x768", *options),
        *("--memory", f"{mebibytes:.0f}MiB", "--queries", str(rows.work / "calibration"), "--json"),
    ]
    folder.rmdir()  # the command makes it
    finished = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    said = json.loads(finished.stdout)
    certificate = said["certificate"]
    plan = said["plan"]
    return {
        "design": f"{plan['code']}, {plan['bits']} bits, {plan['n_lists']} lists",
        "certificate": certificate and certificate["statement"],
    }


def open_index(design: str, rows: Rows, folder: Path, n_threads: int) -> Opened:
    """Open the engine; threads are those of the process."""
    engine = SearchEngine.open(folder)

    def find(queries: np.ndarray, setting: Setting) -> np.ndarray:
        request = SearchRequest(K, **setting, unsafe_from=None)
        return engine.search(queries, request, batch_queries=len(queries)).rows

    if design == "flat":
        settings: list[Setting] = [{}]
    elif design == "hnsw-sq8":
        settings = [
            {"breadth": breadth, "n_candidates": n_candidates}
            for breadth in _IN_VIEW
            for n_candidates in _GRAPH_CANDIDATES
            if n_candidates <= breadth
        ]
    else:
        settings = [
            {"breadth": breadth, "n_candidates": n_candidates}
            for breadth in _PROBES
            for n_candidates in _CANDIDATES[design]
        ]
    return Opened(find, settings, engine.ram_bytes, [] if design == "flat" else rows.files)
