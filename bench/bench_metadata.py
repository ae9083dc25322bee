"""Metadata of the hits of a search, by row, beside other ways of keeping them.

Eight columns, a URL and a caption among them, as LAION has them. Ours is the file that an index
keeps, written by the code that builds it. The others hold the same table: parquet (snappy, row
groups of 65,536) read by duckdb and by pyarrow, a table of duckdb's own with its index on the row,
and the way of clip-retrieval's Arrow back end, which joins as many slices of one row as are asked
for. All return the rows in the order asked, as an Arrow table of whole columns. duckdb's own table
is joined, which scans it, because asking for the rows by its index takes longer: an IN list of
2,000 twice, as many point queries ten times as long (a million rows).

Each contender runs in a process of its own, and the contenders take turns. Warm: the file is in the
page cache, and the process has taken some rows before. Cold: the file was evicted, and the time to
open it counts.

Example: python bench/bench_metadata.py --rows 2000000
"""

from __future__ import annotations

import argparse
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

ROOT = Path(__file__).resolve().parents[1]
SEED = 20231
PROTOCOL = "metadata/2"
GROUP_ROWS = 65_536
PART_ROWS = 3 * GROUP_ROWS
WARM_CALLS = 5
ARROW, PARQUET, DATABASE = "metadata.arrow", "metadata.parquet", "metadata.duckdb"

# name: what it is, and the file that it reads
CONTENDERS = {
    "voxseek": ("memory-mapped Arrow, rows gathered by record batch, 16 threads", ARROW),
    "voxseek, url and caption": ("the same, two columns", ARROW),
    "one-row slices": ("memory-mapped Arrow, a slice a row, as clip-retrieval", ARROW),
    "pyarrow parquet": ("the row groups that are touched, whole, then take", PARQUET),
    "duckdb parquet": ("join on file_row_number", PARQUET),
    "duckdb table": ("its own format, with an index on the row; joined on it", DATABASE),
}

Take = Callable[[Any], Any]


def tables(n_rows: int) -> Iterator[Any]:
    """Yield the table in parts; a part depends on the seed and its first row alone."""
    import numpy as np
    import pyarrow as pa

    words = np.array(["red", "dog", "on", "beach", "with", "old", "house", "in", "snow", "photo"])
    for start in range(0, n_rows, PART_ROWS):
        rng = np.random.default_rng((SEED, start))
        n = min(PART_ROWS, n_rows - start)
        rows = np.arange(start, start + n)
        lengths = rng.integers(3, 16, n)
        drawn = words[rng.integers(0, len(words), lengths.sum())]
        ends = np.cumsum(lengths)
        captions = [
            " ".join(drawn[end - length : end]) for end, length in zip(ends, lengths, strict=True)
        ]
        hosts = rng.integers(0, 5000, n)
        yield pa.table(
            {
                "key": [f"{row:09d}" for row in rows],
                "url": [
                    f"https://img{host}.example.org/{row * 2654435761 % 2**32:08x}/{row}.jpg"
                    for row, host in zip(rows.tolist(), hosts.tolist(), strict=True)
                ],
                "caption": captions,
                "width": pa.array(rng.integers(64, 4096, n), pa.int32()),
                "height": pa.array(rng.integers(64, 4096, n), pa.int32()),
                "punsafe": pa.array(rng.beta(0.4, 6, n).astype(np.float32), mask=rows % 50 == 0),
                "pwatermark": pa.array(rng.beta(0.8, 3, n).astype(np.float32)),
                "lang": np.array(["en", "multi", "nolang"])[rng.choice(3, n, p=[0.4, 0.38, 0.22])],
            }
        )


def make_files(folder: Path, n_rows: int) -> dict[str, int]:
    """Write the table in each format, and return their sizes in bytes."""
    import duckdb
    import pyarrow.parquet as pq

    from index_builder.metadata import write_tables

    schema = next(tables(1)).schema
    write_tables(folder / ARROW, schema, tables(n_rows))
    with pq.ParquetWriter(folder / PARQUET, schema, compression="snappy") as writer:
        for table in tables(n_rows):
            writer.write_table(table, row_group_size=GROUP_ROWS)
    with duckdb.connect(folder / DATABASE) as database:
        database.execute(
            f"CREATE TABLE metadata AS SELECT file_row_number AS row, * EXCLUDE file_row_number "
            f"FROM read_parquet('{folder / PARQUET}', file_row_number = true) ORDER BY row"
        )
        database.execute("CREATE UNIQUE INDEX by_row ON metadata (row)")
    return {name: (folder / name).stat().st_size for name in (ARROW, PARQUET, DATABASE)}


def open_contender(name: str, folder: Path, n_rows: int) -> Take:
    """Return what takes rows, opened."""
    import numpy as np
    import pyarrow as pa

    if name.startswith("voxseek"):
        from retrieval.metadata.store import MetadataStore

        store = MetadataStore([folder / ARROW], [0], n_rows)
        columns = ["url", "caption"] if "," in name else None
        return lambda rows: store.take(rows, columns)
    if name == "one-row slices":
        whole = pa.ipc.open_file(pa.memory_map(str(folder / ARROW))).read_all()
        return lambda rows: pa.concat_tables(
            [whole.slice(row, 1) for row in rows.tolist()]
        ).combine_chunks()
    if name == "pyarrow parquet":
        import pyarrow.parquet as pq

        file = pq.ParquetFile(folder / PARQUET)

        def take_groups(rows: Any) -> Any:
            groups, group_of = np.unique(rows // GROUP_ROWS, return_inverse=True)
            touched = file.read_row_groups(groups.tolist()).combine_chunks()
            return touched.take(pa.array(group_of * GROUP_ROWS + rows % GROUP_ROWS))

        return take_groups
    import duckdb

    is_table = name == "duckdb table"
    path = str(folder / DATABASE) if is_table else ":memory:"
    database = duckdb.connect(path, read_only=is_table)
    source = "metadata" if is_table else f"read_parquet('{folder / PARQUET}', file_row_number=true)"
    key = "row" if is_table else "file_row_number"

    def join(rows: Any) -> Any:
        database.register("wanted", pa.table({"row": rows, "place": np.arange(len(rows))}))
        found = database.sql(
            f"SELECT source.* EXCLUDE {key} FROM wanted JOIN {source} AS source "
            f"ON source.{key} = wanted.row ORDER BY place"
        )
        return found.to_arrow_table().combine_chunks()

    return join


def checksum(table: Any) -> int:
    """Return a number that depends on the values and the order of all rows of the text columns."""
    from zlib import crc32

    texts = zip(table["url"].to_pylist(), table["caption"].to_pylist(), strict=True)
    return crc32("\n".join(f"{url} {caption}" for url, caption in texts).encode())


def import_all() -> None:
    """Import what contenders use, which is no part of reading."""
    import duckdb  # noqa: F401
    import pyarrow.parquet  # noqa: F401

    import retrieval.metadata.store  # noqa: F401


def run_contender(
    name: str, folder: Path, n_rows: int, n_taken: int, seed: int, *, is_cold: bool
) -> dict[str, float]:
    """Take rows as one contender does; return seconds a call, and a checksum."""
    import numpy as np

    rng = np.random.default_rng(seed)
    calls = [rng.choice(n_rows, n_taken, replace=False) for _ in range(1 + WARM_CALLS)]
    import_all()
    opened = time.perf_counter()
    take = open_contender(name, folder, n_rows)
    open_seconds = time.perf_counter() - opened if is_cold else 0
    if not is_cold:
        with open(folder / CONTENDERS[name][1], "rb") as file:
            while file.read(1 << 24):
                pass
        take(calls[0])
    seconds, cpu_seconds, sums = [], [], []
    for rows in calls[:1] if is_cold else calls[1:]:
        started, cpu_started = time.perf_counter(), time.process_time()
        table = take(rows)
        seconds.append(open_seconds + time.perf_counter() - started)
        cpu_seconds.append(time.process_time() - cpu_started)
        sums.append(checksum(table))
    return {
        "seconds": statistics.median(seconds),
        "slowest_seconds": max(seconds),
        "cpu_seconds": statistics.median(cpu_seconds),
        "checksum": sums[0],
    }


def evict(folder: Path) -> None:
    """Drop the files from the page cache."""
    for name in (ARROW, PARQUET, DATABASE):
        with open(folder / name, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(options: argparse.Namespace, folder: Path) -> dict[str, list[dict[str, float]]]:
    """Let the contenders take turns; return the raw runs by contender and state of the cache."""
    runs: dict[str, list[dict[str, float]]] = {}
    for repeat in range(options.repeats):
        for state in ("warm", "cold"):
            for name in CONTENDERS:
                if state == "cold":
                    evict(folder)
                command = [
                    *(sys.executable, __file__, "--contender", name, "--work", str(folder)),
                    *("--rows", str(options.rows), "--taken", str(options.taken)),
                    *("--seed", str(SEED + repeat), *(["--cold"] if state == "cold" else [])),
                ]
                environment = {**os.environ, "PYTHONPATH": str(ROOT)}
                finished = subprocess.run(
                    command, stdout=subprocess.PIPE, text=True, check=True, env=environment
                )
                run = json.loads(finished.stdout)
                runs.setdefault(f"{name} ({state})", []).append(run)
                print(f"{name} ({state}): {1e3 * run['seconds']:.1f} ms", file=sys.stderr)
            if len({runs[f"{name} ({state})"][-1]["checksum"] for name in CONTENDERS}) != 1:
                sys.exit("the contenders took different rows")
    return runs


def format_table(record: dict[str, Any]) -> str:
    """Return the medians of a record as Markdown."""
    lines = [
        "| contender | what it does | file | warm | slowest of all | processor | cold | "
        "time / voxseek's, warm |",
        "|---|---|---|---|---|---|---|---|",
    ]
    ours = record["runs"]["voxseek (warm)"]
    for name, (what, file) in CONTENDERS.items():
        warm, cold = (record["runs"][f"{name} ({state})"] for state in ("warm", "cold"))
        cells = [
            f"{record['file_bytes'][file] / 1e6:,.0f} MB",
            f"{1e3 * statistics.median(run['seconds'] for run in warm):,.1f} ms",
            f"{1e3 * max(run['slowest_seconds'] for run in warm):,.1f} ms",
            f"{1e3 * statistics.median(run['cpu_seconds'] for run in warm):,.1f} ms",
            f"{1e3 * statistics.median(run['seconds'] for run in cold):,.1f} ms",
        ]
        ratios = [each["seconds"] / mine["seconds"] for each, mine in zip(warm, ours, strict=True)]
        cells.append(f"{statistics.median(ratios):,.1f}")
        lines.append(f"| {name} | {what} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, or run one contender, or print the table of a record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--taken", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results")
    parser.add_argument("--table", type=Path, help="print the table of this record and stop")
    parser.add_argument("--work", type=Path, help="folder for the data; default: a temporary one")
    parser.add_argument("--contender", choices=list(CONTENDERS), help=argparse.SUPPRESS)
    parser.add_argument("--cold", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=SEED, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contender:
        run = run_contender(
            options.contender,
            options.work,
            options.rows,
            options.taken,
            options.seed,
            is_cold=options.cold,
        )
        print(json.dumps(run))
        return
    if options.table:
        print(format_table(json.loads(options.table.read_text())))
        return
    sys.path.insert(0, str(ROOT))
    from machine import describe_machine, hardware_name

    with tempfile.TemporaryDirectory(prefix="bench-metadata-", dir=options.work) as work:
        file_bytes = make_files(Path(work), options.rows)
        machine = describe_machine()
        runs = measure(options, Path(work))
    record = {
        "protocol": PROTOCOL,
        "seed": SEED,
        "n_rows": options.rows,
        "n_taken": options.taken,
        "n_repeats": options.repeats,
        "machine": machine,
        "load_average_after": describe_machine()["load_average"],
        "file_bytes": file_bytes,
        "runs": runs,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"metadata_{hardware_name(machine)}_{date.today():%Y%m%d}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(format_table(record))
    print(f"recorded in {path.name}", file=sys.stderr)


if __name__ == "__main__":
    main()
