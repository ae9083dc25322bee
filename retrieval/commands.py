"""Commands from an index to results: search, bench, demo, doctor."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
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
    space_option,
    split_option,
)

if TYPE_CHECKING:
    from .benchmarks.nway import NWay
    from .search.queries import QuerySet

HOME = Path(__file__).resolve().parents[1]

breadth_option = click.option(
    "--n-probe",
    "--ef-search",
    "breadth",
    type=click.IntRange(1),
    help="Lists to scan, or nodes of a graph to keep in view; by default as certified.",
)
candidates_option = click.option(
    "--candidates", type=click.IntRange(1), help="Rows to rank exactly; by default as certified."
)


@click.command(short_help="Find the nearest images of an index.")
@click.argument("index", type=EXISTING)
@click.argument("queries", required=False)
@click.option("--run", type=EXISTING, help="Instead of QUERIES: a run, whose brain is asked ...")
@click.option("--subject", type=EXISTING, help="... and the subject; its seen images are shown.")
@split_option
@space_option
@click.option(
    "-k", "k", default=16, show_default=True, type=click.IntRange(1), help="Hits a query."
)
@click.option("--out", type=FOLDER, help="Results folder. Without it, hits go to stdout as JSON.")
@click.option("--gallery", is_flag=True, help="Write gallery.html into the results folder.")
@click.option(
    "--gallery-queries",
    default=1000,
    show_default=True,
    type=click.IntRange(1),
    help="Queries on the page, the first ones.",
)
@breadth_option
@candidates_option
@moved_option
@json_option
def search(
    index: Path,
    queries: str | None,
    run: Path | None,
    subject: Path | None,
    split: str,
    space: str | None,
    k: int,
    out: Path | None,
    gallery: bool,
    gallery_queries: int,
    breadth: int | None,
    candidates: int | None,
    embeddings: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Find the K nearest images of INDEX for QUERIES (embedding folder or .npy), or for a brain.

    \b
    Example:  voxseek search index/ predictions/ --out results/ --gallery --subject subj01/
              voxseek search index/ --run run/ --subject subj01/ -k 32 --out results/
              voxseek search index/ vectors.npy -k 5
    """
    if (queries is None) == (run is None) or (run is not None and subject is None):
        raise click.UsageError("give either QUERIES, or --run RUN with --subject DIR.")
    if gallery and out is None:
        raise click.UsageError("--gallery needs --out RESULTS.")
    from index_builder.embeddings.space import EmbeddingSpace
    from training.subjects.subject import Subject

    from .gallery.results_page import count_found, write_results_gallery
    from .results import iter_hits, to_json_lines, write_results
    from .search.engine import SearchEngine
    from .search.queries import load_queries

    source: AbstractContextManager[QuerySet]
    if run is not None and subject is not None:
        from .search.brain import brain_queries

        source = brain_queries(run, subject, split=split)
    else:
        spoken = EmbeddingSpace.parse(space) if space else None
        source = nullcontext(load_queries(str(queries), space=spoken))
    with source as asked:
        engine = SearchEngine.open(index, embeddings=embeddings or None)
        if out is None:
            for hits in iter_hits(engine, asked, k, breadth=breadth, n_candidates=candidates):
                for line in to_json_lines(hits):
                    click.echo(line)
            return
        results = write_results(out, engine, asked, k, breadth=breadth, n_candidates=candidates)
        found = count_found(results, asked)
        facts = {
            "results": results.path,
            "n_queries": results.n_queries,
            "k": results.k,
            "n_hits": results.n_hits,
            "effort": results.effort,
            "n_known": found.n_known,
            "n_found_first": found.n_first,
            "n_found": found.n_found,
        }
        lines = [f"{results.n_queries} queries, {results.n_hits} hits: {results.path}"]
        if found.n_known:
            lines.append(
                f"the seen image is first for {found.n_first} of {found.n_known}, among the "
                f"first {results.k} for {found.n_found} (of {engine.n_rows} images)"
            )
        if gallery:
            page = write_results_gallery(
                results,
                engine,
                asked,
                subject=Subject.open(subject) if subject else None,
                title="What was seen, and what was found",
                n_queries=gallery_queries,
            )
            facts["gallery"] = str(page)
            lines.append(f"gallery: {page}")
        emit(facts, as_json, lines)


@click.group()
def bench() -> None:
    """Measure identification, and the recall of an index."""


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

    from .benchmarks.ideal import compare_with_ideal
    from .benchmarks.nway import identify
    from .benchmarks.published import format_published, published_view
    from .benchmarks.report import write_report
    from .benchmarks.table import format_report

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
    from .benchmarks.recall import measure_recall
    from .search.engine import SearchEngine
    from .search.queries import load_queries

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


@click.command(short_help="Run the main job end to end.")
@click.argument("out", type=FOLDER, default="demo")
@click.option(
    "--images", type=EXISTING, help="Your own photographs instead of OpenMoji's drawings."
)
@click.option("--real", type=EXISTING, help="Real fMRI instead: Miyawaki 2008, file or folder.")
@click.option("--control", is_flag=True, help="Train again on shuffled labels; must be at chance.")
@seed_option
@json_option
def demo(
    out: Path, images: Path | None, real: Path | None, control: bool, seed: int, as_json: bool
) -> None:
    """Run the main job end to end into OUT (default: demo): brain activity in, ranked images out.

    Makes pictures, targets, a simulated subject, a trained model, predictions, an index, search
    results with a gallery, and the benchmarks. An interrupted demo goes on.

    \b
    Example:  voxseek demo
              voxseek demo mine --images ~/photographs
              voxseek demo real --real V1_mean_figure.mat
    """
    if real is not None:
        if images is not None or control:
            raise click.UsageError("--real brings its own images and controls.")
        from .demo.real import run_real_demo

        told = run_real_demo(out, real, seed=seed)
        emit(told.to_dict(), as_json, told.lines())
        return
    from .demo.simulated import run_demo

    report = run_demo(out, images=images, seed=seed, control=control)
    emit(report.to_dict(), as_json, report.lines())


@click.command(short_help="Show what this installation is.")
@json_option
def doctor(as_json: bool) -> None:
    """Show versions, devices, extras, shadowed packages, free memory and disk.

    \b
    Example:  voxseek doctor --json
    """
    from .doctor import diagnose

    diagnosis = diagnose(HOME)
    emit(diagnosis.to_dict(), as_json, diagnosis.lines())
    if diagnosis.problems:
        sys.exit(1)


COMMANDS = (search, bench, demo, doctor)
