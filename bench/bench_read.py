"""Read embeddings in order and here and there, beside the embedding-reader package.

Each contender runs in a process of its own, and the contenders take turns, so that whatever else
the machine does falls on all of them; processor time is recorded beside the time on the wall.
Warm: the files are in the page cache and, for rows taken here and there, the process has taken
some before. Cold: the files were evicted, and the process has just opened them. embedding-reader
has no access by row: it reads ranges of one row, and numpy's memory map, indexed by an array, is
the contender to beat.

Example: python bench/bench_read.py --rows 400000
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

PEER = "embedding-reader==1.8.1"
SEED = 20231
PROTOCOL = "read/1"
ROOT = Path(__file__).resolve().parents[1]

# name: what it is, and the number of rows that `take` asks for (0: iterate over all)
CONTENDERS = {
    "iterate voxseek": "float16 as stored, every row judged",
    "iterate voxseek float32": "the same, then to_float32",
    "iterate embedding-reader": "float32, nothing judged",
    "take200 voxseek": "200 random rows",
    "take200 numpy": "200 random rows, np.load(mmap_mode='r')[rows] a part",
    "take200 embedding-reader": "200 random rows: 10 of them, a call each, times 20",
    "take6400 voxseek": "6,400 random rows: 32 queries of 200 candidates",
    "take6400 numpy": "6,400 random rows, np.load(mmap_mode='r')[rows] a part",
}
PAIRS = (
    ("iterate voxseek", "iterate embedding-reader"),
    ("iterate voxseek float32", "iterate embedding-reader"),
    ("take200 voxseek", "take200 embedding-reader"),
    ("take200 voxseek", "take200 numpy"),
    ("take6400 voxseek", "take6400 numpy"),
)


def make_folder(folder: Path, n_rows: int, dim: int, n_parts: int) -> str:
    """Write random unit rows in float16 and return the fingerprint of the folder."""
    import numpy as np
    import pyarrow as pa

    from index_builder.embeddings.space import EmbeddingSpace
    from index_builder.embeddings.writer import EmbeddingWriter

    rng = np.random.default_rng(SEED)
    space = EmbeddingSpace("random", "final", 1, dim, True)
    with EmbeddingWriter(folder, space, command="bench_read", details={"seed": SEED}) as writer:
        for start in range(0, n_rows, -(-n_rows // n_parts)):
            n_here = min(-(-n_rows // n_parts), n_rows - start)
            rows = rng.standard_normal((n_here, dim), dtype=np.float32)
            rows /= np.linalg.norm(rows, axis=1, keepdims=True)
            writer.write(rows, pa.table({"image_id": np.arange(start, start + n_here)}))
        return writer.finish().fingerprint


def evict(folder: Path) -> None:
    """Drop the files from the page cache."""
    for path in sorted((folder / "img_emb").iterdir()):
        with open(path, "rb") as handle:
            os.fsync(handle.fileno())
            os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def run_contender(
    name: str, folder: Path, batch_rows: int, seed: int, *, is_cold: bool
) -> dict[str, float]:
    """Read as one contender does; return seconds, a checksum, and the peak of resident memory."""
    import numpy as np

    task, who = name.split(" ", 1)
    n_taken = 0 if task == "iterate" else int(task.removeprefix("take"))
    rng = np.random.default_rng(seed)
    read, n_rows = open_contender(task, who, folder, batch_rows)
    n_calls = 1 if is_cold or task == "iterate" else 5
    calls = [rng.integers(0, n_rows, n_taken) for _ in range(n_calls)]
    if not is_cold:
        read(rng.integers(0, n_rows, n_taken))
    checksum = 0.0
    started, cpu_started = time.perf_counter(), time.process_time()
    for rows in calls:
        checksum += read(rows)
    seconds = (time.perf_counter() - started) / n_calls
    cpu_seconds = (time.process_time() - cpu_started) / n_calls
    scale = 20 if name == "take200 embedding-reader" else 1
    return {
        "seconds": seconds * scale,
        "cpu_seconds": cpu_seconds * scale,
        "checksum": checksum,
        "peak_bytes": peak_memory_bytes(),
    }


def open_contender(
    task: str, who: str, folder: Path, batch_rows: int
) -> tuple[Callable[[Any], float], int]:
    """Return what reads (given rows, or everything) and returns a checksum; and the rows there."""
    import numpy as np

    if who == "numpy":
        paths = sorted((folder / "img_emb").iterdir())
        mapped = [np.load(path, mmap_mode="r") for path in paths]
        bounds = np.cumsum([0, *map(len, mapped)])

        def take_mapped(rows: Any) -> float:
            out = np.empty((len(rows), mapped[0].shape[1]), mapped[0].dtype)
            part_of = np.searchsorted(bounds, rows, side="right") - 1
            for i, part in enumerate(mapped):
                chosen = part_of == i
                out[chosen] = part[rows[chosen] - bounds[i]]
            return float(out[:, 0].astype(np.float64).sum())

        return take_mapped, int(bounds[-1])

    if who == "embedding-reader":
        from embedding_reader import EmbeddingReader

        with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
            peer = EmbeddingReader(str(folder / "img_emb"), file_format="npy")

        def iterate_peer(rows: Any) -> float:
            batches = peer(batch_size=batch_rows, show_progress=False)
            return sum(float(embeddings[0, 0]) for embeddings, _ in batches)

        def take_peer(rows: Any) -> float:
            return sum(
                float(embeddings[0, 0])
                for row in rows[:10].tolist()
                for embeddings, _ in peer(1, start=row, end=row + 1, show_progress=False)
            )

        return (iterate_peer if task == "iterate" else take_peer), int(peer.count)

    from index_builder.embeddings.float16 import to_float32
    from index_builder.embeddings.reader import EmbeddingFolder

    opened = EmbeddingFolder.open(folder)
    convert = to_float32 if who.endswith("float32") else np.asarray

    def iterate(rows: Any) -> float:
        batches = opened.iter_batches(batch_rows=batch_rows)
        return sum(float(convert(batch.embeddings)[0, 0]) for batch in batches)

    def take(rows: Any) -> float:
        return float(opened.take(rows)[:, 0].astype(np.float64).sum())

    return (iterate if task == "iterate" else take), opened.n_rows


def peak_memory_bytes() -> int:
    """Return the most that was resident in this process, without that of its parent."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


@contextlib.contextmanager
def peer_python(given: str | None) -> Iterator[str]:
    """Yield an interpreter that has the peer: the given one, or that of a temporary venv."""
    if given:
        yield given
        return
    with tempfile.TemporaryDirectory(prefix="bench-peer-") as folder:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        python = str(Path(folder) / "bin" / "python")
        subprocess.run([python, "-m", "pip", "install", "--quiet", PEER], check=True)
        yield python


def measure(options: argparse.Namespace, folder: Path, python: str) -> dict[str, Any]:
    """Let the contenders take turns; return the raw runs by contender and state of the cache."""
    runs: dict[str, list[dict[str, float]]] = {}
    for repeat in range(options.repeats):
        for is_cold in (False, True):
            for name in CONTENDERS:
                if is_cold:
                    evict(folder)
                command = [
                    *(python if "embedding-reader" in name else sys.executable, __file__),
                    *("--contender", name, "--work", str(folder)),
                    *("--batch-rows", str(options.batch_rows), "--seed", str(SEED + repeat)),
                    *(["--cold"] if is_cold else []),
                ]
                environment = {**os.environ, "PYTHONPATH": str(ROOT)}
                finished = subprocess.run(
                    command, capture_output=True, text=True, check=True, env=environment
                )
                key = f"{name} ({'cold' if is_cold else 'warm'})"
                runs.setdefault(key, []).append(json.loads(finished.stdout))
    for ours, theirs in PAIRS:
        is_sample = "take200 embedding" in theirs
        for state in ("warm", "cold"):
            for one, other in zip(
                runs[f"{ours} ({state})"], runs[f"{theirs} ({state})"], strict=True
            ):
                if not is_sample and abs(one["checksum"] - other["checksum"]) > 1e-6:
                    raise SystemExit(f"{ours} and {theirs} read different numbers")
    return runs


def summarize(runs: dict[str, Any], total_bytes: int) -> dict[str, Any]:
    """Return the median time of each contender, and of each pair the median of paired ratios."""
    medians = {
        name: {
            "seconds": statistics.median(run["seconds"] for run in of_name),
            "cpu_seconds": statistics.median(run["cpu_seconds"] for run in of_name),
            "peak_mib": round(statistics.median(run["peak_bytes"] for run in of_name) / 2**20),
        }
        for name, of_name in runs.items()
    }
    for name, median in medians.items():
        if name.startswith("iterate"):
            median["gb_per_second"] = total_bytes / median["seconds"] / 1e9
    speedups = {}
    for ours, theirs in PAIRS:
        for state in ("warm", "cold"):
            ratios = sorted(
                other["seconds"] / one["seconds"]
                for one, other in zip(
                    runs[f"{ours} ({state})"], runs[f"{theirs} ({state})"], strict=True
                )
            )
            speedups[f"{ours} / {theirs} ({state})"] = {
                "median": statistics.median(ratios),
                "lowest": ratios[0],
                "highest": ratios[-1],
            }
    return {"medians": medians, "speedups": speedups}


def format_table(record: dict[str, Any]) -> str:
    """Return a record's medians and speed-ups as Markdown."""
    lines = [
        "| contender | what it reads | warm | processor, warm | cold | peak memory, warm |",
        "|---|---|---|---|---|---|",
    ]
    for name, what in CONTENDERS.items():
        warm, cold = (record["medians"][f"{name} ({state})"] for state in ("warm", "cold"))
        times = [f"{1e3 * warm[field]:,.1f} ms" for field in ("seconds", "cpu_seconds")]
        times.append(f"{1e3 * cold['seconds']:,.1f} ms")
        if "gb_per_second" in warm:
            times[0] += f" ({warm['gb_per_second']:.2f} GB/s)"
            times[2] += f" ({cold['gb_per_second']:.2f} GB/s)"
        lines.append(f"| {name} | {what} | {' | '.join(times)} | {warm['peak_mib']} MiB |")
    lines += [
        "",
        "| time of the second / time of the first: median of pairs (lowest to highest) "
        "| warm | cold |",
        "|---|---|---|",
    ]
    for ours, theirs in PAIRS:
        cells = []
        for state in ("warm", "cold"):
            ratio = record["speedups"][f"{ours} / {theirs} ({state})"]
            cells.append(f"{ratio['median']:,.2f} ({ratio['lowest']:,.2f}–{ratio['highest']:,.2f})")
        lines.append(f"| {ours}, {theirs} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, or run one contender, or print the table of a record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=400_000)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--parts", type=int, default=4)
    parser.add_argument("--batch-rows", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--peer-python", help=f"interpreter that has {PEER}; default: make one")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results")
    parser.add_argument("--table", type=Path, help="print the table of this record and stop")
    parser.add_argument("--work", type=Path, help="folder for the data; default: a temporary one")
    parser.add_argument("--contender", choices=list(CONTENDERS), help=argparse.SUPPRESS)
    parser.add_argument("--cold", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=SEED, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contender:
        print(
            json.dumps(
                run_contender(
                    options.contender,
                    options.work,
                    options.batch_rows,
                    options.seed,
                    is_cold=options.cold,
                )
            )
        )
        return
    if options.table:
        print(format_table(json.loads(options.table.read_text())))
        return

    sys.path.insert(0, str(ROOT))
    from machine import describe_machine, hardware_name

    with (
        peer_python(options.peer_python) as python,
        tempfile.TemporaryDirectory(prefix="bench-read-", dir=options.work) as work,
    ):
        folder = Path(work) / "embeddings"
        fingerprint = make_folder(folder, options.rows, options.dim, options.parts)
        machine = describe_machine()
        runs = measure(options, folder, python)
    record = {
        "protocol": PROTOCOL,
        "input": {
            "n_rows": options.rows,
            "dim": options.dim,
            "n_parts": options.parts,
            "dtype": "float16",
            "batch_rows": options.batch_rows,
            "fingerprint": fingerprint,
        },
        "seed": SEED,
        "n_repeats": options.repeats,
        "peer": PEER,
        "machine": machine,
        **summarize(runs, options.rows * options.dim * 2),
        "runs": runs,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"read_{hardware_name(machine)}_{date.today():%Y%m%d}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(format_table(record))
    print(f"\nrecorded in {path}", file=sys.stderr)


if __name__ == "__main__":
    main()
