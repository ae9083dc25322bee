"""Rows on one device: put there once, compared with queries block by block.

The one home of torch in this package. Its own processor device goes the same way as a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from index_builder.embeddings.space import EmbeddingSpace

if TYPE_CHECKING:
    import torch

_LISTED_BYTES = 64 << 20  # of a block whose rows above a floor are listed, to be ranked


def row_bytes(width: int) -> int:
    """Return what a row takes on a device: itself, its factor and two marks."""
    return 2 * width + 4 + 2


def free_bytes(names: Sequence[str] | None) -> dict[str, int] | str:
    """Return the free memory of CUDA devices, or why they can't be used.

    Parameters
    ----------
    names : sequence of str, or None
        ``cuda:0``; None: all that there are.
    """
    try:
        import torch
    except ImportError:
        return "torch is not installed; pip install 'voxseek[train]' brings it"
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    if not hasattr(torch.ops.aten.mm, "dtype"):
        return f"torch {torch.__version__} gives no float32 sums of float16 products; 2.8 does"
    n_devices = torch.cuda.device_count()
    if names is None:
        names = [f"cuda:{number}" for number in range(n_devices)]
    for name in names:
        if int(name.partition(":")[2]) >= n_devices:
            return f"torch sees {n_devices} CUDA device(s), and {name} isn't one of them"
    return {name: torch.cuda.mem_get_info(name)[0] for name in names}


@dataclass(frozen=True)
class Nearest:
    """Estimates and rows (n_queries, m) on a device, in any order."""

    values: torch.Tensor
    rows: torch.Tensor

    def to_host(self) -> tuple[np.ndarray, np.ndarray]:
        """Wait for them, and return them as float32 and int64."""
        return self.values.cpu().numpy(), self.rows.cpu().numpy()


@dataclass(frozen=True)
class DeviceRows:
    """Rows ``start`` to ``stop`` (exclusive) of an index on one device; made by `empty`.

    Parameters
    ----------
    start : int
    rows : Tensor of shape (n, width), float16
    factors : Tensor of shape (n,), float32
        Times the product of a row and a rounded query: an estimate of their cosine.
    is_alive : Tensor of shape (n,), bool
        Whether it may be found at all.
    """

    start: int
    rows: torch.Tensor
    factors: torch.Tensor
    is_alive: torch.Tensor

    @property
    def stop(self) -> int:
        """End of the rows."""
        return self.start + len(self)

    def __len__(self) -> int:
        """Return how many rows are here."""
        return len(self.rows)

    @classmethod
    def empty(cls, device: str, start: int, stop: int, width: int) -> DeviceRows:
        """Make room for rows, none of them alive.

        Raises
        ------
        MemoryError
            If the device hasn't as much.
        """
        import torch

        n_rows = stop - start
        try:
            return cls(
                start,
                torch.zeros((n_rows, width), dtype=torch.float16, device=device),
                torch.zeros(n_rows, dtype=torch.float32, device=device),
                torch.zeros(n_rows, dtype=torch.bool, device=device),
            )
        except torch.cuda.OutOfMemoryError as error:
            raise MemoryError(f"{device} has no room for {n_rows} rows of {width}") from error

    def put(
        self, row_start: int, halves: np.ndarray, factors: np.ndarray, is_alive: np.ndarray
    ) -> None:
        """Copy those of the rows from ``row_start`` on that belong here.

        Parameters
        ----------
        row_start : int
            Of the index.
        halves : ndarray of shape (m, width), float16
        factors : ndarray of shape (m,), float32
        is_alive : ndarray of shape (m,), bool
        """
        first, last = max(self.start, row_start), min(self.stop, row_start + len(halves))
        if first >= last:
            return
        here = slice(first - self.start, last - self.start)
        there = slice(first - row_start, last - row_start)
        self.rows[here] = self.show(halves[there])
        self.factors[here] = self.show(factors[there])
        self.is_alive[here] = self.show(is_alive[there])

    def show(self, array: np.ndarray) -> torch.Tensor:
        """Return an array as the device has it."""
        import torch

        return torch.from_numpy(np.ascontiguousarray(array)).to(self.rows.device)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Return rows (n,), numbered as in the index, as (n, width), float16."""
        taken: np.ndarray = self.rows[self.show(rows - self.start)].cpu().numpy()
        return taken

    def best(
        self, halves: np.ndarray, k: int, work_bytes: int, mark: torch.Tensor | None
    ) -> Nearest:
        """Return the ``k`` largest estimates of each query, or all where there are fewer rows.

        Parameters
        ----------
        halves : ndarray of shape (n_queries, width), float16
        k : int
        work_bytes : int
        mark : Tensor of shape (n,), bool, or None
            Rows that may be found; None: all that are alive.

        Returns
        -------
        nearest : Nearest
            Rows that must not be found have an estimate of minus infinity.
        """
        import torch

        queries = self.show(halves)
        best: Nearest | None = None
        for first, stop in self._blocks(len(halves), work_bytes):
            estimates = self._estimates(queries, first, stop, mark)
            values, places = torch.topk(estimates, min(k, stop - first), dim=1, sorted=False)
            rows = places + (self.start + first)
            if best is not None:
                values, rows = torch.cat([best.values, values], 1), torch.cat([best.rows, rows], 1)
                values, places = torch.topk(values, min(k, values.shape[1]), dim=1, sorted=False)
                rows = rows.gather(1, places)
            best = Nearest(values, rows)
        assert best is not None  # there is a row
        return best

    def at_least(
        self, halves: np.ndarray, floor: np.ndarray, work_bytes: int, mark: torch.Tensor | None
    ) -> Iterator[np.ndarray]:
        """Yield block by block the rows whose estimate reaches the floor of a query.

        Parameters
        ----------
        halves, work_bytes, mark
            As for `best`.
        floor : ndarray of shape (n_queries,), float32, finite

        Yields
        ------
        rows : ndarray of shape (n_queries, m), int64
            -1 where there are fewer.
        """
        queries, floors = self.show(halves), self.show(floor)
        most = _LISTED_BYTES // (2 * self.rows.shape[1])
        for first, stop in self._blocks(len(halves), work_bytes, most):
            reaches = self._estimates(queries, first, stop, mark) >= floors[:, None]
            query_of, place = (each.cpu().numpy() for each in reaches.nonzero(as_tuple=True))
            if len(place):
                yield _padded(query_of, place + (self.start + first), len(halves))

    def _blocks(
        self, n_queries: int, work_bytes: int, most: int | None = None
    ) -> Iterator[tuple[int, int]]:
        """Yield first row here and end of blocks, to be compared within ``work_bytes``.

        Half of it for float32 estimates, or for the rows as float32 where that is more; half for
        what chooses among them.
        """
        step = work_bytes // (8 * max(n_queries, self.rows.shape[1]))
        step = max(1, step if most is None else min(step, most))
        for first in range(0, len(self), step):
            yield first, min(first + step, len(self))

    def _estimates(
        self, queries: torch.Tensor, first: int, stop: int, mark: torch.Tensor | None
    ) -> torch.Tensor:
        """Return estimates (n_queries, stop - first), float32."""
        import torch

        rows = self.rows[first:stop]
        if rows.is_cuda:
            estimates = torch.mm(queries, rows.T, out_dtype=torch.float32)
        else:  # the processor sums in float32 only what is float32
            estimates = queries.float() @ rows.float().T
        estimates *= self.factors[first:stop]
        is_hidden = ~self.is_alive[first:stop]
        if mark is not None:
            is_hidden |= ~mark[first:stop]
        return estimates.masked_fill_(is_hidden, -torch.inf)


class DeviceVectors:
    """float16 rows taken from devices: those of the embeddings, bit for bit.

    Parameters
    ----------
    space : EmbeddingSpace
    parts : sequence of DeviceRows
        Together all rows.
    """

    dtype: np.dtype[Any] = np.dtype(np.float16)
    is_exact = True

    def __init__(self, space: EmbeddingSpace, parts: Sequence[DeviceRows]) -> None:
        self.space, self._parts = space, parts
        self.row_bytes = 2 * space.width

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Return rows (n, width) in the order asked."""
        taken = np.empty((len(rows), self.space.width), np.float16)
        for part in self._parts:
            is_here = (rows >= part.start) & (rows < part.stop)
            if is_here.any():
                taken[is_here] = part.take(rows[is_here])
        return taken


def _padded(query_of: np.ndarray, rows: np.ndarray, n_queries: int) -> np.ndarray:
    """Return pairs, ordered by query, as rows (n_queries, m); -1 fills up."""
    counts = np.bincount(query_of, minlength=n_queries)
    starts = np.cumsum(counts) - counts
    matrix = np.full((n_queries, int(counts.max())), -1, np.int64)
    matrix[query_of, np.arange(len(rows)) - starts[query_of]] = rows
    return matrix
