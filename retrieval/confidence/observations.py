"""Observations: what a search shows of queries, and whether it was right, where that is known.

A search is right when its first hit shows the image that was seen: the query's ``image_id`` is that
of the hit. If the gallery doesn't hold that image, no search can be right, and that is counted as
wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc

from index_builder.cosine import rounding_error
from index_builder.embeddings.reader import EmbeddingFolder

from ..errors import ConfidenceError
from ..searching.engine import BATCH_QUERIES, SearchEngine
from ..searching.queries import QuerySet
from ..searching.request import SearchRequest
from ..searching.result import SearchResult
from .random_pairs import Comparison, RandomPairs

FEATURES = ("score", "margin", "deviations", "log_trials")
FEWEST_IMAGES = 20
_BATCH_ROWS = 1 << 16


@dataclass(frozen=True)
class Observations:
    """Queries whose seen image is known, and what a search shows of them.

    Parameters
    ----------
    features : ndarray of shape (n, 4), float64
        See `observe_features`.
    n_trials : ndarray of shape (n,), int64, or None
        Trials averaged into each query; None where it is not known.
    is_right : ndarray of shape (n,), bool
        Whether the first hit shows the seen image.
    images : ndarray of shape (n,), int64
        Position of each query's image among the ``n_images`` of them.
    n_images : int
    n_unknown : int
        Queries left out, for their ``image_id`` is empty.
    n_absent : int
        Queries, among the n, whose image the gallery doesn't hold: wrong, whatever is found.
    """

    features: np.ndarray
    n_trials: np.ndarray | None
    is_right: np.ndarray
    images: np.ndarray
    n_images: int
    n_unknown: int
    n_absent: int

    @property
    def n_queries(self) -> int:
        """Queries whose seen image is known."""
        return len(self.is_right)

    @property
    def rate(self) -> float:
        """Share of them that were right."""
        return float(self.is_right.mean())

    def counts(self) -> dict[str, int]:
        """Return how many queries there are of each kind."""
        return {
            "n_queries": self.n_queries,
            "n_images": self.n_images,
            "n_right": int(np.count_nonzero(self.is_right)),
            "n_unknown": self.n_unknown,
            "n_absent": self.n_absent,
        }


def observe_features(
    result: SearchResult, comparison: Comparison, n_trials: np.ndarray, width: int
) -> np.ndarray:
    """Return what a search shows of each query.

    Parameters
    ----------
    result : SearchResult
        Of at least two hits a query.
    comparison : Comparison
        Of the same queries.
    n_trials : ndarray of shape (n,), int64
        Trials averaged into each query; the same for all where it isn't known.
    width : int
        Numbers a vector has.

    Returns
    -------
    features : ndarray of shape (n, 4), float64
        Score of the first hit; its margin over the second; its distance from the mean of the
        query's random pairs in their standard deviations; the logarithm of the number of trials.
        NaN where there are fewer than two hits.

    Raises
    ------
    ConfidenceError
        If one hit a query was asked for.
    """
    if result.scores.shape[1] < 2:
        raise ConfidenceError(
            "one hit a query was searched for, and the margin over the second is what confidence "
            "rests on. Search with k of at least 2."
        )
    first, second = result.scores[:, :2].astype(np.float64).T
    deviation = np.maximum(comparison.deviation, rounding_error(width))
    deviations = (first - comparison.mean) / deviation
    features = np.column_stack([first, first - second, deviations, np.log(n_trials)])
    features[np.isnan(second)] = np.nan
    return features


def observe(
    engine: SearchEngine,
    queries: QuerySet,
    random_pairs: RandomPairs,
    *,
    batch_queries: int = BATCH_QUERIES,
) -> Observations:
    """Search for queries whose seen image is known, and see what is first.

    Parameters
    ----------
    engine : SearchEngine
    queries : QuerySet
        With the column ``image_id``.
    random_pairs : RandomPairs
        Of this engine.
    batch_queries : int
        Queries at a time; it bounds the memory.

    Raises
    ------
    ConfidenceError
        If either side has no ``image_id``, numbers of trials are empty or below 1, fewer than
        twenty images were seen, none of them is in the gallery, or a query has fewer than two hits.
    SpaceMismatchError
        If the queries are of another space than the index.
    """
    engine.require_comparable(queries)
    if "image_id" not in engine.columns:
        raise ConfidenceError(
            f"{engine.path} has no metadata column image_id (it has "
            f"{', '.join(engine.columns) or 'none at all'}), so it can't be told whether a hit is "
            f"the image that was seen. Build the index from embeddings that voxseek embed wrote, "
            f"or add the column to theirs."
        )
    seen = _integers(query_column(queries, "image_id"), queries.label)
    is_known = seen.is_valid().to_numpy(zero_copy_only=False)
    n_trials = read_trials(queries)
    trials = np.ones(queries.n_queries, np.int64) if n_trials is None else n_trials
    found, features = [], []
    start = 0
    for batch in queries.iter_batches(batch_queries=batch_queries):
        result = engine.search(batch, SearchRequest(), batch_queries=batch_queries)
        comparison = random_pairs.compare(batch, result.scores)
        piece = slice(start, start + len(batch))
        features.append(observe_features(result, comparison, trials[piece], engine.space.width))
        _require_two_hits(features[-1], is_known[piece], start, queries.label)
        hits = engine.metadata(np.maximum(result.rows[:, 0], 0), ["image_id"])["image_id"]
        found.append(_equal(seen.slice(start, len(batch)), _integers(hits, engine.path)))
        start += len(batch)
    is_right = np.concatenate(found)[is_known]
    image_ids, images = np.unique(seen.drop_null().to_numpy(), return_inverse=True)
    if len(image_ids) < FEWEST_IMAGES:
        raise ConfidenceError(
            f"{queries.label} knows which image was seen of {len(image_ids)} images, expected at "
            f"least {FEWEST_IMAGES}: fewer say too little of how often a search is right. Predict "
            f"a larger split."
        )
    is_held = np.zeros(len(image_ids), bool)
    is_held[np.unique(images[is_right])] = True
    is_held[~is_held] = images_held(engine, image_ids[~is_held])
    if not is_held.any():
        raise ConfidenceError(
            f"{engine.path} holds none of the {len(image_ids)} images that {queries.label} names "
            f"by image_id, so no first hit can be right. Use an index of a gallery in which the "
            f"seen images are: index merge puts several into one."
        )
    return Observations(
        features=np.concatenate(features)[is_known],
        n_trials=None if n_trials is None else n_trials[is_known],
        is_right=is_right,
        images=images.astype(np.int64),
        n_images=len(image_ids),
        n_unknown=int(np.count_nonzero(~is_known)),
        n_absent=int(np.count_nonzero(~is_held[images])),
    )


def require_split(queries: QuerySet, expected: str, why: str) -> None:
    """Raise unless every query says that it is of one split.

    Parameters
    ----------
    queries : QuerySet
    expected : {"validation", "test"}
    why : str
        A sentence for the message.

    Raises
    ------
    ConfidenceError
        If the column ``split`` is missing, or says something else.
    """
    found = sorted(map(str, query_column(queries, "split").unique().to_pylist()))
    if found != [expected]:
        raise ConfidenceError(
            f"{queries.label} is of the split {' and '.join(found)}, expected {expected}. {why} "
            f"Predict again with --split {expected}."
        )


def read_trials(queries: QuerySet) -> np.ndarray | None:
    """Return how many trials were averaged into each query: int64, (n,), or None if unknown.

    Raises
    ------
    ConfidenceError
        If the column ``n_trials`` holds anything but integers of at least 1.
    """
    if "n_trials" not in queries.columns:
        return None
    column = _integers(query_column(queries, "n_trials"), queries.label, "n_trials")
    least = None if column.null_count else pc.min(column).as_py()
    if least is None or least < 1:
        raise ConfidenceError(
            f"the column n_trials of {queries.label} has {column.null_count} empty values, and its "
            f"least is {pc.min(column).as_py()}; expected at least 1 in each row. Write the column "
            f"anew, or leave it out."
        )
    return np.asarray(column.to_numpy(), np.int64)


def decoder_of(queries: QuerySet) -> dict[str, Any]:
    """Return the run, by fingerprint, and the head that predicted the queries; empty if unknown.

    It is of an npy file, of words, pictures and mixtures.
    """
    if not isinstance(queries.source, EmbeddingFolder):
        return {}
    details = queries.source.details
    return {name: details[name] for name in ("run", "head") if name in details}


def query_column(queries: QuerySet, name: str) -> Any:
    """Return a metadata column of all queries, as a `pyarrow.ChunkedArray`.

    Raises
    ------
    ConfidenceError
        If there is no such column.
    """
    if name not in queries.columns:
        raise ConfidenceError(
            f"{queries.label} has no metadata column {name} (it has "
            f"{', '.join(queries.columns) or 'none at all'}), expected one as voxseek predict "
            f"writes it. Predict into an embedding folder, or add the column."
        )
    return queries.metadata(np.arange(queries.n_queries), [name])[name]


def images_held(engine: SearchEngine, image_ids: np.ndarray) -> np.ndarray:
    """Tell which images the gallery has a row of that isn't deleted: bool, (n,).

    Parameters
    ----------
    engine : SearchEngine
        With the column ``image_id``, which is read from the first row to the last, in bounded
        memory.
    image_ids : ndarray of shape (n,), int64, rising
    """
    is_held = np.zeros(len(image_ids), bool)
    for start in range(0, engine.n_rows if len(image_ids) else 0, _BATCH_ROWS):
        stop = min(start + _BATCH_ROWS, engine.n_rows)
        first, end = np.searchsorted(engine.deleted, [start, stop])
        rows = np.setdiff1d(np.arange(start, stop), engine.deleted[first:end])
        here = engine.metadata(rows, ["image_id"])["image_id"].drop_null()
        is_held |= np.isin(image_ids, here.to_numpy())
    return is_held


def _equal(left: Any, right: Any) -> np.ndarray:
    """Compare two columns of integers; what is empty equals nothing."""
    equal: np.ndarray = pc.fill_null(pc.equal(left, right), False).to_numpy()
    return equal


def _integers(column: Any, where: str, name: str = "image_id") -> Any:
    if not str(column.type).removeprefix("u").startswith("int"):
        raise ConfidenceError(
            f"the column {name} of {where} holds {column.type}, expected integers. Write it anew."
        )
    return column


def _require_two_hits(features: np.ndarray, is_known: np.ndarray, start: int, label: str) -> None:
    is_lacking = np.isnan(features).any(axis=1) & is_known
    if is_lacking.any():
        raise ConfidenceError(
            f"query {start + int(np.argmax(is_lacking))} of {label} has fewer than two hits, "
            f"expected a first and a second to compare. Use an index with more rows that a search "
            f"may find."
        )
