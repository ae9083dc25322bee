"""The search command: queries in, ranked images out."""

from __future__ import annotations

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
    space_option,
    split_option,
)

from .options import breadth_option, candidates_option

if TYPE_CHECKING:
    from .queries import QuerySet


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

    from ..gallery.results_page import count_found, write_results_gallery
    from ..results import iter_hits, to_json_lines, write_results
    from .engine import SearchEngine
    from .queries import load_queries
    from .request import SearchRequest

    source: AbstractContextManager[QuerySet]
    if run is not None and subject is not None:
        from .brain import brain_queries

        source = brain_queries(run, subject, split=split)
    else:
        spoken = EmbeddingSpace.parse(space) if space else None
        source = nullcontext(load_queries(str(queries), space=spoken))
    request = SearchRequest(k, breadth=breadth, n_candidates=candidates)
    with source as asked:
        engine = SearchEngine.open(index, embeddings=embeddings or None)
        if out is None:
            for hits in iter_hits(engine, asked, request):
                for line in to_json_lines(hits):
                    click.echo(line)
            return
        results = write_results(out, engine, asked, request)
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
