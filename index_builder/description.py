"""Plans and indexes in words and tables, for people."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from .planning import DesignCost, IndexPlan, compare_designs
from .recall import TARGET_K
from .sizes import format_size

# Each shard is searched by itself: more of them cost a search more reads, or more threads.
_MOST_SHARDS = {"disk": 4, "memory": 16}


def describe_plan(plan: IndexPlan, hours: dict[str, float] | None = None) -> Iterator[str]:
    """Yield the table of designs, the choice and why, the budgets, and the hours.

    Parameters
    ----------
    plan : IndexPlan
    hours : dict of str to float, or None
        From `calibration.predict_hours`.
    """
    rows = [["design", "recall", "RAM", "bytes a vector", "RAM to build", "disk", ""]]
    rows += [_design_row(design) for design in compare_designs(plan)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        yield "  ".join(cells).rstrip()
    yield f"{plan.n_rows} rows of {plan.space}"
    yield f"chosen: {plan.design}; {plan.reason}"
    ram = _of(plan.ram_bytes, plan.memory_bytes)
    disk = _of(plan.disk_bytes, plan.disk_limit_bytes)
    yield (
        f"needs {ram} of RAM and {disk} on disk; building, {format_size(plan.build_bytes)} of RAM "
        f"at its peak, {format_size(plan.worker_bytes)} a worker, in {plan.n_shards} shard(s)"
    )
    if hours is not None:
        yield _describe_hours(hours)


def _design_row(design: DesignCost) -> list[str]:
    mark = "chosen" if design.is_chosen else "" if design.is_within_budget else "over budget"
    return [
        design.design,
        _recall_class(design),
        format_size(design.ram_bytes),
        f"{design.bytes_per_vector:.1f}",
        format_size(design.build_bytes),
        format_size(design.disk_bytes),
        mark,
    ]


def _recall_class(design: DesignCost) -> str:
    if design.is_exact:
        return "exact"
    return "any, by effort" if design.most_recall == 1 else f"to {design.most_recall:g}"


def _of(needed: int, budget: int | None) -> str:
    allowed = "" if budget is None else f" (of {format_size(budget)} allowed)"
    return f"{format_size(needed)}{allowed}"


def _describe_hours(hours: dict[str, float]) -> str:
    stages = ", ".join(f"{name} {_time(value)}" for name, value in hours.items() if name != "total")
    return (
        f"building takes about {_time(hours['total'])}: {stages} (a projection from a few seconds "
        f"of each stage on this machine)"
    )


def _time(hours: float) -> str:
    """Return a time as people read it."""
    for unit, count in (("h", hours), ("min", 60 * hours)):
        if count >= 1:
            return f"{count:.3g} {unit}" if count < 100 else f"{count:.0f} {unit}"
    return f"{3600 * hours:.2g} s"


def describe_index(manifest: dict[str, Any], *, has_efforts: bool = False) -> Iterator[str]:
    """Yield what an index is, what it costs, and what its certificate says.

    Parameters
    ----------
    manifest : dict
    has_efforts : bool
        With a line for every effort that finds more than all cheaper ones; the manifest has all.
    """
    plan = IndexPlan.from_dict(manifest["plan"])
    certificate = manifest["certificate"]
    n_shards, n_deleted = len(manifest["shards"]), manifest["deleted"]["n_rows"]
    yield f"{plan.n_rows} rows of {plan.space}"
    for source in manifest["sources"]:
        yield f"  {source['n_rows']} from {source['path']}"
    yield (
        f"{plan.design}, {n_shards} shard(s): {format_size(plan.ram_bytes)} of RAM, "
        f"{plan.bytes_per_vector:.1f} bytes a vector"
    )
    if n_deleted:
        yield f"{n_deleted} rows were taken down and are never found"
    yield certificate["statement"]
    if has_efforts:
        for effort in _worthwhile(certificate["efforts"]):
            yield f"  {_describe_effort(effort)}"
        if certificate["unmeasured"]:
            breadths = ", ".join(map(str, certificate["unmeasured"]))
            yield f"  not measured, for less suffices: {breadths}"
    yield f"fingerprint {manifest['fingerprint'][:16]}"
    if plan.code != "flat" and n_shards > _MOST_SHARDS[plan.tier]:
        yield f"next: voxseek index merge, for each of {n_shards} shards is searched by itself"


def _worthwhile(efforts: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield, of efforts from cheap to dear, those whose recall at 10 is above all before."""
    best = -1.0
    for effort in efforts:
        found = min(
            recall[max((k for k in recall if int(k) <= TARGET_K), key=int)]
            for recall in effort["recall"].values()
        )
        if found > best:
            best = found
            yield effort


def _describe_effort(effort: dict[str, Any]) -> str:
    breadth = (
        f"{effort['n_probe']} lists" if "n_probe" in effort else f"{effort['ef_search']} in view"
    )
    sets = "; ".join(
        f"{name} "
        + ", ".join(f"@{k} {value:.3f}" for k, value in recall.items())
        + f" (± {effort['standard_error'][name]:.3f}), nearest in 100 "
        + f"{effort['nearest_in_100'][name]:.3f}"
        for name, recall in effort["recall"].items()
    )
    return f"{breadth}, {effort['n_candidates']} candidates: {sets}"
