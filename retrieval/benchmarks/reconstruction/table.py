"""Reconstruction reports as plain text for people, in the order of the papers' columns."""

from __future__ import annotations

from dataclasses import asdict

from ..report import Estimate
from ..table import align, percent
from .published import CAVEATS, PUBLISHED_RECONSTRUCTIONS
from .report import METRICS, Metric, ReconstructionReport

_NOTHING = "-"
_TWO_WAY = {
    "reconstruction": "a reconstruction chooses between two seen pictures",
    "image": "a seen picture chooses between two reconstructions",
    "pairs": "two seen pictures and two reconstructions are matched",
}
_SSIM = {
    "gray": "of the luminance",
    "color": "mean over three colors",
    "columns": "of the luminance, column by column",
}


def format_report(report: ReconstructionReport, *, has_published: bool = False) -> str:
    """Return a report as lines of text: the metrics, the brain correlations, what to know."""
    inputs = report.inputs
    lines = [
        f"images           {len(report.image_ids)}",
        *(
            f"{side:<15}  {inputs[side]['name']}, fingerprint {inputs[side]['fingerprint'][:12]}"
            for side in ("reconstructions", "seen")
        ),
        "",
        *_metric_table(report, has_published),
    ]
    if report.region_sizes:
        lines += ["", *_brain_table(report)]
    return "\n".join([*lines, "", *_notes(report, has_published)])


def _metric_table(report: ReconstructionReport, has_published: bool) -> list[str]:
    columns = [f"{m.title}{' %' * m.is_rate}{'↓' if m.is_distance else '↑'}" for m in METRICS]
    rows = [["", *columns]]
    for scores in report.scores:
        if not scores.metrics:
            continue
        found = report.estimates(scores)[0]
        bounds = {"": "value", "  95 % from": "low", "  95 % to": "high"}
        for label, bound in bounds.items():
            rows.append(
                [label or scores.name]
                + [_shown(metric, found.get(metric.name), bound) for metric in METRICS]
            )
    rows.append(["chance"] + [_NOTHING if m.chance is None else percent(m.chance) for m in METRICS])
    if has_published:
        for result in PUBLISHED_RECONSTRUCTIONS:
            values = asdict(result)
            rows.append(
                [f"{result.method}, {result.training}, {result.subject} ({result.n_images})"]
                + [_published(metric, values[metric.name]) for metric in METRICS]
            )
    return align(rows)


def _shown(metric: Metric, estimate: Estimate | None, bound: str) -> str:
    if estimate is None:
        return _NOTHING
    value = getattr(estimate, bound)
    return percent(value) if metric.is_rate else f"{value:.3f}"


def _published(metric: Metric, value: float | None) -> str:
    if value is None:
        return _NOTHING
    return f"{value:.2f}" if metric.is_rate else f"{value:.3f}"


def _brain_table(report: ReconstructionReport) -> list[str]:
    names = [scores.name for scores in report.scores]
    rows = [["brain correlation", "voxels", *names]]
    found = [report.estimates(scores)[1] for scores in report.scores]
    for region, n_voxels in report.region_sizes.items():
        cells = [
            f"{estimates[region].value:.3f} [{estimates[region].low:.3f}, "
            f"{estimates[region].high:.3f}]"
            for estimates in found
        ]
        rows.append([region, str(n_voxels), *cells])
    return align(rows)


def _notes(report: ReconstructionReport, has_published: bool) -> list[str]:
    options = report.options
    notes = [
        f"two-way (%): {_TWO_WAY[options['two_way']]}, over all others; a tie is half a win.",
        f"SSIM: {_SSIM[options['ssim_channels']]}. Resizing: {options['resize']}.",
        "interval: percentile bootstrap over images, the others held fixed "
        f"({report.n_resamples} resamples, seed {report.seed}).",
    ]
    if report.region_sizes:
        notes.append(
            "brain correlation: of responses predicted from the picture with those measured, over "
            "the voxels of a region; mean over images [95 % interval]."
        )
    reasons: dict[str, list[str]] = {}
    titles = {metric.name: metric.title for metric in METRICS}
    for name, reason in report.absent.items():
        reasons.setdefault(reason, []).append(titles[name])
    notes += [f"absent: {', '.join(absent)}: {reason}." for reason, absent in reasons.items()]
    for side, image_ids in report.flat.items():
        notes.append(
            f"flat: {len(image_ids)} of the {side} ({', '.join(map(str, image_ids[:5]))}"
            f"{', ...' * (len(image_ids) > 5)}); a flat picture has no correlation, and 0 counts."
        )
    if has_published:
        notes += ["", CAVEATS, "Sources:"]
        notes += [
            f"  {source}" for source in dict.fromkeys(r.source for r in PUBLISHED_RECONSTRUCTIONS)
        ]
    return notes
