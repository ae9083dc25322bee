"""The quantizer that all shards share: mean, rotation, and the centroids of the lists.

A unit vector x becomes y = R (x - mean). Distances between vectors are the same before and after,
so the codes stay codes of x. Lists are chosen by the direction of y: k-means over directions
(spherical k-means, each vector weighted by its norm) around the mean. CLIP embeddings fill a narrow
cone (Liang et al. 2022, arXiv:2203.02053), and what a decoder predicts from a brain is drawn to its
axis; taken from the mean, both point to the same lists.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .cosine import best_per_query, kth_largest, pair_scores, rounding_error, row_norms
from .embeddings.artefact import atomic_write, read_manifest, verify_files, write_manifest
from .embeddings.progress import track
from .errors import FaissVersionError
from .factory import encode, faiss_version, make_coarse, make_lists
from .rotation import draw_signs, rotate

QUANTIZER_FOLDER = "quantizer"
RECORD_FILE = "quantizer.json"
KIND = "quantizer"
FORMAT_VERSION = 1
_FILES = ("mean.npy", "signs.npy", "centroids.npy")
_N_ITERATIONS = 10  # as FAISS trains its lists (Level1Quantizer)
_SCORE_BYTES = 32 << 20  # of points against all centroids
_POINT_BLOCK = 8192


@dataclass(frozen=True)
class Quantizer:
    """What turns vectors into list numbers and codes.

    Parameters
    ----------
    mean : ndarray of shape (width,), float32
    signs : ndarray of shape (N_PASSES, window), int8
        The rotation.
    centroids : ndarray of shape (n_lists, width), float32
        Centered and rotated. A view of ``coarse``'s memory.
    norms : ndarray of shape (n_lists,), float32
        Of the centroids.
    coarse : faiss.IndexFlatL2
    """

    mean: np.ndarray
    signs: np.ndarray
    centroids: np.ndarray
    norms: np.ndarray
    coarse: Any

    @classmethod
    def of(cls, mean: np.ndarray, signs: np.ndarray, centroids: np.ndarray) -> Quantizer:
        """Make a quantizer from its arrays; the centroids are copied into FAISS's holder."""
        coarse, view = make_coarse(centroids)
        return cls(mean, signs, view, row_norms(view), coarse)

    @property
    def n_lists(self) -> int:
        """How many lists there are."""
        return len(self.centroids)

    def transform(self, unit: np.ndarray) -> np.ndarray:
        """Return unit vectors (n, width) centered and rotated, float32."""
        return rotate(unit - self.mean, self.signs)

    def route(self, transformed: np.ndarray, n_probe: int) -> np.ndarray:
        """Return the ``n_probe`` lists nearest in direction, in increasing order.

        Parameters
        ----------
        transformed : ndarray of shape (n, width), float32
            From `transform`.
        n_probe : int

        Returns
        -------
        lists : ndarray of shape (n, n_probe), int64
        """
        lists = np.empty((len(transformed), n_probe), np.int64)
        inverse_norms = 1 / self.norms
        step = max(1, _SCORE_BYTES // (4 * self.n_lists))
        for start in range(0, len(transformed), step):
            points = transformed[start : start + step]
            scores = (points / row_norms(points)[:, None]) @ self.centroids.T
            scores *= inverse_norms
            floor = kth_largest(scores, n_probe) - rounding_error(points.shape[1])
            is_near = scores >= floor[:, None]
            # Most points have as many lists within rounding as were asked for: those are decided.
            is_decided = is_near.sum(axis=1) == n_probe
            chosen = lists[start : start + step]
            chosen[is_decided] = np.nonzero(is_near[is_decided])[1].reshape(-1, n_probe)
            point_of, list_of = np.nonzero(is_near[~is_decided])
            exact = pair_scores(points[~is_decided], self.centroids, point_of, list_of)
            n_open = len(points) - int(is_decided.sum())
            best = best_per_query(point_of, list_of, exact, n_open, n_probe)[0]
            chosen[~is_decided] = np.sort(best, axis=1)
        return lists

    def probe_code(self) -> bytes:
        """Return the code of a fixed vector: sign bits, then two float32 factors."""
        vector = rotate(np.linspace(-1, 1, len(self.mean), dtype=np.float32)[None], self.signs)
        code = encode(make_lists(self.coarse), self.centroids[:1] + vector, np.zeros(1, np.int64))
        return code.tobytes()


def train_quantizer(unit: np.ndarray, n_lists: int, seed: int) -> Quantizer:
    """Learn mean and centroids from a sample; the same bytes on any number of threads.

    Parameters
    ----------
    unit : ndarray of shape (n, width), float32, unit rows
        At least ``n_lists`` of them.
    n_lists : int
    seed : int
    """
    mean = unit.mean(axis=0, dtype=np.float64).astype(np.float32)
    signs = draw_signs(unit.shape[1], seed)
    points = rotate(unit - mean, signs)
    start = np.random.default_rng(seed).choice(len(points), n_lists, replace=False)
    quantizer = Quantizer.of(mean, signs, points[np.sort(start)])
    lists = np.full(len(points), -1)
    for _ in track(range(_N_ITERATIONS), label="train", total=_N_ITERATIONS, unit="iteration"):
        previous, lists = lists, quantizer.route(points, 1)[:, 0]
        if np.array_equal(lists, previous):
            break
        quantizer = Quantizer.of(mean, signs, _means(points, lists, n_lists))
    return quantizer


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
    arrays: Iterable[np.ndarray] = (quantizer.mean, quantizer.signs, quantizer.centroids)
    for name, array in zip(_FILES, arrays, strict=True):
        with atomic_write(folder / name) as temporary, open(temporary, "wb") as handle:
            np.save(handle, array, allow_pickle=False)
    write_manifest(
        folder,
        RECORD_FILE,
        kind=KIND,
        format_version=FORMAT_VERSION,
        command="voxseek index build",
        files=_FILES,
        body={
            "build_fingerprint": build_fingerprint,
            "faiss_version": faiss_version(),
            "probe_code": quantizer.probe_code().hex(),
        },
    )


def read_quantizer_record(folder: Path) -> dict[str, Any]:
    """Read the record of a finished quantizer."""
    return read_manifest(folder, RECORD_FILE, kind=KIND, format_version=FORMAT_VERSION)


def load_quantizer(folder: Path) -> Quantizer:
    """Read a quantizer, after its checksums.

    Raises
    ------
    ArtefactError
        If a file is missing or differs from the record.
    FaissVersionError
        If the installed FAISS encodes a fixed vector otherwise than the one that built the index.
    """
    record = read_quantizer_record(folder)
    verify_files(folder, record)
    quantizer = Quantizer.of(*(np.load(folder / name, allow_pickle=False) for name in _FILES))
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
