"""The search command: queries in, ranked images out."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

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

from .options import breadth_option, candidates_option, filter_options, read_request

if TYPE_CHECKING:
    from ..gallery.results_page import Found
    from ..results import Results


@click.command(short_help="Find the nearest images of an index.")
@click.argument("index", type=EXISTING)
@click.argument("queries", required=False)
@click.option("--text", "texts", multiple=True, help="Words to ask with; each --text is a query.")
@click.option("--run", type=EXISTING, help="A run, whose brain is asked ...")
@click.option("--subject", type=EXISTING, help="... and the subject; its seen images are shown.")
@split_option
@click.option(
    "--mix",
    "mixes",
    multiple=True,
    metavar="SPEC=WEIGHT",
    help="Part of a mixture, the direction of a weighted sum: brain=1 (with --run), "
    "'text:a zebra=0.5', image:FILE=1, npy:FILE=1, emb:FOLDER=1; a minus in front for what is to "
    "be unlike: '-text:a drawing=0.3'.",
)
@space_option
@click.option(
    "--encoder", help="Encoder of pictures and text; by default the one that embedded the index."
)
@click.option(
    "--pretrained", metavar="TAG|FILE|TAG=FILE", help="Its weights; by default the index's tag."
)
@click.option(
    "--device",
    default="cpu",
    show_default=True,
    metavar="cpu|cuda|cuda:N,...|auto",
    help="Where to embed; and where to search, by all rows held on GPUs, if it isn't cpu.",
)
@click.option(
    "--scheduler",
    metavar="ADDRESS|FILE",
    help="Search by the workers of a running Dask scheduler ...",
)
@click.option(
    "--deadline",
    type=click.FloatRange(0, min_open=True),
    metavar="SECONDS",
    help="... for at most so long a batch of queries; shards that are late are named.",
)
@click.option(
    "-k", "k", default=16, show_default=True, type=click.IntRange(1), help="Hits a query."
)
@filter_options
@click.option(
    "--rerank-tokens",
    type=click.IntRange(1),
    metavar="N",
    help="Rank the N nearest pictures that can be had by their tokens, and give the K best ...",
)
@click.option(
    "--tokens",
    type=EXISTING,
    metavar="PREDICTIONS|RUN",
    help="... by what a brain says of them: predictions of the hidden layer, or a run.",
)
@click.option(
    "--shards",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Where candidates' pictures are, by key: a folder of img2dataset's tar files.",
)
@click.option(
    "--fetch", is_flag=True, help="Fetch candidates' pictures from their URLs, where no file is."
)
@click.option(
    "--confidence",
    type=EXISTING,
    help="Say how sure each answer is, by what voxseek confidence fit wrote.",
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
    texts: tuple[str, ...],
    run: Path | None,
    subject: Path | None,
    split: str,
    mixes: tuple[str, ...],
    space: str | None,
    encoder: str | None,
    pretrained: str | None,
    device: str,
    scheduler: str | None,
    deadline: float | None,
    k: int,
    rerank_tokens: int | None,
    tokens: Path | None,
    shards: Path | None,
    fetch: bool,
    confidence: Path | None,
    out: Path | None,
    gallery: bool,
    gallery_queries: int,
    breadth: int | None,
    candidates: int | None,
    embeddings: tuple[Path, ...],
    as_json: bool,
    **filters: Any,
) -> None:
    """Find the K nearest images of INDEX for QUERIES, words, a brain, or a mixture of them.

    QUERIES is an embedding folder, an .npy file, a picture, a folder of pictures, or text:WORDS.

    \b
    Example:  voxseek search index/ predictions/ --out results/ --gallery --subject subj01/
              voxseek search index/ --run run/ --subject subj01/ -k 32 --out results/
              voxseek search index/ photograph.jpg -k 5
              voxseek search index/ --text "a zebra" --text "a giraffe"
              voxseek search index/ --run run/ --subject subj01/ --mix brain=1 \\
                  --mix "text:a zebra=0.5" --mix "-text:a drawing=0.3" --out results/
    """
    if sum([queries is not None, bool(texts), bool(mixes) or run is not None]) != 1 or (
        run is not None and subject is None
    ):
        raise click.UsageError(
            "give either QUERIES, or --run RUN with --subject DIR, or --text, or --mix."
        )
    if deadline is not None and scheduler is None:
        raise click.UsageError("--deadline needs --scheduler.")
    if gallery and out is None:
        raise click.UsageError("--gallery needs --out RESULTS.")
    if (rerank_tokens is None) != (tokens is None):
        raise click.UsageError("--rerank-tokens N needs --tokens, and the reverse.")
    if rerank_tokens is None and (shards is not None or fetch):
        raise click.UsageError("--shards and --fetch are for --rerank-tokens N.")
    if rerank_tokens is not None and confidence is not None:
        raise click.UsageError("--confidence is of the first stage: leave out --rerank-tokens.")
    from index_builder.embeddings.space import EmbeddingSpace
    from training.subjects.subject import Subject

    from ..confidence.artefact import Confidence
    from ..gallery.results_page import count_found, write_results_gallery
    from ..results import iter_hits, to_json_lines, write_results
    from .encoding import QueryEncoder, open_query_encoder
    from .engine import SearchEngine
    from .mixes import load_mix
    from .queries import load_queries, text_queries

    request = read_request(k, breadth, candidates, **filters)
    spoken = EmbeddingSpace.parse(space) if space else None
    moved = embeddings or None

    @cache
    def get_encoder() -> QueryEncoder:
        return open_query_encoder(
            engine.space, encoder=encoder, pretrained=pretrained, device=device
        )

    with ExitStack() as stack:
        if scheduler is None:
            engine = SearchEngine.open(index, embeddings=moved, device=device)
        else:
            from .cluster import ClusterSearch

            engine = stack.enter_context(
                ClusterSearch.open(
                    index, scheduler=scheduler, embeddings=moved, deadline_seconds=deadline
                )
            )
        sure = Confidence.open(confidence, engine) if confidence is not None else None
        brain = None
        if run is not None and subject is not None:
            from .brain import brain_queries

            brain = stack.enter_context(brain_queries(run, subject, split=split))
        if mixes:
            asked = load_mix(mixes, brain=brain, space=spoken, get_encoder=get_encoder)
        elif texts:
            asked = text_queries(texts, get_encoder())
        elif brain is not None:
            asked = brain
        else:
            asked = load_queries(str(queries), space=spoken, get_encoder=get_encoder)
        stage = None
        if rerank_tokens is not None and tokens is not None:
            from .brain import brain_or_predictions
            from .tokens import open_token_stage

            stage = open_token_stage(
                engine,
                stack.enter_context(brain_or_predictions(tokens, subject, split=split)),
                n_live=rerank_tokens,
                shards=shards,
                fetch=fetch,
                pretrained=pretrained,
                device=device,
            )
        if out is None:
            missing: set[str] = set()
            for batch in iter_hits(engine, asked, request, confidence=sure, stage=stage):
                missing.update(batch.shards_missing)
                for line in to_json_lines(batch.table):
                    click.echo(line)
            for line in _say_missing(missing):
                click.echo(line, err=True)
            if stage is not None:
                click.echo(stage.summary(), err=True)
            return
        results = write_results(out, engine, asked, request, confidence=sure, stage=stage)
        facts, lines = _describe(results, count_found(results, asked), engine.n_rows)
        if stage is not None:
            facts["token_stage"] = stage.to_dict()
            lines.append(stage.summary())
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


def _describe(results: Results, found: Found, n_rows: int) -> tuple[dict[str, Any], list[str]]:
    """Return what was found as facts for programs and lines for people."""
    facts = {
        "results": results.path,
        "n_queries": results.n_queries,
        "k": results.k,
        "n_hits": results.n_hits,
        "effort": results.effort,
        "n_known": found.n_known,
        "n_found_first": found.n_first,
        "n_found": found.n_found,
        "shards_missing": list(results.shards_missing),
    }
    lines = [f"{results.n_queries} queries, {results.n_hits} hits: {results.path}"]
    if found.n_known:
        lines.append(
            f"the seen image is first for {found.n_first} of {found.n_known}, among the first "
            f"{results.k} for {found.n_found} (of {n_rows} images)"
        )
    return facts, lines + _say_missing(results.shards_missing)


def _say_missing(shards: Collection[str]) -> list[str]:
    """Return a line about shards that didn't answer in time, if any."""
    if not shards:
        return []
    return [
        f"{len(shards)} shards did not answer some query in time, and nothing of theirs was found: "
        f"{', '.join(sorted(shards))}. Allow more time with --deadline."
    ]
