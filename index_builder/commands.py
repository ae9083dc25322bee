"""Commands from embeddings to an index: plan, build, add, merge, delete, tune, info, verify."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
)
from .growth_commands import add, delete, merge
from .options import (
    executor_options,
    make_plan,
    open_collection,
    plan_for,
    plan_options,
    queries_option,
    start_executor,
)

if TYPE_CHECKING:
    from .shards import BadRows


@click.group()
def index() -> None:
    """Plan, build, grow, tune, describe and verify indexes."""


@index.command(short_help="Choose an index and say what it will cost.")
@click.argument("embeddings", nargs=-1, type=FOLDER)
@click.option("--rows", type=click.IntRange(1), help="Plan for so many rows instead, of --space.")
@click.option(
    "--dtype",
    default="float16",
    show_default=True,
    type=click.Choice(["float16", "float32"]),
    help="Of the rows, with --rows.",
)
@click.option(
    "--workers", default=1, show_default=True, type=click.IntRange(1), help="For the hours."
)
@click.option(
    "--hours/--no-hours",
    default=True,
    show_default=True,
    help="Time a few seconds of each stage on this machine, and predict the build's hours.",
)
@plan_options
@json_option
def plan(
    embeddings: tuple[Path, ...],
    rows: int | None,
    dtype: str,
    workers: int,
    hours: bool,
    space: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Choose an index for EMBEDDINGS and say what it will cost; reads headers, writes nothing.

    \b
    Example:  voxseek index plan laion/ --memory 64GiB --disk 2TiB
              voxseek index plan --rows 5526641167 --space ViT-L-14:final:1x768 --memory 64GiB
    """
    from .calibration import calibrate, predict_hours
    from .description import describe_plan
    from .embeddings.space import EmbeddingSpace
    from .planning import compare_designs

    if bool(embeddings) == (rows is not None):
        raise click.UsageError("give either EMBEDDINGS, or --rows N with --space SPACE.")
    if rows is not None and space is None:
        raise click.UsageError("--rows needs --space, such as ViT-L-14:final:1x768.")
    source = open_collection(embeddings, space) if embeddings else None
    if source is not None:
        chosen = plan_for(source, **options)
    else:
        assert rows is not None and space is not None
        chosen = make_plan(rows, EmbeddingSpace.parse(space), dtype, is_local=True, **options)
    predicted = predict_hours(chosen, calibrate(chosen, source), workers) if hours else None
    facts = {
        "plan": chosen.to_dict(),
        "designs": [asdict(design) for design in compare_designs(chosen)],
        "hours": predicted,
    }
    named = " ".join(map(str, embeddings)) or "EMBEDDINGS"
    emit(
        facts,
        as_json,
        [*describe_plan(chosen, hours=predicted), f"next: voxseek index build {named} INDEX"],
    )


@index.command(short_help="Build an index, or finish one.")
@click.argument("embeddings", nargs=-1, required=True, type=FOLDER)
@click.argument("out", metavar="INDEX", type=FOLDER)
@plan_options
@queries_option
@click.option(
    "--columns", metavar="NAME,NAME", help="Metadata columns to copy into the index; all, if none."
)
@click.option(
    "--bad-rows",
    default="error",
    show_default=True,
    type=click.Choice(["error", "tombstone"]),
    help="NaN, infinite and zero rows.",
)
@executor_options
@seed_option
@dry_run_option
@json_option
def build(
    embeddings: tuple[Path, ...],
    out: Path,
    space: str | None,
    queries: Path | None,
    columns: str | None,
    bad_rows: BadRows,
    executor: str,
    workers: int | None,
    scheduler: str | None,
    seed: int,
    dry_run: bool,
    as_json: bool,
    recall: float,
    **options: Any,
) -> None:
    """Build the index INDEX of EMBEDDINGS, or finish one that was interrupted.

    Several folders become one index, their rows numbered one folder after the other.

    \b
    Example:  voxseek index build targets/ index/ --memory 2GiB --queries validation_predictions/
              voxseek index build laion2B-en/ laion2B-multi/ index/ --memory 64GiB --executor dask
    """
    from .build import build_index
    from .description import describe_index, describe_plan

    source = open_collection(embeddings, space)
    chosen = plan_for(source, recall=recall, **options)
    if dry_run:
        emit(chosen.to_dict(), as_json, describe_plan(chosen))
        return
    with start_executor(
        executor,
        workers,
        scheduler,
        worker_bytes=chosen.worker_bytes,
        memory_bytes=chosen.memory_bytes,
    ) as started:
        manifest = build_index(
            source,
            out,
            chosen,
            queries=open_embeddings(queries) if queries else None,
            columns=columns.split(",") if columns else None,
            seed=seed,
            bad_rows=bad_rows,
            target_recall=recall,
            executor=started,
        )
    emit(
        manifest,
        as_json,
        [*describe_index(manifest), f"next: voxseek search {out} QUERIES --out RESULTS"],
    )


for grown in (add, merge, delete):
    index.add_command(grown)


@index.command(short_help="Measure recall again; choose the default effort by it.")
@click.argument("folder", metavar="INDEX", type=EXISTING)
@queries_option
@click.option(
    "--recall",
    type=click.FloatRange(0, 1, min_open=True),
    help="Recall@10 that the default effort must reach; by default as when it was built.",
)
@click.option(
    "--n-queries",
    default=200,
    show_default=True,
    type=click.IntRange(1),
    help="Queries of each set, at most.",
)
@moved_option
@executor_options
@json_option
def tune(
    folder: Path,
    queries: Path | None,
    recall: float | None,
    n_queries: int,
    embeddings: tuple[Path, ...],
    executor: str,
    workers: int | None,
    scheduler: str | None,
    as_json: bool,
) -> None:
    """Measure the recall of INDEX again, and store the smallest effort that suffices.

    \b
    Example:  voxseek index tune index/ --queries validation_predictions/ --recall 0.98
    """
    from .description import describe_index
    from .tuning import tune_index

    with start_executor(executor, workers, scheduler) as started:
        manifest = tune_index(
            folder,
            queries=open_embeddings(queries) if queries else None,
            target_recall=recall,
            n_queries=n_queries,
            embeddings=embeddings or None,
            executor=started,
        )
    emit(manifest, as_json, describe_index(manifest, has_efforts=True))


@index.command("info", short_help="Describe an index.")
@click.argument("folder", metavar="INDEX", type=EXISTING)
@json_option
def index_info(folder: Path, as_json: bool) -> None:
    """Describe INDEX: plan, certificate, memory, sources.

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
def verify(folder: Path, embeddings: tuple[Path, ...], as_json: bool) -> None:
    """Check every file of INDEX by checksum, its sources, and a sample of searches.

    \b
    Example:  voxseek index verify index/
    """
    from .verify import verify_index

    facts = asdict(verify_index(folder, embeddings=embeddings or None))
    emit(facts, as_json, [*key_values(facts), "sound"])


COMMANDS = (index,)
