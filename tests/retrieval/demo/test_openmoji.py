from __future__ import annotations

import pytest

from retrieval.demo.openmoji import describe


@pytest.mark.parametrize(
    ("code_points", "name"),
    [
        ("1F993", "zebra"),
        ("1F1EF-1F1F5", "Japan"),
        ("1F469-200D-1F680", "woman astronaut"),
        ("E0AD", "OpenMoji drawing E0AD"),
        ("002D", "hyphen-minus"),
    ],
)
def test_drawings_are_called_by_their_unicode_names(code_points: str, name: str) -> None:
    assert describe(code_points) == name
