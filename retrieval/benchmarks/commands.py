"""Commands that measure: identification, reconstructions, and the recall of an index."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from index_builder.embeddings.terminal import (
    EXISTING,
    FOLDER,
    emit,
    json_option,
    moved_option,
    open_embeddings,
    seed_option,
)

from ..searching.options import breadth_option, candidates_option
from .reconstruction.commands import bench_reconstruction

if TYPE_CHECKING:
    from .nway import NWay


@click.group()
def bench() -> None:
    """Measure identification, reconstructions, and the recall of an index."""


def read_n_way(ctx: click.Context, param: click.Parameter, value: str) -> tuple[NWay, ...]:
    """Read pool sizes separated by commas, such as ``300,all``."""
    sizes: list[NWay] = []
    for item in value.split(","):
        if item == "all":
            sizes.append("all")
        elif item.isdecimal() and int(item) >= 2:
            sizes.append(int(item))
        else:
            raise click.BadParameter(f"{item!r} is neither a number of at least 2 nor 'all'.")
    return tuple(sizes)


@bench.command(short_help="Identify images by brain, and brains by image.")
@click.argument("predictions", type=EXISTING)
@click.argument("targets", type=EXISTING)
@click.option(
    "--n-way",
    default="300,all",
    show_default=True,
    metavar="N,N,...",
    callback=read_n_way,
    help="Pool sizes; 'all' is every predicted image (982 for NSD's usual test set).",
)
@click.option("--draws", default=30, show_default=True, type=click.IntRange(0), help="Drawn pools.")
@click.option("--published", is_flag=True, help="Also under the labels that the papers use.")
@click.option(
    "--subject", type=EXISTING, help="A simulated subject: compare with its ideal observer."
)
@click.option("--out", type=FOLDER, help="Write the report, raw counts included, as JSON.")
@seed_option
@json_option
def nway(
    predictions: Path,
    targets: Path,
    n_way: tuple[NWay, ...],
    draws: int,
    published: bool,
    subject: Path | None,
    out: Path | None,
    seed: int,
    as_json: bool,
) -> None:
    """Identify images by brain and brains by image: PREDICTIONS against TARGETS, both ways.

    \b
    Example:  voxseek bench nway predictions/ targets/ --n-way 300,all --published
    """
    from training.subjects.subject import Subject

    from .ideal import compare_with_ideal
    from .nway import identify
    from .published import format_published, published_view
    from .report import write_report
    from .table import format_report

    report = identify(
        open_embeddings(predictions),
        open_embeddings(targets),
        n_way=n_way,
        n_draws=draws,
        seed=seed,
    )
    facts = report.to_dict()
    lines = [format_report(report)]
    if subject is not None:
        comparison = compare_with_ideal(report, Subject.open(subject))
        facts["ideal_observer"] = comparison.to_dict()
        lines += ["", *comparison.lines()]
    if published:
        facts["published"] = published_view(report)
        lines += ["", format_published(report)]
    if out is not None:
        lines += ["", f"report: {write_report(report, out)}"]
    emit(facts, as_json, lines)


bench.add_command(bench_reconstruction)


@bench.command("index", short_help="Measure the recall of an index.")
@click.argument("index", type=EXISTING)
@click.argument("queries")
@click.option(
    "-k",
    "ks",
    multiple=True,
    default=(1, 10, 100),
    show_default=True,
    type=click.IntRange(1),
    help="Recall among the first k; may be repeated.",
)
@click.option(
    "--n-queries",
    default=1000,
    show_default=True,
    type=click.IntRange(1),
    help="Queries measured, a seeded sample.",
)
@breadth_option
@candidates_option
@moved_option
@seed_option
@json_option
def bench_index(
    index: Path,
    queries: str,
    ks: tuple[int, ...],
    n_queries: int,
    breadth: int | None,
    candidates: int | None,
    embeddings: tuple[Path, ...],
    seed: int,
    as_json: bool,
) -> None:
    """Measure the recall of INDEX for QUERIES (embedding folder or .npy), against an exact search.

    \b
    Example:  voxseek bench index index/ predictions/ -k 10
    """
    from ..searching.engine import SearchEngine
    from ..searching.queries import load_queries
    from .recall import measure_recall

    engine = SearchEngine.open(index, embeddings=embeddings or None)
    report = measure_recall(
        engine,
        load_queries(queries),
        ks=ks,
        n_queries=n_queries,
        breadth=breadth,
        n_candidates=candidates,
        seed=seed,
    )
    emit(report.to_dict(), as_json, report.lines())
