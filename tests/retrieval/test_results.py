from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from index_builder.embeddings.artefact import sha256_file
from index_builder.embeddings.errors import ArtefactError, SpaceMismatchError
from index_builder.embeddings.reader import EmbeddingFolder
from retrieval.errors import ResultsError, SearchError
from retrieval.results import Results, to_json_lines, write_results
from retrieval.searching.engine import SearchEngine
from retrieval.searching.queries import QuerySet, load_queries
from retrieval.searching.request import SearchRequest


@pytest.fixture
def engine(
    draw_rows: Callable[[int], np.ndarray],
    write_gallery_rows: Callable[..., EmbeddingFolder],
    build: Callable[..., Path],
) -> SearchEngine:
    return SearchEngine.open(build(write_gallery_rows(draw_rows(300)), n_shards=2))


@pytest.fixture
def queries(
    draw_rows: Callable[[int], np.ndarray], write_gallery_rows: Callable[..., EmbeddingFolder]
) -> QuerySet:
    return load_queries(write_gallery_rows(draw_rows(23), "queries").path)


@pytest.mark.parametrize("batch_queries", [1, 7, 256])
def test_lines_are_the_hits_with_their_metadata(
    engine: SearchEngine, queries: QuerySet, tmp_path: Path, batch_queries: int
) -> None:
    results = write_results(
        tmp_path / "out", engine, queries, SearchRequest(4), batch_queries=batch_queries
    )
    expected = engine.search(
        np.concatenate(list(queries.iter_batches(batch_queries=50))), SearchRequest(4)
    )
    table = results.table()
    assert results.columns == ("query", "rank", "row", "score", "image_id", "caption")
    np.testing.assert_array_equal(table["query"], np.repeat(np.arange(23), 4))
    np.testing.assert_array_equal(table["rank"], np.tile(np.arange(4), 23))
    np.testing.assert_array_equal(table["row"], expected.rows.ravel())
    np.testing.assert_array_equal(table["score"], expected.scores.ravel())
    np.testing.assert_array_equal(table["image_id"], expected.rows.ravel())
    assert results.n_hits == 92


def test_the_manifest_says_what_was_asked(
    engine: SearchEngine, queries: QuerySet, tmp_path: Path
) -> None:
    results = write_results(
        tmp_path / "out",
        engine,
        queries,
        SearchRequest(4, breadth=2, n_candidates=9),
        columns=["caption"],
    )
    assert results.columns == ("query", "rank", "row", "score", "caption")
    assert results.effort == {"n_probe": 2, "n_candidates": 9}
    assert results.manifest["index"]["fingerprint"] == engine.fingerprint
    assert results.manifest["queries"] == {
        "label": "queries",
        "fingerprint": queries.fingerprint,
        "n_queries": 23,
        "mix": [],
    }
    assert (results.manifest["asked"], results.shards_missing) == ({}, ())
    assert (results.k, results.manifest["kind"]) == (4, "results")


def test_same_search_same_bytes(engine: SearchEngine, queries: QuerySet, tmp_path: Path) -> None:
    for name in ("a", "b", "a"):
        write_results(tmp_path / name, engine, queries, SearchRequest(4))
    for file in ("results.parquet", "results.json"):
        assert sha256_file(tmp_path / "a" / file) == sha256_file(tmp_path / "b" / file)


def test_hits_by_query(engine: SearchEngine, queries: QuerySet, tmp_path: Path) -> None:
    results = write_results(tmp_path / "out", engine, queries, SearchRequest(3), batch_queries=5)
    table = results.table(["row"])["row"].to_pylist()
    seen = {query: hits["row"].to_pylist() for query, hits in results.iter_queries(["row"])}
    assert seen == {query: table[3 * query : 3 * query + 3] for query in range(23)}
    lines = [json.loads(line) for line in to_json_lines(results.table())]
    assert [line["row"] for line in lines] == table
    assert lines[0]["caption"] == f"caption {table[0]}"


def test_fewer_hits_than_asked_are_fewer_lines(
    engine: SearchEngine, queries: QuerySet, tmp_path: Path
) -> None:
    results = write_results(tmp_path / "out", engine, queries, SearchRequest(400), batch_queries=10)
    assert results.n_hits == 23 * 300 == len(results.table(["query"]))
    assert all(len(hits) == 300 for _, hits in results.iter_queries())


def test_columns_named_like_a_hits_own_are_renamed(
    draw_rows: Callable[[int], np.ndarray],
    write_gallery_rows: Callable[..., EmbeddingFolder],
    build: Callable[..., Path],
    queries: QuerySet,
    tmp_path: Path,
) -> None:
    numbers = list(range(60))
    gallery = write_gallery_rows(draw_rows(60), "other", columns={"score": numbers, "url": numbers})
    engine = SearchEngine.open(build(gallery, name="other_index"))
    results = write_results(tmp_path / "out", engine, queries, SearchRequest(2))
    assert results.columns == ("query", "rank", "row", "score", "metadata.score", "url")
    table = results.table()
    np.testing.assert_array_equal(table["metadata.score"], table["row"])


def test_altered_and_unfinished_results_are_refused(
    engine: SearchEngine, queries: QuerySet, tmp_path: Path
) -> None:
    write_results(tmp_path / "out", engine, queries, SearchRequest(4))
    path = tmp_path / "out" / "results.parquet"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtefactError, match=r"results\.parquet differs from its recorded SHA-256"):
        Results.open(tmp_path / "out")
    (tmp_path / "out" / "results.json").unlink()
    with pytest.raises(ArtefactError, match=r"results\.json is missing"):
        Results.open(tmp_path / "out")


def test_strangers_are_not_written_over(
    engine: SearchEngine, queries: QuerySet, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("x")
    with pytest.raises(ResultsError, match=r"holds thesis\.tex and no results\.parquet"):
        write_results(tmp_path / "out", engine, queries, SearchRequest(4))
    with pytest.raises(ResultsError, match="is a file; results are a folder"):
        write_results(tmp_path / "out" / "thesis.tex", engine, queries, SearchRequest(4))


def test_a_refused_search_leaves_earlier_results_alone(
    engine: SearchEngine,
    queries: QuerySet,
    draw_rows: Callable[[int], np.ndarray],
    write_gallery_rows: Callable[..., EmbeddingFolder],
    tmp_path: Path,
) -> None:
    write_results(tmp_path / "out", engine, queries, SearchRequest(4))
    other = load_queries(write_gallery_rows(draw_rows(3), "alien", model="ViT-H-14").path)
    with pytest.raises(SpaceMismatchError):
        write_results(tmp_path / "out", engine, other, SearchRequest(4))
    with pytest.raises(SearchError, match="k is 0"):
        write_results(tmp_path / "out", engine, queries, SearchRequest(0))
    assert Results.open(tmp_path / "out").k == 4
