"""The numbers that papers print for reconstructions, each with its test set and source."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

_P1 = "Scotti et al. 2023 (arXiv:2305.18274)"
_P2 = "Scotti et al. 2024 (arXiv:2403.11207)"
_TABLE_1 = f"{_P2}, Table 1; brain correlation of visual cortex: Table 3"
_V1, _V2 = "37 sessions", "40 sessions"
_FOUR = "mean of 1, 2, 5, 7"
CAVEATS = (
    "Rows compare only within one test set: 982 images of 37 sessions are not the 1,000 of 40. "
    "MindEye2's refined pictures are judged after a blend with its blurry ones (code: one part in "
    "four). Its brain correlation is by the encoding model GNet, here it is by a linear one."
)


@dataclass(frozen=True)
class PublishedReconstruction:
    """Metrics of a published system.

    Parameters
    ----------
    method, training, subject : str
    n_images : int
        In the test set.
    pixcorr, ssim : float or None
        None where it was not reported, or could not be confirmed.
    alexnet2, alexnet5, inception, clip : float or None, in percent
    efficientnet, swav : float or None
        Distances.
    brain : float or None
        Brain correlation of the visual cortex.
    source : str
    """

    method: str
    training: str
    subject: str
    n_images: int
    pixcorr: float | None
    ssim: float | None
    alexnet2: float | None
    alexnet5: float | None
    inception: float | None
    clip: float | None
    efficientnet: float | None
    swav: float | None
    brain: float | None
    source: str


PUBLISHED_RECONSTRUCTIONS: tuple[PublishedReconstruction, ...] = (
    PublishedReconstruction(
        *("MindEye", _V1, _FOUR, 982),
        *(0.309, 0.323, 94.7, 97.8, None, None, None, None, None),
        f"{_P1}, table of metrics, as far as a second source confirms it",
    ),
    PublishedReconstruction(
        *("MindEye", _V1, "subj01", 982),
        *(0.3925, 0.3467, 97.38, 98.65, 94.53, 94.34, 0.6345, 0.3578, None),
        f"{_P1}, code release, Reconstruction_Metrics.ipynb: stored output",
    ),
    PublishedReconstruction(
        *("Ozcelik & VanRullen", _V1, _FOUR, 982),
        *(0.254, 0.356, 94.2, 96.2, None, None, None, None, None),
        f"{_P1}, table of metrics, as far as a second source confirms it",
    ),
    PublishedReconstruction(
        *("MindEye2", _V2, _FOUR, 1000),
        *(0.322, 0.431, 96.1, 98.6, 95.4, 93.0, 0.619, 0.344, 0.373),
        _TABLE_1,
    ),
    PublishedReconstruction(
        *("MindEye2, unrefined", _V2, _FOUR, 1000),
        *(0.278, 0.328, 95.2, 99.0, 96.4, 94.5, 0.622, 0.343, 0.384),
        _TABLE_1,
    ),
    PublishedReconstruction(
        *("MindEye2", _V2, "subj01", 1000),
        *(0.3740, 0.4395, 97.91, 99.11, 96.00, 93.69, 0.6075, 0.3363, None),
        f"{_P2}, code release, final_evaluations.ipynb: stored output",
    ),
    PublishedReconstruction(
        *("MindEye2, low-level", _V2, _FOUR, 1000),
        *(0.399, 0.539, 70.5, 65.1, 52.9, 57.2, 0.984, 0.673, None),
        _TABLE_1,
    ),
    PublishedReconstruction(
        *("MindEye, retrained", _V2, _FOUR, 1000),
        *(0.319, 0.360, 92.8, 96.9, 94.6, 93.3, 0.648, 0.377, None),
        _TABLE_1,
    ),
    PublishedReconstruction(
        *("Ozcelik & VanRullen", _V2, _FOUR, 1000),
        *(0.273, 0.365, 94.4, 96.6, 91.3, 90.9, 0.728, 0.421, 0.381),
        _TABLE_1,
    ),
    PublishedReconstruction(
        *("Takagi & Nishimoto", _V2, _FOUR, 1000),
        *(0.246, 0.410, 78.9, 85.6, 83.8, 82.1, 0.811, 0.504, 0.247),
        _TABLE_1,
    ),
    PublishedReconstruction(
        *("MindEye2", "1 session", _FOUR, 1000),
        *(0.195, 0.419, 84.2, 90.6, 81.2, 79.2, 0.810, 0.468, 0.348),
        _TABLE_1,
    ),
)


def published_view() -> dict[str, Any]:
    """Return the papers' numbers, and what keeps them from comparing, for the record."""
    return {
        "caveats": CAVEATS,
        "published": [asdict(result) for result in PUBLISHED_RECONSTRUCTIONS],
    }
