"""Plan an index before any byte is written: which design, how many lists, how much memory.

Pure arithmetic over the number of rows, the embedding space and a memory budget; neither vectors
nor FAISS are touched. Two designs:

flat
    Exact. No codes at all: the rows of the embedding folder itself are scanned, block by block from
    disk, or from memory where the budget holds them.
ivf-rabitq
    Inverted lists of one-bit RaBitQ codes in memory find candidates, and the rows of the embedding
    folder, read at random, rank them exactly. There is no second copy of the vectors.

``ram_bytes`` counts everything that the opened index keeps: codes, row numbers, centroids, the
rotation, and what each list of each shard costs beside its codes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from .embeddings.artefact import fingerprint
from .embeddings.errors import EmbeddingError
from .embeddings.space import EmbeddingSpace
from .errors import PlanError
from .rotation import N_PASSES, window_of
from .sizes import format_size

Code = Literal["flat", "ivf-rabitq"]

ROW_BYTES_IN_MEMORY = 8  # FAISS keeps int64 ids
ROW_BYTES_ON_DISK = 4  # row numbers within a shard, uint32
LIST_BYTES = 188  # FAISS 1.15.1: the headers of two vectors, and of their heap blocks (measured)
MOST_ROWS_PER_SHARD = 1 << 32
# Each shard repeats LIST_BYTES a list, so shards are large; its codes stand in memory while built.
ROWS_PER_SHARD = 20_000_000
# Below this an exact scan takes about a tenth of a second on one core, for a whole batch.
EXACT_SCAN_BYTES = 256 << 20
# k-means: FAISS warns below 39 points a centroid (ClusteringParameters.min_points_per_centroid).
LEAST_POINTS_PER_LIST = 39
_POINTS_PER_LIST = 64
_FEWEST_POINTS = 65_536
_NPY_HEADER_BYTES = 128


@dataclass(frozen=True)
class IndexPlan:
    """What an index will be, and what it will cost.

    Parameters
    ----------
    n_rows : int
    space : EmbeddingSpace
    dtype : str
        Of the embedding folder's rows.
    code : {"flat", "ivf-rabitq"}
    is_held : bool
        Flat only: the rows are kept in memory rather than scanned from disk.
    n_lists : int
        Inverted lists; 0 for flat.
    n_train : int
        Rows that the centroids are trained on; 0 for flat.
    rows_per_shard : int
    memory_bytes : int or None
        The budget that was given: a strict limit for ``ram_bytes``.
    ram_bytes : int
        What the opened index keeps in memory.
    disk_bytes : int
        What the index writes beside the copy of the metadata.
    build_bytes : int
        About what the build needs in memory at its peak.
    reason : str
        One sentence: why this design.
    """

    n_rows: int
    space: EmbeddingSpace
    dtype: str
    code: Code
    is_held: bool
    n_lists: int
    n_train: int
    rows_per_shard: int
    memory_bytes: int | None
    ram_bytes: int
    disk_bytes: int
    build_bytes: int
    reason: str

    @property
    def n_shards(self) -> int:
        """How many shards the rows are cut into."""
        return -(-self.n_rows // self.rows_per_shard)

    @property
    def bytes_per_vector(self) -> float:
        """``ram_bytes`` a row, everything included."""
        return self.ram_bytes / self.n_rows

    @property
    def design(self) -> str:
        """The design in a few words, for tables."""
        return _design_name(self.code, self.is_held, self.n_lists)

    @property
    def fingerprint(self) -> str:
        """64 hexadecimal digits; equal plans have equal ones."""
        return fingerprint(self.to_dict())

    def shard_ranges(self) -> Iterator[tuple[int, int]]:
        """Yield first row and end (exclusive) of each shard."""
        for start in range(0, self.n_rows, self.rows_per_shard):
            yield start, min(start + self.rows_per_shard, self.n_rows)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a JSON-serialisable dict."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> IndexPlan:
        """Rebuild a plan from `to_dict`.

        Raises
        ------
        PlanError
            If a field is missing, unknown or of an unknown design.
        """
        try:
            plan = cls(**{**fields, "space": EmbeddingSpace.from_dict(fields["space"])})
        except (TypeError, KeyError, EmbeddingError) as error:
            raise PlanError(
                f"a stored plan is malformed ({error}); make it again: voxseek index plan."
            ) from error
        if plan.code not in get_args(Code):
            raise PlanError(f"a stored plan has code {plan.code!r}, expected {get_args(Code)}.")
        return plan


@dataclass(frozen=True)
class DesignCost:
    """One line of the table of designs.

    Parameters
    ----------
    design : str
    is_exact : bool
    ram_bytes, disk_bytes : int
        As in `IndexPlan`.
    bytes_per_vector : float
        Memory a row.
    is_within_budget, is_chosen : bool
    """

    design: str
    is_exact: bool
    ram_bytes: int
    disk_bytes: int
    bytes_per_vector: float
    is_within_budget: bool
    is_chosen: bool


def plan_index(
    n_rows: int,
    space: EmbeddingSpace,
    *,
    memory_bytes: int | None = None,
    n_shards: int | None = None,
    rows_per_shard: int | None = None,
    code: Code | None = None,
    dtype: str = "float16",
) -> IndexPlan:
    """Choose an index for ``n_rows`` embeddings that fits in ``memory_bytes``.

    Parameters
    ----------
    n_rows : int
    space : EmbeddingSpace
    memory_bytes : int or None
        Strict limit for what the opened index keeps in memory. None: no limit for codes; rows are
        held for an exact scan only up to `EXACT_SCAN_BYTES`.
    n_shards, rows_per_shard : int or None
        At most one of the two; by default shards of `ROWS_PER_SHARD` rows.
    code : {"flat", "ivf-rabitq"} or None
        None: flat while a scan of all rows is quick, lists of codes beyond.
    dtype : {"float16", "float32"}
        Of the stored rows.

    Raises
    ------
    PlanError
        If no list of codes fits the budget; the message names the smallest that does.
    """
    if n_rows < 1:
        raise PlanError(f"there are {n_rows} embeddings; an index needs at least one.")
    if code is not None and code not in get_args(Code):
        raise PlanError(f"code is {code!r}, expected one of {', '.join(get_args(Code))}.")
    if memory_bytes is not None and memory_bytes < 1:
        raise ValueError(f"memory_bytes is {memory_bytes}, expected at least 1")
    shard_rows = _shard_rows(n_rows, n_shards, rows_per_shard)
    costs = _Costs(n_rows, space, dtype, shard_rows)
    scan_bytes = n_rows * costs.row_bytes
    if code == "flat" or (code is None and scan_bytes <= EXACT_SCAN_BYTES):
        return _plan_flat(costs, memory_bytes, is_asked=code == "flat")
    n_lists = costs.most_lists(memory_bytes)
    if n_lists == 0:
        raise PlanError(
            f"{n_rows} rows of {space.width} numbers as ivf-rabitq need at least "
            f"{costs.lists_ram(1)} bytes ({format_size(costs.lists_ram(1))}, "
            f"{costs.lists_ram(1) / n_rows:.1f} a vector) in memory, and the budget is "
            f"{memory_bytes}. Raise --memory to that, or plan --code flat, which keeps nothing in "
            f"memory and reads all {format_size(scan_bytes)} of vectors for each batch of queries."
        )
    n_train = min(n_rows, max(_POINTS_PER_LIST * n_lists, _FEWEST_POINTS))
    wide = costs.most_lists(None)
    why = "asked for" if code else f"a scan would read {format_size(scan_bytes)} a batch of queries"
    limit = "" if n_lists == wide else f", as many as fit in {memory_bytes} bytes (of {wide})"
    return IndexPlan(
        n_rows=n_rows,
        space=space,
        dtype=dtype,
        code="ivf-rabitq",
        is_held=False,
        n_lists=n_lists,
        n_train=n_train,
        rows_per_shard=shard_rows,
        memory_bytes=memory_bytes,
        ram_bytes=costs.lists_ram(n_lists),
        disk_bytes=costs.lists_disk(n_lists),
        build_bytes=costs.lists_build(n_train),
        reason=f"one-bit codes with exact re-rank: {why}; {n_lists} lists{limit}.",
    )


def compare_designs(plan: IndexPlan) -> list[DesignCost]:
    """Return what each design would cost for the rows and the budget of ``plan``.

    Returns
    -------
    designs : list of DesignCost
        Flat from disk, flat in memory, and codes with the most lists and with fewer; the plan's
        own design is marked.
    """
    costs = _Costs(plan.n_rows, plan.space, plan.dtype, plan.rows_per_shard)
    most = costs.most_lists(None)
    lists = sorted({most, max(1, most // 4), max(1, most // 16), plan.n_lists or most})
    rows: list[tuple[str, bool, int, int]] = [
        (_design_name("flat", False, 0), True, 0, 0),
        (_design_name("flat", True, 0), True, costs.held_ram, 0),
        *(
            (_design_name("ivf-rabitq", False, n), False, costs.lists_ram(n), costs.lists_disk(n))
            for n in lists
        ),
    ]
    return [
        DesignCost(
            design=design,
            is_exact=is_exact,
            ram_bytes=ram,
            disk_bytes=disk,
            bytes_per_vector=ram / plan.n_rows,
            is_within_budget=plan.memory_bytes is None or ram <= plan.memory_bytes,
            is_chosen=design == plan.design,
        )
        for design, is_exact, ram, disk in rows
    ]


def code_bytes(width: int) -> int:
    """Return the bytes of a one-bit RaBitQ code.

    Notes
    -----
    A bit a coordinate, and two floats: the distance to the centroid and the correction factor
    (Gao & Long 2024, arXiv:2405.12497, section 3.2).
    """
    return -(-width // 8) + 8


def lists_ram_bytes(n_rows: int, width: int, n_lists: int, n_shards: int) -> int:
    """Return what opened lists keep in memory, for ``n_rows`` rows that are alive."""
    vectors = 4 * width * (n_lists + 1)  # centroids and the mean
    rotation = N_PASSES * window_of(width)
    per_list = n_lists * (n_shards * LIST_BYTES + 4 + 8)  # and 1 / norm, rows in all shards
    return n_rows * (code_bytes(width) + ROW_BYTES_IN_MEMORY) + vectors + rotation + per_list


@dataclass(frozen=True)
class _Costs:
    n_rows: int
    space: EmbeddingSpace
    dtype: str
    shard_rows: int

    @property
    def n_shards(self) -> int:
        return -(-self.n_rows // self.shard_rows)

    @property
    def row_bytes(self) -> int:
        if self.dtype not in ("float16", "float32"):
            raise ValueError(f"dtype is {self.dtype!r}, expected 'float16' or 'float32'")
        return self.space.width * (2 if self.dtype == "float16" else 4)

    @property
    def held_ram(self) -> int:
        return self.n_rows * (self.row_bytes + 1)  # and whether it is alive

    def lists_ram(self, n_lists: int) -> int:
        return lists_ram_bytes(self.n_rows, self.space.width, n_lists, self.n_shards)

    def lists_disk(self, n_lists: int) -> int:
        width = self.space.width
        quantizer = 4 * width * (n_lists + 1) + N_PASSES * window_of(width) + 3 * _NPY_HEADER_BYTES
        shards = self.n_shards * (8 * n_lists + 4 * _NPY_HEADER_BYTES)
        return self.n_rows * (code_bytes(width) + ROW_BYTES_ON_DISK) + quantizer + shards

    def lists_build(self, n_train: int) -> int:
        # Training keeps the sample once as read and once rotated; a shard keeps its codes.
        shard = min(self.shard_rows, self.n_rows) * (code_bytes(self.space.width) + 16)
        return max(2 * 4 * self.space.width * n_train, shard)

    def most_lists(self, memory_bytes: int | None) -> int:
        """Return the largest power of two that rows and budget allow; 0 where none fits.

        FAISS's guidelines ask for 4 to 16 times the square root of the rows; the lower end keeps
        both the training and the routing of a query short.
        """
        limit = 4 * self.n_rows**0.5
        n_lists = 1
        while 2 * n_lists <= limit and 2 * n_lists * LEAST_POINTS_PER_LIST <= self.n_rows:
            n_lists *= 2
        while n_lists and memory_bytes is not None and self.lists_ram(n_lists) > memory_bytes:
            n_lists //= 2
        return n_lists


def _plan_flat(costs: _Costs, memory_bytes: int | None, *, is_asked: bool) -> IndexPlan:
    scan_bytes = costs.n_rows * costs.row_bytes
    is_held = costs.held_ram <= (EXACT_SCAN_BYTES if memory_bytes is None else memory_bytes)
    place = "in memory" if is_held else "from disk"
    why = "asked for" if is_asked else "a scan is quick"
    return IndexPlan(
        n_rows=costs.n_rows,
        space=costs.space,
        dtype=costs.dtype,
        code="flat",
        is_held=is_held,
        n_lists=0,
        n_train=0,
        rows_per_shard=costs.shard_rows,
        memory_bytes=memory_bytes,
        ram_bytes=costs.held_ram if is_held else 0,
        disk_bytes=0,
        build_bytes=0,
        reason=f"exact scan of {format_size(scan_bytes)} {place}: {why}.",
    )


def _shard_rows(n_rows: int, n_shards: int | None, rows_per_shard: int | None) -> int:
    if n_shards is not None and rows_per_shard is not None:
        raise ValueError("n_shards and rows_per_shard were both given; give at most one")
    if n_shards is not None:
        if not 1 <= n_shards <= n_rows:
            raise PlanError(f"n_shards is {n_shards}, expected 1 to {n_rows}, the number of rows.")
        rows_per_shard = -(-n_rows // n_shards)
    if rows_per_shard is None:
        rows_per_shard = min(n_rows, ROWS_PER_SHARD)
    if not 1 <= rows_per_shard <= MOST_ROWS_PER_SHARD:
        raise PlanError(
            f"rows_per_shard is {rows_per_shard}, expected 1 to {MOST_ROWS_PER_SHARD}: "
            f"row numbers within a shard are 32 bits wide."
        )
    return rows_per_shard


def _design_name(code: Code, is_held: bool, n_lists: int) -> str:
    if code == "flat":
        return "flat, in memory" if is_held else "flat, from disk"
    return f"ivf-rabitq, {n_lists} lists"
