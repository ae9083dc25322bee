"""Commands on embedding folders: describe one, join columns to one or leave rows out."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .embeddings.terminal import (
    EXISTING,
    FOLDER,
    emit,
    json_option,
    key_values,
    open_embeddings,
    seed_option,
    space_option,
)

if TYPE_CHECKING:
    from .embeddings.partners import Duplicates
    from .embeddings.row_keys import RowKey

drop_option = click.option(
    "--drop-hashes",
    "drop",
    metavar="FILE",
    type=EXISTING,
    help="A list of rows to leave out: .parquet or .csv with a column hash, url or key, or text "
    "with a hash or URL a line.",
)


@click.group()
def embeddings() -> None:
    """Describe embedding folders; add columns to them, leave rows out."""


@embeddings.command(short_help="Describe an embedding folder.")
@click.argument("folder", metavar="EMBEDDINGS", type=FOLDER)
@space_option
@click.option(
    "--sample",
    default=8192,
    show_default=True,
    type=click.IntRange(2, 65536),
    help="Rows to look at; fewer, if they are wider than 256 MiB hold.",
)
@click.option("--plot", metavar="FILE.png", type=FOLDER, help="Draw spectrum, cosines and norms.")
@click.option(
    "--images",
    type=EXISTING,
    help="Where image_path begins, for some pictures in the plot; by default in EMBEDDINGS.",
)
@seed_option
@json_option
def info(
    folder: Path,
    space: str | None,
    sample: int,
    plot: Path | None,
    images: Path | None,
    seed: int,
    as_json: bool,
) -> None:
    """Describe EMBEDDINGS: rows, columns, and the shape of the cloud by a sample.

    \b
    Example:  voxseek embeddings info laion/ --space ViT-L-14/openai:final:1x768 --plot laion.png
    """
    from .embeddings.description import describe_folder, measure_cloud, sample_folder
    from .embeddings.overview import draw_overview, find_pictures, notes_on, overview_lines

    opened = open_embeddings(folder, space)
    rows = sample_folder(opened, sample, seed)
    cloud = measure_cloud(opened.take(rows), seed)
    facts = {**describe_folder(opened), "sample": cloud.to_dict()}
    if plot is not None:
        draw_overview(facts, cloud, find_pictures(opened, rows, images), plot)
    emit(facts, as_json, [*overview_lines(facts), *(f"note: {each}" for each in notes_on(opened))])


@embeddings.command(short_help="Join columns of tables to an embedding folder; leave rows out.")
@click.argument("folder", metavar="EMBEDDINGS", type=FOLDER)
@click.argument("tables", metavar="[TABLE]...", nargs=-1, type=EXISTING)
@click.option("--out", required=True, type=FOLDER, help="The new folder; it shares the npy files.")
@click.option(
    "--by",
    default="hash",
    show_default=True,
    type=click.Choice(["hash", "url", "key"]),
    help="What rows and tables have in common. A hash that EMBEDDINGS lacks is computed.",
)
@click.option(
    "--columns",
    metavar="NAME,NEW=OLD",
    help="Columns of the tables to add, some under new names; by default all that are missing.",
)
@click.option(
    "--duplicates",
    default="error",
    show_default=True,
    type=click.Choice(["error", "first"]),
    help="Where the tables have several rows for one: stop, or take the first.",
)
@drop_option
@click.option(
    "--memory", metavar="SIZE", default="4GiB", show_default=True, help="Limit of the join."
)
@space_option
@json_option
def join(
    folder: Path,
    tables: tuple[Path, ...],
    out: Path,
    by: RowKey,
    columns: str | None,
    duplicates: Duplicates,
    drop: Path | None,
    memory: str,
    space: str | None,
    as_json: bool,
) -> None:
    """Join columns of parquet TABLEs to EMBEDDINGS, or leave listed rows out, as a new folder.

    Vectors aren't copied: npy files get a second name, unless rows of theirs are left out. A
    command that was interrupted goes on where it stopped.

    \b
    Example:  voxseek embeddings join laion2B-en/ scores/ --out scored/ --columns punsafe,pwatermark
              voxseek embeddings join laion2B-en/ --drop-hashes takedowns.txt --out clean/
    """
    from .embeddings.drop_list import read_drop_list
    from .embeddings.joining import join_tables, parse_columns
    from .embeddings.partners import SideTables
    from .sizes import parse_size

    if not tables and drop is None:
        raise click.UsageError("give a TABLE, or --drop-hashes FILE.")
    if columns is not None and not tables:
        raise click.UsageError("--columns goes with a TABLE.")
    joined = join_tables(
        open_embeddings(folder, space),
        out,
        tables=SideTables.open(tables) if tables else None,
        by=by,
        columns=parse_columns(columns) if columns else None,
        duplicates=duplicates,
        dropped=read_drop_list(drop) if drop else None,
        memory_bytes=parse_size(memory),
    )
    facts = asdict(joined)
    emit(facts, as_json, [*key_values(facts), f"next: voxseek index build {out} INDEX"])


COMMANDS = (embeddings,)
