"""Commands of confidence: fit it on validation predictions, check it on test predictions."""

from __future__ import annotations

from pathlib import Path

import click

from index_builder.embeddings.terminal import (
    EXISTING,
    FOLDER,
    emit,
    json_option,
    moved_option,
    seed_option,
)


@click.group()
def confidence() -> None:
    """Say how probable it is that a first hit is the seen image."""


@confidence.command(short_help="Fit a confidence on validation predictions.")
@click.argument("index", type=EXISTING)
@click.argument("predictions", type=EXISTING)
@click.argument("out", type=FOLDER)
@moved_option
@seed_option
@json_option
def fit(
    index: Path,
    predictions: Path,
    out: Path,
    embeddings: tuple[Path, ...],
    seed: int,
    as_json: bool,
) -> None:
    """Fit how probable it is that INDEX finds the seen image first; PREDICTIONS are of validation.

    OUT holds for this index, and for queries of the same run and head.

    \b
    Example:  voxseek predict run/ subj01/ validation/ --split validation
              voxseek confidence fit index/ validation/ confidence/
    """
    from ..searching.engine import SearchEngine
    from ..searching.queries import load_queries
    from .fitting import fit_confidence

    engine = SearchEngine.open(index, embeddings=embeddings or None)
    fitted, report = fit_confidence(engine, load_queries(predictions), out, seed=seed)
    facts = {
        "confidence": fitted.path,
        "fingerprint": fitted.manifest["fingerprint"],
        "model": fitted.model.to_dict(),
        "random_pairs": fitted.manifest["random_pairs"],
        "cross_validation": fitted.manifest["cross_validation"],
    }
    lines = [
        *report.lines(),
        "",
        f"{fitted.model}, cross-validated above: {fitted.path}",
        f"next: voxseek confidence check {index} TEST_PREDICTIONS {fitted.path}",
    ]
    emit(facts, as_json, lines)


@confidence.command(short_help="Check a confidence on test predictions.")
@click.argument("index", type=EXISTING)
@click.argument("predictions", type=EXISTING)
@click.argument("confidence_folder", metavar="CONFIDENCE", type=EXISTING)
@click.option("--plot", type=FOLDER, metavar="FILE.svg", help="Draw the reliability curve.")
@moved_option
@seed_option
@json_option
def check(
    index: Path,
    predictions: Path,
    confidence_folder: Path,
    plot: Path | None,
    embeddings: tuple[Path, ...],
    seed: int,
    as_json: bool,
) -> None:
    """Measure how far CONFIDENCE is borne out by INDEX and PREDICTIONS of test images.

    \b
    Example:  voxseek confidence check index/ predictions/ confidence/ --plot reliability.svg
    """
    if plot is not None and plot.suffix != ".svg":
        raise click.UsageError(f"--plot writes SVG; {plot} should end in .svg.")
    from index_builder.embeddings.artefact import atomic_write

    from ..searching.engine import SearchEngine
    from ..searching.queries import load_queries
    from .artefact import Confidence
    from .curve import draw_reliability
    from .fitting import check_confidence

    engine = SearchEngine.open(index, embeddings=embeddings or None)
    opened = Confidence.open(confidence_folder, engine)
    report = check_confidence(engine, load_queries(predictions), opened, seed=seed)
    facts = {"confidence": opened.path, **report.to_dict()}
    lines = list(report.lines())
    if plot is not None:
        title = f"Checked on {report.counts['n_queries']} test queries"
        with atomic_write(plot) as temporary:
            temporary.write_text(draw_reliability(report.confidence, title), encoding="utf-8")
        facts["plot"] = str(plot)
        lines += ["", f"curve: {plot}"]
    emit(facts, as_json, lines)
