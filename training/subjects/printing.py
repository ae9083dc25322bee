"""How a subject folder is printed, by the commands that make one and the one that describes it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from index_builder.embeddings.terminal import emit, key_values

if TYPE_CHECKING:
    from .subject import Subject


def emit_subject(subject: Subject, as_json: bool, plot: Path | None = None) -> None:
    """Print what a subject folder holds, and draw it where a file for it is given."""
    from .describe import describe

    facts = describe(subject)
    lines = [*key_values(facts), f"next: voxseek embed {subject.path} TARGETS"]
    if plot is not None:
        from .overview import draw_overview

        draw_overview(subject, facts, plot)
        lines.insert(-1, f"drawn: {plot}")
    emit(facts, as_json, lines)
