"""What bench_search.py makes of its rounds: medians, and the tables printed from a record."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator
from typing import Any

BUDGETS = (100, 128, 160, 256, 400, 800, 1600, 3200)
TARGET = 0.95
KINDS = ("in", "shrunk")

Sweep = list[dict[str, Any]]


def medians_of(rounds: dict[str, dict[str, list[Any]]]) -> dict[str, Any]:
    """Return the median over rounds of every figure, by contender and number of threads."""
    medians: dict[str, Any] = {}
    for contender, by_threads in rounds.items():
        for n_threads, pieces in by_threads.items():
            whole = [piece for piece in pieces if "failed" not in piece]
            if whole:
                medians.setdefault(contender, {})[n_threads] = _median(whole)
    return medians


def _median(pieces: list[dict[str, Any]]) -> dict[str, Any]:
    fields = ("index_bytes", "read_bytes", "anonymous_bytes", "mapped_bytes", "open_seconds")
    sweeps = [
        {json.dumps(point["setting"]): point["kinds"] for point in piece["sweep"]}
        for piece in pieces
    ]
    sweep = []
    for point in pieces[0]["sweep"]:
        found = [each[key] for each in sweeps if (key := json.dumps(point["setting"])) in each]
        kinds: dict[str, dict[str, float]] = {}
        for kind in {kind for each in found for kind in each}:
            figures = [each[kind] for each in found if kind in each]
            names = {name for each in figures for name in each}
            kinds[kind] = {
                name: statistics.median(each[name] for each in figures if name in each)
                for name in sorted(names)
            }
        sweep.append({"setting": point["setting"], "kinds": kinds})
    return {
        **{name: statistics.median(piece[name] for piece in pieces) for name in fields},
        "sweep": sweep,
    }


def quickest(sweep: Sweep, kind: str) -> dict[str, Any] | None:
    """Return the point of most queries a second that reaches the target on a kind."""
    able = [p for p in sweep if p["kinds"][kind]["recall_at_10"] >= TARGET]
    return max(able, key=lambda p: p["kinds"][kind]["queries_per_second"], default=None)


def print_tables(record: dict[str, Any]) -> None:
    """Print builds, the quickest effort of each contender, and who leads at each budget."""
    data = record["data"]
    loads = record["machine"]["load_average"][0], record["load_average_after"][0]
    print(
        f"{data['n_rows']:,} rows x {data['dim']}, {data['family']}, {data['n_queries']} queries a "
        f"kind; load average {loads[0]:.1f} before, {loads[1]:.1f} after\n"
    )
    _print_lines(_build_lines(record))
    for n_threads in sorted(_threads(record), reverse=True):
        print(f"\nQuickest effort with recall@10 of {TARGET}, {n_threads} thread(s)\n")
        _print_lines(_quickest_lines(record, n_threads))
        for title, size in (
            ("memory that the process holds", _held),
            ("memory held, and the rows it reads counted too", _held_and_read),
        ):
            print(f"\nFirst at each budget of bytes a vector: {title}, {n_threads} thread(s)\n")
            _print_lines(_budget_lines(record, n_threads, size))
    print("\nclip-retrieval's back end over HTTP: bench_http.py")


def _threads(record: dict[str, Any]) -> set[str]:
    return {n for by_threads in record["medians"].values() for n in by_threads}


def _held(median: dict[str, Any]) -> float:
    return float(median["anonymous_bytes"])


def _held_and_read(median: dict[str, Any]) -> float:
    return _held(median) + float(median["read_bytes"])


def _build_lines(record: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    yield "contender", "design", "build", "processor", "peak memory", "disk", "load"
    for contender, build in record["builds"].items():
        if "failed" in build:
            why = build["failed"].strip().splitlines()[-1][:90] if build["failed"] else "?"
            yield contender, f"failed: {why}", *("",) * 5
            continue
        shared = build.get("shared_seconds", 0.0), build.get("shared_cpu_seconds", 0.0)
        yield (
            contender,
            build["design"],
            f"{build['seconds'] + shared[0]:,.0f} s",
            f"{build['cpu_seconds'] + shared[1]:,.0f} s",
            f"{build['peak_rss_bytes'] / 2**20:,.0f} MiB",
            f"{build['disk_bytes'] / 2**20:,.0f} MiB",
            f"{build['load_average_before'][0]:.1f}",
        )


def _quickest_lines(record: dict[str, Any], n_threads: str) -> Iterator[tuple[str, ...]]:
    n_rows = record["data"]["n_rows"]
    yield (
        *("contender", "bytes a vector: index / held / read"),
        *(f"{kind}: queries/s (recall; p50 / p99 ms) at" for kind in KINDS),
    )
    for contender, by_threads in record["medians"].items():
        if n_threads not in by_threads:
            continue
        median = by_threads[n_threads]
        sizes = " / ".join(
            f"{median[name] / n_rows:,.0f}"
            for name in ("index_bytes", "anonymous_bytes", "read_bytes")
        )
        yield contender, sizes, *(_point(median["sweep"], kind) for kind in KINDS)


def _point(sweep: Sweep, kind: str) -> str:
    best = quickest(sweep, kind)
    if best is None:
        most = max(point["kinds"][kind]["recall_at_10"] for point in sweep)
        return f"never; at most {most:.3f}"
    figures = best["kinds"][kind]
    alone = f"; {figures['p50_ms']:.2f} / {figures['p99_ms']:.2f}" if "p50_ms" in figures else ""
    setting = ", ".join(f"{name} {value}" for name, value in best["setting"].items())
    return (
        f"{figures['queries_per_second']:,.0f} ({figures['recall_at_10']:.3f}{alone}) "
        f"{setting or 'exact'}"
    )


def _budget_lines(
    record: dict[str, Any], n_threads: str, size: Callable[[dict[str, Any]], float]
) -> Iterator[tuple[str, ...]]:
    yield (
        "budget",
        *(name for kind in KINDS for name in (f"{kind}: first", "voxseek's best", "first / ours")),
    )
    n_rows = record["data"]["n_rows"]
    for budget in BUDGETS:
        cells = []
        for kind in KINDS:
            fitting = [
                (best["kinds"][kind]["queries_per_second"], contender)
                for contender, by_threads in record["medians"].items()
                if n_threads in by_threads and size(by_threads[n_threads]) <= budget * n_rows
                for best in [quickest(by_threads[n_threads]["sweep"], kind)]
                if best is not None
            ]
            ours = [found for found in fitting if found[1].startswith("voxseek/")]
            first = max(fitting, default=None)
            own = max(ours, default=None)
            cells += [_cell(first), _cell(own)]
            cells.append(f"{first[0] / own[0]:.2f}" if first and own else "–")
        yield f"{budget:,}", *cells


def _cell(found: tuple[float, str] | None) -> str:
    return f"{found[1]} {found[0]:,.0f}/s" if found else "none fits"


def _print_lines(lines: Iterator[tuple[str, ...]]) -> None:
    """Print a table in Markdown."""
    for number, cells in enumerate(lines):
        print("| " + " | ".join(cells) + " |")
        if number == 0:
            print("|" + "---|" * len(cells))
