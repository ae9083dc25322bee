"""Plan an index before any byte is written: which design, how many lists, how much of everything.

Pure arithmetic over the number of rows, the embedding space and budgets of memory and disk; neither
vectors nor FAISS are touched. Three codes:

flat
    Exact. No codes at all: the rows of the embedding folders themselves are scanned, block by block
    from disk, or from memory where the budget holds them.
ivf-rabitq
    Inverted lists of RaBitQ codes, in memory or read from disk list by list, nominate candidates,
    and true rows, read at random, rank them.
hnsw-sq8
    A graph over 8-bit codes, in memory, nominates them.

What ranks is the embedding folders themselves, or a copy in the index. ``ram_bytes`` counts
everything that the opened index keeps: codes, row numbers, centroids, the rotation, what each list
of each shard costs beside its codes, and the buffers of the disk tier. `costs` has the formulae.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from .costs import (
    EXACT_SCAN_BYTES,
    LEAST_POINTS_PER_LIST,
    MOST_RECALL,
    Code,
    Costs,
    Design,
    Rerank,
    Tier,
)
from .designs import (
    MOST_LISTS,
    DesignCost,
    compare_designs,
    is_within,
    most_lists,
    wanted_points,
)
from .embeddings.space import EmbeddingSpace
from .errors import PlanError
from .plan import IndexPlan
from .sizes import format_size

__all__ = ["DesignCost", "IndexPlan", "compare_designs", "most_lists", "plan_index"]

MOST_ROWS_PER_SHARD = 1 << 32
ROWS_PER_SHARD = 20_000_000
FEWEST_BUILD_BYTES = 1 << 30  # a builder may use this much, however small the index must be
_BUILD_BYTES = 8 << 30  # and this much where no limit is given
# A graph is the quicker search and by far the slower build (bench/README.md): minutes a million.
_MOST_GRAPH_ROWS = 5_000_000
_FEWEST_SHARD_BYTES = 64 << 20  # of codes; smaller shards are not worth their lists
_WIDE_TARGET = 0.97  # above, two bits a coordinate save more candidates than they cost


def plan_index(
    n_rows: int,
    space: EmbeddingSpace,
    *,
    memory_bytes: int | None = None,
    disk_bytes: int | None = None,
    target_recall: float = 0.95,
    dtype: str = "float16",
    is_local: bool = True,
    code: Code | None = None,
    bits: int | None = None,
    tier: Tier | None = None,
    rerank: Rerank | None = None,
    n_lists: int | None = None,
    rows_per_shard: int | None = None,
) -> IndexPlan:
    """Choose an index for ``n_rows`` embeddings that fits in memory and on disk.

    Parameters
    ----------
    n_rows : int
    space : EmbeddingSpace
    memory_bytes : int or None
        Strict limit for what the opened index keeps in memory; a build stays within it too, or
        within `FEWEST_BUILD_BYTES` where that is more. None: no limit for codes, and no graph; rows
        are held for an exact scan only up to `EXACT_SCAN_BYTES`.
    disk_bytes : int or None
        Strict limit for the files of the index, the copy of the metadata not counted.
    target_recall : float in (0, 1]
        Recall@10 that searches shall reach.
    dtype : {"float16", "float32"}
        Of the stored rows.
    is_local : bool
        Whether single rows of the embeddings can be read quickly. If not, the ranking gets a copy.
    code, bits, tier, rerank, n_lists
        Fields of the plan that are settled; None: chosen.
    rows_per_shard : int or None
        None: as many as a build has memory for, up to `ROWS_PER_SHARD`.

    Raises
    ------
    PlanError
        If no design fits; the message names the smallest budget that would do, or what contradicts
        what.
    """
    if n_rows < 1:
        raise PlanError(f"there are {n_rows} embeddings; an index needs at least one.")
    for name, value, kinds in (
        ("code", code, Code),
        ("tier", tier, Tier),
        ("rerank", rerank, Rerank),
    ):
        if value is not None and value not in get_args(kinds):
            raise PlanError(f"{name} is {value!r}, expected one of {', '.join(get_args(kinds))}.")
    for name, limit in (("memory_bytes", memory_bytes), ("disk_bytes", disk_bytes)):
        if limit is not None and limit < 1:
            raise ValueError(f"{name} is {limit}, expected at least 1")
    if not 0 < target_recall <= 1:
        raise ValueError(f"target_recall is {target_recall}, expected above 0 and at most 1")
    if dtype not in ("float16", "float32"):
        raise ValueError(f"dtype is {dtype!r}, expected 'float16' or 'float32'")
    if rows_per_shard is not None and not 1 <= rows_per_shard <= MOST_ROWS_PER_SHARD:
        raise PlanError(
            f"rows_per_shard is {rows_per_shard}, expected 1 to {MOST_ROWS_PER_SHARD}: "
            f"row numbers within a shard are 32 bits wide."
        )
    planner = _Planner(
        n_rows=n_rows,
        space=space,
        dtype=dtype,
        memory_bytes=memory_bytes,
        disk_bytes=disk_bytes,
        target_recall=target_recall,
        is_local=is_local,
        bits=bits,
        tier=tier,
        rerank=rerank,
        n_lists=n_lists,
        rows_per_shard=rows_per_shard,
    )
    return planner.choose(code)


@dataclass(frozen=True)
class _Planner:
    """The arguments of `plan_index`, and the way to a plan."""

    n_rows: int
    space: EmbeddingSpace
    dtype: str
    memory_bytes: int | None
    disk_bytes: int | None
    target_recall: float
    is_local: bool
    bits: int | None
    tier: Tier | None
    rerank: Rerank | None
    n_lists: int | None
    rows_per_shard: int | None

    @property
    def build_limit(self) -> int:
        if self.memory_bytes is None:
            return _BUILD_BYTES
        return max(self.memory_bytes, FEWEST_BUILD_BYTES)

    def choose(self, code: Code | None) -> IndexPlan:
        """Return the plan, of the code that is asked for or of the one that suits."""
        scan_bytes = self.n_rows * self._costs(self.n_rows).row_bytes
        has_codes = (self.bits, self.n_lists, self.rerank) != (None, None, None)
        is_quick = scan_bytes <= EXACT_SCAN_BYTES and self.is_local and not has_codes
        if code == "flat" or (code is None and is_quick):
            return self._flat(scan_bytes, is_asked=code == "flat")
        rerank = self.rerank or self._choose_rerank()
        graph = Design("hnsw-sq8", 8, "memory", rerank, 0)
        if code == "hnsw-sq8":
            return self._graph(graph, "asked for")
        if code is None and self._suits(graph):
            return self._graph(graph, "memory holds it, and it answers soonest")
        why = "asked for" if code else f"a scan would read {format_size(scan_bytes)} a batch"
        return self._lists(rerank, why)

    def _flat(self, scan_bytes: int, *, is_asked: bool) -> IndexPlan:
        for name, value in (("bits", self.bits), ("lists", self.n_lists), ("rerank", self.rerank)):
            if value not in (None, 0, "source"):
                raise PlanError(f"{name} is {value}, and a flat index has no codes; leave it out.")
        costs = self._costs(min(self.n_rows, self.rows_per_shard or ROWS_PER_SHARD))
        held = Design("flat", 0, "memory", "source", 0)
        tier = self.tier
        if tier is None:
            limit = EXACT_SCAN_BYTES if self.memory_bytes is None else self.memory_bytes
            tier = "memory" if costs.ram(held) <= limit else "disk"
        design = held._replace(tier=tier)
        if self.memory_bytes is not None:
            self._require("memory", costs.ram(design), design)
        self._require("disk", costs.disk(design), design)
        place = "in memory" if tier == "memory" else "from disk"
        why = "asked for" if is_asked else "a scan is quick"
        reason = f"exact scan of {format_size(scan_bytes)} {place}: {why}."
        return self._plan(costs, design, reason=reason)

    def _choose_rerank(self) -> Rerank:
        """Return what ranks: the folders where they are at hand, else the best copy that fits.

        The smallest copy, where none does: the refusal that follows names what it needs.
        """
        if self.is_local:
            return "source"
        n_lists = self.n_lists or most_lists(self.n_rows)
        costs = self._costs(min(self.n_rows, self.rows_per_shard or ROWS_PER_SHARD))
        copies: tuple[Rerank, ...] = ("fp16", "sq8", "rabitq4")
        for copy in copies:
            design = Design("ivf-rabitq", self.bits or 1, "disk", copy, n_lists)
            if is_within(costs.disk(design), self.disk_bytes):
                break
        return copy

    def _suits(self, graph: Design) -> bool:
        """Tell whether a graph is wanted where nobody asked for one."""
        if self.memory_bytes is None or self.n_rows > _MOST_GRAPH_ROWS:
            return False
        if self.tier == "disk" or self.bits not in (None, 8) or self.n_lists is not None:
            return False
        costs = self._costs(self._shard_rows(graph))
        return costs.fits_graph and self._fits(costs, graph)

    def _graph(self, design: Design, why: str) -> IndexPlan:
        for name, value, only in (("bits", self.bits, 8), ("tier", self.tier, "memory")):
            if value not in (None, only):
                raise PlanError(f"{name} is {value}, and hnsw-sq8 has {only}; leave it out.")
        if self.n_lists is not None:
            raise PlanError(f"lists is {self.n_lists}, and hnsw-sq8 has none; leave it out.")
        costs = self._costs(self._shard_rows(design))
        if not costs.fits_graph:
            raise PlanError(
                f"rows of {self.space.width} numbers are too wide for hnsw-sq8. "
                f"Plan --code ivf-rabitq."
            )
        self._require("memory", self._memory_for(costs, design), design)
        self._require("disk", costs.disk(design), design)
        reason = f"a graph over 8-bit codes, {self._ranking(design.rerank)}: {why}."
        return self._plan(costs, design, reason=reason)

    def _lists(self, rerank: Rerank, why: str) -> IndexPlan:
        wide = self.n_lists or most_lists(self.n_rows)
        if wide > min(self.n_rows, MOST_LISTS) or wide < 1:
            raise PlanError(
                f"lists is {wide}, expected 1 to {min(self.n_rows, MOST_LISTS)} "
                f"for {self.n_rows} rows."
            )
        fewest = wide if self.n_lists else 1
        tiers: tuple[Tier, ...] = (self.tier,) if self.tier else ("memory", "disk")
        all_bits = self._bits()
        designs = [
            Design("ivf-rabitq", bits, tier, rerank, wide) for tier in tiers for bits in all_bits
        ]
        # Fewer lists rather than another tier, down to a quarter of what the rows deserve.
        for floor in (max(fewest, wide // 4), fewest):
            for design in designs:
                found = self._fit_lists(design, floor)
                if found is not None:
                    return self._plan_lists(found, wide, why)
        smallest = [design._replace(n_lists=fewest) for design in designs]
        priced = [(self._costs(self._shard_rows(design)), design) for design in smallest]
        for what, price in (("memory", self._memory_for), ("disk", Costs.disk)):
            self._require(what, *min((price(*each), each[1]) for each in priced))
        raise AssertionError("a design that fits was refused")

    def _bits(self) -> tuple[int, ...]:
        if self.bits is None:
            return (2, 1) if self.target_recall > _WIDE_TARGET else (1,)
        if self.bits not in (1, 2, 3, 4):
            raise PlanError(f"bits is {self.bits}, expected 1 to 4.")
        return (self.bits,)

    def _fit_lists(self, design: Design, fewest: int) -> Design | None:
        """Return the design with the most lists that all budgets hold, or None below ``fewest``."""
        while design.n_lists >= fewest:
            if self._fits(self._costs(self._shard_rows(design)), design):
                return design
            design = design._replace(n_lists=design.n_lists // 2)
        return None

    def _plan_lists(self, design: Design, wide: int, why: str) -> IndexPlan:
        costs = self._costs(self._shard_rows(design))
        place = ""
        if design.tier == "disk":
            place = " read from disk" + ("" if self.tier else ", for memory doesn't hold them")
        n_lists = design.n_lists
        limit = "" if n_lists == wide else f", as many as the budgets hold (of {wide})"
        ranking = self._ranking(design.rerank)
        reason = (
            f"codes of {design.bits} bit a coordinate{place}, {ranking}: {why}; "
            f"{n_lists} lists{limit}."
        )
        return self._plan(costs, design, reason=reason)

    def _fits(self, costs: Costs, design: Design) -> bool:
        return is_within(self._memory_for(costs, design), self._memory_limit) and is_within(
            costs.disk(design), self.disk_bytes
        )

    @property
    def _memory_limit(self) -> int:
        """What `_memory_for` must not exceed."""
        return _BUILD_BYTES if self.memory_bytes is None else self.memory_bytes

    def _memory_for(self, costs: Costs, design: Design) -> int:
        """Return the smallest budget of memory that both the opened index and the build allow."""
        build = costs.build(design, self._fewest_points(design))
        ram = 0 if self.memory_bytes is None else costs.ram(design)
        return max(ram, build if build > FEWEST_BUILD_BYTES else 0)

    def _fewest_points(self, design: Design) -> int:
        """Return the rows to train on, at least."""
        if self.n_lists is not None:
            return self.n_lists
        return min(self.n_rows, max(1, LEAST_POINTS_PER_LIST * design.n_lists))

    def _points(self, costs: Costs, design: Design) -> int:
        """Return the rows to train on: as many as are wanted and a build has memory for."""
        if design.code == "flat":
            return 0
        affordable = costs.most_training_rows(self.build_limit, design)
        wanted = min(self.n_rows, wanted_points(design.n_lists))
        return max(self._fewest_points(design), min(wanted, affordable))

    def _require(self, what: str, needed: int, design: Design) -> None:
        limit = self._memory_limit if what == "memory" else self.disk_bytes
        if limit is None or needed <= limit:
            return
        place = "in memory" if what == "memory" else "on disk"
        raise PlanError(
            f"{self.n_rows} rows of {self.space.width} numbers as {design.name} need at least "
            f"{needed} bytes ({format_size(needed)}, {needed / self.n_rows:.1f} a vector) {place}"
            f"{self._shard_size(what)}, and the budget is {limit}. Raise --{what} to that, or plan "
            f"--code flat --tier disk, which keeps nothing and reads all vectors for each batch of "
            f"queries."
        )

    def _shard_size(self, what: str) -> str:
        if what == "disk" or self.rows_per_shard is None:
            return ""
        return f", shards of {self.rows_per_shard} rows to be built included"

    def _shard_rows(self, design: Design) -> int:
        """Return rows of a shard: as many as a build has memory for."""
        if self.rows_per_shard is not None:
            return min(self.rows_per_shard, self.n_rows)
        costs = self._costs(self.n_rows)
        most = costs.most_shard_rows(self.build_limit, design)
        fewest = max(1, _FEWEST_SHARD_BYTES // costs.shard_row_bytes(design))
        rows = min(self.n_rows, ROWS_PER_SHARD, max(fewest, most))
        return -(-self.n_rows // -(-self.n_rows // rows))  # shards of one size

    def _costs(self, shard_rows: int) -> Costs:
        n_shards = -(-self.n_rows // shard_rows)
        return Costs(self.n_rows, self.space, self.dtype, shard_rows, n_shards)

    def _plan(self, costs: Costs, design: Design, *, reason: str) -> IndexPlan:
        n_train = self._points(costs, design)
        return IndexPlan(
            n_rows=self.n_rows,
            space=self.space,
            dtype=self.dtype,
            **design._asdict(),
            n_train=n_train,
            rows_per_shard=costs.shard_rows,
            n_shards=costs.n_shards,
            memory_bytes=self.memory_bytes,
            disk_limit_bytes=self.disk_bytes,
            target_recall=self.target_recall,
            most_recall=MOST_RECALL[design.rerank],
            ram_bytes=costs.ram(design),
            disk_bytes=costs.disk(design),
            build_bytes=costs.build(design, n_train),
            reason=reason,
        )

    def _ranking(self, rerank: Rerank) -> str:
        if rerank == "source":
            return "ranked by the rows themselves"
        ranking, most = f"ranked by copies ({rerank})", MOST_RECALL[rerank]
        return (
            ranking if most >= self.target_recall else f"{ranking} that reach about {most} at most"
        )
