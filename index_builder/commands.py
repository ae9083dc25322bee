"""Commands from embeddings to an index: plan, build, info, verify."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .embeddings.terminal import (
    EXISTING,
    FOLDER,
    dry_run_option,
    emit,
    json_option,
    key_values,
    moved_option,
    open_embeddings,
    seed_option,
    space_option,
)

if TYPE_CHECKING:
    from .embeddings.reader import EmbeddingFolder
    from .planning import Code, IndexPlan
    from .shards import BadRows


@click.group()
def index() -> None:
    """Plan, build, describe and verify indexes."""


def plan_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that decide the design of an index."""
    for option in (
        click.option(
            "--memory",
            metavar="SIZE",
            help="Strict limit for what the opened index keeps in memory, e.g. 64GiB.",
        ),
        click.option(
            "--code",
            type=click.Choice(["flat", "ivf-rabitq"]),
            help="Design; by default chosen by rows and memory.",
        ),
        click.option("--rows-per-shard", type=click.IntRange(1), help="Rows of a shard."),
        space_option,
    ):
        command = option(command)
    return command


def make_plan(
    folder: EmbeddingFolder, memory: str | None, code: Code | None, rows_per_shard: int | None
) -> IndexPlan:
    """Plan an index for an embedding folder."""
    from .planning import plan_index
    from .sizes import parse_size

    return plan_index(
        folder.n_rows,
        folder.space,
        memory_bytes=parse_size(memory) if memory else None,
        code=code,
        rows_per_shard=rows_per_shard,
        dtype=folder.dtype.name,
    )


@index.command(short_help="Choose an index and say what it will cost.")
@click.argument("embeddings", type=FOLDER)
@plan_options
@json_option
def plan(
    embeddings: Path,
    memory: str | None,
    code: Code | None,
    rows_per_shard: int | None,
    space: str | None,
    as_json: bool,
) -> None:
    """Choose an index for EMBEDDINGS and say what it will cost; reads headers, writes nothing.

    \b
    Example:  voxseek index plan laion/ --memory 32GiB
    """
    from .description import describe_plan
    from .planning import compare_designs

    chosen = make_plan(open_embeddings(embeddings, space), memory, code, rows_per_shard)
    facts = {
        "plan": chosen.to_dict(),
        "designs": [asdict(design) for design in compare_designs(chosen)],
    }
    emit(
        facts,
        as_json,
        [
            *describe_plan(chosen),
            f"next: voxseek index build {embeddings} INDEX",
        ],
    )


@index.command(short_help="Build an index, or finish one.")
@click.argument("embeddings", type=FOLDER)
@click.argument("out", metavar="INDEX", type=FOLDER)
@plan_options
@click.option(
    "--queries",
    type=FOLDER,
    help="Predicted embeddings, so that the certificate and the default effort hold for them too.",
)
@click.option(
    "--recall",
    default=0.95,
    show_default=True,
    type=click.FloatRange(0, 1),
    help="Recall@10 that the default effort must reach.",
)
@click.option(
    "--bad-rows",
    default="error",
    show_default=True,
    type=click.Choice(["error", "tombstone"]),
    help="NaN, infinite or zero rows.",
)
@seed_option
@dry_run_option
@json_option
def build(
    embeddings: Path,
    out: Path,
    memory: str | None,
    code: Code | None,
    rows_per_shard: int | None,
    space: str | None,
    queries: Path | None,
    recall: float,
    bad_rows: BadRows,
    seed: int,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Build the index INDEX of EMBEDDINGS, or finish one that was interrupted.

    \b
    Example:  voxseek index build targets/ index/ --memory 2GiB --queries validation_predictions/
    """
    from .build import build_index
    from .description import describe_index, describe_plan

    folder = open_embeddings(embeddings, space)
    chosen = make_plan(folder, memory, code, rows_per_shard)
    if dry_run:
        emit(chosen.to_dict(), as_json, describe_plan(chosen))
        return
    manifest = build_index(
        folder,
        out,
        chosen,
        queries=open_embeddings(queries) if queries else None,
        seed=seed,
        bad_rows=bad_rows,
        target_recall=recall,
    )
    emit(
        manifest,
        as_json,
        [
            *describe_index(manifest),
            f"next: voxseek search {out} QUERIES --out RESULTS",
        ],
    )


@index.command("info", short_help="Describe an index.")
@click.argument("folder", metavar="INDEX", type=EXISTING)
@json_option
def index_info(folder: Path, as_json: bool) -> None:
    """Describe INDEX: plan, certificate, memory, source.

    \b
    Example:  voxseek index info index/ --json
    """
    from .description import describe_index
    from .manifest import read_index_manifest

    manifest = read_index_manifest(folder)
    emit(manifest, as_json, describe_index(manifest, has_efforts=True))


@index.command(short_help="Check an index from checksums to searches.")
@click.argument("folder", metavar="INDEX", type=EXISTING)
@moved_option
@json_option
def verify(folder: Path, embeddings: Path | None, as_json: bool) -> None:
    """Check every file of INDEX by checksum, its source, and a sample of searches.

    \b
    Example:  voxseek index verify index/
    """
    from .verify import verify_index

    facts = asdict(verify_index(folder, embeddings=embeddings))
    emit(facts, as_json, [*key_values(facts), "sound"])


COMMANDS = (index,)
