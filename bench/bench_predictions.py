"""What plans predict beside what is found: bytes on disk, memory when opened, memory to build.

A simulated gallery (bench/galleries.py) is built once for each design, each build and each opening
a process of its own. *Written* are the bytes of all arrays of the index; *heap* is what malloc gave
out while the codes were opened, from glibc's own count, which the read buffers of codes on disk
are not part of: a search makes them. *Peak* is the largest resident set of the build.

Example: python bench/bench_predictions.py WORK --rows 20000 --out bench/results
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PROTOCOL = "predictions/1"
SEED = 7
SPACE = "simulated:final:1x768"
DESIGNS: tuple[dict[str, Any], ...] = (
    {"code": "flat", "tier": "disk"},
    {"code": "ivf-rabitq", "bits": 1},
    {"code": "ivf-rabitq", "bits": 2},
    {"code": "ivf-rabitq", "bits": 4},
    {"code": "ivf-rabitq", "bits": 1, "tier": "disk"},
    {"code": "ivf-rabitq", "bits": 1, "rerank": "fp16"},
    {"code": "ivf-rabitq", "bits": 1, "rerank": "sq8"},
    {"code": "ivf-rabitq", "bits": 1, "rerank": "rabitq4"},
    {"code": "hnsw-sq8"},
    {"code": "hnsw-sq8", "rerank": "sq8"},
)
# Freed blocks that glibc keeps in caches would count as given out.
NO_CACHES = {
    "GLIBC_TUNABLES": "glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0",
    "OMP_NUM_THREADS": "1",
}
COLUMNS = (
    *("design", "shards", "predicted", "written", "ratio"),
    *("RAM predicted", "heap", "ratio"),
    *("build predicted", "peak", "ratio"),
)


def plan_for(n_rows: int, n_shards: int, design: dict[str, Any]) -> Any:
    """Return the plan of one design."""
    from index_builder.embeddings.space import EmbeddingSpace
    from index_builder.planning import plan_index

    rows_per_shard = -(-n_rows // n_shards)
    return plan_index(n_rows, EmbeddingSpace.parse(SPACE), rows_per_shard=rows_per_shard, **design)


def build(gallery: str, index: str, n_shards: int, design: dict[str, Any]) -> None:
    """Build one index, in a process that does nothing else."""
    from index_builder.build import build_index
    from index_builder.embeddings.collection import Collection
    from index_builder.embeddings.space import EmbeddingSpace

    source = Collection.open([gallery], space=EmbeddingSpace.parse(SPACE))
    build_index(source, index, plan_for(source.n_rows, n_shards, design))


def open_codes(index: str) -> int:
    """Return the heap that opening the codes of an index takes."""
    import ctypes
    import gc

    from index_builder.candidates import open_nominator
    from index_builder.manifest import read_index_manifest, shards_of
    from index_builder.planning import IndexPlan

    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"

    class State(ctypes.Structure):
        _fields_ = [(name, ctypes.c_size_t) for name in names.split()]

    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype = State

    def allocated() -> int:
        gc.collect()
        state = libc.mallinfo2()
        return int(state.uordblks + state.hblkhd)

    def load() -> Any:
        manifest = read_index_manifest(index)
        plan = IndexPlan.from_dict(manifest["plan"])
        return open_nominator(Path(index), plan, shards_of(index, manifest))

    load()  # and drop it: what Python and FAISS set up once isn't the index's
    before = allocated()
    opened = load()
    taken = allocated() - before
    del opened
    return taken


def run_child(work: Path, what: str, *arguments: str) -> tuple[str, int]:
    """Run a part of this script in a process of its own; return what it prints, and its peak."""
    environment = {**os.environ, **(NO_CACHES if what == "open" else {})}
    child = subprocess.Popen(
        [sys.executable, __file__, str(work), "--child", what, *arguments],
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
    )
    assert child.stdout is not None
    printed = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        sys.exit(f"{what} {' '.join(arguments)} failed")
    return printed, usage.ru_maxrss * 1024


def measure(work: Path, n_rows: int, n_shards: int, design: dict[str, Any]) -> dict[str, Any]:
    """Build and open one index; return what was predicted and what was found."""
    plan = plan_for(n_rows, n_shards, design)
    index = work / "index"
    shutil.rmtree(index, ignore_errors=True)
    arguments = str(work / "gallery"), str(index), str(n_shards), json.dumps(design)
    peak = run_child(work, "build", *arguments)[1]
    written = sum(path.stat().st_size for path in index.rglob("*.npy"))
    heap = 0 if plan.code == "flat" else int(run_child(work, "open", str(index))[0])
    shutil.rmtree(index)
    return {
        "design": plan.design,
        "n_shards": plan.n_shards,
        "predicted": {"disk": plan.disk_bytes, "ram": plan.ram_bytes, "build": plan.build_bytes},
        "found": {"disk": written, "ram": heap, "build": peak},
    }


def print_table(record: dict[str, Any]) -> None:
    """Print the table of a record, in Markdown."""
    from index_builder.sizes import format_size

    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for each in record["measured"]:
        cells = [each["design"], str(each["n_shards"])]
        for what in ("disk", "ram", "build"):
            predicted, found = each["predicted"][what], each["found"][what]
            cells += [format_size(predicted), format_size(found)]
            cells.append(f"{found / predicted:.3f}" if predicted else "")
        print(f"| {' | '.join(cells)} |")


def main() -> None:
    """Parse, run, record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path, help="folder for the gallery and the indexes")
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--table", type=Path, help="print the table of a record, and stop")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    if options.table:
        print_table(json.loads(options.table.read_text()))
        return
    if options.child:
        what, *arguments = options.child
        if what == "open":
            print(open_codes(*arguments))
        else:
            gallery, index, n_shards, design = arguments
            build(gallery, index, int(n_shards), json.loads(design))
        return
    from galleries import Gallery, write_gallery
    from machine import describe_machine, hardware_name

    if not (options.work / "gallery").exists():
        write_gallery(options.work / "gallery", Gallery("cone", options.rows, SEED), 10_000)
    measured = []
    for design in DESIGNS:
        for n_shards in (1, 3) if design in (DESIGNS[1], DESIGNS[-2]) else (1,):
            measured.append(measure(options.work, options.rows, n_shards, design))
            print(json.dumps(measured[-1]), file=sys.stderr)
    machine = describe_machine()
    record = {
        "protocol": PROTOCOL,
        "machine": machine,
        "n_rows": options.rows,
        "measured": measured,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"predictions_{hardware_name(machine)}_{date.today():%Y%m%d}.json"
    path.write_text(json.dumps(record, indent=2) + "\n")
    print_table(record)
    print(f"recorded in {path.name}", file=sys.stderr)


if __name__ == "__main__":
    main()
