from __future__ import annotations

from xml.etree import ElementTree

import numpy as np

from retrieval.confidence.curve import draw_reliability
from retrieval.confidence.reliability import measure_reliability

SVG = "{http://www.w3.org/2000/svg}"


def test_points_lie_where_the_bins_say(rng: np.random.Generator) -> None:
    probabilities = rng.uniform(0.05, 0.95, 200)
    is_right = rng.random(200) < probabilities
    found = measure_reliability(probabilities, is_right, np.arange(200), seed=0, n_resamples=20)
    root = ElementTree.fromstring(draw_reliability(found, "a & b < c"))
    assert root.findtext(f"{SVG}title") == "a & b < c"
    diagonal = next(line for line in root.iter(f"{SVG}line") if line.get("stroke-dasharray"))
    x0, y0, x1, y1 = (float(diagonal.attrib[name]) for name in ("x1", "y1", "x2", "y2"))
    circles = list(root.iter(f"{SVG}circle"))
    assert len(circles) == len(found.bins) == 10
    for circle, each in zip(circles, found.bins, strict=True):
        x = (float(circle.attrib["cx"]) - x0) / (x1 - x0)
        y = (float(circle.attrib["cy"]) - y0) / (y1 - y0)
        assert abs(x - each.probability) < 1e-3 and abs(y - each.frequency.value) < 1e-3
    bars = [rect for rect in root.iter(f"{SVG}rect") if rect.get("width") == "6"]
    heights = np.array([float(bar.attrib["height"]) for bar in bars])
    counts = np.array([each.n_queries for each in found.bins])
    np.testing.assert_allclose(heights / heights.max(), counts / counts.max(), atol=2e-3)
