"""Search on a GPU beside the processor: the same hits, and how soon.

A simulated gallery (*cone* of galleries.py), built twice: without codes, held in memory, and as
inverted lists. Three engines: *flat*, which compares every row on the processor; *lists*, at the
effort of its certificate; *device*, the rows on the devices of ``--device``. First the hits of
*device* are compared with those of *flat*, bit for bit, for two kinds of queries and three k; then
all take turns at batches of several sizes. ``nominate_ms`` is the part of *device* that the device
does. With ``--device cpu`` torch's own processor device holds the rows: for the code path, not for
speed.

Example: python bench/bench_device.py WORK --rows 1000000 --device cuda --out bench/results
         python bench/bench_device.py --table bench/results/device_….json
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

PROTOCOL = "device/1"
SEED = 20231
SPACE = "simulated:final:1x768"
PART_ROWS = 50_000
KINDS = ("in", "shrunk")
K = 10
COMPARED_K = (1, 10, 100)
DESIGNS = {
    "flat": ["--code", "flat", "--tier", "memory"],
    "lists": ["--code", "ivf-rabitq", "--bits", "1", "--tier", "memory"],
}


def prepare(work: Path, n_rows: int) -> None:
    """Write the gallery and build both indexes, unless they stand."""
    from galleries import Gallery, write_gallery

    if not (work / "gallery.done").exists():
        write_gallery(work / "gallery", Gallery("cone", n_rows, SEED), PART_ROWS)
        (work / "gallery.done").touch()
    for design, options in DESIGNS.items():
        command = [sys.executable, str(ROOT / "cli.py"), "index", "build", str(work / "gallery")]
        command += [str(work / design), "--space", SPACE, "--memory", "16GiB", *options]
        subprocess.run(command, check=True, stdout=sys.stderr)


def open_on_device(index: Path, device: str) -> Any:
    """Return an engine whose rows are on devices."""
    from retrieval.searching.device_nominator import DeviceNominator
    from retrieval.searching.engine import SearchEngine

    if device != "cpu":
        engine = SearchEngine.open(index, device=device)
        if not isinstance(engine._nominator, DeviceNominator):
            raise SystemExit(f"the rows aren't on {device}: see the line above")
        return engine
    opened = SearchEngine.open(index)
    held = DeviceNominator.load(
        opened.embeddings,
        [("cpu", 0, opened.n_rows)],
        bad_rows=opened.manifest["bad_rows"],
        deleted=opened.deleted,
    )
    return SearchEngine(index, opened.manifest, opened.embeddings, held, held.vectors)


def compare(flat: Any, device: Any, queries: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return how many hits of each kind and k are those of the processor, bit for bit."""
    from retrieval.searching.request import SearchRequest

    same: dict[str, Any] = {}
    for kind, some in queries.items():
        for k in COMPARED_K:
            expected, found = (each.search(some, SearchRequest(k)) for each in (flat, device))
            same[f"{kind}, k {k}"] = {
                "n_hits": int(expected.rows.size),
                "rows_alike": int((found.rows == expected.rows).sum()),
                "scores_alike": int((found.scores == expected.scores).sum()),
            }
    return same


def seconds_of(engine: Any, batch: np.ndarray) -> float:
    """Return how long a search takes."""
    from retrieval.searching.request import SearchRequest

    started = time.perf_counter()
    engine.search(batch, SearchRequest(K), batch_queries=len(batch))
    return time.perf_counter() - started


def nominate_seconds(engine: Any, batch: np.ndarray) -> float:
    """Return how long the devices take of it."""
    from index_builder.cosine import unit_rows

    unit = unit_rows(batch)
    started = time.perf_counter()
    engine._nominator.candidates(unit, 1, K, n_least=K)
    return time.perf_counter() - started


def measure(
    engines: dict[str, Any], queries: np.ndarray, size: int, options: argparse.Namespace
) -> dict[str, Any]:
    """Return the times of each engine at one size of batch; they take turns."""
    taken: dict[str, list[float]] = {name: [] for name in engines}
    nominating: list[float] = []
    n_rounds = options.rounds * (20 if size == 1 else 1)
    for number in range(n_rounds + 1):
        batch = queries[np.arange(number * size, (number + 1) * size) % len(queries)]
        for name, engine in engines.items():
            if sum(taken[name]) < options.seconds:
                seconds = seconds_of(engine, batch)
                taken[name] += [seconds] if number else []  # the first one warms up
        nominating += [nominate_seconds(engines["device"], batch)] if number else []
    return {
        name: {
            "n_rounds": len(of_name),
            "batch_ms": 1e3 * statistics.median(of_name),
            "p99_ms": 1e3 * float(np.percentile(of_name, 99)),
            "queries_per_second": size / statistics.median(of_name),
            "raw_ms": [1e3 * seconds for seconds in of_name],
        }
        for name, of_name in taken.items()
    } | {"nominate_ms": 1e3 * statistics.median(nominating)}


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Prepare, compare and measure; return the record."""
    from galleries import Gallery
    from machine import describe_machine

    from retrieval.searching.engine import SearchEngine

    machine = describe_machine()
    prepare(options.work, options.rows)
    gallery = Gallery("cone", options.rows, SEED)
    started = time.perf_counter()
    device = open_on_device(options.work / "flat", options.device)
    load_seconds = time.perf_counter() - started
    engines = {
        "flat": SearchEngine.open(options.work / "flat"),
        "lists": SearchEngine.open(options.work / "lists"),
        "device": device,
    }
    compared = {kind: gallery.draw_queries(kind, options.queries, 1) for kind in KINDS}
    same = compare(engines["flat"], device, compared)
    queries = gallery.draw_queries("in", max(options.batches), 2)
    times = {str(size): measure(engines, queries, size, options) for size in options.batches}
    return {
        "protocol": PROTOCOL,
        "device": options.device,
        "n_rows": options.rows,
        "seed": SEED,
        "k": K,
        "lists_effort": engines["lists"].manifest["certificate"]["effort"],
        "load_seconds": load_seconds,
        "device_bytes": device._nominator.device_bytes,
        "same": same,
        "times": times,
        "machine": machine,
    }


def print_table(record: dict[str, Any]) -> None:
    """Print what was compared and measured as Markdown."""
    for name, each in record["same"].items():
        print(
            f"- {name}: {each['rows_alike']} of {each['n_hits']} rows and {each['scores_alike']} "
            f"scores alike"
        )
    print("\n| batch | flat | lists | device | of it on the device |\n|---|---|---|---|---|")
    for size, times in record["times"].items():
        cells = [
            f"{times[name]['batch_ms']:,.1f} ms ({times[name]['queries_per_second']:,.0f}/s)"
            for name in ("flat", "lists", "device")
        ]
        print(f"| {size} | {' | '.join(cells)} | {times['nominate_ms']:,.1f} ms |")


def main() -> None:
    """Measure and write a record, or print one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", nargs="?", type=Path, help="folder for gallery and indexes")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=256, help="compared, of each kind")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32, 256, 4096])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=60, help="of an engine and batch size")
    parser.add_argument("--out", type=Path, help="folder of the record")
    parser.add_argument("--table", type=Path, help="print a record")
    options = parser.parse_args()
    if options.table:
        print_table(json.loads(options.table.read_text()))
        return
    if options.work is None:
        parser.error("give WORK")
    record = run(options)
    if options.out:
        from machine import hardware_name

        name = f"device_{hardware_name(record['machine'])}_{date.today():%Y%m%d}.json"
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / name).write_text(json.dumps(record, indent=2) + "\n")
    print_table(record)
    if any(each["rows_alike"] < each["n_hits"] for each in record["same"].values()):
        raise SystemExit("the device found other rows than the processor")


if __name__ == "__main__":
    main()
