"""Stand-ins for codes and copies, whose every choice a test can follow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from index_builder.cosine import unit_rows
from index_builder.embeddings.space import EmbeddingSpace
from index_builder.row_set import RowSet


@dataclass
class Scan:
    """Nominates every row, ordered by cosines with noise that breadth reduces."""

    rows: np.ndarray
    noise: float = 0.1
    breadth_name: str = "n_probe"
    most_breadth: int = 8
    factor: int = 1
    ram_bytes: int = 0

    @property
    def n_codes(self) -> int:
        return len(self.rows)

    def breadths(self) -> list[int]:
        ladder = [self.factor * breadth for breadth in (1, 2, 4, 8)]
        return ladder[: 1 if self.most_breadth == 1 else None]

    def read_bytes(self, breadth: int) -> int:
        return 40 * breadth // self.factor * len(self.rows)

    def widened(self, breadth: int, share: float) -> int:
        return breadth

    def candidates(
        self,
        unit: np.ndarray,
        breadth: int,
        n_candidates: int,
        *,
        n_least: int,
        allowed: RowSet | None = None,
    ) -> np.ndarray:
        assert allowed is None
        mix = np.random.default_rng(5).standard_normal((unit.shape[1], unit.shape[1]))
        rows = unit_rows(self.rows)
        noise = (
            unit @ mix @ rows.T * (self.noise * self.factor / breadth)
        )  # of a pair, always alike
        order = np.argsort(-(unit @ rows.T + noise), axis=1)[:, :n_candidates]
        padding = n_candidates - order.shape[1]
        return np.pad(order, ((0, 0), (0, padding)), constant_values=-1)


@dataclass
class Rows:
    """Vectors for the ranking: the rows themselves, or rounded ones; counts what is read."""

    rows: np.ndarray
    is_exact: bool
    n_read: int = 0

    @property
    def space(self) -> EmbeddingSpace:
        return EmbeddingSpace("m", "final", 1, self.rows.shape[1], False)

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.rows.dtype

    @property
    def row_bytes(self) -> int:
        return self.rows.shape[1] * self.rows.itemsize

    def take(self, rows: np.ndarray) -> np.ndarray:
        self.n_read += len(rows)
        return self.rows[rows]
