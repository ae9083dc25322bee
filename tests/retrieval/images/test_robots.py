from __future__ import annotations

import pytest

from retrieval.images.robots import refusal


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([], None),
        (["all"], None),
        (["nofollow, noarchive"], None),
        (["noai"], "noai"),
        (["NoImageAI"], "noimageai"),
        (["nofollow, noindex"], "noindex"),
        (["nofollow", "noimageindex"], "noimageindex"),
        (["none"], "none"),
        (["unavailable_after: 25 Jun 2010 15:00:00 PST, noindex"], "noindex"),
        (["max-snippet: 20, nofollow"], None),
        (["otherbot: noindex, nofollow"], None),
        (["otherbot: noindex, voxseek: noai"], "noai"),
        (["voxseek: noindex"], "noindex"),
        (["*: noindex"], "noindex"),
        (["otherbot: noindex", "noai"], "noai"),
    ],
)
def test_directives_for_us_or_for_all_are_heeded(headers: list[str], expected: str | None) -> None:
    assert refusal(headers) == expected
