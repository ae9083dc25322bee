"""What the demo found, as one JSON object and as lines for people."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..benchmarks.binomial import exact_interval
from ..benchmarks.ideal import IdealComparison
from ..benchmarks.recall import RecallReport
from ..benchmarks.report import DirectionReport, NwayReport
from ..benchmarks.table import align, percent
from .drawing import Drawings

N_HITS = 16  # of a search


@dataclass(frozen=True)
class DemoReport:
    """What a demo made, and how good it is.

    Parameters
    ----------
    out : Path
    n_pictures, n_trials, n_voxels : int
    n_way : int
        Size of the smaller pools.
    identification : NwayReport
        Of the contrastive head, test images, all trials of an image averaged.
    prior : NwayReport
        The same for the diffusion prior's samples.
    comparison : IdealComparison
        With the ideal observer, on the same voxels.
    control : NwayReport or None
        The same model trained on shuffled labels.
    recall : RecallReport
        Of the index, for the test predictions.
    design : str
        Of the index.
    n_found_first, n_found : int
        Test images whose own picture the search found first, and among all hits.
    gallery : Path
    drawings : Drawings
    seconds : dict of str to float
        By stage that ran.
    """

    out: Path
    n_pictures: int
    n_trials: int
    n_voxels: int
    n_way: int
    identification: NwayReport
    prior: NwayReport
    comparison: IdealComparison
    control: NwayReport | None
    recall: RecallReport
    design: str
    n_found_first: int
    n_found: int
    gallery: Path
    drawings: Drawings
    seconds: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-serialisable dict."""
        return {
            "out": str(self.out),
            "n_pictures": self.n_pictures,
            "n_trials": self.n_trials,
            "n_voxels": self.n_voxels,
            "n_way": self.n_way,
            "identification": _summary(self.identification),
            "prior": _summary(self.prior),
            "ideal_observer": self.comparison.to_dict(),
            "shuffled_labels": _summary(self.control) if self.control else None,
            "recall": self.recall.to_dict(),
            "index_design": self.design,
            "n_test_images": self.identification.pool_size,
            "n_found_first": self.n_found_first,
            "n_found": self.n_found,
            "n_hits": N_HITS,
            "gallery": str(self.gallery),
            "drawings": self.drawings.to_dict(),
            "seconds": {name: round(value, 2) for name, value in self.seconds.items()},
        }

    def lines(self) -> Iterator[str]:
        """Yield the report as lines for people."""
        pool = self.identification.pool_size
        yield (
            f"{self.n_pictures} pictures; simulated subject of {self.n_voxels} voxels, "
            f"{self.n_trials} trials; {pool} test images, three trials averaged"
        )
        yield ""
        rows = [["identification", "pool", "top-1 %", "95 % interval", "chance %"]]
        for size in dict.fromkeys((self.n_way, pool)):
            rows += [
                _rate_row("brain→image", self.identification.brain_to_image, size),
                _rate_row("image→brain", _reverse(self.identification), size),
            ]
        rows.append(_rate_row("brain→image, prior", self.prior.brain_to_image, self.n_way))
        rows.append(
            _rate_row(
                "brain→image, ideal observer", self.comparison.ideal.brain_to_image, self.n_way
            )
        )
        if self.control is not None:
            rows.append(self._control_row(self.control))
        yield from align(rows)
        if self.control is not None:
            rank = self.control.brain_to_image.median_rank
            yield (
                f"shuffled labels: median rank {rank.value:.0f} of {pool} "
                f"[{rank.low:.0f}, {rank.high:.0f}], chance {(pool + 1) / 2:.1f}; the interval of "
                f"their rate is the exact binomial one"
            )
        yield ""
        fraction = self.comparison.fractions[self.n_way]
        yield (
            f"fraction of Bayes-optimal ({self.n_way}-way, brain→image): "
            f"{percent(fraction.value)} % "
            f"[{percent(fraction.low)}, {percent(fraction.high)}]; Bayes-optimal over fresh noise: "
            f"{percent(self.comparison.expected[self.n_way])} %"
        )
        recalls = ", ".join(
            f"recall@{k} {estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"
            for k, estimate in self.recall.recall.items()
        )
        yield f"index: {self.design}, {self.recall.bytes_per_vector:.1f} bytes of RAM a vector"
        yield f"       {recalls} for the test predictions, against an exact search"
        yield (
            f"search: the seen picture is first of {self.n_pictures} for {self.n_found_first} of "
            f"{pool} test images, among the first {N_HITS} for {self.n_found}"
        )
        yield from self.drawings.lines()
        if self.seconds:
            yield ""
            stages = "  ".join(f"{name} {value:.1f}" for name, value in self.seconds.items())
            yield f"seconds: {stages}  total {sum(self.seconds.values()):.1f}"
        yield ""
        yield f"gallery: {self.gallery}"
        yield f"drawn:   {self.drawings.sheet}"
        yield f"next:    voxseek search {self.out / 'index'} {self.out / 'predictions'} --json"

    def _control_row(self, control: NwayReport) -> list[str]:
        rate = control.brain_to_image.rate(self.n_way)
        bounds = exact_interval(rate.expected.value, control.pool_size)
        return [
            "brain→image, shuffled labels",
            f"{self.n_way}-way",
            percent(bounds.value),
            f"{percent(bounds.low)} to {percent(bounds.high)}",
            percent(rate.chance),
        ]


def _summary(report: NwayReport) -> dict[str, Any]:
    return {direction.direction: direction.to_dict() for direction in report.directions}


def _reverse(report: NwayReport) -> DirectionReport:
    assert report.image_to_brain is not None  # all trials of an image are averaged
    return report.image_to_brain


def _rate_row(label: str, direction: DirectionReport, size: int) -> list[str]:
    rate = direction.rate(size)
    return [
        label,
        f"all {size}" if rate.is_whole_pool else f"{size}-way",
        percent(rate.expected.value),
        f"{percent(rate.expected.low)} to {percent(rate.expected.high)}",
        percent(rate.chance),
    ]
