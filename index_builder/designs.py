"""The designs beside each other: what each would cost for the rows and budgets of a plan."""

from __future__ import annotations

from dataclasses import dataclass

from .costs import LEAST_POINTS_PER_LIST, MOST_RECALL, Costs, Design
from .plan import IndexPlan

MOST_LISTS = 1 << 20
_FEWEST_POINTS = 65_536
_POINTS_PER_LIST = 64


@dataclass(frozen=True)
class DesignCost:
    """One line of the table of designs.

    Parameters
    ----------
    design : str
    is_exact : bool
    most_recall : float
        As in `IndexPlan`.
    ram_bytes, disk_bytes, build_bytes : int
        As in `IndexPlan`.
    bytes_per_vector : float
        Memory a row.
    is_within_budget, is_chosen : bool
    """

    design: str
    is_exact: bool
    most_recall: float
    ram_bytes: int
    disk_bytes: int
    build_bytes: int
    bytes_per_vector: float
    is_within_budget: bool
    is_chosen: bool


def compare_designs(plan: IndexPlan) -> list[DesignCost]:
    """Return what each design would cost for the rows and the budgets of ``plan``.

    Returns
    -------
    designs : list of DesignCost
        Flat from disk and in memory; lists in memory at 1, 2 and 4 bits, and on disk; the graph;
        the copies that can rank. The plan's own design is marked.
    """
    costs = Costs(plan.n_rows, plan.space, plan.dtype, plan.rows_per_shard, plan.n_shards)
    n_lists = plan.n_lists or most_lists(plan.n_rows)
    designs = [
        Design("flat", 0, "disk", "source", 0),
        Design("flat", 0, "memory", "source", 0),
        Design("ivf-rabitq", 1, "disk", "source", n_lists),
        Design("ivf-rabitq", 1, "memory", "source", n_lists),
        Design("ivf-rabitq", 2, "memory", "source", n_lists),
        Design("ivf-rabitq", 4, "memory", "source", n_lists),
        Design("hnsw-sq8", 8, "memory", "source", 0),
        Design("ivf-rabitq", 1, "memory", "rabitq4", n_lists),
        Design("ivf-rabitq", 1, "memory", "sq8", n_lists),
        Design("ivf-rabitq", 1, "memory", "fp16", n_lists),
    ]
    own = plan.layout
    if own not in designs:
        designs.append(own)
    lines = []
    for design in designs:
        ram, disk = costs.ram(design), costs.disk(design)
        n_train = min(plan.n_rows, wanted_points(design.n_lists))
        if design.n_lists == plan.n_lists and plan.n_train:
            n_train = plan.n_train
        lines.append(
            DesignCost(
                design=design.name,
                is_exact=design.code == "flat",
                most_recall=MOST_RECALL[design.rerank],
                ram_bytes=ram,
                disk_bytes=disk,
                build_bytes=costs.build(design, n_train),
                bytes_per_vector=ram / plan.n_rows,
                is_within_budget=is_within(ram, plan.memory_bytes)
                and is_within(disk, plan.disk_limit_bytes),
                is_chosen=design == own,
            )
        )
    return lines


def most_lists(n_rows: int) -> int:
    """Return the largest power of two that the rows allow.

    Twice the square root of the rows, where FAISS's guidelines ask for 4 to 16 times: scanning
    one-bit codes is the smaller part of a search, and building takes half as long.
    """
    n_lists = 1
    while (
        2 * n_lists <= 2 * n_rows**0.5
        and 2 * n_lists * LEAST_POINTS_PER_LIST <= n_rows
        and n_lists < MOST_LISTS
    ):
        n_lists *= 2
    return n_lists


def wanted_points(n_lists: int) -> int:
    """Return how many rows lists are trained on, where memory holds them."""
    return max(_POINTS_PER_LIST * n_lists, _FEWEST_POINTS)


def is_within(n_bytes: int, limit: int | None) -> bool:
    """Tell whether a budget holds so many bytes; None: any."""
    return limit is None or n_bytes <= limit
