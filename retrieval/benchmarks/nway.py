"""n-way identification: does a brain's prediction find its image among others, and the reverse.

    brain -> image   a prediction is the query, the pool is images
    image -> brain   an image is the query, the pool is predictions

The literature's tables print these two under each other's names; `published` translates.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from index_builder.embeddings.reader import EmbeddingFolder

from ..errors import BenchmarkError
from .bootstrap import N_RESAMPLES, bootstrap_statistics, percentile_interval
from .identification import BoolArray, IntArray, RankTally, draw_pools, expected_top_rates
from .pairing import TIE_TOLERANCE, CosineTiles, pair_by_image
from .report import Direction, DirectionReport, DrawnRate, Estimate, NwayReport, TopRate

__all__ = ["NWay", "NwayReport", "identify", "identify_scores"]

NWay = int | Literal["all"]
TOPS = (1, 5, 10)
N_DRAWS = 30  # MindEye and MindEye2 both average over 30 pools of 300.
_MANY_TRIALS = (
    "the predictions are single trials, several an image, so an image has no one right answer "
    "among them; average the trials of an image (voxseek predict) to get this direction"
)


def identify(
    predictions: EmbeddingFolder,
    targets: EmbeddingFolder,
    *,
    n_way: Sequence[NWay] = (300, "all"),
    n_draws: int = N_DRAWS,
    seed: int = 0,
    n_resamples: int = N_RESAMPLES,
    memory_bytes: int = 1 << 30,
) -> NwayReport:
    """Measure identification by cosine, both ways, with the predicted images as the pool.

    Parameters
    ----------
    predictions : EmbeddingFolder
        Metadata column ``image_id``; with a column ``trial`` an image may have several rows, each a
        query of its own. Then the bootstrap resamples images with all their trials, and
        image -> brain is absent.
    targets : EmbeddingFolder
        Of a comparable space, with column ``image_id``. Images nobody predicted are left out.
    n_way : sequence of int or "all"
        Pool sizes to report; "all" is every predicted image.
    n_draws : int
        Pools drawn for each n_way, beside the closed form; 0 for none.
    seed : int
        Of the draws and of the bootstrap.
    n_resamples : int
        Bootstrap resamples.
    memory_bytes : int
        Strict limit for the embeddings and scores held at once.

    Raises
    ------
    SpaceMismatchError
        If the two spaces are not comparable.
    BenchmarkError
        If the folders can't be joined by image_id, or an n_way is larger than the pool.
    BadRowError
        If an embedding is not finite or is zero.

    Notes
    -----
    Embeddings of several tokens are flattened, as in MindEye (Scotti et al. 2023,
    arXiv:2305.18274). Cosines that differ by less than 1e-6, the rounding of their computation, are
    ties.
    """
    pairing = pair_by_image(predictions, targets)
    sizes = _resolve_n_way(n_way, len(pairing.image_ids))
    tiles = CosineTiles(predictions, targets, pairing, memory_bytes=memory_bytes)
    pools = _stack_pools(sizes, len(pairing.image_ids), n_draws, seed)
    tally = RankTally(
        tiles.true_scores,
        pairing.query_images,
        pools,
        is_bidirectional=not pairing.is_single_trial,
        tie_tolerance=TIE_TOLERANCE,
    )
    for query_start, image_start, scores in tiles:
        tally.add(query_start, image_start, scores)
    return _summarise(
        tally,
        pools,
        pairing.image_ids,
        pairing.query_images,
        sizes,
        n_trials_averaged=_count_trials(predictions),
        inputs={
            "predictions": _describe(predictions),
            "targets": _describe(targets),
            "score": "cosine",
        },
        tie_tolerance=TIE_TOLERANCE,
        seed=seed,
        n_draws=n_draws,
        n_resamples=n_resamples,
    )


def identify_scores(
    scores: NDArray[Any],
    image_ids: IntArray,
    *,
    source: str,
    n_way: Sequence[NWay] = (300, "all"),
    n_draws: int = N_DRAWS,
    seed: int = 0,
    n_resamples: int = N_RESAMPLES,
) -> NwayReport:
    """Measure identification from a ready score matrix, such as an ideal observer's.

    Parameters
    ----------
    scores : float array of shape (n, n)
        Rows are brains, columns are images, larger is better; truth on the diagonal. Taken as
        exact: only equal scores tie. brain -> image compares scores within a row, image -> brain
        within a column.
    image_ids : int64 array of shape (n,), without repeats
    source : str
        What made the scores, for the record.
    n_way, n_draws, seed, n_resamples
        As in `identify`.

    Raises
    ------
    BenchmarkError
        If a score is NaN, an image_id repeats, or an n_way is larger than the pool.
    """
    image_ids = np.asarray(image_ids, dtype=np.int64)
    n_images = len(image_ids)
    if scores.shape != (n_images, n_images):
        raise ValueError(f"scores have shape {scores.shape}, expected {(n_images, n_images)}.")
    order = np.argsort(image_ids)
    ordered_ids = image_ids[order]
    repeated = ordered_ids[1:][np.diff(ordered_ids) == 0]
    if len(repeated):
        raise BenchmarkError(
            f"image_id {repeated[0]} labels several rows of the score matrix, expected one each."
        )
    sizes = _resolve_n_way(n_way, n_images)
    pools = _stack_pools(sizes, n_images, n_draws, seed)
    ordered = scores[np.ix_(order, order)]
    query_images = np.arange(n_images)
    tally = RankTally(np.diagonal(ordered), query_images, pools, is_bidirectional=True)
    tally.add(0, 0, ordered)
    digest = hashlib.sha256(np.ascontiguousarray(ordered, np.float64).tobytes())
    digest.update(ordered_ids.tobytes())
    return _summarise(
        tally,
        pools,
        ordered_ids,
        query_images,
        sizes,
        n_trials_averaged=None,
        inputs={"scores": {"name": source, "fingerprint": digest.hexdigest()}, "score": source},
        tie_tolerance=0.0,
        seed=seed,
        n_draws=n_draws,
        n_resamples=n_resamples,
    )


def _resolve_n_way(n_way: Sequence[NWay], pool_size: int) -> tuple[int, ...]:
    """Return the distinct pool sizes asked for, in the order asked."""
    if pool_size < 2:
        raise BenchmarkError(
            f"the pool has {pool_size} image, expected at least 2: with nothing to confuse it "
            f"with, an image is always found. Predict more images."
        )
    sizes = [pool_size if size == "all" else size for size in n_way]
    if not sizes:
        raise ValueError("n_way is empty, expected at least one pool size.")
    for size in sizes:
        if size < 2:
            raise ValueError(f"n_way is {size}, expected at least 2, or 'all'.")
        if size > pool_size:
            raise BenchmarkError(
                f"n_way is {size} and the pool has {pool_size} images, expected at most as many. "
                f"Ask for {pool_size} or fewer, or for 'all'."
            )
    return tuple(dict.fromkeys(sizes))


def _stack_pools(sizes: Sequence[int], n_images: int, n_draws: int, seed: int) -> BoolArray:
    """Return the whole pool, then ``n_draws`` pools of each size that is smaller."""
    if n_draws < 0:
        raise ValueError(f"n_draws is {n_draws}, expected 0 or more.")
    drawn = [draw_pools(n_images, size, n_draws, seed) for size in sizes if size < n_images]
    return np.concatenate([np.ones((1, n_images), bool), *drawn])


def _summarise(
    tally: RankTally,
    pools: BoolArray,
    image_ids: IntArray,
    query_images: IntArray,
    sizes: Sequence[int],
    *,
    n_trials_averaged: dict[int, int] | None,
    inputs: dict[str, Any],
    tie_tolerance: float,
    seed: int,
    n_draws: int,
    n_resamples: int,
) -> NwayReport:
    def report(direction: Direction, counts: IntArray, images: IntArray) -> DirectionReport:
        return _report_direction(
            direction, counts, images, pools, sizes, n_draws, seed=seed, n_resamples=n_resamples
        )

    image_to_brain = None
    if tally.image_to_brain is not None:
        own = np.arange(len(image_ids))
        image_to_brain = report("image_to_brain", tally.image_to_brain, own)
    return NwayReport(
        image_ids=image_ids,
        brain_to_image=report("brain_to_image", tally.brain_to_image, query_images),
        image_to_brain=image_to_brain,
        image_to_brain_absent=_MANY_TRIALS if image_to_brain is None else None,
        n_trials_averaged=n_trials_averaged,
        inputs=inputs,
        tie_tolerance=tie_tolerance,
        seed=seed,
        n_draws=n_draws,
        n_resamples=n_resamples,
    )


def _report_direction(
    direction: Direction,
    counts: IntArray,
    query_images: IntArray,
    pools: BoolArray,
    sizes: Sequence[int],
    n_draws: int,
    *,
    seed: int,
    n_resamples: int,
) -> DirectionReport:
    """Turn counts of shape (n_pools, n_queries) into rates, with intervals."""
    pool_size = pools.shape[1]
    n_beating = counts[0]
    asked = [(size, top) for size in sizes for top in TOPS if top < size]
    values = np.stack(
        [expected_top_rates(pool_size, size, top)[n_beating] for size, top in asked]
        + [1.0 / (1 + n_beating)],
        axis=1,
    )
    means, medians = bootstrap_statistics(
        values, n_beating + 1, query_images, n_resamples=n_resamples, seed=seed
    )
    low, high = percentile_interval(means)
    estimates = [
        Estimate(float(value), float(bottom), float(ceiling))
        for value, bottom, ceiling in zip(values.mean(axis=0), low, high, strict=True)
    ]
    in_pool = pools[:, query_images]
    first_pool: dict[int, int] = {}  # of each size that was drawn
    for size in sizes:
        if size < pool_size and n_draws:
            first_pool[size] = 1 + n_draws * len(first_pool)
    rates = []
    for (size, top), expected in zip(asked, estimates, strict=False):
        drawn = None
        if size in first_pool:
            draws = slice(first_pool[size], first_pool[size] + n_draws)
            drawn = _drawn_rate(counts[draws], in_pool[draws], top)
        rates.append(TopRate(size, size == pool_size, top, expected, drawn))
    median_low, median_high = percentile_interval(medians)
    return DirectionReport(
        direction=direction,
        query_images=query_images,
        n_beating=n_beating,
        top_rates=tuple(rates),
        median_rank=Estimate(
            float(np.median(n_beating + 1)), float(median_low), float(median_high)
        ),
        mean_reciprocal_rank=estimates[-1],
    )


def _drawn_rate(counts: IntArray, in_pool: BoolArray, top: int) -> DrawnRate:
    """Average success over pools; each row is a pool, and only its own queries count."""
    rates = ((counts < top) & in_pool).sum(axis=1) / in_pool.sum(axis=1)
    spread = float(rates.std(ddof=1)) if len(rates) > 1 else 0.0
    return DrawnRate(float(rates.mean()), spread, len(rates))


def _count_trials(predictions: EmbeddingFolder) -> dict[int, int] | None:
    if "n_trials" not in predictions.columns:
        return None
    n_trials = predictions.metadata(columns=["n_trials"]).column("n_trials").to_numpy()
    values, n_queries = np.unique(n_trials, return_counts=True)
    return {int(value): int(count) for value, count in zip(values, n_queries, strict=True)}


def _describe(folder: EmbeddingFolder) -> dict[str, Any]:
    described: dict[str, Any] = {
        "name": PurePosixPath(folder.path).name,
        "fingerprint": folder.fingerprint,
        "space": folder.space.to_dict(),
        "n_rows": folder.n_rows,
        "details": folder.details,
    }
    for column in ("subject", "split"):
        if column in folder.columns:
            table = folder.metadata(columns=[column])
            described[column] = sorted(map(str, table.column(column).unique().to_pylist()))
    return described
