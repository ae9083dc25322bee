"""The quantizer that all shards share: mean, rotation, and the centroids of the lists.

A unit vector x becomes y = R (x - mean). Distances between vectors are the same before and after,
so the codes stay codes of x. Lists are chosen by the direction of y: k-means over directions
(spherical k-means, each vector weighted by its norm) around the mean. CLIP embeddings fill a narrow
cone (Liang et al. 2022, arXiv:2203.02053), and what a decoder predicts from a brain is drawn to its
axis; taken from the mean, both point to the same lists.

Where lists are many, a graph over 8-bit codes of the centroids' directions nominates some, and
their true directions decide.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import code_graph, costs
from .code_graph import CodeGraph, GraphLinker
from .cosine import best_per_query, pair_scores, rounding_error, row_norms
from .embeddings.artefact import (
    is_complete,
    read_manifest,
    verify_files,
    write_manifest,
)
from .embeddings.progress import track
from .errors import FaissVersionError, IndexDamagedError
from .factory import GpuDirections, encode, faiss_version, has_gpu, make_coarse, make_coder
from .npy import save_array
from .rotation import draw_signs, rotate
from .scalar_codes import encode_eight_bits
from .threads import in_threads

QUANTIZER_FOLDER = "quantizer"
RECORD_FILE = "quantizer.json"
KIND = "quantizer"
FORMAT_VERSION = 2
_ARRAYS = ("mean", "signs", "centroids")
# Of k-means: on every so many-th point, so often. Early turns move centroids far, and a part of the
# points shows where to; ten turns on all points (FAISS's Level1Quantizer) take four times as long
# for directions whose cosines are 0.3 % higher (docs/index.md).
_TURNS = ((8, 4), (4, 3), (2, 2), (1, 2))
_FEWEST_POINTS_PER_CENTROID = 4  # of an early turn
_SCORE_BYTES = 16 << 20  # of points against centroids
_POINT_BLOCK = 8192
_CENTER_ROWS = 512
_ROUTE_BREADTH = 64  # nodes in view, at least, where a graph over the centroids is walked
_SPARE_NOMINEES = 8  # of a GPU: more than share a place within the rounding of float32
_NOMINEES = 16  # at least, and twice the lists that are wanted


@dataclass(frozen=True)
class _Directions:
    """Centroids (m, width) and 1 / norm of each."""

    centroids: np.ndarray
    inverse_norms: np.ndarray

    @classmethod
    def of(cls, centroids: np.ndarray) -> _Directions:
        return cls(centroids, 1 / row_norms(centroids))

    def nearest(self, points: np.ndarray, k: int) -> np.ndarray:
        """Return the ``k`` nearest in direction of each point (n, width), in increasing order.

        The same whatever points come together, and on any number of threads: float32 nominates, and
        what lies within its rounding error of the k-th place is decided in float64.
        """
        nearest = np.empty((len(points), k), np.int64)
        step = max(1, _SCORE_BYTES // (4 * max(self.centroids.shape)))
        for start in range(0, len(points), step):
            block = points[start : start + step]
            scores = block @ self.centroids.T
            scores *= self.inverse_norms
            if k == 1:  # quicker than a partition, and every row that is coded comes this way
                top = scores.argmax(axis=1)[:, None]
            else:
                top = np.sort(np.argpartition(scores, -k, axis=1)[:, -k:], axis=1)
            floor = np.take_along_axis(scores, top, axis=1).min(axis=1)
            floor -= rounding_error(points.shape[1]) * row_norms(block)
            # Most points have as many within rounding as were asked for: those are decided.
            is_open = np.count_nonzero(scores >= floor[:, None], axis=1) > k
            nearest[start : start + step] = top
            if is_open.any():
                point_of, number = np.nonzero(scores[is_open] >= floor[is_open, None])
                best = self.best(block[is_open], point_of, number, k)
                nearest[start : start + step][is_open] = best
        return nearest

    def best(
        self, points: np.ndarray, point_of: np.ndarray, number: np.ndarray, k: int
    ) -> np.ndarray:
        """Return the best ``k`` of the nominated numbers of each point, in increasing order."""
        exact = pair_scores(points, self.centroids, point_of, number)
        best = best_per_query(point_of, number, exact, len(points), k)[0]
        ordered: np.ndarray = np.sort(best, axis=1)
        return ordered


class _OnGpu:
    """Finds directions as `_Directions` does, with a GPU to nominate; the same lists come out."""

    def __init__(self, directions: _Directions) -> None:
        self._directions = directions
        self._holder = GpuDirections(
            directions.centroids * directions.inverse_norms[:, None].astype(np.float32)
        )

    def nearest(self, points: np.ndarray, k: int) -> np.ndarray:
        """Return the ``k`` nearest in direction of each point; see `_Directions.nearest`."""
        n_nominees = min(len(self._directions.centroids), k + _SPARE_NOMINEES)
        nearest = np.empty((len(points), k), np.int64)
        for start in range(0, len(points), _POINT_BLOCK):
            block = points[start : start + _POINT_BLOCK]
            nominees = self._holder.nearest(block, n_nominees)
            point_of = np.repeat(np.arange(len(block)), n_nominees)
            found = self._directions.best(block, point_of, nominees.reshape(-1), k)
            nearest[start : start + len(block)] = found
        return nearest


class _Walk:
    """Finds directions by a graph over their codes; what `_Directions` does, nearly."""

    def __init__(self, directions: _Directions, graph: CodeGraph | None = None) -> None:
        self._directions = directions
        width = directions.centroids.shape[1]
        # Coordinates of unit vectors, after the rotation: hardly one is beyond five deviations.
        self._high = 5 / np.sqrt(width)
        if graph is None:
            linker = GraphLinker(width, len(directions.centroids))
            for start in range(0, len(directions.centroids), _POINT_BLOCK):
                piece = slice(start, start + _POINT_BLOCK)
                linker.add(self._encode(directions.centroids[piece]))
            graph = linker.finish()
        self.graph = graph

    def nearest(self, points: np.ndarray, k: int) -> np.ndarray:
        """Return nearly the ``k`` nearest of each point; see `_Directions.nearest`."""
        n_nominees = min(len(self.graph), max(_NOMINEES, 2 * k))
        breadth = max(_ROUTE_BREADTH, 2 * n_nominees)
        nearest = np.empty((len(points), k), np.int64)
        for start in range(0, len(points), _POINT_BLOCK):
            block = points[start : start + _POINT_BLOCK]
            nominees = self._nominate(block, n_nominees, breadth)
            is_short = (nominees >= 0).sum(axis=1) < k
            if is_short.any():  # links led to too few: all are compared
                nominees[is_short] = self._nominate(block[is_short], n_nominees, len(self.graph))
            point_of, place = np.nonzero(nominees >= 0)
            found = self._directions.best(block, point_of, nominees[point_of, place], k)
            nearest[start : start + len(block)] = found
        return nearest

    def _nominate(self, points: np.ndarray, k: int, breadth: int) -> np.ndarray:
        nodes: np.ndarray = self.graph.nearest(self._encode(points), k, breadth)[1]
        return nodes

    def _encode(self, points: np.ndarray) -> np.ndarray:
        return encode_eight_bits(points / row_norms(points)[:, None], -self._high, self._high)


def _finder(centroids: np.ndarray) -> _Directions | _OnGpu | _Walk:
    """Return what finds the nearest of few directions, or of many."""
    directions = _Directions.of(centroids)
    if len(centroids) > costs.MOST_COMPARED_LISTS:
        return _Walk(directions)
    return _OnGpu(directions) if len(centroids) and has_gpu() else directions


class Quantizer:
    """What turns vectors into list numbers and codes.

    Parameters
    ----------
    mean : ndarray of shape (width,), float32
    signs : ndarray of shape (N_PASSES, window), int8
        The rotation.
    centroids : ndarray of shape (n_lists, width), float32
        Centered and rotated; copied into FAISS's holder. An index without lists has none.
    low, high : float
        Range of the coordinates of transformed vectors, for codes of eight bits.
    graph : CodeGraph or None
        Over the centroids, where they are many; None: linked here if it takes one.

    Attributes
    ----------
    coarse : faiss.IndexFlatL2
        FAISS's holder of the centroids, of which ``centroids`` is a view.
    """

    def __init__(
        self,
        mean: np.ndarray,
        signs: np.ndarray,
        centroids: np.ndarray,
        low: float,
        high: float,
        graph: CodeGraph | None = None,
    ) -> None:
        self.mean, self.signs, self.low, self.high = mean, signs, low, high
        self.coarse, self.centroids = make_coarse(centroids)
        if graph is None:
            self._finder = _finder(self.centroids)
        else:
            self._finder = _Walk(_Directions.of(self.centroids), graph)

    @property
    def n_lists(self) -> int:
        """How many lists there are."""
        return len(self.centroids)

    @property
    def graph(self) -> CodeGraph | None:
        """The graph over the centroids, where they are many."""
        return self._finder.graph if isinstance(self._finder, _Walk) else None

    def transform(self, unit: np.ndarray) -> np.ndarray:
        """Return unit vectors (n, width) centered and rotated, float32."""
        centered = np.empty_like(unit)

        def center(start: int, stop: int) -> None:
            np.subtract(unit[start:stop], self.mean, out=centered[start:stop])

        in_threads(center, len(unit), _CENTER_ROWS)
        return rotate(centered, self.signs)

    def route(self, transformed: np.ndarray, n_probe: int) -> np.ndarray:
        """Return the ``n_probe`` lists nearest in direction, in increasing order.

        The same whatever points come together, and on any number of threads.

        Parameters
        ----------
        transformed : ndarray of shape (n, width), float32
            From `transform`.
        n_probe : int

        Returns
        -------
        lists : ndarray of shape (n, n_probe), int64
        """
        return self._finder.nearest(transformed, n_probe)

    def probe_code(self) -> bytes:
        """Return the one-bit code of a fixed vector: sign bits, then two float32 factors."""
        vector = rotate(np.linspace(-1, 1, len(self.mean), dtype=np.float32)[None], self.signs)
        coarse, _ = make_coarse(self.mean[None])
        return encode(make_coder(coarse, 1), self.mean + vector, np.zeros(1, np.int64)).tobytes()


def train_quantizer(unit: np.ndarray, n_lists: int, seed: int) -> Quantizer:
    """Learn mean and centroids from a sample; the same bytes on any number of threads.

    Parameters
    ----------
    unit : ndarray of shape (n, width), float32, unit rows
        At least ``n_lists`` of them; overwritten.
    n_lists : int
        0: mean and range alone.
    seed : int
    """
    mean = unit.mean(axis=0, dtype=np.float64).astype(np.float32)
    signs = draw_signs(unit.shape[1], seed)
    unit -= mean
    points = rotate(unit, signs)
    low, high = float(points.min()), float(points.max())
    centroids = _k_means(points, n_lists, seed) if n_lists else points[:0]
    return Quantizer(mean, signs, centroids, low, high)


def _k_means(points: np.ndarray, k: int, seed: int) -> np.ndarray:
    """Return ``k`` centroids by direction."""
    most_stride = max(1, len(points) // (_FEWEST_POINTS_PER_CENTROID * k))
    turns = [min(stride, most_stride) for stride, n_turns in _TURNS for _ in range(n_turns)]
    rng = np.random.default_rng(seed)
    n_first = len(points[:: turns[0]])
    centroids = points[:: turns[0]][np.sort(rng.choice(n_first, k, replace=False))]
    for stride in track(turns, label="train", total=len(turns), unit="turn"):
        chosen = points[::stride]
        centroids = _means(chosen, _finder(centroids).nearest(chosen, 1)[:, 0], k)
    return centroids


def _means(points: np.ndarray, lists: np.ndarray, n_lists: int) -> np.ndarray:
    """Return the mean of each list's points; an empty list takes a point far from its centroid."""
    order = np.argsort(lists, kind="stable")
    bounds = np.searchsorted(lists[order], np.arange(n_lists + 1))
    means = np.empty((n_lists, points.shape[1]), np.float32)
    for number in range(n_lists):
        members = order[bounds[number] : bounds[number + 1]]
        if len(members):
            means[number] = points[members].mean(axis=0, dtype=np.float64)
    empty = np.flatnonzero(np.diff(bounds) == 0)
    if len(empty):
        misfit = np.empty(len(points), np.float32)
        for start in range(0, len(points), _POINT_BLOCK):
            piece = slice(start, start + _POINT_BLOCK)
            misfit[piece] = row_norms(points[piece] - means[lists[piece]])
        means[empty] = points[np.argsort(-misfit, kind="stable")[: len(empty)]]
    return means


def save_quantizer(quantizer: Quantizer, folder: Path, build_fingerprint: str) -> None:
    """Write the arrays of a quantizer and then its record."""
    files = [f"{name}.npy" for name in _ARRAYS]
    if quantizer.graph is not None:
        files += quantizer.graph.save(folder)
    for name in _ARRAYS:
        save_array(folder / f"{name}.npy", getattr(quantizer, name))
    write_manifest(
        folder,
        RECORD_FILE,
        kind=KIND,
        format_version=FORMAT_VERSION,
        command="voxseek index build",
        files=files,
        body={
            "build_fingerprint": build_fingerprint,
            "faiss_version": faiss_version(),
            "probe_code": quantizer.probe_code().hex(),
            "low": quantizer.low,
            "high": quantizer.high,
        },
    )


def has_quantizer(folder: Path, build_fingerprint: str) -> bool:
    """Tell whether a quantizer stands, complete and unaltered, of the same build."""
    return is_complete(
        folder,
        RECORD_FILE,
        kind=KIND,
        format_version=FORMAT_VERSION,
        expected={"build_fingerprint": build_fingerprint},
    )


def load_quantizer(folder: Path) -> Quantizer:
    """Read a quantizer, after its checksums.

    Raises
    ------
    ArtefactError
        If a file is missing or differs from the record.
    IndexDamagedError
        If the graph over the centroids isn't one of them.
    FaissVersionError
        If the installed FAISS encodes a fixed vector otherwise than the one that built the index.
    """
    record = read_manifest(folder, RECORD_FILE, kind=KIND, format_version=FORMAT_VERSION)
    verify_files(folder, record)
    # Mapped: FAISS's holder is the one copy of the centroids.
    mean, signs, centroids = (
        np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in _ARRAYS
    )
    has_graph = code_graph.CODES_FILE in record["files"]
    graph = CodeGraph.load(folder, len(mean)) if has_graph else None
    if graph is not None and len(graph) != len(centroids):
        raise IndexDamagedError(
            f"{folder} has a graph of {len(graph)} nodes, and there are {len(centroids)} "
            f"centroids, expected one each. Restore the quantizer or build the index again."
        )
    quantizer = Quantizer(
        np.array(mean),
        np.array(signs),
        centroids,
        record["low"],
        record["high"],
        graph,
    )
    if not _agree(quantizer.probe_code(), bytes.fromhex(record["probe_code"])):
        raise FaissVersionError(
            f"FAISS {faiss_version()} encodes a fixed vector otherwise than FAISS "
            f"{record['faiss_version']}, which built {folder.parent}. "
            f"Install that version, or build the index again."
        )
    return quantizer


def _agree(code: bytes, recorded: bytes) -> bool:
    """Compare codes; their factors may differ in the last bits between processors."""
    if len(code) != len(recorded) or code[:-8] != recorded[:-8]:
        return False
    return np.allclose(np.frombuffer(code[-8:], "<f4"), np.frombuffer(recorded[-8:], "<f4"), 1e-4)
