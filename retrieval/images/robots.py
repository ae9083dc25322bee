"""X-Robots-Tag: what the owner of a picture wishes of programs like this one.

The header is described in Google's documentation of robots meta tags; ``noai`` and ``noimageai``
are DeviantArt's, and img2dataset heeds the same four.
"""

from __future__ import annotations

from collections.abc import Iterable

AGENT = "voxseek"
REFUSALS = frozenset({"noai", "noimageai", "noindex", "noimageindex", "none"})
_WITH_VALUES = frozenset(
    {"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"}
)


def refusal(headers: Iterable[str]) -> str | None:
    """Return the directive that forbids the use of a picture, or None.

    Parameters
    ----------
    headers : iterable of str
        Values of each X-Robots-Tag header. Directives behind another program's name don't concern
        this one: ``otherbot: noindex``.
    """
    for header in headers:
        concerns_us = True
        for item in header.lower().split(","):
            before, colon, after = item.partition(":")
            if colon and before.strip() not in _WITH_VALUES:
                concerns_us = before.strip() in (AGENT, "*")
                item = after
            if concerns_us and item.strip() in REFUSALS:
                return item.strip()
    return None
