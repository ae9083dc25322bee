"""The reliability curve as a picture: SVG, written by hand."""

from __future__ import annotations

from collections.abc import Iterator
from xml.sax.saxutils import escape

from .reliability import Reliability, ReliabilityBin

_SIDE, _LEFT, _TOP = 320.0, 62.0, 46.0  # of the square that holds the curve, in pixels
_BARS = 56.0  # height of the largest bar below it
_GAP = 22.0
_INK, _FAINT, _ACCENT = "#1f2430", "#c9ced8", "#1f6feb"
_FONT = "font-family='system-ui, sans-serif'"


def draw_reliability(reliability: Reliability, title: str) -> str:
    """Return a reliability curve as the text of an SVG file.

    Above, how often queries of a bin were right against the mean probability said of them, with
    the 95 % interval of each; what lies on the diagonal is calibrated. Below, how many queries a
    bin has.

    Parameters
    ----------
    reliability : Reliability
    title : str
        One line, plain text.
    """
    width = _LEFT + _SIDE + 24
    base = _TOP + _SIDE + _GAP + _BARS
    height = base + 50
    shapes = [
        *_frame(title, base),
        *_bars(reliability.bins, base),
        *_points(reliability.bins),
    ]
    body = "\n".join(f"  {shape}" for shape in shapes)
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{width:.0f}' height='{height:.0f}' "
        f"viewBox='0 0 {width:.0f} {height:.0f}' role='img'>\n"
        f"  <title>{escape(title)}</title>\n{body}\n</svg>\n"
    )


def _frame(title: str, base: float) -> Iterator[str]:
    yield "<rect width='100%' height='100%' fill='white'/>"
    yield _text(_LEFT, 24, title, size=14, weight="600")
    for tick in range(0, 11, 2):
        share = tick / 10
        x, y = _x(share), _y(share)
        yield _line(x, _TOP, x, _TOP + _SIDE, _FAINT)
        yield _line(_LEFT, y, _LEFT + _SIDE, y, _FAINT)
        yield _text(_LEFT - 8, y + 4, f"{share:.1f}", anchor="end")
        yield _text(x, base + 18, f"{share:.1f}", anchor="middle")
    yield _line(_x(0), _y(0), _x(1), _y(1), _INK, dash="5 4")
    yield _text(18, _TOP + _SIDE / 2, "first hit is the seen image", anchor="middle", turned=True)
    yield _text(_LEFT + _SIDE / 2, base + 38, "confidence", anchor="middle")
    yield _text(18, base - _BARS / 2, "queries", anchor="middle", turned=True)
    yield _line(_LEFT, base, _LEFT + _SIDE, base, _INK)


def _bars(bins: tuple[ReliabilityBin, ...], base: float) -> Iterator[str]:
    largest = max(each.n_queries for each in bins)
    for each in bins:
        tall = _BARS * each.n_queries / largest
        yield (
            f"<rect x='{_x(each.probability) - 3:.1f}' y='{base - tall:.1f}' width='6' "
            f"height='{tall:.1f}' fill='{_ACCENT}' fill-opacity='0.45'/>"
        )
    yield _text(_LEFT - 8, base - _BARS + 8, str(largest), anchor="end")


def _points(bins: tuple[ReliabilityBin, ...]) -> Iterator[str]:
    for each in bins:
        x = _x(each.probability)
        yield _line(x, _y(each.frequency.low), x, _y(each.frequency.high), _ACCENT, thick=1.5)
    path = " ".join(f"{_x(each.probability):.1f},{_y(each.frequency.value):.1f}" for each in bins)
    yield f"<polyline points='{path}' fill='none' stroke='{_ACCENT}' stroke-opacity='0.5'/>"
    for each in bins:
        x, y = _x(each.probability), _y(each.frequency.value)
        yield f"<circle cx='{x:.1f}' cy='{y:.1f}' r='4' fill='{_ACCENT}'/>"


def _x(probability: float) -> float:
    return _LEFT + _SIDE * probability


def _y(frequency: float) -> float:
    return _TOP + _SIDE * (1 - frequency)


def _line(
    x1: float, y1: float, x2: float, y2: float, color: str, *, dash: str = "", thick: float = 1
) -> str:
    dashes = f" stroke-dasharray='{dash}'" if dash else ""
    return (
        f"<line x1='{x1:.1f}' y1='{y1:.1f}' x2='{x2:.1f}' y2='{y2:.1f}' stroke='{color}' "
        f"stroke-width='{thick}'{dashes}/>"
    )


def _text(
    x: float,
    y: float,
    text: str,
    *,
    anchor: str = "start",
    size: int = 12,
    weight: str = "400",
    turned: bool = False,
) -> str:
    turn = f" transform='rotate(-90 {x:.1f} {y:.1f})'" if turned else ""
    return (
        f"<text x='{x:.1f}' y='{y:.1f}' {_FONT} font-size='{size}' font-weight='{weight}' "
        f"fill='{_INK}' text-anchor='{anchor}'{turn}>{escape(text)}</text>"
    )
