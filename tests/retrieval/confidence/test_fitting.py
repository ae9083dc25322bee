from __future__ import annotations

import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from index_builder.deletion import delete_rows
from index_builder.embeddings.artefact import sha256_file
from index_builder.embeddings.errors import ArtefactError
from index_builder.embeddings.reader import EmbeddingFolder
from retrieval.confidence.artefact import Confidence
from retrieval.confidence.calibration import cross_validate
from retrieval.confidence.fitting import check_confidence, fit_confidence
from retrieval.confidence.observations import FEATURES, observe
from retrieval.confidence.random_pairs import RandomPairs
from retrieval.confidence.reliability import log_losses_of, measure_reliability
from retrieval.errors import ConfidenceError
from retrieval.searching.engine import SearchEngine
from retrieval.searching.queries import QuerySet
from retrieval.searching.request import SearchRequest
from retrieval.searching.result import SearchResult

QUICK = {"n_random": 300, "n_resamples": 200}


@pytest.fixture
def confidence(engine: SearchEngine, validation: QuerySet, tmp_path: Path) -> Confidence:
    return fit_confidence(engine, validation, tmp_path / "confidence", **QUICK)[0]


def vectors_of(queries: QuerySet) -> np.ndarray:
    return np.concatenate(list(queries.iter_batches(batch_queries=100)))


def test_what_is_fitted_on_validation_holds_for_test(
    engine: SearchEngine, validation: QuerySet, test_set: QuerySet, tmp_path: Path
) -> None:
    confidence, fitted = fit_confidence(engine, validation, tmp_path / "confidence", **QUICK)
    checked = check_confidence(engine, test_set, confidence, n_resamples=200)
    assert (fitted.counts["n_queries"], checked.counts["n_queries"]) == (200, 400)
    assert 0.3 < fitted.counts["n_right"] / 200 < 0.7
    for report in (fitted, checked):
        error = report.confidence.calibration_error
        assert error < report.confidence.calibration_error_if_true.high
        assert report.gain.low > 0


def test_the_report_is_of_the_held_out_probabilities(
    engine: SearchEngine, validation: QuerySet, tmp_path: Path
) -> None:
    _, report = fit_confidence(engine, validation, tmp_path / "confidence", seed=6, **QUICK)
    observed = observe(engine, validation, RandomPairs.draw(engine, n_drawn=300, seed=6))
    held_out = cross_validate(
        observed.features, observed.is_right, observed.images, FEATURES, seed=6
    )
    assert report.confidence == measure_reliability(
        held_out, observed.is_right, observed.images, seed=6, n_resamples=200
    )
    rate = observed.rate
    entropy = -rate * np.log(rate) - (1 - rate) * np.log(1 - rate)
    assert report.constant.log_loss.value == pytest.approx(entropy)
    saved = entropy - log_losses_of(held_out, observed.is_right).mean()
    assert report.gain.value == pytest.approx(saved)
    assert report.gain.low < saved < report.gain.high


def test_an_assessment_is_what_the_check_measures(
    engine: SearchEngine, confidence: Confidence, test_set: QuerySet
) -> None:
    queries = vectors_of(test_set)
    result = engine.search(queries, SearchRequest())
    assessed = confidence.assess(queries, result)
    observed = observe(engine, test_set, confidence.random_pairs)
    expected = confidence.model.probabilities(observed.features)
    np.testing.assert_array_equal(assessed.probabilities, expected.astype(np.float32))
    found = confidence.random_pairs.compare(queries, result.scores)
    np.testing.assert_array_equal(assessed.percentiles, found.percentiles)
    assert assessed.probabilities.dtype == assessed.percentiles.dtype == np.float32

    def assess(number: int) -> np.ndarray:
        part = slice(number, number + 1)
        return confidence.assess(
            queries[part], SearchResult(result.rows[part], result.scores[part])
        ).probabilities

    with ThreadPoolExecutor(4) as threads:
        one_by_one = np.concatenate(list(threads.map(assess, range(400))))
    np.testing.assert_array_equal(one_by_one, assessed.probabilities)


def test_a_far_margin_is_surer_than_a_near_one(
    engine: SearchEngine, confidence: Confidence, gallery: np.ndarray
) -> None:
    between = gallery[:60].astype(np.float64) + gallery[60:120]
    sides = [gallery[:60].astype(np.float64), between]
    means = [
        confidence.assess(side, engine.search(side, SearchRequest())).probabilities.mean()
        for side in sides
    ]
    assert means[0] > 0.9 > 0.5 > means[1]


def test_the_same_fit_gives_the_same_bytes(
    engine: SearchEngine, validation: QuerySet, tmp_path: Path
) -> None:
    for name in ("a", "b", "a"):
        fit_confidence(engine, validation, tmp_path / name, **QUICK)
    for file in ("confidence.json", "reliability.svg"):
        assert sha256_file(tmp_path / "a" / file) == sha256_file(tmp_path / "b" / file)
    other, _ = fit_confidence(engine, validation, tmp_path / "c", seed=1, **QUICK)
    assert other.model != Confidence.open(tmp_path / "a", engine).model


def test_memory_makes_the_random_rows_fewer(
    engine: SearchEngine, validation: QuerySet, tmp_path: Path
) -> None:
    out = tmp_path / "confidence"
    made, _ = fit_confidence(
        engine, validation, out, memory_bytes=100 * 16 * 48, n_resamples=20, n_random=300
    )
    assert made.manifest["random_pairs"] == {"n_drawn": 100, "n_rows": 100, "seed": 0}
    assert Confidence.open(out, engine).random_pairs.n_rows == 100


@pytest.mark.parametrize("split", ["test", "train", "all"])
def test_only_validation_is_fitted_on_and_only_test_checks(
    engine: SearchEngine,
    gallery: np.ndarray,
    confidence: Confidence,
    write_predictions: Callable[..., QuerySet],
    tmp_path: Path,
    split: str,
) -> None:
    queries = write_predictions(gallery[:40], range(40), split, split=split)
    with pytest.raises(ConfidenceError, match=rf"of the split {split}, expected validation\. A mo"):
        fit_confidence(engine, queries, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    if split != "test":
        with pytest.raises(ConfidenceError, match=rf"of the split {split}, expected test"):
            check_confidence(engine, queries, confidence)


def test_validation_cannot_check_itself(
    engine: SearchEngine, confidence: Confidence, validation: QuerySet
) -> None:
    with pytest.raises(ConfidenceError, match=r"validation, expected test.*fitted the confidence"):
        check_confidence(engine, validation, confidence)


def test_another_index_is_refused(
    index: Path,
    confidence: Confidence,
    draw_rows: Callable[[int], np.ndarray],
    write_gallery_rows: Callable[..., EmbeddingFolder],
    build: Callable[..., Path],
) -> None:
    other = SearchEngine.open(build(write_gallery_rows(draw_rows(90), "o"), "flat", name="other"))
    fitted_on = confidence.manifest["index"]["fingerprint"]
    told = rf"index {fitted_on[:12]}, and .*other is {other.fingerprint[:12]}: another gallery"
    with pytest.raises(ConfidenceError, match=told):
        Confidence.open(confidence.path, other)
    delete_rows(index, np.array([5]))
    with pytest.raises(ConfidenceError, match="rows were added or deleted since"):
        Confidence.open(confidence.path, SearchEngine.open(index))


def test_an_altered_confidence_is_refused(engine: SearchEngine, confidence: Confidence) -> None:
    manifest = Path(confidence.path) / "confidence.json"
    text = manifest.read_text()
    intercept = f'"intercept": {confidence.model.intercept}'
    assert intercept in text
    manifest.write_text(text.replace(intercept, '"intercept": 9.0'))
    with pytest.raises(ArtefactError, match="its fingerprint doesn't match its content"):
        Confidence.open(confidence.path, engine)
    manifest.write_text(text)
    curve = Path(confidence.path) / "reliability.svg"
    curve.write_text(curve.read_text() + " ")
    with pytest.raises(ArtefactError, match=r"reliability\.svg has \d+ bytes"):
        Confidence.open(confidence.path, engine)
    manifest.unlink()
    with pytest.raises(ArtefactError, match=r"confidence\.json is missing"):
        Confidence.open(confidence.path, engine)


def test_strangers_are_not_written_over(
    engine: SearchEngine, validation: QuerySet, tmp_path: Path
) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("x")
    with pytest.raises(ConfidenceError, match=r"holds thesis\.tex and no confidence\.json"):
        fit_confidence(engine, validation, tmp_path / "thesis")
    with pytest.raises(ConfidenceError, match="is a file; a confidence is a folder"):
        fit_confidence(engine, validation, tmp_path / "thesis" / "thesis.tex")


def test_other_searches_and_decoders_are_refused(
    confidence: Confidence,
    gallery: np.ndarray,
    write_predictions: Callable[..., QuerySet],
    test_set: QuerySet,
) -> None:
    confidence.require_applicable(SearchRequest(k=3), test_set)
    for request, told in (
        (SearchRequest(where="width > 3", aesthetic_weight=0.5), "sets where, aesthetic_weight, "),
        (SearchRequest(breadth=1), "sets breadth, and"),
        (SearchRequest(excluded=gallery[:2]), "sets excluded, and"),
        (SearchRequest(k=1), "k is 1, and confidence rests on the margin"),
    ):
        with pytest.raises(ConfidenceError, match=told):
            confidence.require_applicable(request)
    stranger = write_predictions(gallery[:30], range(30), "stranger", split="test", run="b" * 64)
    with pytest.raises(ConfidenceError, match=r"by run bbbbbbbbbbbb, and .* run aaaaaaaaaaaa: its"):
        confidence.require_applicable(SearchRequest(), stranger)
    bare = dataclasses.replace(test_set, source=vectors_of(test_set))
    with pytest.raises(ConfidenceError, match="predicted by no run that is known, and"):
        confidence.require_applicable(SearchRequest(), bare)
    single = write_predictions(gallery[:30], range(30), "single", split="test", n_trials=1)
    with pytest.raises(ConfidenceError, match=r"averages of 1 to 1 trials, .* averages of 3 to 3"):
        confidence.require_applicable(SearchRequest(), single)
    untold = write_predictions(gallery[:30], range(30), "untold", without="n_trials")
    confidence.require_applicable(SearchRequest(), untold)


def test_trials_have_their_say_where_they_differ(
    engine: SearchEngine,
    gallery: np.ndarray,
    write_predictions: Callable[..., QuerySet],
    tmp_path: Path,
) -> None:
    counts = 1 + np.arange(200) % 3
    # Half the noise for three trials, so that averages are surer at the same scores.
    noise = 0.25 / counts[:, None]
    mixed = write_predictions(gallery[:200], range(200), "mixed", n_trials=counts, noise=noise)
    confidence, _ = fit_confidence(engine, mixed, tmp_path / "confidence", **QUICK)
    assert confidence.n_trials == (1, 3)
    assert confidence.model.coefficients[FEATURES.index("log_trials")] != 0
    queries = vectors_of(mixed)[:4]
    result = engine.search(queries, SearchRequest())
    with pytest.raises(ConfidenceError, match="averages of 1 to 3 trials, and it isn't known"):
        confidence.assess(queries, result)
    said = confidence.assess(queries, result, np.array([1, 3, 4, 0])).probabilities
    assert np.isfinite(said).tolist() == [True, True, False, False]


def test_partial_answers_have_no_probability(
    engine: SearchEngine, confidence: Confidence, gallery: np.ndarray
) -> None:
    result = engine.search(gallery[:3].astype(np.float32), SearchRequest(4))
    late = SearchResult(result.rows, result.scores, shards_missing=("shard_0001",))
    assessed = confidence.assess(gallery[:3], late)
    assert np.isnan(assessed.probabilities).all() and np.isfinite(assessed.percentiles).all()
    assert np.isfinite(confidence.assess(gallery[:3], result).probabilities).all()
    one = SearchResult(result.rows[:, :1], result.scores[:, :1])
    with pytest.raises(ConfidenceError, match="k of at least 2"):
        confidence.assess(gallery[:3], one)
    tokens = gallery[:3].reshape(3, 4, 12)
    np.testing.assert_array_equal(
        confidence.assess(tokens, result).percentiles, assessed.percentiles
    )
