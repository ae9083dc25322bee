"""What an embedding folder holds: its facts, and the shape of its cloud by a bounded sample.

A set is known by a few numbers before it is indexed: whether norms are what the space says, how
narrow the cone is in which all rows lie, in how many dimensions they spread, and whether rows come
twice. Each of them decides something: codes, lists, thresholds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .reader import EmbeddingFolder

SAMPLE_ROWS = 8_192
ALIKE_FROM = 0.94  # cosine from which clip-retrieval takes two pictures for one
_SAMPLE_BYTES = 256 << 20  # as float32
_RUN_ROWS = 256  # taken together from parquet files, which give a row group for each row
_N_PAIRS = 100_000
_BLOCK_ROWS = 1_024
_SHARES = (0.5, 0.9, 0.99)
_SHORTEST = 1e-12


@dataclass(frozen=True)
class Cloud:
    """The shape of some rows.

    Parameters
    ----------
    n_rows : int
        That were looked at.
    n_not_finite : int
        With NaN or infinity; left out of all that follows.
    norms : ndarray of shape (n,), float64
        Of rows that are finite.
    pair_cosines : ndarray of shape (m,), float32
        Of random pairs of different rows; up to 100,000.
    mean_pair_cosine : float
        Over all pairs.
    mean_cosines : ndarray of shape (n,), float32
        Of each row with the mean of the unit rows.
    variances : ndarray of shape (r,), float64, falling
        Of the principal components of the unit rows; r is the smaller of width and rows.
    n_identical : int
        Rows that are, bit for bit, an earlier one.
    n_alike : int
        Rows that have another one at `ALIKE_FROM` or nearer.
    """

    n_rows: int
    n_not_finite: int
    norms: np.ndarray
    pair_cosines: np.ndarray
    mean_pair_cosine: float
    mean_cosines: np.ndarray
    variances: np.ndarray
    n_identical: int
    n_alike: int

    @property
    def explained(self) -> np.ndarray:
        """Share of the variance in the first 1, 2, ... principal components: (r,)."""
        total = self.variances.sum()
        shares: np.ndarray = np.cumsum(self.variances) / (total if total else 1)
        return shares

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers that sum it up, as JSON; None where there are too few rows."""
        facts: dict[str, Any] = {
            "n_rows": self.n_rows,
            "n_not_finite": self.n_not_finite,
            "n_zero": int((self.norms < _SHORTEST).sum()),
            "n_identical": self.n_identical,
            "n_alike": self.n_alike,
            "norm": _spread(self.norms),
            "cosine_of_pairs": None,
            "cosine_with_mean": _spread(self.mean_cosines),
            "spectrum": None,
        }
        pairs = _spread(self.pair_cosines)
        if pairs:
            facts["cosine_of_pairs"] = {"mean": self.mean_pair_cosine, **pairs}
        if self.variances.sum() > 0:
            explained = self.explained
            facts["spectrum"] = {
                "dimensions": {
                    f"{share:g}": int(np.searchsorted(explained, share - 1e-12)) + 1
                    for share in _SHARES
                },
                "participation_ratio": participation_ratio(self.variances),
                "first": float(explained[0]),
            }
        return facts


def measure_cloud(rows: np.ndarray, seed: int = 0) -> Cloud:
    """Measure the shape of some rows.

    Parameters
    ----------
    rows : ndarray of shape (n, ...), float16 or float32
        All axes but the first are one vector.
    seed : int
        Of the random pairs.

    Notes
    -----
    The mean cosine over all pairs of n unit rows u is (|sum u|^2 - n) / (n (n - 1)).
    """
    flat = rows.reshape(len(rows), -1)
    is_finite = np.isfinite(flat).all(axis=1)
    values = flat[is_finite].astype(np.float32)
    norms = np.sqrt(np.einsum("ij,ij->i", values, values, dtype=np.float64))
    has_length = norms >= _SHORTEST
    unit = values[has_length] / norms[has_length, None].astype(np.float32)
    n = len(unit)
    total = unit.sum(axis=0, dtype=np.float64)
    rng = np.random.default_rng(seed)
    pairs = np.empty((0, 2), np.int64)
    if n > 1:
        pairs = rng.integers(0, n, (_N_PAIRS, 2))
        pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    return Cloud(
        n_rows=len(rows),
        n_not_finite=int((~is_finite).sum()),
        norms=norms,
        pair_cosines=_cosines(unit, pairs),
        mean_pair_cosine=float((total @ total - n) / (n * (n - 1))) if n > 1 else float("nan"),
        mean_cosines=unit @ (total / max(np.linalg.norm(total), _SHORTEST)).astype(np.float32),
        variances=_variances(unit),
        n_identical=n - len(np.unique(_bits(flat[is_finite][has_length]))),
        n_alike=_count_alike(unit),
    )


def participation_ratio(variances: np.ndarray) -> float:
    """Return in how many dimensions rows spread: (sum of variances)^2 / sum of their squares.

    r equal variances give r (Gao et al. 2017, doi:10.1101/214262).
    """
    return float(variances.sum() ** 2 / (variances**2).sum())


def sample_folder(folder: EmbeddingFolder, n_sample: int, seed: int) -> np.ndarray:
    """Draw rows of a folder without repeats, fewer where 256 MiB hold no more of them.

    Of parquet files, which give a row group for each row, runs of 256 rows are drawn.

    Returns
    -------
    rows : ndarray of shape (n,), int64, rising
    """
    n = min(n_sample, folder.n_rows, max(2, _SAMPLE_BYTES // (4 * folder.space.width)))
    rng = np.random.default_rng(seed)
    if all(part.vectors.has_random_access for part in folder.parts):
        return np.sort(rng.choice(folder.n_rows, n, replace=False))
    n_runs = -(-folder.n_rows // _RUN_ROWS)
    runs = np.sort(rng.choice(n_runs, min(n_runs, -(-n // _RUN_ROWS)), replace=False))
    rows = (runs[:, None] * _RUN_ROWS + np.arange(_RUN_ROWS)).ravel()
    drawn: np.ndarray = rows[rows < folder.n_rows][:n]
    return drawn


def describe_folder(folder: EmbeddingFolder) -> dict[str, Any]:
    """Return what headers and footers say of a folder, as JSON."""
    nulls: dict[str, int | None] = dict.fromkeys(folder.columns, 0)
    for part in folder.parts:
        for name, count in (part.columns.count_nulls() if part.columns else {}).items():
            before = nulls[name]
            nulls[name] = None if before is None or count is None else before + count
    return {
        "path": folder.path,
        "space": folder.space.to_dict(),
        "n_rows": folder.n_rows,
        "n_parts": len(folder.parts),
        "dtype": folder.dtype.name,
        "vector_bytes": folder.n_rows * folder.space.width * folder.dtype.itemsize,
        "fingerprint": folder.fingerprint,
        "columns": {
            field.name: {"type": str(field.type), "n_null": nulls[field.name]}
            for field in folder.schema
        },
    }


def _spread(values: np.ndarray) -> dict[str, float] | None:
    """Return the ends, the median, and the 5th and 95th percentile."""
    if not len(values):
        return None
    names = ("min", "p5", "median", "p95", "max")
    quantiles = np.quantile(values, (0, 0.05, 0.5, 0.95, 1)).tolist()
    return dict(zip(names, quantiles, strict=True))


def _cosines(unit: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Return the cosine of each pair of rows: (m,), float32."""
    step = max(1, _SAMPLE_BYTES // (8 * max(1, unit.shape[1])))
    pieces = [np.empty(0, np.float32)]
    for start in range(0, len(pairs), step):
        left, right = pairs[start : start + step].T
        pieces.append(np.einsum("ij,ij->i", unit[left], unit[right]))
    return np.concatenate(pieces)


def _variances(unit: np.ndarray) -> np.ndarray:
    """Return the variances of the principal components, falling."""
    n, width = unit.shape
    if n < 2:
        return np.zeros(0)
    centered = unit - unit.mean(axis=0, dtype=np.float64).astype(np.float32)
    # The same numbers other than zero, by the smaller of the two products.
    product = centered @ centered.T if n < width else centered.T @ centered
    variances = np.linalg.eigvalsh(product.astype(np.float64))[::-1] / (n - 1)
    falling: np.ndarray = np.maximum(variances, 0)
    return falling


def _bits(rows: np.ndarray) -> np.ndarray:
    """Return each row as one item that compares by its bits."""
    contiguous = np.ascontiguousarray(rows)
    whole_row = np.dtype((np.void, contiguous.shape[1] * contiguous.itemsize))
    items: np.ndarray = contiguous.view(whole_row).ravel()
    return items


def _count_alike(unit: np.ndarray) -> int:
    n_alike = 0
    for start in range(0, len(unit), _BLOCK_ROWS):
        cosines = unit[start : start + _BLOCK_ROWS] @ unit.T
        places = np.arange(len(cosines))
        cosines[places, start + places] = -1
        n_alike += int((cosines.max(axis=1, initial=-1) >= ALIKE_FROM).sum())
    return n_alike
