"""One graph a shard over 8-bit codes: the index where memory is ample and latency counts.

Each row that is alive is a node. Nodes hold the codes of `scalar_codes`, one range for all shards,
so that distances of all shards are on one scale. `code_graph` has the arrays; beside them

    shards/.../rows.npy      (n,) uint32, row within the shard of each node, rising
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np

from . import code_graph
from .code_graph import CodeGraph, GraphLinker
from .cosine import unit_rows
from .costs import MOST_WIDTH, graph_ram_bytes
from .embeddings.progress import track
from .errors import IndexDamagedError, PlanError
from .fan_out import FanOut, Found, merge_nearest
from .npy import save_array
from .quantizer import QUANTIZER_FOLDER, Quantizer, load_quantizer
from .row_set import RowSet
from .scalar_codes import encode_eight_bits

if TYPE_CHECKING:
    from .planning import IndexPlan
    from .shards import Shard

ROWS_FILE = "rows.npy"
FILES = (*code_graph.FILES, ROWS_FILE)
_BREADTHS = (16, 32, 64, 128, 256, 512, 1024, 2048)
# Codes compared a search and node in view: 8 to 18 at 100,000 x 768 and breadths from 64 on.
_COMPARISONS_PER_BREADTH = 16


class GraphWriter:
    """Links the rows of one shard; the same bytes however they are handed over.

    Memory: that of a `GraphLinker`, and the shard's row numbers.

    Parameters
    ----------
    folder : Path
    plan : IndexPlan
    quantizer : Quantizer
    n_rows : int
        Of the shard; not all need to come.

    Raises
    ------
    PlanError
        If rows are wider than `costs.MOST_WIDTH` numbers.
    """

    def __init__(self, folder: Path, plan: IndexPlan, quantizer: Quantizer, n_rows: int) -> None:
        width = plan.space.width
        if width > MOST_WIDTH:
            raise PlanError(
                f"rows of {width} numbers are too wide for hnsw-sq8, which takes "
                f"{MOST_WIDTH}: its distances are 32-bit integers. Plan --code "
                f"ivf-rabitq."
            )
        self._folder, self._quantizer = folder, quantizer
        self._linker = GraphLinker(width, n_rows)
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
        self.add_codes(rows, _encode(self._quantizer, unit_rows(vectors)))

    def add_codes(self, rows: np.ndarray, codes: np.ndarray) -> None:
        """Append rows (m,), as `add` does, that were encoded before: (m, width), uint8."""
        self._rows[self._n : self._n + len(rows)] = rows
        self._n += len(rows)
        self._linker.add(codes)

    def finish(self) -> list[str]:
        """Write the files, and return their names."""
        self._linker.finish().save(self._folder)
        save_array(self._folder / ROWS_FILE, self._rows[: self._n])
        return list(FILES)


@dataclass(frozen=True)
class _OpenGraph:
    """The graph of one shard."""

    graph: CodeGraph
    rows: np.ndarray
    row_start: int

    def allowed_nodes(self, allowed: RowSet) -> np.ndarray:
        """Return a bit a node, the lowest first: whether its row is in the set."""
        is_allowed = allowed.holds(self.rows.astype(np.int64) + self.row_start)
        return np.packbits(is_allowed, bitorder="little")

    def nearest(
        self, queries: np.ndarray, k: int, breadth: int, allowed: np.ndarray | None
    ) -> Found:
        """Return squared distances and global rows, (n_queries, k); -1 where fewer are found."""
        distances, nodes = self.graph.nearest(queries, min(k, len(self.rows)), breadth, allowed)
        rows = self.rows[nodes].astype(np.int64) + self.row_start
        rows[nodes < 0] = -1
        return distances, rows


class Graph:
    """The opened graphs of all shards, a `Nominator`; made by `open`.

    Attributes
    ----------
    n_codes : int
        Rows that are alive.
    ram_bytes : int
        What the opened graphs keep in memory.
    most_breadth : int
        With this breadth all codes are compared.
    """

    breadth_name = "ef_search"

    def __init__(self, quantizer: Quantizer, graphs: Sequence[_OpenGraph]) -> None:
        self._quantizer, self._graphs = quantizer, list(graphs)
        self.n_codes = sum(len(graph.rows) for graph in graphs)
        self.most_breadth = max((len(graph.rows) for graph in graphs), default=1)
        self._width = len(quantizer.mean)
        self.ram_bytes = graph_ram_bytes(self.n_codes, self._width)
        self._fan_out = FanOut(len(self._graphs))
        self._allowed: WeakKeyDictionary[RowSet, list[np.ndarray]] = WeakKeyDictionary()

    @classmethod
    def open(cls, root: Path, shards: Sequence[Shard]) -> Graph:
        """Read the graphs of all shards; their checksums are the caller's business.

        Raises
        ------
        IndexDamagedError
            If arrays contradict each other, or a link leads where no node is.
        FaissVersionError
            If the installed FAISS lays out links otherwise.
        """
        quantizer = load_quantizer(root / QUANTIZER_FOLDER)
        graphs = []
        for shard in track(shards, label="open", total=len(shards), unit="shard"):
            graph = CodeGraph.load(shard.folder, len(quantizer.mean))
            rows = np.load(shard.folder / ROWS_FILE, allow_pickle=False)
            if (rows.shape, rows.dtype.str) != ((len(graph),), "<u4"):
                raise IndexDamagedError(
                    f"{shard.folder / ROWS_FILE} holds {rows.dtype} {rows.shape}, expected uint32 "
                    f"({len(graph)},), a row for each node. Restore the shard or build it again."
                )
            if len(rows):
                graphs.append(_OpenGraph(graph, rows, shard.row_start))
        return cls(quantizer, graphs)

    def breadths(self) -> list[int]:
        """Return breadths worth trying, rising."""
        return [breadth for breadth in _BREADTHS if breadth < self.most_breadth] or [
            self.most_breadth
        ]

    def read_bytes(self, breadth: int) -> int:
        """Return about how many bytes of codes a query is compared with."""
        compared = sum(
            min(len(graph.rows), _COMPARISONS_PER_BREADTH * breadth) for graph in self._graphs
        )
        return compared * self._width

    def widened(self, breadth: int, share: float) -> int | None:
        """Return the breadth with which a share of the rows is found as surely as all of them.

        Only every ``1 / share``-th node in view is one that may be found. None where so many nodes
        in view are no fewer than the rows that may be found: these are compared sooner.
        """
        wide = math.ceil(breadth / share)
        return min(self.most_breadth, wide) if wide < share * self.n_codes else None

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
            Nodes in view while a graph is walked; ``n_candidates`` where that is more.
        n_candidates : int
        n_least : int
            A query for which fewer are found is searched with twice the breadth, until they are
            or all codes have been compared.
        allowed : RowSet or None
            Rows that may be found; None: all.

        Returns
        -------
        rows : ndarray of shape (n_queries, n_candidates), int64
            By distance of codes, ties by smaller row; -1 where fewer are found.
        """
        n_least = min(n_least, n_candidates, self.n_codes)
        queries = _encode(self._quantizer, unit)
        rows = np.full((len(unit), n_candidates), -1, np.int64)
        unfilled = np.arange(len(unit))
        while len(unfilled):
            rows[unfilled] = self._search(queries[unfilled], n_candidates, breadth, allowed)
            if breadth >= self.most_breadth:
                break
            unfilled = unfilled[(rows[unfilled] >= 0).sum(axis=1) < n_least]
            breadth = 2 * max(breadth, n_candidates)
        return rows

    def _search(
        self, queries: np.ndarray, n_candidates: int, breadth: int, allowed: RowSet | None
    ) -> np.ndarray:
        def search_one(opened: tuple[_OpenGraph, np.ndarray | None]) -> Found:
            return opened[0].nearest(queries, n_candidates, breadth, opened[1])

        if not self._graphs:
            return np.full((len(queries), n_candidates), -1, np.int64)
        nodes = [None] * len(self._graphs) if allowed is None else self._nodes_of(allowed)
        opened = list(zip(self._graphs, nodes, strict=True))
        return merge_nearest(self._fan_out.search(search_one, opened), n_candidates)[1]

    def _nodes_of(self, allowed: RowSet) -> list[np.ndarray]:
        """Return the allowed nodes of each graph, kept as long as the set is."""
        nodes = self._allowed.get(allowed)
        if nodes is None:
            nodes = [graph.allowed_nodes(allowed) for graph in self._graphs]
            self._allowed[allowed] = nodes
        return nodes


def _encode(quantizer: Quantizer, unit: np.ndarray) -> np.ndarray:
    return encode_eight_bits(quantizer.transform(unit), quantizer.low, quantizer.high)
