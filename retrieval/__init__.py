"""Index and queries to results: search, benchmarks, gallery, serving, demo.

``from retrieval import open_index, search`` is the Python API (`api`); it is loaded when it is
asked for, so that importing the package alone loads nothing heavy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import Hits, open_index, search

__all__ = ["Hits", "open_index", "search"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import api

    return getattr(api, name)
