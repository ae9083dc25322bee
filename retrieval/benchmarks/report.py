"""What an identification benchmark found: a record for machines, a table for people."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from index_builder.embeddings.artefact import atomic_write, describe_software

from .identification import IntArray

FORMAT_VERSION = 1
REPORT_NAME = "report.json"
PROTOCOL = (
    "n-way identification, voxseek protocol 1: scores of each query with each image of the pool; "
    "a distractor that ties the truth beats it; 'expected' is the mean over all pools of n_way "
    "images that hold the truth, in closed form; 'drawn' is the mean over seeded pools, each "
    "shared by all its queries; intervals are 95 % percentile bootstrap over images, the pool "
    "held fixed."
)

Direction = Literal["brain_to_image", "image_to_brain"]


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float]:
        """Return the three numbers under their names."""
        return {"value": self.value, "low": self.low, "high": self.high}


@dataclass(frozen=True)
class DrawnRate:
    """Success rate over drawn pools: mean and standard deviation of the ``n_draws`` pools."""

    mean: float
    standard_deviation: float
    n_draws: int

    @property
    def standard_error(self) -> float:
        """Monte Carlo error of the mean; it says nothing of the choice of images."""
        return self.standard_deviation / math.sqrt(self.n_draws)


@dataclass(frozen=True)
class TopRate:
    """How often the truth is among the ``top`` best of ``n_way``.

    Parameters
    ----------
    n_way : int
    is_whole_pool : bool
        Whether ``n_way`` is the pool size; then there is nothing to draw.
    top : int
    expected : Estimate, in [0, 1]
        Mean over all pools, in closed form.
    drawn : DrawnRate or None
        Mean over drawn pools; None for the whole pool, or if none were drawn.
    """

    n_way: int
    is_whole_pool: bool
    top: int
    expected: Estimate
    drawn: DrawnRate | None

    @property
    def chance(self) -> float:
        """Rate of a decoder that orders the pool at random: ``top / n_way``."""
        return self.top / self.n_way

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-serialisable dict."""
        drawn = None
        if self.drawn is not None:
            drawn = {
                "mean": self.drawn.mean,
                "standard_deviation": self.drawn.standard_deviation,
                "standard_error": self.drawn.standard_error,
                "n_draws": self.drawn.n_draws,
            }
        return {
            "n_way": self.n_way,
            "is_whole_pool": self.is_whole_pool,
            "top": self.top,
            "chance": self.chance,
            "expected": self.expected.to_dict(),
            "drawn": drawn,
        }


@dataclass(frozen=True, eq=False)
class DirectionReport:
    """Identification in one direction.

    Parameters
    ----------
    direction : {"brain_to_image", "image_to_brain"}
        What the query is, and what is chosen from.
    query_images : int64 array of shape (n_queries,)
        Position of each query's image in the report's ``image_ids``.
    n_beating : int64 array of shape (n_queries,)
        Distractors of the whole pool that beat or tie the truth; the rank, counted from 0.
    top_rates : tuple of TopRate
    median_rank : Estimate
        Counted from 1, in the whole pool.
    mean_reciprocal_rank : Estimate
    """

    direction: Direction
    query_images: IntArray
    n_beating: IntArray
    top_rates: tuple[TopRate, ...]
    median_rank: Estimate
    mean_reciprocal_rank: Estimate

    def rate(self, n_way: int, top: int = 1) -> TopRate:
        """Return one rate.

        Raises
        ------
        ValueError
            If the report does not hold it.
        """
        for rate in self.top_rates:
            if (rate.n_way, rate.top) == (n_way, top):
                return rate
        held = ", ".join(f"top-{rate.top} of {rate.n_way}" for rate in self.top_rates)
        raise ValueError(f"the report holds no top-{top} of {n_way}; it holds {held}.")

    def to_dict(self) -> dict[str, Any]:
        """Return the summary, without the raw counts."""
        return {
            "n_queries": len(self.n_beating),
            "top_rates": [rate.to_dict() for rate in self.top_rates],
            "median_rank": self.median_rank.to_dict(),
            "mean_reciprocal_rank": self.mean_reciprocal_rank.to_dict(),
        }


@dataclass(frozen=True, eq=False)
class NwayReport:
    """An identification benchmark, both ways.

    Parameters
    ----------
    image_ids : int64 array of shape (pool_size,), ascending
        The pool.
    brain_to_image : DirectionReport
        A brain query chooses among images.
    image_to_brain : DirectionReport or None
        An image query chooses among brain predictions.
    image_to_brain_absent : str or None
        Why that direction is absent.
    n_trials_averaged : dict of int to int, or None
        Queries by the number of trials averaged into them; None if it is not known.
    inputs : dict
        What was compared, by fingerprint.
    tie_tolerance : float
    seed, n_draws, n_resamples : int
    """

    image_ids: IntArray
    brain_to_image: DirectionReport
    image_to_brain: DirectionReport | None
    image_to_brain_absent: str | None
    n_trials_averaged: dict[int, int] | None
    inputs: dict[str, Any]
    tie_tolerance: float
    seed: int
    n_draws: int
    n_resamples: int

    @property
    def pool_size(self) -> int:
        """Number of images in the pool."""
        return len(self.image_ids)

    @property
    def directions(self) -> tuple[DirectionReport, ...]:
        """The directions that were measured, brain to image first."""
        if self.image_to_brain is None:
            return (self.brain_to_image,)
        return (self.brain_to_image, self.image_to_brain)

    def to_dict(self) -> dict[str, Any]:
        """Return the whole record, raw counts included, as a JSON-serialisable dict."""
        return {
            "kind": "nway_report",
            "format_version": FORMAT_VERSION,
            "protocol": PROTOCOL,
            "made_by": {"command": "voxseek bench nway", "software": describe_software("numpy")},
            "inputs": self.inputs,
            "pool_size": self.pool_size,
            "n_trials_averaged": self.n_trials_averaged
            and {
                str(n_trials): n_queries for n_trials, n_queries in self.n_trials_averaged.items()
            },
            "tie_tolerance": self.tie_tolerance,
            "seed": self.seed,
            "n_draws": self.n_draws,
            "n_resamples": self.n_resamples,
            "brain_to_image": self.brain_to_image.to_dict(),
            "image_to_brain": self.image_to_brain and self.image_to_brain.to_dict(),
            "image_to_brain_absent": self.image_to_brain_absent,
            "raw": {
                direction.direction: {
                    "image_id": self.image_ids[direction.query_images].tolist(),
                    "n_beating": direction.n_beating.tolist(),
                }
                for direction in self.directions
            },
        }


class Report(Protocol):
    """What a benchmark found."""

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-serialisable dict, raw counts or values included."""
        ...


def write_report(report: Report, path: str | os.PathLike[str]) -> Path:
    """Write a report as JSON, atomically.

    Parameters
    ----------
    report : Report
    path : path
        A file that ends in ``.json``, or a folder, into which ``report.json`` goes.

    Returns
    -------
    Path
        The file written.
    """
    file = Path(path)
    if file.suffix != ".json":
        file = file / REPORT_NAME
    with atomic_write(file) as temporary:
        temporary.write_text(
            json.dumps(report.to_dict(), indent=1, allow_nan=False) + "\n", encoding="utf-8"
        )
    return file
