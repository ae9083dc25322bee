"""IndexPlan: what an index will be, and what it will cost; `planning` makes it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, get_args

from .costs import Code, Costs, Design, Rerank, Tier
from .embeddings.artefact import fingerprint
from .embeddings.errors import EmbeddingError
from .embeddings.space import EmbeddingSpace
from .errors import PlanError


@dataclass(frozen=True)
class IndexPlan:
    """What an index will be, and what it will cost.

    Parameters
    ----------
    n_rows : int
    space : EmbeddingSpace
    dtype : {"float16", "float32"}
        Of the embeddings' rows.
    code : {"flat", "ivf-rabitq", "hnsw-sq8"}
    bits : int
        Of a code, a coordinate; 0 for flat.
    tier : {"memory", "disk"}
        Where codes stand while they are searched; for flat, the rows.
    rerank : {"source", "fp16", "sq8", "rabitq4"}
        What ranks candidates: the embedding folders, or a copy in the index.
    n_lists : int
        Inverted lists; 0 without lists.
    n_train : int
        Rows that mean and centroids are trained on; 0 for flat.
    rows_per_shard, n_shards : int
    memory_bytes, disk_limit_bytes : int or None
        The budgets that were given: strict limits for ``ram_bytes`` and ``disk_bytes``.
    target_recall : float in (0, 1]
        Recall@10 that was asked for.
    most_recall : float in (0, 1]
        About what recall@10 a search can reach with this ranking, whatever its effort.
    ram_bytes : int
        What the opened index keeps in memory.
    disk_bytes : int
        What the index writes beside the copy of the metadata.
    build_bytes : int
        What a process that builds needs in memory at its peak.
    reason : str
        One sentence: why this design.
    """

    n_rows: int
    space: EmbeddingSpace
    dtype: str
    code: Code
    bits: int
    tier: Tier
    rerank: Rerank
    n_lists: int
    n_train: int
    rows_per_shard: int
    n_shards: int
    memory_bytes: int | None
    disk_limit_bytes: int | None
    target_recall: float
    most_recall: float
    ram_bytes: int
    disk_bytes: int
    build_bytes: int
    reason: str

    @property
    def bytes_per_vector(self) -> float:
        """``ram_bytes`` a row, everything included."""
        return self.ram_bytes / self.n_rows

    @property
    def design(self) -> str:
        """The design in a few words, for tables."""
        return self.layout.name

    @property
    def worker_bytes(self) -> int:
        """What a process that builds shards alone, a worker, needs in memory at its peak."""
        costs = Costs(self.n_rows, self.space, self.dtype, self.rows_per_shard, self.n_shards)
        return costs.worker(self.layout)

    @property
    def layout(self) -> Design:
        """The design as `costs` takes it."""
        return Design(self.code, self.bits, self.tier, self.rerank, self.n_lists)

    @property
    def fingerprint(self) -> str:
        """64 hexadecimal digits; equal plans have equal ones."""
        return fingerprint(self.to_dict())

    def shard_ranges(self) -> Iterator[tuple[int, int]]:
        """Yield first row and end (exclusive) of each shard."""
        for start in range(0, self.n_rows, self.rows_per_shard):
            yield start, min(start + self.rows_per_shard, self.n_rows)

    def resized(self, n_rows: int, n_shards: int) -> IndexPlan:
        """Return the same design for other rows and shards, its costs predicted anew."""
        costs = Costs(n_rows, self.space, self.dtype, -(-n_rows // n_shards), n_shards)
        return replace(
            self,
            n_rows=n_rows,
            n_shards=n_shards,
            ram_bytes=costs.ram(self.layout),
            disk_bytes=costs.disk(self.layout),
        )

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
        for name, kinds in (("code", Code), ("tier", Tier), ("rerank", Rerank)):
            if getattr(plan, name) not in get_args(kinds):
                raise PlanError(
                    f"a stored plan has {name} {getattr(plan, name)!r}, expected {get_args(kinds)}."
                )
        return plan
