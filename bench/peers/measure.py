"""One task of one contender, in a process of its own: build an index, or open and search it.

Run by bench_search.py with the Python of the contender's environment:
``measure.py build|search MODULE DESIGN WORK N_THREADS``; the last line printed is a JSON object.
A search goes through the settings of the contender, *in* and *shrunk* as one batch each. With two
threads, those that no other setting beats are then asked one by one, and with the other kinds. With
one thread the process is pinned to one core.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from contender import Opened, Rows, folder_bytes

KINDS, OTHER_KINDS = ("in", "shrunk"), ("shifted", "noisy")
LOOK_FROM = 0.9  # recall@10; below, latency and the other kinds of query aren't of interest
ENOUGH = 0.99  # more effort than what reaches it on both isn't
N_WARM = 8
ALONE_SECONDS = 5.0  # at most for one kind and setting
PACKAGES = (
    *("numpy", "faiss-cpu", "faiss-gpu", "autofaiss", "usearch", "hnswlib", "scann", "lancedb"),
    *("pylance", "scalable-vs", "voyager"),
)


def build(module: Any, design: str, work: Path, n_threads: int) -> dict[str, Any]:
    """Build in an empty folder; return what the contender says, bytes on disk and versions."""
    folder = index_folder(work, module, design)
    folder.mkdir()
    said: dict[str, Any] = module.build(design, Rows(work), folder, n_threads)
    return {**said, "disk_bytes": folder_bytes(folder), "versions": versions()}


def search(module: Any, design: str, work: Path, n_threads: int) -> dict[str, Any]:
    """Open, sweep all settings, and return figures of each, and the memory of the whole."""
    queries = {kind: np.load(work / f"queries_{kind}.npy") for kind in KINDS + OTHER_KINDS}
    truth = {kind: np.load(work / f"truth_{kind}.npy") for kind in KINDS + OTHER_KINDS}
    rows = Rows(work)
    before = memory()
    started = time.perf_counter()
    opened: Opened = module.open_index(design, rows, index_folder(work, module, design), n_threads)
    open_seconds = time.perf_counter() - started
    swept: list[dict[str, Any]] = []
    for setting in opened.settings:
        if any(is_no_less(setting, point["setting"]) and enough(point) for point in swept):
            continue
        found = {kind: batch(opened, setting, queries[kind], truth[kind]) for kind in KINDS}
        swept.append({"setting": setting, "kinds": found})
    for point in front(swept) if n_threads > 1 else ():
        setting, found = point["setting"], point["kinds"]
        for kind in KINDS:
            found[kind].update(one_by_one(opened, setting, queries[kind]))
        for kind in OTHER_KINDS:
            found[kind] = batch(opened, setting, queries[kind], truth[kind])
    after = memory()
    return {
        "open_seconds": open_seconds,
        "index_bytes": opened.index_bytes,
        "read_bytes": sum(file.stat().st_size for file in opened.read_files),
        "anonymous_bytes": after["Anonymous"] - before["Anonymous"],
        "mapped_bytes": after["Rss"] - after["Anonymous"] - before["Rss"] + before["Anonymous"],
        "peak_rss_bytes": peak_rss(),
        "load_average": os.getloadavg(),
        "sweep": swept,
    }


def is_no_less(setting: dict[str, int], other: dict[str, int]) -> bool:
    """Return whether a setting makes at least the effort of another in every respect."""
    return all(setting[name] >= value for name, value in other.items())


def enough(point: dict[str, Any]) -> bool:
    """Return whether a setting found nearly all on both kinds."""
    return all(point["kinds"][kind]["recall_at_10"] >= ENOUGH for kind in KINDS)


def front(swept: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return points that no other beats in recall and speed, on one of the two kinds at least."""

    def is_on(point: dict[str, Any], kind: str) -> bool:
        mine = point["kinds"][kind]
        return mine["recall_at_10"] >= LOOK_FROM and not any(
            other["kinds"][kind]["recall_at_10"] >= mine["recall_at_10"]
            and other["kinds"][kind]["queries_per_second"] > mine["queries_per_second"]
            for other in swept
        )

    return [point for point in swept if any(is_on(point, kind) for kind in KINDS)]


def batch(
    opened: Opened, setting: dict[str, int], queries: np.ndarray, truth: np.ndarray
) -> dict[str, float]:
    """Search all queries at once, after a few as warming up."""
    opened.find(queries[:N_WARM], setting)
    started = time.perf_counter()
    rows = opened.find(queries, setting)
    seconds = time.perf_counter() - started
    shares = [np.isin(t, r).mean() for t, r in zip(truth, rows, strict=True)]
    return {"recall_at_10": float(np.mean(shares)), "queries_per_second": len(queries) / seconds}


def one_by_one(opened: Opened, setting: dict[str, int], queries: np.ndarray) -> dict[str, float]:
    """Search each query alone, for some seconds; return median and 99th percentile, in ms."""
    seconds: list[float] = []
    for i in range(len(queries)):
        started = time.perf_counter()
        opened.find(queries[i : i + 1], setting)
        seconds.append(time.perf_counter() - started)
        if sum(seconds) > ALONE_SECONDS:
            break
    p50, p99 = np.percentile(seconds, (50, 99))
    return {"p50_ms": 1e3 * float(p50), "p99_ms": 1e3 * float(p99), "n_alone": len(seconds)}


def memory() -> dict[str, int]:
    """Return what the process holds, in bytes, once freed memory went back to the system."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    fields = (line.split() for line in lines)
    return {words[0][:-1]: int(words[1]) * 1024 for words in fields}


def peak_rss() -> int:
    """Return the highest resident memory of the process so far, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def index_folder(work: Path, module: Any, design: str) -> Path:
    """Return where a contender's index stands."""
    return work / f"{module.__name__.removesuffix('_contender')}_{design}"


def versions() -> dict[str, str]:
    """Return the versions of what the environment has of `PACKAGES`."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def main() -> None:
    """Do what the command line says, and print a JSON object."""
    task, name, design, work, threads = sys.argv[1:]
    n_threads = int(threads)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:n_threads])
    module = importlib.import_module(f"{name}_contender")
    do = build if task == "build" else search
    print(json.dumps(do(module, design, Path(work), n_threads), default=str))


if __name__ == "__main__":
    main()
