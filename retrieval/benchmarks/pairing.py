"""Which prediction belongs to which target, and the cosines between them, tile by tile."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from index_builder.embeddings.errors import BadRowError
from index_builder.embeddings.float16 import to_float32
from index_builder.embeddings.progress import track
from index_builder.embeddings.reader import EmbeddingFolder

from ..errors import BenchmarkError
from .identification import FloatArray, IntArray

# Products are summed in float32 over this many dimensions and then in float64: the speed of float32
# with an error of a cosine near 2e-7, whatever the width. Images whose cosines differ by less than
# the tolerance can't be told from copies of each other.
_N_SUMMED_DIMS = 256
TIE_TOLERANCE = 1e-6
_N_NAMED = 5
UnitRows = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Pairing:
    """Rows of two embedding folders that show the same images, joined by ``image_id``.

    Parameters
    ----------
    image_ids : int64 array of shape (n_images,), ascending
        The pool: every image that was predicted.
    target_rows : int64 array of shape (n_images,)
        Each image's row of the target folder.
    prediction_rows : int64 array of shape (n_queries,)
        Rows of the prediction folder, by image and then by trial.
    query_images : int64 array of shape (n_queries,)
        Position in ``image_ids`` of each query's image.
    """

    image_ids: IntArray
    target_rows: IntArray
    prediction_rows: IntArray
    query_images: IntArray

    @property
    def is_single_trial(self) -> bool:
        """Whether an image has more than one query."""
        return len(self.query_images) > len(self.image_ids)


def pair_by_image(predictions: EmbeddingFolder, targets: EmbeddingFolder) -> Pairing:
    """Join predictions and targets by ``image_id``; targets that no prediction names are left out.

    Raises
    ------
    SpaceMismatchError
        If the two folders hold embeddings of different spaces.
    BenchmarkError
        If a folder has no ``image_id`` column, there are no predictions, a predicted image has no
        target or several, or has several predictions that no ``trial`` column tells apart.
    """
    predictions.space.require_comparable(
        targets.space, mine=f"predictions {predictions.path}", theirs=f"targets {targets.path}"
    )
    predicted_ids = _column(predictions, "image_id")
    if not len(predicted_ids):
        raise BenchmarkError(f"{predictions.path} has no rows; expected one an image or trial.")
    order = np.argsort(predicted_ids, kind="stable")
    if "trial" in predictions.columns:
        trials = _column(predictions, "trial")
        order = np.lexsort((trials, predicted_ids))
        same = (np.diff(predicted_ids[order]) == 0) & (np.diff(trials[order]) == 0)
        repeated = np.unique(predicted_ids[order][1:][same])
        if len(repeated):
            raise BenchmarkError(
                f"{_name_images(repeated)} predicted twice from the same trial in "
                f"{predictions.path}; expected each trial once. Predict again."
            )
    image_ids, query_images, n_queries = np.unique(
        predicted_ids[order], return_inverse=True, return_counts=True
    )
    repeated = image_ids[n_queries > 1]
    if len(repeated) and "trial" not in predictions.columns:
        raise BenchmarkError(
            f"{_name_images(repeated)} predicted more than once in {predictions.path}, which has "
            f"no column 'trial' that would tell single trials apart; expected one prediction an "
            f"image. Predict again for one subject and split, averaged or with single trials."
        )
    return Pairing(
        image_ids=image_ids,
        target_rows=_find_targets(targets, image_ids),
        prediction_rows=order.astype(np.int64),
        query_images=query_images.astype(np.int64),
    )


def _find_targets(targets: EmbeddingFolder, image_ids: IntArray) -> IntArray:
    """Return the row of each image in ``targets``."""
    target_ids = _column(targets, "image_id")
    order = np.argsort(target_ids, kind="stable")
    first = np.searchsorted(target_ids, image_ids, side="left", sorter=order)
    n_found = np.searchsorted(target_ids, image_ids, side="right", sorter=order) - first
    if (n_found == 0).any():
        raise BenchmarkError(
            f"{_name_images(image_ids[n_found == 0])} predicted but absent from {targets.path}; "
            f"expected a target for each prediction. Embed these images too (voxseek embed)."
        )
    if (n_found > 1).any():
        raise BenchmarkError(
            f"{_name_images(image_ids[n_found > 1])} in {targets.path} more than once; expected "
            f"one target an image, since the truth must be one row. Embed each image once."
        )
    return order[first].astype(np.int64)


def _column(folder: EmbeddingFolder, name: str) -> IntArray:
    if name not in folder.columns:
        raise BenchmarkError(
            f"{folder.path} has no metadata column {name!r}; found {sorted(folder.columns)}. "
            f"Identification joins both sides by image_id: use folders that voxseek embed and "
            f"voxseek predict wrote, or add the column."
        )
    column = folder.metadata(columns=[name]).column(name)
    if column.null_count:
        raise BenchmarkError(
            f"column {name!r} of {folder.path} has {column.null_count} empty values; expected an "
            f"integer in each row."
        )
    values = np.asarray(column.to_numpy())
    if not np.issubdtype(values.dtype, np.integer):
        raise BenchmarkError(
            f"column {name!r} of {folder.path} holds {column.type}, expected integers."
        )
    return values.astype(np.int64)


def _name_images(image_ids: IntArray) -> str:
    """Return ``image_id 3, 5 and 7 more are`` as the beginning of a sentence."""
    named = ", ".join(str(image_id) for image_id in image_ids[:_N_NAMED])
    if len(image_ids) > _N_NAMED:
        return f"image_id {named} and {len(image_ids) - _N_NAMED} more are"
    return f"image_id {named} {'is' if len(image_ids) == 1 else 'are'}"


class CosineTiles:
    """Cosines between paired predictions and targets, in tiles of bounded memory.

    Parameters
    ----------
    predictions, targets : EmbeddingFolder
    pairing : Pairing
    memory_bytes : int
        Strict limit for the embeddings and scores held at once; pages of files that the system maps
        come and go beside it.

    Attributes
    ----------
    true_scores : float64 array of shape (n_queries,)
        Cosine of each query with its own image.

    Raises
    ------
    BadRowError
        If an embedding holds NaN or infinity, or is zero.
    ValueError
        If ``memory_bytes`` is too small for one prediction and one target.
    """

    def __init__(
        self,
        predictions: EmbeddingFolder,
        targets: EmbeddingFolder,
        pairing: Pairing,
        *,
        memory_bytes: int,
    ) -> None:
        self._predictions = predictions
        self._targets = targets
        self._pairing = pairing
        self._n_rows = _rows_of_a_tile(predictions.space.width, memory_bytes)
        self.true_scores: FloatArray = np.empty(len(pairing.query_images))
        for queries in self._query_slices():
            brain = self._unit_predictions(queries)
            image = self._unit_targets(pairing.query_images[queries])
            self.true_scores[queries] = np.einsum("ij,ij->i", brain, image, dtype=np.float64)

    def __iter__(self) -> Iterator[tuple[int, int, FloatArray]]:
        """Yield query start, image start, and the cosines of the tile."""
        slices = self._query_slices()
        n_images = len(self._pairing.image_ids)
        for queries in track(slices, label="identify", total=len(slices), unit="query block"):
            brain = self._unit_predictions(queries)
            for start in range(0, n_images, self._n_rows):
                images = np.arange(start, min(start + self._n_rows, n_images))
                yield queries.start, start, _cosines(brain, self._unit_targets(images))

    def _query_slices(self) -> list[slice]:
        n_queries = len(self._pairing.query_images)
        starts = range(0, n_queries, self._n_rows)
        return [slice(start, min(start + self._n_rows, n_queries)) for start in starts]

    def _unit_predictions(self, queries: slice) -> UnitRows:
        rows = self._pairing.prediction_rows[queries]
        image_ids = self._pairing.image_ids[self._pairing.query_images[queries]]
        return _unit_rows(self._predictions, rows, image_ids)

    def _unit_targets(self, images: IntArray) -> UnitRows:
        return _unit_rows(
            self._targets, self._pairing.target_rows[images], self._pairing.image_ids[images]
        )


def _rows_of_a_tile(width: int, memory_bytes: int) -> int:
    """Return r such that 2 r embeddings and r x r scores, all with copies, fit into memory."""
    # 4 bytes as unit rows, at most 4 as stored; a score with its comparisons takes 32.
    bytes_per_row, bytes_per_score = 2 * width * 8, 32
    root = math.isqrt(bytes_per_row**2 + 4 * bytes_per_score * memory_bytes)
    n_rows = (root - bytes_per_row) // (2 * bytes_per_score)
    if n_rows < 1:
        raise ValueError(
            f"memory_bytes is {memory_bytes}, expected at least {bytes_per_row + bytes_per_score} "
            f"for one pair of embeddings of width {width}."
        )
    return n_rows


def _cosines(brain: UnitRows, image: UnitRows) -> FloatArray:
    """Return the inner products of unit rows, shape (n_queries, n_images)."""
    cosines: FloatArray = np.zeros((len(brain), len(image)))
    for start in range(0, brain.shape[1], _N_SUMMED_DIMS):
        dims = slice(start, start + _N_SUMMED_DIMS)
        cosines += brain[:, dims] @ image[:, dims].T
    return cosines


def _unit_rows(folder: EmbeddingFolder, rows: IntArray, image_ids: IntArray) -> UnitRows:
    """Return rows of a folder, flattened to (n, width) and divided by their norms."""
    embeddings = to_float32(folder.take(rows).reshape(len(rows), -1))
    norms = np.sqrt(np.einsum("ij,ij->i", embeddings, embeddings, dtype=np.float64))
    bad = ~np.isfinite(norms) | (norms == 0)
    if bad.any():
        first = int(np.flatnonzero(bad)[0])
        what = "a zero vector" if norms[first] == 0 else "NaN or infinite"
        raise BadRowError(
            f"row {rows[first]} of {folder.path} (image_id {image_ids[first]}) is {what}, expected "
            f"a finite embedding with a direction. Make that row again."
        )
    embeddings /= norms[:, None]
    return embeddings
