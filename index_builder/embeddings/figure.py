"""Pictures of numbers: panels that say what they show, drawn side by side into one PNG file.

A panel is data alone; `draw_panels` knows colors, fonts and matplotlib.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .artefact import atomic_write
from .errors import MissingExtraError

_INK = "#1f2a37"
_FAINT = "#6b7684"
_GRID = "#e4e8ed"
_FILL = "#3d6fb4"
_MARK = "#c8553d"
_PANEL_INCHES = (4.6, 3.0)  # with what is written around it
_THUMBNAIL_INCHES = 2.5
_HEAD_INCHES, _FOOT_INCHES = 1.15, 0.55
_SIDE_INCHES, _LETTER_INCHES = 0.75, 0.08  # left of a panel, and of a letter of its longest name
_DOTS_PER_INCH = 150
_PANELS_A_ROW = 3
_MOST_BINS = 60
_FEWEST_BARS = 4  # for which a panel has room: one alone would be a block


@dataclass(frozen=True)
class Panel:
    """What all panels have.

    Parameters
    ----------
    title : str
    x, y : str
        What the axes are, with units.
    """

    title: str
    x: str = ""
    y: str = ""


@dataclass(frozen=True)
class Bars(Panel):
    """A value for each of some names, from top to bottom.

    Parameters
    ----------
    values : mapping of str to float
    """

    values: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Histogram(Panel):
    """How some values spread.

    Parameters
    ----------
    values : ndarray of shape (n,)
        n at least 1.
    marks : mapping of str to float
        Values to point at, by what they are.
    """

    values: np.ndarray = field(default_factory=lambda: np.zeros(1))
    marks: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Line(Panel):
    """A value that follows another.

    Parameters
    ----------
    x_values, y_values : ndarray of shape (n,)
    marks : mapping of str to (float, float)
        Points to name.
    is_log_x : bool
    """

    x_values: np.ndarray = field(default_factory=lambda: np.zeros(0))
    y_values: np.ndarray = field(default_factory=lambda: np.zeros(0))
    marks: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    is_log_x: bool = False


@dataclass(frozen=True)
class Thumbnails(Panel):
    """A few pictures, six in a row.

    Parameters
    ----------
    pictures : sequence of ndarray of shape (height, width, 3), uint8
    """

    pictures: Sequence[np.ndarray] = ()


def draw_panels(
    panels: Sequence[Panel], path: str | os.PathLike[str], *, title: str, subtitle: str = ""
) -> None:
    """Draw panels, three in a row, into a PNG file; pictures get a row of their own.

    Raises
    ------
    MissingExtraError
        If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "plot", "drawing a figure") from error
    rows = _arrange(panels)
    n_columns = max(len(row) for row in rows)
    heights = [
        _THUMBNAIL_INCHES if isinstance(row[0], Thumbnails) else _PANEL_INCHES[1] for row in rows
    ]
    names = [name for panel in panels if isinstance(panel, Bars) for name in panel.values]
    side = max(_SIDE_INCHES, 0.15 + _LETTER_INCHES * max(map(len, names), default=0))
    width = n_columns * _PANEL_INCHES[0]
    height = sum(heights) + 0.7
    figure = Figure(figsize=(width, height), dpi=_DOTS_PER_INCH, facecolor="white")
    grid = figure.add_gridspec(
        len(rows),
        n_columns,
        height_ratios=heights,
        left=side / width,
        right=1 - 0.3 / width,
        top=1 - _HEAD_INCHES / height,
        bottom=(0.2 if isinstance(rows[-1][0], Thumbnails) else _FOOT_INCHES) / height,
        hspace=0.36,
        wspace=(side + 0.3) / (_PANEL_INCHES[0] - side - 0.3),
    )
    left = side / width
    figure.text(left, 1 - 0.38 / height, title, fontsize=15, weight="bold", color=_INK)
    figure.text(left, 1 - 0.65 / height, subtitle, fontsize=10, color=_FAINT)
    for i, row in enumerate(rows):
        for j, panel in enumerate(row):
            is_wide = isinstance(panel, Thumbnails)
            _draw(figure.add_subplot(grid[i, :] if is_wide else grid[i, j]), panel)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})


def _arrange(panels: Sequence[Panel]) -> list[list[Panel]]:
    rows: list[list[Panel]] = []
    for panel in panels:
        is_alone = isinstance(panel, Thumbnails)
        is_full = not rows or len(rows[-1]) == _PANELS_A_ROW or isinstance(rows[-1][0], Thumbnails)
        if is_alone or is_full:
            rows.append([])
        rows[-1].append(panel)
    return rows


def _draw(axes: Any, panel: Panel) -> None:
    axes.set_title(panel.title, loc="left", fontsize=11, color=_INK, pad=10)
    if isinstance(panel, Thumbnails):
        _draw_thumbnails(axes, panel)
        return
    axes.set_xlabel(panel.x, fontsize=9, color=_FAINT)
    axes.set_ylabel(panel.y, fontsize=9, color=_FAINT)
    axes.tick_params(which="both", colors=_FAINT, labelsize=8, length=0)
    axes.grid(axis="x" if isinstance(panel, Bars) else "y", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side == ("left" if isinstance(panel, Bars) else "bottom"))
        spine.set_color(_FAINT)
    if isinstance(panel, Bars):
        _draw_bars(axes, panel)
    elif isinstance(panel, Histogram):
        _draw_histogram(axes, panel)
    elif isinstance(panel, Line):
        _draw_line(axes, panel)


def _draw_bars(axes: Any, panel: Bars) -> None:
    names, values = list(panel.values), list(panel.values.values())
    axes.barh(range(len(names)), values, color=_FILL, height=0.62)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(max(len(names), _FEWEST_BARS) - 0.5, -0.5)  # from top to bottom
    for i, value in enumerate(values):
        axes.annotate(
            f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}",
            (value, i),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=_INK,
        )
    axes.margins(x=0.16)


def _draw_histogram(axes: Any, panel: Histogram) -> None:
    low, high = float(panel.values.min()), float(panel.values.max())
    if high - low <= 1e-6 * max(abs(low), abs(high)):  # one value, but for rounding
        low, high = low - 0.5, high + 0.5
    n_bins = int(np.clip(np.sqrt(len(panel.values)), 8, _MOST_BINS))
    axes.hist(panel.values, bins=n_bins, range=(low, high), color=_FILL)
    axes.locator_params(nbins=5)
    axes.ticklabel_format(axis="x", useOffset=False)
    for rank, (name, value) in enumerate(panel.marks.items()):
        axes.axvline(value, color=_MARK, linewidth=1.4)
        is_right = value > (low + high) / 2
        axes.annotate(
            f"{name} {value:.3g}",
            (value, 1),
            xycoords=("data", "axes fraction"),
            xytext=(-5 if is_right else 5, -10 - 12 * rank),
            textcoords="offset points",
            ha="right" if is_right else "left",
            fontsize=8,
            color=_MARK,
        )


def _draw_line(axes: Any, panel: Line) -> None:
    if panel.is_log_x:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
    axes.plot(panel.x_values, panel.y_values, color=_FILL, linewidth=2)
    for name, (x, y) in panel.marks.items():
        axes.plot([x], [y], "o", color=_MARK, markersize=5)
        axes.annotate(
            name,
            (x, y),
            xytext=(-8, 2),
            textcoords="offset points",
            ha="right",
            fontsize=8,
            color=_MARK,
        )


def _draw_thumbnails(axes: Any, panel: Thumbnails) -> None:
    axes.set_axis_off()
    n = len(panel.pictures)
    axes.set_xlim(0, n)
    axes.set_ylim(0, 1)
    for i, picture in enumerate(panel.pictures):
        inset = axes.inset_axes((i / n, 0, 1 / n - 0.01, 1))
        inset.imshow(picture, interpolation="antialiased")
        inset.set_anchor("NW")
        inset.set_axis_off()
