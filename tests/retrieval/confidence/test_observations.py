from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from index_builder.deletion import delete_rows
from index_builder.embeddings.errors import SpaceMismatchError
from index_builder.embeddings.reader import EmbeddingFolder
from retrieval.confidence.observations import (
    decoder_of,
    images_held,
    observe,
    observe_features,
    read_trials,
    require_split,
)
from retrieval.confidence.random_pairs import Comparison, RandomPairs
from retrieval.errors import ConfidenceError
from retrieval.searching.engine import SearchEngine
from retrieval.searching.queries import QuerySet, load_queries
from retrieval.searching.request import SearchRequest
from retrieval.searching.result import SearchResult


def pairs_of(engine: SearchEngine) -> RandomPairs:
    return RandomPairs.draw(engine, n_drawn=200, seed=0)


@pytest.mark.parametrize("batch_queries", [7, 256])
def test_labels_and_features_against_a_scan(
    engine: SearchEngine, gallery: np.ndarray, validation: QuerySet, batch_queries: int
) -> None:
    pairs = pairs_of(engine)
    observed = observe(engine, validation, pairs, batch_queries=batch_queries)
    queries = np.concatenate(list(validation.iter_batches(batch_queries=50))).astype(np.float64)
    rows = gallery.astype(np.float64)
    cosines = (queries / np.linalg.norm(queries, axis=1, keepdims=True)) @ (
        rows / np.linalg.norm(rows, axis=1, keepdims=True)
    ).T
    np.testing.assert_array_equal(observed.is_right, cosines.argmax(axis=1) == np.arange(200))
    assert 0.3 < observed.rate < 0.7
    first, second = -np.sort(-cosines, axis=1)[:, :2].T
    random = pairs.compare(queries, np.zeros((200, 1), np.float32))
    deviations = (first - random.mean) / random.deviation
    expected = np.column_stack([first, first - second, deviations, np.full(200, np.log(3))])
    np.testing.assert_allclose(observed.features, expected, atol=3e-6)
    assert observed.counts() == {
        "n_queries": 200,
        "n_images": 200,
        "n_right": int(observed.is_right.sum()),
        "n_unknown": 0,
        "n_absent": 0,
    }


def test_an_image_that_is_not_in_the_gallery_is_wrong(
    index: Path, gallery: np.ndarray, write_predictions: Callable[..., QuerySet]
) -> None:
    image_ids: list[int | None] = list(range(60))
    image_ids[3] = 10_000  # never in the gallery
    image_ids[5] = None  # unknown
    queries = write_predictions(gallery[:60], pa.array(image_ids, pa.int64()), noise=0.0)
    delete_rows(index, np.array([8, 9]))
    engine = SearchEngine.open(index)
    observed = observe(engine, queries, pairs_of(engine))
    assert (observed.n_queries, observed.n_unknown, observed.n_absent) == (59, 1, 3)
    # Row 5 was left out, so that images 8 and 9 are queries 7 and 8.
    assert np.flatnonzero(~observed.is_right).tolist() == [3, 7, 8]


def test_trials_of_an_image_share_its_place(
    engine: SearchEngine, gallery: np.ndarray, write_predictions: Callable[..., QuerySet]
) -> None:
    seen = np.array([*range(40), *range(20)]) * 3
    observed = observe(engine, write_predictions(gallery[seen], seen), pairs_of(engine))
    assert observed.n_images == 40
    np.testing.assert_array_equal(observed.images, seen // 3)


def test_held_images_of_several_batches(
    engine: SearchEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retrieval.confidence.observations._BATCH_ROWS", 100)
    held = images_held(engine, np.array([-4, 0, 99, 100, 599, 600]))
    assert held.tolist() == [False, True, True, True, True, False]
    assert images_held(engine, np.empty(0, np.int64)).tolist() == []


def test_unusable_queries_say_what_to_do(
    engine: SearchEngine,
    gallery: np.ndarray,
    write_predictions: Callable[..., QuerySet],
    write_gallery_rows: Callable[..., EmbeddingFolder],
    build: Callable[..., Path],
    tmp_path: Path,
) -> None:
    pairs = pairs_of(engine)
    untold = write_predictions(gallery[:40], range(40), "untold", without="image_id")
    with pytest.raises(ConfidenceError, match=r"untold has no metadata column image_id \(it has"):
        observe(engine, untold, pairs)
    np.save(tmp_path / "bare.npy", gallery[:40])
    with pytest.raises(ConfidenceError, match=r"no metadata column image_id \(it has none at all"):
        observe(engine, load_queries(tmp_path / "bare.npy"), pairs)
    names = write_predictions(gallery[:40], [f"n{i}" for i in range(40)], "names")
    with pytest.raises(ConfidenceError, match=r"image_id of .*names holds string, expected integ"):
        observe(engine, names, pairs)
    few = write_predictions(gallery[:50], np.arange(50) % 19, "few")
    with pytest.raises(ConfidenceError, match="of 19 images, expected at least 20"):
        observe(engine, few, pairs)
    strangers = write_predictions(gallery[:30], range(1000, 1030), "strangers")
    with pytest.raises(ConfidenceError, match="holds none of the 30 images"):
        observe(engine, strangers, pairs)
    captions = write_gallery_rows(gallery[:50], "plain", columns={"caption": ["x"] * 50})
    plain = SearchEngine.open(build(captions, "flat", name="plain_index"))
    known = write_predictions(gallery[:40], range(40), "known")
    with pytest.raises(ConfidenceError, match=r"plain_index has no metadata column image_id"):
        observe(plain, known, pairs)
    other = write_gallery_rows(gallery[:30], "other", model="another/model")
    with pytest.raises(SpaceMismatchError, match="another/model"):
        observe(engine, load_queries(other.path), pairs)


def test_one_hit_is_not_enough(
    engine: SearchEngine, validation: QuerySet, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = np.array([[0.5, 0.4], [0.5, np.nan], [np.nan, np.nan]], np.float32)
    comparison = Comparison(np.full(3, 0.1), np.array([0.2, 0.2, 0.0]), scores)
    result = SearchResult(np.array([[4, 5], [4, -1], [-1, -1]]), scores)
    features = observe_features(result, comparison, np.array([1, 1, 2]), 48)
    np.testing.assert_allclose(features[0], [0.5, 0.1, 2.0, 0.0], rtol=1e-6)
    assert np.isnan(features[1:]).all()
    single = SearchResult(result.rows[:, :1], scores[:, :1])
    with pytest.raises(ConfidenceError, match="Search with k of at least 2"):
        observe_features(single, comparison, np.ones(3), 48)

    def search(queries: np.ndarray, request: SearchRequest, **options: int) -> SearchResult:
        rows = np.zeros((len(queries), 2), np.int64)
        return SearchResult(rows, np.where(rows == rows[0], np.nan, 0).astype(np.float32))

    pairs = pairs_of(engine)
    monkeypatch.setattr(engine, "search", search)
    with pytest.raises(ConfidenceError, match=r"query 0 of .*validation has fewer than two hits"):
        observe(engine, validation, pairs)


def test_splits_are_told_apart(
    gallery: np.ndarray, write_predictions: Callable[..., QuerySet], validation: QuerySet
) -> None:
    require_split(validation, "validation", "Because.")
    with pytest.raises(ConfidenceError, match=r"of the split validation, expected test\. Because"):
        require_split(validation, "test", "Because.")
    untold = write_predictions(gallery[:30], range(30), "untold", without="split")
    with pytest.raises(ConfidenceError, match="no metadata column split"):
        require_split(untold, "test", "Because.")


def test_trials_are_known_or_not_but_never_nonsense(
    gallery: np.ndarray, write_predictions: Callable[..., QuerySet], engine: SearchEngine
) -> None:
    rows, images = gallery[:30], range(30)
    counts = 1 + np.arange(30) % 3
    mixed = write_predictions(rows, images, "mixed", n_trials=counts)
    observed = observe(engine, mixed, pairs_of(engine))
    np.testing.assert_array_equal(observed.n_trials, counts)
    np.testing.assert_allclose(observed.features[:, 3], np.log(counts))
    untold = write_predictions(rows, images, "untold", without="n_trials")
    observed = observe(engine, untold, pairs_of(engine))
    assert observed.n_trials is None and not observed.features[:, 3].any()
    none = write_predictions(rows, images, "none", n_trials=0)
    with pytest.raises(ConfidenceError, match="has 0 empty values, and its least is 0"):
        observe(engine, none, pairs_of(engine))
    halves = write_predictions(rows, images, "halves", n_trials=1.5)
    with pytest.raises(ConfidenceError, match=r"n_trials of .*halves holds double"):
        read_trials(halves)


def test_the_decoder_is_what_the_predictions_say(validation: QuerySet) -> None:
    assert decoder_of(validation) == {"run": "a" * 64, "head": "retrieval"}
    bare = dataclasses.replace(validation, source=np.zeros((1, 48), np.float32))
    assert decoder_of(bare) == {}
