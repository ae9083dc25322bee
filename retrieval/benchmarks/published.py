"""The numbers that papers print, under the names of what was computed.

MindEye's evaluation builds its similarity matrix transposed: rows index the second argument. What
it calls forward, and the tables of MindEye and MindEye2 print as "image retrieval", is an image
query that chooses among brain latents; "brain retrieval" (backward) is a brain query that chooses
among images. Each result here stands under its true direction; ``docs/benchmarks.md`` has the
proof.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from .report import Direction, NwayReport
from .table import ARROWS, align, percent

PUBLISHED_LABELS: dict[Direction, str] = {
    "brain_to_image": "brain retrieval (bwd)",
    "image_to_brain": "image retrieval (fwd)",
}
_MINDEYE_CODE = (
    "Scotti et al. 2023 (arXiv:2305.18274), code release, Retrievals.py: comments with the results"
)
_MINDEYE_NOTEBOOK = (
    "Scotti et al. 2023 (arXiv:2305.18274), code release, Retrievals.ipynb: stored output"
)
_MINDEYE2 = "Scotti et al. 2024 (arXiv:2403.11207)"
_MINDEYE2_1H = f"{_MINDEYE2}, per-subject table of the 1-session models"
_LITE_MIND = "Gong et al. 2023 (arXiv:2312.03781), abstract and evaluation script"
_V1 = "37 sessions"
_V2 = "40 sessions"
_1H = "1 session"


@dataclass(frozen=True)
class PublishedResult:
    """Top-1 of a published system, in the direction that was computed.

    Parameters
    ----------
    method : str
    training : str
        How much of a subject's data it learned from.
    subject : str
    n_way, pool_size : int
        Images of one pool, and test images it was drawn from.
    brain_to_image, image_to_brain : float or None, in percent
        None where it was not reported.
    source : str
    """

    method: str
    training: str
    subject: str
    n_way: int
    pool_size: int
    brain_to_image: float | None
    image_to_brain: float | None
    source: str


PUBLISHED_RESULTS: tuple[PublishedResult, ...] = (
    PublishedResult("MindEye", _V1, "mean of 1, 2, 5, 7", 300, 982, 90.02, 93.59, _MINDEYE_CODE),
    PublishedResult("MindEye", _V1, "subj01", 300, 982, 94.68, 97.18, _MINDEYE_CODE),
    PublishedResult("MindEye", _V1, "subj02", 300, 982, 93.86, 97.10, _MINDEYE_CODE),
    PublishedResult("MindEye", _V1, "subj05", 300, 982, 85.73, 90.67, _MINDEYE_CODE),
    PublishedResult("MindEye", _V1, "subj07", 300, 982, 85.82, 89.41, _MINDEYE_CODE),
    PublishedResult("MindEye", _V1, "subj01", 982, 982, 86.56, 93.08, _MINDEYE_NOTEBOOK),
    PublishedResult("Lite-Mind", _V1, "subj01", 300, 982, 94.6, None, _LITE_MIND),
    PublishedResult(
        "MindEye2", _V2, "mean of 1, 2, 5, 7", 300, 1000, 98.3, 98.8, f"{_MINDEYE2}, Table 1"
    ),
    PublishedResult("MindEye2", _V2, "subj01", 300, 1000, 99.87, 99.96, f"{_MINDEYE2}, Table 7"),
    PublishedResult("MindEye2", _V2, "subj02", 300, 1000, 99.84, 99.88, f"{_MINDEYE2}, Table 7"),
    PublishedResult("MindEye2", _V2, "subj05", 300, 1000, 96.94, 98.39, f"{_MINDEYE2}, Table 7"),
    PublishedResult("MindEye2", _V2, "subj07", 300, 1000, 96.53, 96.89, f"{_MINDEYE2}, Table 7"),
    PublishedResult(
        "MindEye, retrained",
        _V2,
        "mean of 1, 2, 5, 7",
        300,
        1000,
        84.1,
        90.0,
        f"{_MINDEYE2}, Table 1",
    ),
    PublishedResult(
        "Ozcelik & VanRullen",
        _V2,
        "mean of 1, 2, 5, 7",
        300,
        1000,
        26.3,
        18.8,
        f"{_MINDEYE2}, Table 1",
    ),
    PublishedResult(
        "MindEye2", _1H, "mean of 1, 2, 5, 7", 300, 1000, 57.4, 79.0, f"{_MINDEYE2}, Table 1"
    ),
    PublishedResult("MindEye2", _1H, "subj01", 300, 1000, 77.63, 93.96, _MINDEYE2_1H),
    PublishedResult("MindEye2", _1H, "subj02", 300, 1000, 67.18, 90.53, _MINDEYE2_1H),
    PublishedResult("MindEye2", _1H, "subj05", 300, 1000, 46.96, 66.94, _MINDEYE2_1H),
    PublishedResult("MindEye2", _1H, "subj07", 300, 1000, 37.77, 64.44, _MINDEYE2_1H),
)


def published_view(report: NwayReport) -> dict[str, Any]:
    """Return the report's top-1 rates under the papers' labels, and the papers' own numbers.

    Returns
    -------
    dict
        ``this_report``: one entry a direction and n_way, with the true direction, the papers' label
        and the rate in percent; ``published``: the entries of `PUBLISHED_RESULTS`.
    """
    return {
        "this_report": [
            {
                "direction": direction.direction,
                "published_label": PUBLISHED_LABELS[direction.direction],
                "n_way": rate.n_way,
                "top1_percent": 100 * rate.expected.value,
            }
            for direction in report.directions
            for rate in direction.top_rates
            if rate.top == 1
        ],
        "published": [asdict(result) for result in PUBLISHED_RESULTS],
    }


def format_published(report: NwayReport) -> str:
    """Return a report's top-1 rates beside the papers', each with the label that papers use."""
    heads = ["top-1 %", "n-way", "pool"]
    for direction, label in PUBLISHED_LABELS.items():
        heads.append(f'{ARROWS[direction]} = "{label}"')
    rows = [heads]
    for size in dict.fromkeys(rate.n_way for rate in report.brain_to_image.top_rates):
        reverse = report.image_to_brain
        rows.append(
            [
                "this report",
                str(size),
                str(report.pool_size),
                percent(report.brain_to_image.rate(size).expected.value),
                "-" if reverse is None else percent(reverse.rate(size).expected.value),
            ]
        )
    for result in PUBLISHED_RESULTS:
        rows.append(
            [
                f"{result.method}, {result.training}, {result.subject}",
                str(result.n_way),
                str(result.pool_size),
                _or_dash(result.brain_to_image),
                _or_dash(result.image_to_brain),
            ]
        )
    sources = dict.fromkeys(result.source for result in PUBLISHED_RESULTS)
    return "\n".join([*align(rows), "", "Sources:", *(f"  {source}" for source in sources)])


def _or_dash(rate: float | None) -> str:
    return "-" if rate is None else f"{rate:.2f}"
