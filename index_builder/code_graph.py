"""A graph over codes of one byte a coordinate, as plain arrays: linked, saved, checked, searched.

A search walks from node to node towards the query (HNSW: Malkov & Yashunin 2018, arXiv:1603.09320).
Distances of codes are exact in integers: the graph, and what is found in it, are the same on every
processor and on any number of threads.

    codes.npy     (n, width) uint8, one node a row
    levels.npy    (n,) uint8, how many levels each node is on
    links.npy     (m,) int32, node by node, level by level from the lowest; -1: none
    entry.npy     (1,) int64, the node where searches start; -1 where there is none

A node has 2 x `N_LINKS` places for links on the lowest level and `N_LINKS` on each other. FAISS
searches these arrays where they lie. No file of FAISS's is ever parsed, and no link is followed
before all of them were checked.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .costs import N_LINKS
from .errors import FaissVersionError, IndexDamagedError
from .factory import (
    add_nodes,
    faiss_version,
    fill_graph,
    link_bounds,
    make_graph,
    read_graph,
    scan_graph,
    search_graph,
)
from .npy import save_array

CODES_FILE, LEVELS_FILE, LINKS_FILE, ENTRY_FILE = (
    "codes.npy",
    "levels.npy",
    "links.npy",
    "entry.npy",
)
FILES = (CODES_FILE, LEVELS_FILE, LINKS_FILE, ENTRY_FILE)
_BUILD_BREADTH = 100
_BLOCK_BYTES = 64 << 20  # of codes as float32, linked together


class GraphLinker:
    """Links codes as they come; the same graph however they are handed over.

    Memory: codes, links, levels and offsets (`costs.graph_ram_bytes`), and 64 MiB of codes that are
    linked together.

    Parameters
    ----------
    width : int
    n_nodes : int
        Not all need to come.
    """

    def __init__(self, width: int, n_nodes: int) -> None:
        self._graph = make_graph(width, N_LINKS, _BUILD_BREADTH, n_nodes)
        self._block = np.empty((max(1, _BLOCK_BYTES // (4 * width)), width), np.uint8)
        self._n_waiting = 0

    def add(self, codes: np.ndarray) -> None:
        """Append nodes (m, width), uint8."""
        # Blocks of one size, whatever the batches: nodes that are linked together depend on it.
        while len(codes):
            n = min(len(codes), len(self._block) - self._n_waiting)
            self._block[self._n_waiting : self._n_waiting + n] = codes[:n]
            self._n_waiting += n
            codes = codes[n:]
            if self._n_waiting == len(self._block):
                self._link()

    def finish(self) -> CodeGraph:
        """Return the graph, without a copy."""
        self._link()
        if not self._graph.ntotal:
            return CodeGraph.of_nothing(self._block.shape[1])
        codes, levels, links, entry = read_graph(self._graph)
        return CodeGraph(codes, levels.astype(np.uint8), links, entry, self._graph)

    def _link(self) -> None:
        if self._n_waiting:
            add_nodes(self._graph, self._block[: self._n_waiting])
        self._n_waiting = 0


@dataclass(frozen=True)
class CodeGraph:
    """A graph; FAISS's object looks into ``codes`` and ``links``.

    Parameters
    ----------
    codes : ndarray of shape (n, width), uint8
    levels : ndarray of shape (n,), uint8
    links : ndarray of shape (m,), int32
    entry : int
    graph
        FAISS's.
    """

    codes: np.ndarray
    levels: np.ndarray
    links: np.ndarray
    entry: int
    graph: Any

    @classmethod
    def of_nothing(cls, width: int) -> CodeGraph:
        """Return a graph without nodes."""
        graph = make_graph(width, N_LINKS, _BUILD_BREADTH, 0)
        empty = np.empty(0, np.uint8), np.empty(0, np.int32)
        return cls(np.empty((0, width), np.uint8), *empty, -1, graph)

    @classmethod
    def load(cls, folder: Path, width: int) -> CodeGraph:
        """Read a graph; checksums are the caller's business.

        Raises
        ------
        IndexDamagedError
            If arrays contradict each other, or a link leads where no node is.
        FaissVersionError
            If the installed FAISS lays out links otherwise.
        """
        codes, levels, links, entry = (np.load(folder / name, allow_pickle=False) for name in FILES)
        graph = make_graph(width, N_LINKS, _BUILD_BREADTH, 0)
        _check(folder, width, _bounds_of(graph), codes, levels, links, entry)
        if len(codes):
            fill_graph(graph, codes, levels, links, int(entry[0]))
        return cls(codes, levels, links, int(entry[0]), graph)

    def __len__(self) -> int:
        """Nodes."""
        return len(self.codes)

    def save(self, folder: Path) -> list[str]:
        """Write the arrays, and return the names of their files."""
        entry = np.array([self.entry], np.int64)
        for name, array in zip(FILES, (self.codes, self.levels, self.links, entry), strict=True):
            save_array(folder / name, array)
        return list(FILES)

    def nearest(
        self, queries: np.ndarray, k: int, breadth: int, allowed: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return squared distances and nodes, (n_queries, k); infinite and -1 where none is found.

        Parameters
        ----------
        queries : ndarray of shape (n_queries, width), uint8
        k : int
            At most the number of nodes.
        breadth : int
            Nodes in view while the graph is walked; ``k`` where that is more. With all nodes in
            view all are compared: there may be nodes that no link leads to.
        allowed : ndarray of shape (ceil(n / 8),), uint8, or None
            A bit a node, the lowest first: whether it may be found.
        """
        breadth = max(breadth, k)
        if breadth < len(self):
            distances, nodes = search_graph(self.graph, queries, k, breadth, allowed)
        else:
            distances, nodes = scan_graph(self.graph, queries, k, allowed)
        distances[nodes < 0] = np.inf
        return distances, nodes


def _bounds_of(graph: Any) -> np.ndarray:
    """Return where the links of each level begin among a node's, after the gate on FAISS."""
    bounds = link_bounds(graph)
    expected = N_LINKS * np.arange(1, len(bounds) + 1)
    expected[0] = 0
    if not np.array_equal(bounds, expected):
        raise FaissVersionError(
            f"FAISS {faiss_version()} begins the links of each level at {bounds.tolist()}, and "
            f"graphs are written with {expected.tolist()}. Install the version of constraints.txt."
        )
    return bounds


def _check(
    folder: Path,
    width: int,
    bounds: np.ndarray,
    codes: np.ndarray,
    levels: np.ndarray,
    links: np.ndarray,
    entry: np.ndarray,
) -> None:
    """Refuse arrays that FAISS would read beyond."""
    n = len(levels)
    found = [(array.shape, array.dtype.str) for array in (codes, levels, entry)]
    if found != [((n, width), "|u1"), ((n,), "|u1"), ((1,), "<i8")]:
        raise IndexDamagedError(
            f"{folder} has codes, levels and entry of {found}, expected uint8 ({n}, {width}), "
            f"uint8 ({n},) and int64 (1,). Restore the folder or build it again."
        )
    flaw = _find_flaw(bounds, levels.astype(np.int64), links, int(entry[0])) if n else None
    if flaw:
        raise IndexDamagedError(
            f"{folder / LINKS_FILE} is not a graph of {n} nodes: {flaw}. "
            f"Restore the folder or build it again."
        )


def _find_flaw(bounds: np.ndarray, levels: np.ndarray, links: np.ndarray, entry: int) -> str | None:
    """Tell what would make a search leave the arrays."""
    n, top = len(levels), int(levels.max())
    if levels.min() < 1 or top >= len(bounds):
        return f"levels are {levels.min()} to {top}, expected 1 to {len(bounds) - 1}"
    ends = np.cumsum(bounds[levels])
    if links.shape != (ends[-1],) or links.dtype.str != "<i4":
        return f"links are {links.dtype} {links.shape}, expected int32 ({ends[-1]},)"
    if not 0 <= entry < n or levels[entry] != top:
        return f"the entry is {entry}, expected a node on level {top}"
    if links.min() < -1 or links.max() >= n:
        return f"links lead from {links.min()} to {links.max()}"
    for level in range(1, top):
        nodes = np.flatnonzero(levels > level)
        starts = ends[nodes] - bounds[levels[nodes]] + bounds[level]
        targets = links[starts[:, None] + np.arange(N_LINKS)]
        if (levels[targets[targets >= 0]] <= level).any():
            return f"a link of level {level} leads to a node that is not on it"
    return None
