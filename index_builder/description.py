"""Plans and indexes in words and tables, for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .planning import DesignCost, IndexPlan, compare_designs
from .sizes import format_size


def describe_plan(plan: IndexPlan) -> Iterator[str]:
    """Yield the table of designs, the choice, and why."""
    rows = [["design", "exact", "RAM", "bytes a vector", "disk", ""]]
    rows += [_design_row(design) for design in compare_designs(plan)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        yield "  ".join(cells).rstrip()
    budget = "" if plan.memory_bytes is None else f", of {format_size(plan.memory_bytes)} allowed"
    yield f"{plan.n_rows} rows of {plan.space}"
    yield f"chosen: {plan.design}, {format_size(plan.ram_bytes)} of RAM{budget}: {plan.reason}"
    if plan.build_bytes:
        yield f"building needs about {format_size(plan.build_bytes)} of RAM at its peak"


def _design_row(design: DesignCost) -> list[str]:
    mark = "chosen" if design.is_chosen else "" if design.is_within_budget else "over budget"
    return [
        design.design,
        "yes" if design.is_exact else "no",
        format_size(design.ram_bytes),
        f"{design.bytes_per_vector:.1f}",
        format_size(design.disk_bytes),
        mark,
    ]


def describe_index(manifest: dict[str, Any], *, has_efforts: bool = False) -> Iterator[str]:
    """Yield what an index is, what it costs, and what its certificate says.

    Parameters
    ----------
    manifest : dict
    has_efforts : bool
        With a line for every effort that was measured.
    """
    plan = IndexPlan.from_dict(manifest["plan"])
    certificate = manifest["certificate"]
    yield f"{plan.n_rows} rows of {plan.space}, from {manifest['embeddings']['path']}"
    yield (
        f"{plan.design}, {plan.n_shards} shard(s): {format_size(plan.ram_bytes)} of RAM, "
        f"{plan.bytes_per_vector:.1f} bytes a vector"
    )
    yield certificate["statement"]
    for effort in certificate.get("efforts", ()) if has_efforts else ():
        recalls = "; ".join(
            f"{name} " + ", ".join(f"@{k} {value:.3f}" for k, value in recall.items())
            for name, recall in effort["recall"].items()
        )
        yield f"  {effort['n_probe']} lists, {effort['n_candidates']} candidates: {recalls}"
    yield f"fingerprint {manifest['fingerprint'][:16]}"
