"""DeviceNominator: all rows in the memory of GPUs, every one compared with every query.

A device nominates, the processor decides. A float16 product gives each row an estimate of its
cosine that is wrong by no more than a known bound; all rows that may belong to the nearest by that
bound are ranked exactly, as every search does. So the hits are those of a flat search on the
processor, bit for bit, whatever the devices and however many.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from index_builder.cosine import kth_largest, row_norms, unit_rows
from index_builder.embeddings.collection import Collection
from index_builder.embeddings.float16 import to_float32
from index_builder.embeddings.progress import track
from index_builder.reranking import rank_exactly
from index_builder.row_set import RowSet
from index_builder.vector_copy import SourceVectors, Vectors

from .device_rows import DeviceRows, DeviceVectors

WORK_BYTES = 1 << 30
_READ_BYTES = 64 << 20  # rows on their way to the devices
_SPARE_NOMINEES = 32  # beyond k, at least: mostly more than share a place within the bound
# Unit vectors are multiplied by this before they are rounded: small coordinates stay normal.
_SCALE = np.float32(2.0**8)
_SLACK = 2.0**-20  # rounding of norms, of factors and of the scores that decide, 2**-24 each


class DeviceNominator:
    """All rows on one device or several, a `Nominator` that compares them all; made by `load`.

    Threads may share it; they take turns on the devices.

    Attributes
    ----------
    breadth_name : str
        Empty: there is no effort to choose.
    n_codes : int
        Rows that are alive.
    ram_bytes : int
        What it keeps in the memory of the processor: nothing.
    device_bytes : int
        What the rows take on the devices.
    vectors : Vectors
        What to rank its candidates by: the rows on the devices where these are the embeddings' bit
        for bit, the embeddings otherwise.

    Notes
    -----
    Let q be a unit query, q' the same after rounding to float16, x a stored row. The estimate of
    their cosine is wrong by at most

        e = |q' - q| + r + g / (1 - g) + 2**-20,   g = width * 2**-23

    The first term, computed for each query, is about 2e-4, by the inequality of Cauchy and Schwarz;
    r is the largest such difference of a stored row, 0 where rows are float16 already. Products of
    float16 numbers are exact in float32, and a sum of ``width`` of them, in any order, each step
    rounded or cut off, is wrong by at most g / (1 - g) of the sum of their sizes, which is at most
    |q'| |x| (Higham 2002, Accuracy and Stability of Numerical Algorithms, section 4.2, with 2**-23
    for steps that are cut off).

    At least k rows have an estimate of T, the k-th largest, or more, and so a cosine of T - e or
    more. A row of the k nearest has no smaller cosine, and an estimate of T - 2 e or more. All rows
    that reach this floor are nominated, equal ones included. Where more of them may be left on a
    device than it keeps for a query, a second pass ranks all, block by block.
    """

    breadth_name = ""
    most_breadth = 1
    ram_bytes = 0

    def __init__(
        self, embeddings: Collection, parts: Sequence[DeviceRows], row_error: float, work_bytes: int
    ) -> None:
        self._parts, self._work_bytes = parts, work_bytes
        width = embeddings.space.width
        g = width * 2.0**-23
        self._error = row_error + g / (1 - g) + _SLACK
        self.n_codes = sum(int(part.is_alive.sum()) for part in parts)
        self.device_bytes = embeddings.n_rows * 2 * width
        self.vectors: Vectors = SourceVectors(embeddings)
        if embeddings.dtype == np.float16:
            self.vectors = DeviceVectors(embeddings.space, parts)
        self._lock = threading.Lock()
        self._shown: tuple[weakref.ref[RowSet], list[Any]] | None = None

    @classmethod
    def load(
        cls,
        embeddings: Collection,
        parts: Sequence[tuple[str, int, int]],
        *,
        bad_rows: Literal["error", "tombstone"],
        deleted: np.ndarray,
        work_bytes: int = WORK_BYTES,
    ) -> DeviceNominator:
        """Read all rows into the devices, in order and once.

        Parameters
        ----------
        embeddings : Collection
        parts : sequence of (device, first row, end)
            Together all rows, in order; none of them empty.
        bad_rows : {"error", "tombstone"}
            As the index was built.
        deleted : ndarray of shape (m,), int64, rising
            Rows that are never nominated.
        work_bytes : int
            Limit for the estimates of a search on each device.

        Raises
        ------
        MemoryError
            If a device has no room.
        """
        width = embeddings.space.width
        held = [DeviceRows.empty(device, start, stop, width) for device, start, stop in parts]
        batch_rows = max(1, _READ_BYTES // (width * embeddings.dtype.itemsize))
        batches = embeddings.iter_batches(batch_rows=batch_rows, bad_rows=bad_rows)
        n_batches = -(-embeddings.n_rows // batch_rows)
        row_error = 0.0
        for batch in track(batches, label="load", total=n_batches, unit="block"):
            is_alive = batch.without(deleted).is_alive
            halves, factors, error = _round_rows(batch.embeddings.reshape(len(is_alive), width))
            row_error = max(row_error, error)
            for part in held:
                part.put(batch.row_start, halves, factors, is_alive)
        return cls(embeddings, held, row_error, work_bytes)

    def breadths(self) -> list[int]:
        """Return breadths worth trying: there is one."""
        return [1]

    def widened(self, breadth: int, share: float) -> int:
        """Return the breadth with which a share of the rows is found as surely: the same."""
        return breadth

    def read_bytes(self, breadth: int) -> int:
        """Return how many bytes a query is compared with."""
        return self.device_bytes

    def candidates(
        self,
        unit: np.ndarray,
        breadth: int,
        n_candidates: int,
        *,
        n_least: int,
        allowed: RowSet | None = None,
    ) -> np.ndarray:
        """Return rows among which the ``n_least`` nearest of each query are.

        Parameters
        ----------
        unit : ndarray of shape (n_queries, width), float32, unit rows
        breadth : int
            Without effect.
        n_candidates : int
            Columns, at least; there are more where more rows may be among the nearest.
        n_least : int
        allowed : RowSet or None
            Rows that may be found; None: all that are alive.

        Returns
        -------
        rows : ndarray of shape (n_queries, m), int64
            The most promising first; -1 where there are fewer.
        """
        halves, query_errors = _round(unit)
        doubt = 2 * (query_errors + self._error)
        keep = n_least + max(n_least, _SPARE_NOMINEES)
        with self._lock:
            marks = self._marks(allowed)
            lists = [
                part.best(halves, keep, self._work_bytes, mark)
                for part, mark in zip(self._parts, marks, strict=True)
            ]
            found = [each.to_host() for each in lists]  # devices have worked side by side till here
            values = np.concatenate([values for values, _ in found], axis=1)
            numbers = np.concatenate([rows for _, rows in found], axis=1)
            floor = kth_largest(values, min(n_least, values.shape[1])) - doubt
            rows = _in_order(values, numbers, floor, max(n_candidates, n_least))
            is_open = np.zeros(len(unit), bool)
            for part, (kept, _) in zip(self._parts, found, strict=True):
                lowest = kept.min(axis=1)
                is_open |= (kept.shape[1] < len(part)) & (lowest >= floor) & (lowest > -np.inf)
            if is_open.any():
                best = self._settle(unit[is_open], halves[is_open], floor[is_open], n_least, marks)
                rows[is_open] = -1
                rows[is_open, :n_least] = best
        return rows

    def _settle(
        self,
        unit: np.ndarray,
        halves: np.ndarray,
        floor: np.ndarray,
        k: int,
        marks: Sequence[Any],
    ) -> np.ndarray:
        """Return the ``k`` nearest rows of queries for which very many reach the floor."""
        below = np.nextafter(floor.astype(np.float32), np.float32(-np.inf))
        best = np.full((len(unit), k), -1, np.int64)
        for part, mark in zip(self._parts, marks, strict=True):
            for rows in part.at_least(halves, below, self._work_bytes, mark):
                best = rank_exactly(self.vectors, unit, np.hstack([best, rows]), k)[0]
        return best

    def _marks(self, allowed: RowSet | None) -> Sequence[Any]:
        """Return the marks of allowed rows on each device; those of the last set stay there."""
        if allowed is None:
            return [None] * len(self._parts)
        if self._shown is None or self._shown[0]() is not allowed:
            self._shown = None  # before the next take its place
            marks = [part.show(allowed.mask(part.start, part.stop)) for part in self._parts]
            self._shown = weakref.ref(allowed), marks
        return self._shown[1]


def _round(unit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return unit rows, scaled, as float16, and how far (n,) each is from what it was."""
    halves = (unit * _SCALE).astype(np.float16)
    difference = to_float32(halves) / _SCALE - unit
    return halves, np.linalg.norm(difference.astype(np.float64), axis=1)


def _round_rows(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Return float16 rows, the factor of each, and the most that a unit row was changed by."""
    if vectors.dtype == np.float16:
        return vectors, 1 / (_SCALE * row_norms(to_float32(vectors))), 0.0
    halves, errors = _round(unit_rows(vectors))
    return halves, np.full(len(halves), _SCALE**-2, np.float32), float(errors.max(initial=0))


def _in_order(values: np.ndarray, rows: np.ndarray, floor: np.ndarray, n_least: int) -> np.ndarray:
    """Return the rows that reach a floor, by falling value; at least ``n_least`` columns, or -1."""
    reaches = (values >= floor[:, None]) & (values > -np.inf)
    n_columns = max(n_least, int(reaches.sum(axis=1).max(initial=0)))
    order = np.lexsort((rows, -np.where(reaches, values, -np.inf)), axis=1)[:, :n_columns]
    ordered = np.where(reaches, rows, -1)
    missing = (0, 0), (0, n_columns - order.shape[1])
    return np.pad(np.take_along_axis(ordered, order, axis=1), missing, constant_values=-1)
