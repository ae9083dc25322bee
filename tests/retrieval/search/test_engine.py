from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index_builder.embeddings.errors import ArtefactError, SpaceMismatchError
from index_builder.embeddings.reader import EmbeddingFolder
from index_builder.embeddings.space import EmbeddingSpace
from index_builder.errors import SourceError
from retrieval.errors import QueryError, SearchError
from retrieval.search.engine import SearchEngine
from retrieval.search.queries import load_queries

Draw = Callable[[int], np.ndarray]
Write = Callable[..., EmbeddingFolder]
Build = Callable[..., Path]


def brute_force(rows: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    left = queries.reshape(len(queries), -1).astype(np.float64)
    right = rows.reshape(len(rows), -1).astype(np.float64)
    scores = left @ right.T
    scores /= np.outer(np.linalg.norm(left, axis=1), np.linalg.norm(right, axis=1))
    scores = scores.astype(np.float32)
    places = np.broadcast_to(np.arange(len(rows)), scores.shape)
    order = np.lexsort((places, -scores), axis=1)[:, :k]
    return order, np.take_along_axis(scores, order, axis=1)


DESIGNS: dict[str, dict[str, Any]] = {
    "flat from disk": {"code": "flat", "memory_bytes": 1},
    "flat in memory": {"code": "flat"},
    "lists": {"code": "ivf-rabitq"},
    "lists in shards": {"code": "ivf-rabitq", "n_shards": 3},
}


def full_effort(engine: SearchEngine) -> dict[str, int]:
    if not engine.plan.n_lists:
        return {}
    return {"n_probe": engine.plan.n_lists, "n_candidates": engine.n_rows}


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_full_effort_equals_brute_force(
    draw_rows: Draw, write_gallery_rows: Write, build: Build, design: str, dtype: str
) -> None:
    rows = draw_rows(500)
    engine = SearchEngine.open(build(write_gallery_rows(rows), **DESIGNS[design]))
    queries = draw_rows(20).astype(dtype) * 3
    result = engine.search(queries, 15, **full_effort(engine))
    expected_rows, expected_scores = brute_force(rows, queries, 15)
    np.testing.assert_array_equal(result.rows, expected_rows)
    np.testing.assert_allclose(result.scores, expected_scores, rtol=0, atol=2e-7)
    assert (result.rows.dtype, result.scores.dtype) == (np.int64, np.float32)


def test_the_design_that_was_planned_is_opened(
    draw_rows: Draw, write_gallery_rows: Write, build: Build
) -> None:
    embeddings = write_gallery_rows(draw_rows(200))
    names = {
        "flat from disk": "flat, from disk",
        "flat in memory": "flat, in memory",
        "lists": "ivf-rabitq, 4 lists",
        "lists in shards": "ivf-rabitq, 4 lists",
    }
    for design, options in DESIGNS.items():
        engine = SearchEngine.open(build(embeddings, name=design, **options))
        assert engine.plan.design == names[design]
        assert engine.ram_bytes == engine.plan.ram_bytes


def test_the_default_effort_reaches_what_the_certificate_says(
    draw_rows: Draw, write_gallery_rows: Write, build: Build
) -> None:
    drawn = draw_rows(2200)
    rows, queries = drawn[:2000], drawn[2000:]
    engine = SearchEngine.open(build(write_gallery_rows(rows), target_recall=0.9))
    assert engine.manifest["certificate"]["is_reached"]
    found = engine.search(queries, 10).rows
    truth = brute_force(rows, queries, 10)[0]
    recall = np.mean([np.isin(t, f).mean() for t, f in zip(truth, found, strict=True)])
    assert recall > 0.85


@pytest.mark.parametrize("design", DESIGNS)
def test_batches_do_not_change_the_result(
    draw_rows: Draw, write_gallery_rows: Write, build: Build, design: str
) -> None:
    engine = SearchEngine.open(build(write_gallery_rows(draw_rows(400)), **DESIGNS[design]))
    queries = draw_rows(50)
    whole = engine.search(queries, 7)
    for batch_queries in (1, 13):
        parts = engine.search(queries, 7, batch_queries=batch_queries)
        np.testing.assert_array_equal(parts.rows, whole.rows)
        np.testing.assert_array_equal(parts.scores, whole.scores)


def test_shards_do_not_change_the_result(
    draw_rows: Draw, write_gallery_rows: Write, build: Build
) -> None:
    embeddings = write_gallery_rows(draw_rows(900))
    one = SearchEngine.open(build(embeddings, name="one"))
    four = SearchEngine.open(build(embeddings, name="four", n_shards=4))
    queries = draw_rows(30)
    effort = {"n_probe": 3, "n_candidates": 60}
    found, expected = four.search(queries, 10, **effort), one.search(queries, 10, **effort)
    np.testing.assert_array_equal(found.rows, expected.rows)
    np.testing.assert_array_equal(found.scores, expected.scores)


@pytest.mark.parametrize("design", DESIGNS)
def test_copies_come_by_row(
    draw_rows: Draw, write_gallery_rows: Write, build: Build, design: str
) -> None:
    rows = np.tile(draw_rows(40), (5, 1))
    engine = SearchEngine.open(build(write_gallery_rows(rows), **DESIGNS[design]))
    result = engine.search(rows[:40], 5, **full_effort(engine))
    expected = np.arange(40)[:, None] + 40 * np.arange(5)
    np.testing.assert_array_equal(result.rows, expected)
    assert (result.scores == result.scores[:, :1]).all()


@pytest.mark.parametrize("design", DESIGNS)
def test_more_hits_than_rows_are_padded(
    draw_rows: Draw, write_gallery_rows: Write, build: Build, design: str
) -> None:
    engine = SearchEngine.open(build(write_gallery_rows(draw_rows(90)), **DESIGNS[design]))
    result = engine.search(draw_rows(3), 100)
    np.testing.assert_array_equal(np.sort(result.rows[:, :90]), np.tile(np.arange(90), (3, 1)))
    assert (result.rows[:, 90:] == -1).all() and np.isnan(result.scores[:, 90:]).all()
    assert (np.diff(result.scores[:, :90], axis=1) <= 0).all()


@pytest.mark.parametrize("design", DESIGNS)
def test_tombstones_are_never_found(
    draw_rows: Draw, build: Build, tmp_path: Path, design: str
) -> None:
    rows = draw_rows(300)
    dead = [3, 44, 299]
    rows[dead] = [[np.nan], [0], [np.inf]]
    (tmp_path / "foreign" / "img_emb").mkdir(parents=True)
    np.save(tmp_path / "foreign" / "img_emb" / "img_emb_0.npy", rows)
    space = EmbeddingSpace("ViT-L-14/openai", "final", 1, rows.shape[1], True)
    embeddings = EmbeddingFolder.open(tmp_path / "foreign", space=space)
    engine = SearchEngine.open(build(embeddings, bad_rows="tombstone", **DESIGNS[design]))
    result = engine.search(draw_rows(4), 300)
    assert not np.isin(dead, result.rows).any()
    assert ((result.rows >= 0).sum(axis=1) == 297).all()
    assert engine.columns == ()


def test_hidden_tokens_are_searched_as_one_vector(
    rng: np.random.Generator, write_gallery_rows: Write, build: Build
) -> None:
    rows = rng.standard_normal((120, 3, 16))
    rows = (rows / np.linalg.norm(rows, axis=(1, 2), keepdims=True)).astype(np.float16)
    engine = SearchEngine.open(build(write_gallery_rows(rows)))
    result = engine.search(rows[:10], 5, **full_effort(engine))
    np.testing.assert_array_equal(result.rows, brute_force(rows, rows[:10], 5)[0])


def test_effort_travels_with_the_call(
    draw_rows: Draw, write_gallery_rows: Write, build: Build
) -> None:
    engine = SearchEngine.open(build(write_gallery_rows(draw_rows(1500)), n_shards=2))
    queries = draw_rows(40)
    efforts = [{"n_probe": p, "n_candidates": c} for p in (1, 4, 16) for c in (10, 50)]
    alone = [engine.search(queries, 10, **effort).rows for effort in efforts]
    with ThreadPoolExecutor(4) as pool:
        together = list(
            pool.map(lambda effort: engine.search(queries, 10, **effort).rows, efforts * 3)
        )
    for found, expected in zip(together, alone * 3, strict=True):
        np.testing.assert_array_equal(found, expected)
    assert not np.array_equal(alone[0], alone[-1])


def test_candidates_grow_with_k(draw_rows: Draw, write_gallery_rows: Write, build: Build) -> None:
    engine = SearchEngine.open(build(write_gallery_rows(draw_rows(1500))))
    certified = engine.manifest["certificate"]["effort"]
    assert engine.effort(1) == engine.effort(10) == certified
    assert engine.effort(20)["n_candidates"] == min(1500, 2 * certified["n_candidates"])
    assert engine.effort(2000)["n_candidates"] == 2000


def test_out_of_range_parameters_are_refused(
    draw_rows: Draw, write_gallery_rows: Write, build: Build
) -> None:
    embeddings = write_gallery_rows(draw_rows(100))
    engine = SearchEngine.open(build(embeddings))
    queries = draw_rows(1)
    with pytest.raises(SearchError, match="k is 0, expected at least 1"):
        engine.search(queries, 0)
    for n_probe in (0, 3):
        with pytest.raises(SearchError, match=rf"n_probe is {n_probe}, expected 1 to 2"):
            engine.search(queries, 5, n_probe=n_probe)
    with pytest.raises(SearchError, match="n_candidates is 4, expected at least k, which is 5"):
        engine.search(queries, 5, n_candidates=4)
    with pytest.raises(SearchError, match="batch_queries is 0"):
        engine.search(queries, 5, batch_queries=0)
    flat = SearchEngine.open(build(embeddings, "flat", name="flat"))
    with pytest.raises(SearchError, match="is a flat index, which compares every row"):
        flat.search(queries, 5, n_probe=1)


def test_bad_queries_are_refused(draw_rows: Draw, write_gallery_rows: Write, build: Build) -> None:
    engine = SearchEngine.open(build(write_gallery_rows(draw_rows(60))))
    with pytest.raises(QueryError, match=r"have \(47,\) numbers each, and .* 48"):
        engine.search(np.ones((2, 47), np.float32), 3)
    with pytest.raises(QueryError, match=r"shape \(48,\) and dtype float32, expected \(n, 48\)"):
        engine.search(np.ones(48, np.float32), 3)
    with pytest.raises(QueryError, match="dtype int64"):
        engine.search(np.ones((2, 48), np.int64), 3)
    for bad in (np.nan, np.inf, 0.0):
        queries = np.ones((300, 48), np.float32)
        queries[290] = bad
        with pytest.raises(QueryError, match="query 290 is zero or holds NaN or infinite"):
            engine.search(queries, 3)


def test_no_queries_give_no_hits(draw_rows: Draw, write_gallery_rows: Write, build: Build) -> None:
    engine = SearchEngine.open(build(write_gallery_rows(draw_rows(60))))
    assert engine.search(np.empty((0, 48), np.float32), 3).rows.shape == (0, 3)


def test_queries_of_another_space_are_refused(
    draw_rows: Draw, write_gallery_rows: Write, build: Build
) -> None:
    engine = SearchEngine.open(build(write_gallery_rows(draw_rows(60))))
    other = write_gallery_rows(draw_rows(4), "queries", model="ViT-H-14")
    with pytest.raises(SpaceMismatchError, match=r"(?s)ViT-L-14/openai.*ViT-H-14"):
        next(engine.search_set(load_queries(other.path), 3))


def test_one_flipped_byte_in_any_file_is_refused(
    draw_rows: Draw, write_gallery_rows: Write, build: Build
) -> None:
    index = build(write_gallery_rows(draw_rows(100)), n_shards=2)
    for path in sorted(path for path in index.rglob("*") if path.is_file()):
        sound = path.read_bytes()
        content = bytearray(sound)
        content[len(content) // 3] ^= 0x10
        path.write_bytes(content)
        with pytest.raises(ArtefactError, match=path.name.replace(".", r"\.")):
            SearchEngine.open(index)
        path.write_bytes(sound)
    SearchEngine.open(index)


def test_an_unfinished_index_is_refused(
    draw_rows: Draw, write_gallery_rows: Write, build: Build
) -> None:
    index = build(write_gallery_rows(draw_rows(60)))
    (index / "manifest.json").unlink()
    with pytest.raises(ArtefactError, match=r"manifest\.json is missing, so the index folder"):
        SearchEngine.open(index)


def test_moved_embeddings_are_asked_for(
    draw_rows: Draw, write_gallery_rows: Write, build: Build, tmp_path: Path
) -> None:
    index = build(write_gallery_rows(draw_rows(60)))
    (tmp_path / "embeddings").rename(tmp_path / "elsewhere")
    with pytest.raises(SourceError, match="If they moved, pass --embeddings"):
        SearchEngine.open(index)
    SearchEngine.open(index, embeddings=tmp_path / "elsewhere")


def test_metadata_of_hits(draw_rows: Draw, write_gallery_rows: Write, build: Build) -> None:
    engine = SearchEngine.open(build(write_gallery_rows(draw_rows(100)), n_shards=3))
    assert engine.columns == ("image_id", "caption")
    table = engine.metadata(np.array([99, 0, 50, 0]), ["caption"])
    assert table.to_pydict() == {"caption": ["caption 99", "caption 0", "caption 50", "caption 0"]}
