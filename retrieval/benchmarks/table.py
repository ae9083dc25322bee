"""Identification reports as plain text for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .report import DirectionReport, Estimate, NwayReport, TopRate

ARROWS = {"brain_to_image": "brain→image", "image_to_brain": "image→brain"}


def format_report(report: NwayReport) -> str:
    """Return a report as lines of text: what was compared, the rates, the ranks."""
    lines = [*_describe_inputs(report), "", *_rate_table(report), "", *_rank_table(report)]
    if report.image_to_brain_absent is not None:
        lines += ["", f"image→brain is absent: {report.image_to_brain_absent}."]
    lines += ["", *_notes(report)]
    return "\n".join(lines)


def align(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows of cells as lines, the first column to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        first, *others = (
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join([first, *others]).rstrip())
    return lines


def percent(rate: float) -> str:
    """Return a rate in [0, 1] as a percentage with two decimals."""
    return f"{100 * rate:.2f}"


def _describe_inputs(report: NwayReport) -> list[str]:
    lines = [f"pool         {report.pool_size} images"]
    n_queries = len(report.brain_to_image.n_beating)
    trials = "unknown number of trials averaged"
    if report.n_trials_averaged is not None:
        counts = report.n_trials_averaged.items()
        trials = ", ".join(f"{count} of {n_trials} trials" for n_trials, count in counts)
    lines.append(f"queries      {n_queries} from the brain: {trials}")
    for side in ("predictions", "targets", "scores"):
        if side in report.inputs:
            lines.append(f"{side:<11}  {_describe_side(report.inputs[side])}")
    return lines


def _describe_side(side: dict[str, Any]) -> str:
    parts = [side["name"], f"fingerprint {side['fingerprint'][:12]}"]
    if "space" in side:
        space = side["space"]
        parts.append(f"{space['model']}:{space['layer']} ({space['tokens']} x {space['dim']})")
    parts += [f"{name} {_shorten(side[name])}" for name in ("subject", "split") if name in side]
    return ", ".join(parts)


def _shorten(names: Sequence[str]) -> str:
    if len(names) <= 2:
        return ", ".join(names)
    return f"{names[0]} and {len(names) - 1} more"


def _rate_table(report: NwayReport) -> list[str]:
    has_draws = any(
        rate.drawn is not None for direction in report.directions for rate in direction.top_rates
    )
    heads = ["direction", "n-way", "", "rate %", "95 % interval", "chance %"]
    rows = [heads + ["drawn % ± s.e."] * has_draws]
    for direction in report.directions:
        for rate in direction.top_rates:
            row = [
                ARROWS[direction.direction],
                f"all {rate.n_way}" if rate.is_whole_pool else str(rate.n_way),
                f"top-{rate.top}",
                percent(rate.expected.value),
                f"{percent(rate.expected.low)} to {percent(rate.expected.high)}",
                percent(rate.chance),
            ]
            rows.append(row + [_format_drawn(rate)] * has_draws)
    return align(rows)


def _format_drawn(rate: TopRate) -> str:
    if rate.drawn is None:
        return "-"
    return f"{percent(rate.drawn.mean)} ± {percent(rate.drawn.standard_error)}"


def _rank_table(report: NwayReport) -> list[str]:
    n_images = report.pool_size
    chance_mrr = sum(1 / rank for rank in range(1, n_images + 1)) / n_images
    rows = [["direction", "whole pool", "value", "95 % interval", "chance"]]
    for direction in report.directions:
        rows += _rank_rows(direction, (n_images + 1) / 2, chance_mrr)
    return align(rows)


def _rank_rows(
    direction: DirectionReport, chance_median: float, chance_mrr: float
) -> list[list[str]]:
    def row(name: str, estimate: Estimate, chance: float, form: str) -> list[str]:
        interval = f"{estimate.low:{form}} to {estimate.high:{form}}"
        value = f"{estimate.value:{form}}"
        return [ARROWS[direction.direction], name, value, interval, f"{chance:{form}}"]

    return [
        row("median rank", direction.median_rank, chance_median, ".1f"),
        row("mean reciprocal rank", direction.mean_reciprocal_rank, chance_mrr, ".4f"),
    ]


def _notes(report: NwayReport) -> list[str]:
    notes = [
        "rate: mean over all pools of n images that hold the truth, in closed form; ties fail.",
        "interval: percentile bootstrap over images, the pool held fixed "
        f"({report.n_resamples} resamples, seed {report.seed}).",
    ]
    if any(rate.drawn is not None for rate in report.brain_to_image.top_rates):
        notes.append(
            f"drawn: mean of {report.n_draws} pools drawn with the same seed; "
            "its error is that of the drawing alone."
        )
    return notes
