"""Inverted lists of RaBitQ codes: written shard by shard, searched in memory or from disk.

All shards share one quantizer, so their estimated distances can be merged as they are.

    shards/.../codes.npy        (n, code_bytes) uint8, grouped by list, rows rising within a list
               rows.npy         (n,) uint32, row within the shard of each code
               list_sizes.npy   (n_lists,) int64

`list_tiers` has how they are scanned.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .cosine import unit_rows
from .costs import Design, Tier, code_bytes, lists_ram_bytes
from .embeddings.storage import LocalStorage
from .errors import IndexDamagedError
from .factory import encode, make_coder
from .list_tiers import InMemory, ListTier, OnDisk
from .npy import write_rows
from .quantizer import QUANTIZER_FOLDER, Quantizer, load_quantizer
from .row_set import RowSet

if TYPE_CHECKING:
    from .planning import IndexPlan
    from .shards import Shard

CODES_FILE, ROWS_FILE, SIZES_FILE = "codes.npy", "rows.npy", "list_sizes.npy"
FILES = (CODES_FILE, ROWS_FILE, SIZES_FILE)
_MOST_PROBES = 1024
_WRITE_ROWS = 65_536


class ListsWriter:
    """Codes the rows of one shard; the same bytes however they are handed over.

    Memory: codes, lists and rows of the shard, and the order by list.

    Parameters
    ----------
    folder : Path
    plan : IndexPlan
    quantizer : Quantizer
    n_rows : int
        Of the shard; not all need to come.
    """

    def __init__(self, folder: Path, plan: IndexPlan, quantizer: Quantizer, n_rows: int) -> None:
        self._folder, self._quantizer = folder, quantizer
        self._coder = make_coder(quantizer.coarse, plan.bits)
        self._codes = np.empty((n_rows, self._coder.code_size), np.uint8)
        self._lists = np.empty(n_rows, np.int32)
        self._rows = np.empty(n_rows, np.uint32)
        self._n = 0

    def add(self, rows: np.ndarray, vectors: np.ndarray) -> None:
        """Append rows of the shard.

        Parameters
        ----------
        rows : ndarray of shape (m,), uint32
            Within the shard, rising from call to call.
        vectors : ndarray of shape (m, width) or (m, tokens, dim), any norm
        """
        transformed = self._quantizer.transform(unit_rows(vectors))
        chosen = self._quantizer.route(transformed, 1)[:, 0]
        piece = slice(self._n, self._n + len(rows))
        self._codes[piece] = encode(self._coder, transformed, chosen)
        self._lists[piece] = chosen
        self._rows[piece] = rows
        self._n += len(rows)

    def finish(self) -> list[str]:
        """Write the files, and return their names."""
        order = np.argsort(self._lists[: self._n], kind="stable")
        sizes = np.bincount(self._lists[: self._n], minlength=self._quantizer.n_lists)
        pieces = (
            self._codes[order[start : start + _WRITE_ROWS]]
            for start in range(0, self._n, _WRITE_ROWS)
        )
        write_rows(self._folder / CODES_FILE, "|u1", (self._n, self._codes.shape[1]), pieces)
        write_rows(self._folder / ROWS_FILE, "<u4", (self._n,), [self._rows[order]])
        write_rows(self._folder / SIZES_FILE, "<i8", (len(sizes),), [sizes.astype(np.int64)])
        return list(FILES)


class ShardLists:
    """Where the lists of one shard stand; the codes themselves stay on disk.

    Attributes
    ----------
    row_start : int
    n_codes : int
    starts : ndarray of shape (n_lists + 1,), int64
        First code of each list, and the end.
    rows : ndarray of shape (n_codes,), uint32
        Mapped, or read where they shall be in memory.

    Raises
    ------
    IndexDamagedError
        If the files contradict each other or the plan.
    """

    def __init__(self, shard: Shard, n_lists: int, code_size: int) -> None:
        sizes = np.load(shard.folder / SIZES_FILE, allow_pickle=False)
        codes = np.load(shard.folder / CODES_FILE, mmap_mode="r", allow_pickle=False)
        rows = np.load(shard.folder / ROWS_FILE, mmap_mode="r", allow_pickle=False)
        n = int(sizes.sum()) if sizes.dtype.kind == "i" else -1
        found = (sizes.shape, codes.shape, codes.dtype.str, rows.shape, rows.dtype.str)
        if found != ((n_lists,), (n, code_size), "|u1", (n,), "<u4") or sizes.min(initial=0) < 0:
            raise IndexDamagedError(
                f"{shard.folder} has list sizes {sizes.shape} that sum to {n}, codes {codes.dtype} "
                f"{codes.shape} and rows {rows.dtype} {rows.shape}, expected {n_lists} lists of "
                f"codes of {code_size} bytes, and a row each. Restore the shard or build it again."
            )
        self.row_start, self.n_codes, self.rows = shard.row_start, n, rows
        self.starts = np.concatenate([[0], np.cumsum(sizes)])
        self.code_size = code_size
        self._first_byte = int(getattr(codes, "offset", 0))
        self._storage = LocalStorage(shard.folder)

    def read_codes(self, first: int, out: np.ndarray) -> None:
        """Fill an array of bytes with codes from number ``first`` on."""
        self._storage.read_into(CODES_FILE, self._first_byte + first * self.code_size, out)

    def rows_of(self, numbers: np.ndarray) -> np.ndarray:
        """Return global rows (n,), int64, of codes by their numbers in the shard."""
        rows: np.ndarray = self.rows[numbers].astype(np.int64) + self.row_start
        return rows


class InvertedFile:
    """The opened lists of all shards, a `Nominator`; made by `open`.

    Attributes
    ----------
    n_lists : int
    n_codes : int
        Rows that are alive.
    list_rows : ndarray of shape (n_lists,), int64
        Rows in each list, over all shards.
    ram_bytes : int
        What the opened lists keep in memory.
    """

    breadth_name = "n_probe"

    def __init__(
        self, quantizer: Quantizer, bits: int, tier: Tier, shards: Sequence[ShardLists]
    ) -> None:
        self._quantizer = quantizer
        self.n_lists = self.most_breadth = quantizer.n_lists
        self.list_rows = np.zeros(self.n_lists, np.int64)
        for shard in shards:
            self.list_rows += np.diff(shard.starts)
        self.n_codes = int(self.list_rows.sum())
        kind = InMemory if tier == "memory" else OnDisk
        self._tier: ListTier = kind(quantizer.coarse, bits, shards)
        self._code_size = shards[0].code_size
        design = Design("ivf-rabitq", bits, tier, "source", self.n_lists)
        self.ram_bytes = lists_ram_bytes(self.n_codes, len(quantizer.mean), design, len(shards))

    @classmethod
    def open(cls, root: Path, shards: Sequence[Shard], *, bits: int, tier: Tier) -> InvertedFile:
        """Open the lists of all shards; their checksums are the caller's business.

        Parameters
        ----------
        root : Path
            The index.
        shards : sequence of Shard
        bits : int
            Of a code, a coordinate.
        tier : {"memory", "disk"}

        Raises
        ------
        IndexDamagedError
            If files contradict each other or the plan.
        """
        quantizer = load_quantizer(root / QUANTIZER_FOLDER)
        code_size = code_bytes(len(quantizer.mean), bits)
        opened = [ShardLists(shard, quantizer.n_lists, code_size) for shard in shards]
        return cls(quantizer, bits, tier, opened)

    def breadths(self) -> list[int]:
        """Return breadths worth trying, rising: powers of two."""
        most = min(self.n_lists, _MOST_PROBES)
        return [1 << power for power in range(most.bit_length()) if 1 << power <= most]

    def read_bytes(self, breadth: int) -> int:
        """Return about how many bytes of codes a query is compared with.

        Lists are probed in proportion to their size, for queries come from where rows are.
        """
        if not self.n_codes:
            return 0
        mean_rows = float(np.square(self.list_rows, dtype=np.float64).sum()) / self.n_codes
        return int(min(self.n_codes, breadth * mean_rows) * self._code_size)

    def widened(self, breadth: int, share: float) -> int:
        """Return the breadth with which a share of the rows is found as surely as all of them.

        Measured (docs/filters.md): the nearest rows of a share lie in fewer lists than in
        proportion, and in more than before.
        """
        return min(self.n_lists, math.ceil(breadth / math.sqrt(share)))

    def candidates(
        self,
        unit: np.ndarray,
        breadth: int,
        n_candidates: int,
        *,
        n_least: int,
        allowed: RowSet | None = None,
    ) -> np.ndarray:
        """Return rows that may be near each query, the most promising first.

        Parameters
        ----------
        unit : ndarray of shape (n_queries, width), float32, unit rows
        breadth : int
            Lists read a query.
        n_candidates : int
        n_least : int
            A query whose lists hold fewer rows than this reads more lists, until they do.
        allowed : RowSet or None
            Rows that may be found; None: all.

        Returns
        -------
        rows : ndarray of shape (n_queries, n_candidates), int64
            By estimated distance, ties by smaller row; -1 where the lists hold fewer.
        """
        n_least = min(n_least, n_candidates, self.n_codes)
        transformed = self._quantizer.transform(unit)
        rows = np.full((len(unit), n_candidates), -1, np.int64)
        unfilled = np.arange(len(unit))
        while len(unfilled):
            lists = self._quantizer.route(transformed[unfilled], breadth)
            has_enough = self.list_rows[lists].sum(axis=1) >= n_least
            ready = unfilled[has_enough]
            if len(ready):
                rows[ready] = self._search(
                    transformed[ready], lists[has_enough], n_candidates, allowed
                )
            if allowed is not None and breadth < self.n_lists:
                has_enough[has_enough] = (rows[ready] >= 0).sum(axis=1) >= n_least
            unfilled = unfilled[~has_enough]
            breadth = min(2 * breadth, self.n_lists)
        return rows

    def _search(
        self, vectors: np.ndarray, lists: np.ndarray, n_candidates: int, allowed: RowSet | None
    ) -> np.ndarray:
        distances = np.empty(lists.shape, np.float32)
        for i, probed in enumerate(lists):
            difference = self._quantizer.centroids[probed] - vectors[i]
            distances[i] = np.einsum("ij,ij->i", difference, difference)
        return self._tier.search(vectors, lists, distances, n_candidates, allowed)[1]
