"""Scan rates of RaBitQ codes in FAISS: the plain layout beside FastScan, by bits and processor.

Both layouts hold the same codes of the same rows in the same lists; one thread scans 32 lists a
query. The rate is codes looked at over processor time, the best of three passes in turn.

Example: python bench/bench_scan.py --out bench/results
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from faiss.contrib.ivf_tools import add_preassigned

ROOT = Path(__file__).resolve().parents[1]
PROTOCOL = "scan/1"
N_ROWS, N_LISTS, N_QUERIES, N_PROBE, K = 200_000, 256, 400, 32, 100
LEVELS = ("AVX512_VPOPCNT", "AVX512", "AVX2")


def run() -> list[dict[str, Any]]:
    """Measure each layout; one dict a number of bits and instruction set."""
    from galleries import DIM, Gallery

    gallery = Gallery("cone", N_ROWS, 0)
    rows = gallery.draw(0, N_ROWS)
    mean = rows.mean(axis=0)
    rows -= mean
    queries = gallery.draw_queries("shrunk", N_QUERIES, 0) - mean
    centroids = rows[np.random.default_rng(0).choice(N_ROWS, N_LISTS, replace=False)].copy()
    lists = faiss.knn(rows, centroids, 1)[1][:, 0]
    probed = faiss.knn(queries, centroids, N_PROBE)[1]
    n_codes = float(np.bincount(lists, minlength=N_LISTS)[probed].sum(axis=1).mean())
    faiss.omp_set_num_threads(1)
    measured = []
    for bits in (1, 2, 4):
        coarse = faiss.IndexFlatL2(DIM)
        coarse.add(centroids)
        plain = faiss.IndexIVFRaBitQ(coarse, DIM, N_LISTS, faiss.METRIC_L2, True, bits)
        plain.is_trained = True
        add_preassigned(plain, rows, lists)
        packed = faiss.IndexIVFRaBitQFastScan(coarse, DIM, N_LISTS, faiss.METRIC_L2, 32, True, bits)
        packed.train(rows[:2000])
        packed.add(rows)
        for index in (plain, packed):
            index.nprobe, index.qb = N_PROBE, 4
        for level in LEVELS:
            try:
                faiss.SIMDConfig.set_level(getattr(faiss, f"SIMDLevel_{level}"))
            except RuntimeError:
                continue  # this processor lacks it
            best = {"plain": np.inf, "FastScan": np.inf}
            for _ in range(3):
                for name, index in (("plain", plain), ("FastScan", packed)):
                    started = time.process_time()
                    index.search(queries, K)
                    best[name] = min(best[name], time.process_time() - started)
            rates = {name: N_QUERIES * n_codes / seconds for name, seconds in best.items()}
            measured.append({"bits": bits, "level": level, "codes_per_second": rates})
            shown = ", ".join(f"{name} {rate / 1e6:.0f}" for name, rate in rates.items())
            print(f"{bits} bits, {level}: {shown} million codes a second and core", flush=True)
    return measured


def main() -> None:
    """Parse, run, record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results")
    options = parser.parse_args()
    from machine import describe_machine, hardware_name

    measured = run()
    machine = describe_machine()
    record = {"protocol": PROTOCOL, "machine": machine, "n_rows": N_ROWS, "measured": measured}
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"scan_{hardware_name(machine)}_{date.today():%Y%m%d}.json"
    path.write_text(json.dumps(record, indent=2) + "\n")
    print(f"recorded in {path.name}", file=sys.stderr)


if __name__ == "__main__":
    main()
