"""Figures: what is drawn where, by what matplotlib was told."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from index_builder.embeddings.errors import MissingExtraError
from index_builder.embeddings.figure import Bars, Histogram, Line, Panel, Thumbnails, draw_panels

PANELS: list[Panel] = [
    Bars("Splits", "trials", values={"train": 24000, "test": 30.5}),
    Histogram("Norms", "norm", "rows", values=np.arange(100.0), marks={"median": 49.5}),
    Line("Spectrum", "dimensions", x_values=np.arange(1, 5), y_values=np.arange(4), is_log_x=True),
    Line("More", x_values=np.arange(3), y_values=np.arange(3), marks={"half": (1.0, 1.0)}),
    Thumbnails("Pictures", pictures=[np.full((8, 8, 3), 200, np.uint8)] * 3),
]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that were saved."""
    from matplotlib.figure import Figure

    figures, save = [], Figure.savefig

    def keep(self: Figure, *arguments: Any, **options: Any) -> None:
        figures.append(self)
        save(self, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


def test_panels_stand_three_in_a_row(tmp_path: Path, drawn: list[Any]) -> None:
    draw_panels(PANELS, tmp_path / "figure.png", title="subj01", subtitle="24,030 trials")
    with Image.open(tmp_path / "figure.png") as picture:
        assert picture.format == "PNG" and picture.width > 1500
    (figure,) = drawn
    axes = [each for each in figure.axes if each.get_title(loc="left")]
    assert [each.get_title(loc="left") for each in axes] == [panel.title for panel in PANELS]
    tops = [round(each.get_position().y1, 3) for each in axes]
    assert tops[0] == tops[1] == tops[2] > tops[3] > tops[4]
    assert axes[4].get_position().width > 2.5 * axes[0].get_position().width
    assert [text.get_text() for text in figure.texts] == ["subj01", "24,030 trials"]


def test_what_panels_show(tmp_path: Path, drawn: list[Any]) -> None:
    draw_panels(PANELS, tmp_path / "figure.png", title="all")
    bars, histogram, log, line, pictures = drawn[0].axes[:5]
    assert [bar.get_width() for bar in bars.patches] == [24000, 30.5]
    assert [text.get_text() for text in bars.texts] == ["24,000", "30.5"]
    assert sum(bar.get_height() for bar in histogram.patches) == 100
    assert [text.get_text() for text in histogram.texts] == ["median 49.5"]
    assert (log.get_xscale(), line.get_xscale()) == ("log", "linear")
    np.testing.assert_array_equal(log.lines[0].get_xdata(), np.arange(1, 5))
    assert [text.get_text() for text in line.texts] == ["half"]
    assert len(pictures.child_axes) == 3


def test_equal_values_have_a_histogram_too(tmp_path: Path, drawn: list[Any]) -> None:
    draw_panels([Histogram("Norms", values=np.ones(9))], tmp_path / "one.png", title="one")
    assert sum(bar.get_height() for bar in drawn[0].axes[0].patches) == 9


def test_long_names_push_panels_aside(tmp_path: Path, drawn: list[Any]) -> None:
    for name in ("V1", "ventral occipito-temporal"):
        draw_panels([Bars("Voxels", values={name: 1.0})], tmp_path / "f.png", title="t")
    short, long = (figure.axes[0].get_position().x0 for figure in drawn)
    assert long > 2 * short


def test_the_same_panels_are_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        draw_panels(PANELS, tmp_path / name, title="all")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"matplotlib is not installed.*voxseek\[plot\]"):
        draw_panels(PANELS, tmp_path / "figure.png", title="all")
