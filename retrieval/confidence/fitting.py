"""Fit a confidence on validation predictions, and check it on test predictions.

Models and their features were chosen once, in docs/confidence.md; a fit chooses nothing but the
coefficients. The report of a fit is cross-validated over images, and a check is of images that
neither training nor fit has seen.
"""

from __future__ import annotations

import os
from pathlib import Path

from index_builder.embeddings.artefact import atomic_write, require_free, write_manifest

from ..benchmarks.bootstrap import N_RESAMPLES
from ..errors import ConfidenceError
from ..searching.engine import SearchEngine
from ..searching.queries import QuerySet
from ..searching.request import SearchRequest
from .artefact import (
    CURVE_FILE,
    FORMAT_VERSION,
    KIND,
    MANIFEST_FILE,
    Confidence,
    seal,
)
from .calibration import N_FOLDS, cross_validate, fit_logistic
from .curve import draw_reliability
from .observations import FEATURES, decoder_of, observe, require_split
from .random_pairs import MEMORY_BYTES, N_ROWS, RandomPairs, rows_within
from .report import ConfidenceReport, report_confidence

_WHY_VALIDATION = (
    "A model knows the images that it was trained on too well, which would make the confidence too "
    "sure, and test images are for the check alone."
)
_WHY_TEST = "Validation images fitted the confidence, and training images the model."


def fit_confidence(
    engine: SearchEngine,
    queries: QuerySet,
    folder: str | os.PathLike[str],
    *,
    seed: int = 0,
    n_random: int = N_ROWS,
    memory_bytes: int = MEMORY_BYTES,
    n_resamples: int = N_RESAMPLES,
    command: str = "voxseek confidence fit",
) -> tuple[Confidence, ConfidenceReport]:
    """Fit a confidence on validation predictions, and write it.

    Parameters
    ----------
    engine : SearchEngine
    queries : QuerySet
        Predictions, with the columns ``image_id`` and ``split``; the kind of queries that will be
        asked, as to trials averaged.
    folder : path
        New, empty, or holding an earlier confidence, which is replaced.
    seed : int
        Of the random rows, the folds and the resamples.
    n_random : int
        Random rows of the gallery to hold: percentiles come in steps of 100 / (n_random + 1).
    memory_bytes : int
        Strict limit for them; there are fewer if it is short.
    n_resamples : int
        Of the report's intervals.
    command : str

    Returns
    -------
    confidence : Confidence
    report : ConfidenceReport
        Cross-validated over images.

    Raises
    ------
    ConfidenceError
        If the predictions are of another split than validation, their truth isn't known or not in
        the gallery, or the folder holds something else.
    SpaceMismatchError
        If the predictions are of another space than the index.
    """
    root = Path(folder)
    require_free(root, (MANIFEST_FILE, CURVE_FILE), "a confidence is", ConfidenceError)
    require_split(queries, "validation", _WHY_VALIDATION)
    affordable = rows_within(memory_bytes, engine.space.width)
    pairs = RandomPairs.draw(engine, n_drawn=min(n_random, affordable), seed=seed)
    observed = observe(engine, queries, pairs)
    model = fit_logistic(observed.features, observed.is_right, FEATURES)
    held_out = cross_validate(
        observed.features, observed.is_right, observed.images, FEATURES, seed=seed
    )
    report = report_confidence(
        observed,
        held_out,
        rate=observed.rate,
        least=model.least,
        seed=seed,
        n_resamples=n_resamples,
    )
    (root / MANIFEST_FILE).unlink(missing_ok=True)
    with atomic_write(root / CURVE_FILE) as temporary:
        title = f"Cross-validated on {observed.n_queries} queries"
        temporary.write_text(draw_reliability(report.confidence, title), encoding="utf-8")
    body = {
        "index": {
            "fingerprint": engine.fingerprint,
            "design": engine.plan.design,
            "n_rows": engine.n_rows,
        },
        "space": engine.space.to_dict(),
        "queries": {
            "label": queries.name,
            "fingerprint": queries.fingerprint,
            "split": "validation",
            "rate": observed.rate,
            "n_trials": None
            if observed.n_trials is None
            else [int(observed.n_trials.min()), int(observed.n_trials.max())],
        },
        "decoder": decoder_of(queries),
        "effort": engine.effort(SearchRequest()),
        "random_pairs": {"n_drawn": pairs.n_drawn, "n_rows": pairs.n_rows, "seed": seed},
        "model": model.to_dict(),
        "cross_validation": {"n_folds": N_FOLDS, **report.to_dict()},
    }
    write_manifest(
        root,
        MANIFEST_FILE,
        kind=KIND,
        format_version=FORMAT_VERSION,
        command=command,
        files=[CURVE_FILE],
        body={**body, "fingerprint": seal(body)},
    )
    return Confidence.open(root, engine), report


def check_confidence(
    engine: SearchEngine,
    queries: QuerySet,
    confidence: Confidence,
    *,
    seed: int = 0,
    n_resamples: int = N_RESAMPLES,
) -> ConfidenceReport:
    """Measure a confidence on test predictions.

    Parameters
    ----------
    engine : SearchEngine
        That the confidence was opened with.
    queries : QuerySet
        Predictions of test images, with the columns ``image_id`` and ``split``.
    confidence : Confidence
    seed, n_resamples : int
        Of the intervals.

    Raises
    ------
    ConfidenceError
        If the predictions are of another split, run or head, or their truth isn't known or not in
        the gallery.
    SpaceMismatchError
        If the predictions are of another space than the index.
    """
    require_split(queries, "test", _WHY_TEST)
    confidence.require_applicable(SearchRequest(), queries)
    observed = observe(engine, queries, confidence.random_pairs)
    return report_confidence(
        observed,
        confidence.model.probabilities(observed.features),
        rate=confidence.manifest["queries"]["rate"],
        least=confidence.model.least,
        seed=seed,
        n_resamples=n_resamples,
    )
