"""The lists of an index in memory, one FAISS object a shard, searched side by side for candidates.

All shards share one quantizer, so their estimated distances can be merged as they are.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from .embeddings.progress import track
from .factory import fill_lists, make_lists, search_lists, set_threads
from .planning import lists_ram_bytes
from .quantizer import QUANTIZER_FOLDER, Quantizer, load_quantizer
from .shards import CODES_FILE, ROWS_FILE, SIZES_FILE


class InvertedFile:
    """The opened lists of all shards; made by `open`.

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

    def __init__(self, quantizer: Quantizer, shards: Sequence[Any], list_rows: np.ndarray) -> None:
        self._quantizer = quantizer
        self._shards = list(shards)
        self.list_rows = list_rows
        self.n_lists = quantizer.n_lists
        self.n_codes = int(list_rows.sum())
        self.ram_bytes = lists_ram_bytes(
            self.n_codes, len(quantizer.mean), self.n_lists, len(self._shards)
        )
        n_cores = os.cpu_count() or 1
        n_threads = min(n_cores, len(self._shards))
        # OpenMP's thread count belongs to the calling thread: the pool's threads share the cores.
        self._pool = (
            ThreadPoolExecutor(n_threads, initializer=set_threads, initargs=(n_cores // n_threads,))
            if n_threads > 1
            else None
        )

    @classmethod
    def open(cls, folder: Path, shard_folders: Sequence[tuple[Path, int]]) -> InvertedFile:
        """Load the codes of all shards; their checksums are the caller's business.

        Parameters
        ----------
        folder : Path
            The index.
        shard_folders : sequence of (Path, int)
            Folder and first row of each shard.
        """
        quantizer = load_quantizer(folder / QUANTIZER_FOLDER)
        list_rows = np.zeros(quantizer.n_lists, np.int64)
        shards = []
        for shard, row_start in track(
            shard_folders, label="open", total=len(shard_folders), unit="shard"
        ):
            codes = np.load(shard / CODES_FILE, mmap_mode="r", allow_pickle=False)
            rows = np.load(shard / ROWS_FILE, mmap_mode="r", allow_pickle=False)
            sizes = np.load(shard / SIZES_FILE, allow_pickle=False)
            lists = make_lists(quantizer.coarse)
            fill_lists(lists, codes, rows, sizes, first_id=row_start)
            shards.append(lists)
            list_rows += sizes
        return cls(quantizer, shards, list_rows)

    def candidates(
        self, unit: np.ndarray, n_probe: int, n_candidates: int, *, n_least: int
    ) -> np.ndarray:
        """Return rows that may be near each query, the most promising first.

        Parameters
        ----------
        unit : ndarray of shape (n_queries, width), float32, unit rows
        n_probe : int
            Lists read a query.
        n_candidates : int
        n_least : int
            A query whose lists hold fewer rows than this reads more lists, until they do.

        Returns
        -------
        rows : ndarray of shape (n_queries, n_candidates), int64
            By estimated distance, ties by smaller row; -1 where the lists hold fewer.
        """
        n_least = min(n_least, self.n_codes)
        transformed = self._quantizer.transform(unit)
        rows = np.full((len(unit), n_candidates), -1, np.int64)
        unfilled = np.arange(len(unit))
        while len(unfilled):
            lists = self._quantizer.route(transformed[unfilled], n_probe)
            has_enough = self.list_rows[lists].sum(axis=1) >= n_least
            ready = unfilled[has_enough]
            if len(ready):
                rows[ready] = self._search(transformed[ready], lists[has_enough], n_candidates)
            unfilled = unfilled[~has_enough]
            n_probe = min(2 * n_probe, self.n_lists)
        return rows

    def _search(self, vectors: np.ndarray, lists: np.ndarray, n_candidates: int) -> np.ndarray:
        distances = np.empty(lists.shape, np.float32)
        for i, probed in enumerate(lists):
            difference = self._quantizer.centroids[probed] - vectors[i]
            distances[i] = np.einsum("ij,ij->i", difference, difference)

        def search_one(shard: Any) -> tuple[np.ndarray, np.ndarray]:
            return search_lists(shard, vectors, n_candidates, lists, distances)

        run = self._pool.map if self._pool else map
        found = list(run(search_one, self._shards))
        estimates = np.concatenate([estimate for estimate, _ in found], axis=1)
        rows = np.concatenate([shard_rows for _, shard_rows in found], axis=1)
        # FAISS leaves the estimate of a missing id at the largest float: those sort last.
        order = np.lexsort((rows, estimates), axis=1)[:, :n_candidates]
        return np.take_along_axis(rows, order, axis=1)
