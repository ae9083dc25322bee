"""What a reconstruction benchmark found: a record for machines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from index_builder.embeddings.artefact import describe_software

from ..bootstrap import percentile_interval, resample_images
from ..identification import FloatArray, IntArray
from ..report import Estimate

FORMAT_VERSION = 1
PROTOCOL = (
    "reconstruction metrics, voxseek protocol 1: every picture is resized to 256 x 256 and from "
    "there, without a crop, to what a metric sees; two-way identification compares each image with "
    "all others, a tie is half a win; correlation with a flat picture is 0; intervals are 95 % "
    "percentile bootstrap over images, the others held fixed."
)


@dataclass(frozen=True)
class Metric:
    """One of the eight metrics.

    Parameters
    ----------
    name : str
        In the record.
    title : str
        In tables, as the papers shorten it.
    is_rate : bool
        Whether it is a share of comparisons won, whose chance level is one half.
    is_distance : bool
        Whether smaller is better.
    """

    name: str
    title: str
    is_rate: bool = False
    is_distance: bool = False

    @property
    def chance(self) -> float | None:
        """Value of pictures that have nothing to do with what was seen, where it is known."""
        return 0.5 if self.is_rate else None


METRICS = (  # in the order of the papers' tables
    Metric("pixcorr", "PixCorr"),
    Metric("ssim", "SSIM"),
    Metric("alexnet2", "Alex(2)", is_rate=True),
    Metric("alexnet5", "Alex(5)", is_rate=True),
    Metric("inception", "Incep", is_rate=True),
    Metric("clip", "CLIP", is_rate=True),
    Metric("efficientnet", "Eff", is_distance=True),
    Metric("swav", "SwAV", is_distance=True),
)


@dataclass(frozen=True, eq=False)
class Scores:
    """How one set of pictures scored.

    Parameters
    ----------
    name : str
        ``reconstructions``, a control, or the seen pictures, which have a brain correlation alone.
    metrics : mapping of str to float64 array of shape (n_images,)
        Value of each image, by `Metric.name`; those that were measured.
    brain : mapping of str to float64 array of shape (n_images,)
        Brain correlation of each image, by region; empty if it was not measured.
    """

    name: str
    metrics: Mapping[str, FloatArray]
    brain: Mapping[str, FloatArray]


@dataclass(frozen=True, eq=False)
class ReconstructionReport:
    """A reconstruction benchmark.

    Parameters
    ----------
    image_ids : int64 array of shape (n_images,), increasing
    scores : tuple of Scores
        The reconstructions, then the controls.
    absent : dict of str to str
        Metrics that were not measured, and why.
    flat : dict of str to list of int
        Images whose picture is flat, of one number throughout, on either side.
    region_sizes : dict of str to int
        Voxels of each region of the brain correlation.
    options : dict
        Variants of the protocol.
    inputs : dict
        What was compared, and by which networks, by fingerprint.
    seed, n_resamples : int
    """

    image_ids: IntArray
    scores: tuple[Scores, ...]
    absent: dict[str, str]
    flat: dict[str, list[int]]
    region_sizes: dict[str, int]
    options: dict[str, str]
    inputs: dict[str, Any]
    seed: int
    n_resamples: int

    def estimates(self, scores: Scores) -> tuple[dict[str, Estimate], dict[str, Estimate]]:
        """Return means over images with their intervals, of the metrics and by region."""
        values = [*scores.metrics.values(), *scores.brain.values()]
        estimates = mean_estimates(np.stack(values, axis=1), self.n_resamples, self.seed)
        n_metrics = len(scores.metrics)
        return (
            dict(zip(scores.metrics, estimates[:n_metrics], strict=True)),
            dict(zip(scores.brain, estimates[n_metrics:], strict=True)),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the whole record, value by image included, as a JSON-serialisable dict."""
        return {
            "kind": "reconstruction_report",
            "format_version": FORMAT_VERSION,
            "protocol": PROTOCOL,
            "made_by": {
                "command": "voxseek bench reconstruction",
                "software": describe_software(
                    "numpy", "pillow", "scikit-image", "torch", "torchvision", "open_clip_torch"
                ),
            },
            "inputs": self.inputs,
            "options": self.options,
            "n_images": len(self.image_ids),
            "chance": {
                metric.name: metric.chance for metric in METRICS if metric.chance is not None
            },
            "smaller_is_better": [metric.name for metric in METRICS if metric.is_distance],
            "absent": self.absent,
            "flat": self.flat,
            "region_sizes": self.region_sizes,
            "seed": self.seed,
            "n_resamples": self.n_resamples,
            "scores": {scores.name: self._summary(scores) for scores in self.scores},
            "raw": {
                "image_id": self.image_ids.tolist(),
                **{
                    scores.name: {
                        "metrics": {name: v.tolist() for name, v in scores.metrics.items()},
                        "brain_correlation": {name: v.tolist() for name, v in scores.brain.items()},
                    }
                    for scores in self.scores
                },
            },
        }

    def _summary(self, scores: Scores) -> dict[str, Any]:
        metrics, brain = self.estimates(scores)
        return {
            "metrics": {name: estimate.to_dict() for name, estimate in metrics.items()},
            "brain_correlation": {name: estimate.to_dict() for name, estimate in brain.items()},
        }


def mean_estimates(values: FloatArray, n_resamples: int, seed: int) -> list[Estimate]:
    """Return the mean of each column of ``values``, (n_images, k), with its bootstrap interval."""
    n_images = len(values)
    means = np.stack(
        [counts @ values / n_images for counts in resample_images(n_images, n_resamples, seed)]
    )
    low, high = percentile_interval(means)
    return [
        Estimate(float(value), float(bottom), float(ceiling))
        for value, bottom, ceiling in zip(values.mean(axis=0), low, high, strict=True)
    ]
