"""What all commands share: options that mean the same everywhere, and how results are printed.

Data go to stdout (``--json``: one object), progress and logs to stderr.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from .reader import EmbeddingFolder

FOLDER = click.Path(path_type=Path)
EXISTING = click.Path(exists=True, path_type=Path)
SPLIT = click.Choice(["train", "validation", "test", "all"])

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
seed_option = click.option(
    "--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed of every draw."
)
split_option = click.option(
    "--split", default="test", show_default=True, type=SPLIT, help="Which images of the subject."
)
dry_run_option = click.option(
    "--dry-run", is_flag=True, help="Say what would be done; write nothing."
)
space_option = click.option(
    "--space",
    metavar="MODEL:LAYER:TOKENSxDIM[:any]",
    help="Space of a folder without space.json, such as ViT-L-14/openai:final:1x768; ':any' if "
    "its rows are not of unit norm.",
)
moved_option = click.option(
    "--embeddings",
    multiple=True,
    type=FOLDER,
    help="Where the embedding folder is now, if it moved; of several, each in the index's order.",
)


def emit(result: dict[str, Any], as_json: bool, lines: Iterable[str]) -> None:
    """Print a result: one JSON object, or lines for people."""
    if as_json:
        click.echo(json.dumps(result, allow_nan=False))
        return
    for line in lines:
        click.echo(line)


def key_values(facts: dict[str, Any], indent: str = "") -> Iterator[str]:
    """Yield one aligned line a fact; a nested dict follows its key, indented."""
    width = max((len(key) for key in facts), default=0)
    for key, value in facts.items():
        if isinstance(value, dict) and value:
            yield f"{indent}{key}"
            yield from key_values(value, indent + "  ")
        else:
            shown = f"{value:.4g}" if isinstance(value, float) else value
            yield f"{indent}{key:<{width}}  {shown}"


def open_embeddings(path: Path, space: str | None = None) -> EmbeddingFolder:
    """Open an embedding folder, with the space that the user gave for a foreign one."""
    from .reader import EmbeddingFolder
    from .space import EmbeddingSpace

    return EmbeddingFolder.open(path, space=EmbeddingSpace.parse(space) if space else None)
