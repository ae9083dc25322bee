"""Commands that change an index that stands: add, merge, delete."""

from __future__ import annotations

from pathlib import Path

import click

from .embedding_commands import drop_option
from .embeddings.terminal import (
    EXISTING,
    FOLDER,
    emit,
    json_option,
    open_embeddings,
    space_option,
)
from .options import executor_options, queries_option, start_executor

moved_option = click.option(
    "--embeddings",
    "moved",
    multiple=True,
    type=FOLDER,
    help="Where the embeddings of INDEX are now, if they moved; of several, each in its order.",
)


@click.command(short_help="Append embeddings as new shards.")
@click.argument("folder", metavar="INDEX", type=EXISTING)
@click.argument("embeddings", nargs=-1, required=True, type=FOLDER)
@space_option
@queries_option
@moved_option
@executor_options
@json_option
def add(
    folder: Path,
    embeddings: tuple[Path, ...],
    space: str | None,
    queries: Path | None,
    moved: tuple[Path, ...],
    executor: str,
    workers: int | None,
    scheduler: str | None,
    as_json: bool,
) -> None:
    """Append EMBEDDINGS to INDEX as new shards; the old ones aren't touched.

    A folder that INDEX holds already, and that has new parts at its end, adds those.

    \b
    Example:  voxseek index add index/ laion2B-multi/
    """
    from .description import describe_index
    from .embeddings.space import EmbeddingSpace
    from .growth import add_embeddings

    with start_executor(executor, workers, scheduler) as started:
        manifest = add_embeddings(
            folder,
            embeddings,
            space=EmbeddingSpace.parse(space) if space else None,
            queries=open_embeddings(queries) if queries else None,
            moved=moved or None,
            executor=started,
        )
    emit(
        manifest,
        as_json,
        [*describe_index(manifest), f"next: voxseek search {folder} QUERIES --out RESULTS"],
    )


@click.command(short_help="Join shards into larger ones.")
@click.argument("folder", metavar="INDEX", type=EXISTING)
@click.option(
    "--rows-per-shard",
    type=click.IntRange(1),
    help="Most rows of a joined shard; by default as many as row numbers of 32 bits allow.",
)
@moved_option
@json_option
def merge(folder: Path, rows_per_shard: int | None, moved: tuple[Path, ...], as_json: bool) -> None:
    """Join the shards of INDEX into larger ones, without the codes of deleted rows.

    Every search finds the same as before, with fewer and longer reads.

    \b
    Example:  voxseek index merge index/
    """
    from .description import describe_index
    from .merging import merge_shards

    manifest = merge_shards(folder, rows_per_shard=rows_per_shard, moved=moved or None)
    emit(
        manifest,
        as_json,
        [*describe_index(manifest), f"next: voxseek index verify {folder}"],
    )


@click.command(short_help="Take rows down: no search finds them again.")
@click.argument("folder", metavar="INDEX", type=EXISTING)
@click.option(
    "--rows", type=EXISTING, help="A file of row numbers: one a line, or .npy of integers."
)
@click.option("--column", help="A metadata column ...")
@click.option(
    "--values", type=EXISTING, help="... and a file of its values, one a line, such as URLs."
)
@drop_option
@json_option
def delete(
    folder: Path,
    rows: Path | None,
    column: str | None,
    values: Path | None,
    drop: Path | None,
    as_json: bool,
) -> None:
    """Take rows of INDEX down: by number, by the values of a metadata column, or by a list.

    They are left out of every search from now on; `voxseek index merge` removes their codes too.

    \b
    Example:  voxseek index delete index/ --column url --values takedowns.txt
              voxseek index delete index/ --drop-hashes takedowns.parquet
    """
    from .deletion import delete_rows, find_rows, read_rows
    from .description import describe_index
    from .embeddings.drop_list import read_drop_list
    from .takedown import find_listed_rows

    n_given = sum(each is not None for each in (rows, values, drop))
    if n_given != 1 or (column is None) != (values is None):
        raise click.UsageError(
            "give either --rows FILE, or --column NAME with --values FILE, or --drop-hashes FILE."
        )
    if rows is not None:
        wanted = read_rows(rows)
    elif drop is not None:
        wanted = find_listed_rows(folder, read_drop_list(drop))
    else:
        assert column is not None and values is not None
        wanted = find_rows(folder, column, values.read_text().splitlines())
    manifest = delete_rows(folder, wanted)
    emit(
        manifest,
        as_json,
        [
            f"{len(wanted)} rows taken down, {manifest['deleted']['n_rows']} in all",
            *describe_index(manifest),
            f"next: voxseek index merge {folder}",
        ],
    )
