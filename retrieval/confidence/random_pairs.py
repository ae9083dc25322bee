"""Cosines of queries with random rows of the gallery: what a score is worth by chance.

The rows are a seeded sample in which every part of the gallery has its share, held in memory. A
query's cosines with them give their mean and deviation, and a percentile to each of its hits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from index_builder.cosine import has_direction, unit_rows
from index_builder.embeddings.float16 import to_float32
from index_builder.sampling import sample_rows

from ..errors import ConfidenceError
from ..searching.engine import SearchEngine

N_ROWS = 2000
MEMORY_BYTES = 256 << 20
_FEWEST_ROWS = 20  # a percentile then comes in steps of 5
_BYTES_A_NUMBER = 16  # in float64, and while it is read as stored and in float32
_BLOCK_QUERIES = 256


@dataclass(frozen=True)
class Comparison:
    """Queries and their hits beside random pairs.

    Parameters
    ----------
    mean, deviation : ndarray of shape (n,), float64
        Of each query's cosines with the random rows.
    percentiles : ndarray of shape (n, k), float32, from 0 to below 100
        Share of the random rows that score lower than the hit; NaN where there is no hit.
    """

    mean: np.ndarray
    deviation: np.ndarray
    percentiles: np.ndarray


class RandomPairs:
    """A sample of the rows that a search can find; made by `draw`.

    Attributes
    ----------
    n_drawn, seed : int
        They draw the same rows from the same index again.
    n_rows : int
        Rows held: those drawn that aren't deleted and have a direction.
    """

    def __init__(self, unit: np.ndarray, *, n_drawn: int, seed: int) -> None:
        self._columns = np.ascontiguousarray(unit.T)
        self.n_drawn, self.seed = n_drawn, seed
        self.n_rows = len(unit)

    @classmethod
    def draw(cls, engine: SearchEngine, *, n_drawn: int, seed: int) -> RandomPairs:
        """Read a seeded sample of the gallery.

        Parameters
        ----------
        engine : SearchEngine
        n_drawn : int
            Rows to draw; fewer are drawn of a smaller gallery. See `rows_within` for what memory
            they take.
        seed : int

        Raises
        ------
        ConfidenceError
            If fewer than twenty rows remain.
        """
        width = engine.space.width
        n_drawn = min(n_drawn, engine.n_rows)
        rows = sample_rows(engine.embeddings.part_rows, n_drawn, seed)
        rows = rows[~np.isin(rows, engine.deleted)]
        vectors = to_float32(engine.embeddings.take(rows).reshape(len(rows), width))
        vectors = vectors[has_direction(vectors)]
        if len(vectors) < _FEWEST_ROWS:
            raise ConfidenceError(
                f"{n_drawn} rows of {engine.path} were drawn as random pairs and {len(vectors)} of "
                f"them can be found, expected at least {_FEWEST_ROWS}. Draw more, or use an index "
                f"with more rows."
            )
        return cls(_unit(vectors), n_drawn=n_drawn, seed=seed)

    def compare(self, queries: np.ndarray, scores: np.ndarray) -> Comparison:
        """Compare queries, and the scores of their hits, with random pairs.

        Parameters
        ----------
        queries : ndarray of shape (n, width) or (n, tokens, dim), any float
            Of any norm but zero.
        scores : ndarray of shape (n, k), float32
            Cosines of their hits; NaN where there is none.

        Notes
        -----
        What a percentile lacks to 100, as a share, is the Monte Carlo p-value (1 + b) / (n + 1),
        where b of the n random rows score as high as the hit or higher: Davison & Hinkley 1997,
        "Bootstrap methods and their application", section 4.2.1. It is never 0, so no percentile is
        100; they come in steps of 100 / (n + 1).

        Cosines are summed in float64 and rounded to float32, as those of hits are, so that they
        don't depend on how queries were cut into batches.
        """
        mean, deviation = np.empty(len(queries)), np.empty(len(queries))
        percentiles = np.empty(scores.shape, np.float32)
        for start in range(0, len(queries), _BLOCK_QUERIES):
            piece = slice(start, start + _BLOCK_QUERIES)
            cosines = (_unit(unit_rows(queries[piece])) @ self._columns).astype(np.float32)
            cosines.sort(axis=1)
            mean[piece] = cosines.mean(axis=1, dtype=np.float64)
            deviation[piece] = cosines.std(axis=1, dtype=np.float64)
            n_lower = [
                np.searchsorted(of_query, hits)
                for of_query, hits in zip(cosines, scores[piece], strict=True)
            ]
            percentiles[piece] = 100 * np.stack(n_lower) / (self.n_rows + 1)
        percentiles[np.isnan(scores)] = np.nan
        return Comparison(mean, deviation, percentiles)


def rows_within(memory_bytes: int, width: int) -> int:
    """Return how many random rows of ``width`` numbers can be read and held in some memory."""
    return memory_bytes // (_BYTES_A_NUMBER * width)


def _unit(rows: np.ndarray) -> np.ndarray:
    """Return rows (n, width), float32 with a direction, at unit norm in float64."""
    widened = rows.astype(np.float64)
    widened /= np.sqrt(np.einsum("ij,ij->i", widened, widened))[:, None]
    return widened
