from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index_builder.build import build_index
from index_builder.deletion import delete_rows
from index_builder.embeddings.collection import Collection
from index_builder.embeddings.errors import ArtefactError, SpaceMismatchError
from index_builder.embeddings.reader import EmbeddingFolder
from index_builder.embeddings.space import EmbeddingSpace
from index_builder.errors import SourceError
from index_builder.planning import plan_index
from retrieval.errors import QueryError, SearchError
from retrieval.searching.engine import SearchEngine
from retrieval.searching.queries import load_queries
from retrieval.searching.request import SearchRequest

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
    "flat from disk": {"code": "flat", "tier": "disk"},
    "flat in memory": {"code": "flat", "tier": "memory"},
    "lists": {"code": "ivf-rabitq"},
    "lists in shards": {"code": "ivf-rabitq", "n_shards": 3},
    "lists from disk": {"code": "ivf-rabitq", "tier": "disk", "n_shards": 2},
    "lists of two bits": {"code": "ivf-rabitq", "bits": 2, "n_shards": 2},
    "lists and a copy": {"code": "ivf-rabitq", "tier": "disk", "rerank": "fp16", "n_shards": 2},
    "graph": {"code": "hnsw-sq8", "n_shards": 2},
    "graph and a copy": {"code": "hnsw-sq8", "rerank": "fp16"},
}


def full_effort(engine: SearchEngine) -> dict[str, int]:
    if engine.plan.code == "flat":
        return {}
    n_lists = engine.plan.n_lists
    return {"breadth": n_lists or engine.plan.rows_per_shard, "n_candidates": engine.n_rows}


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_full_effort_equals_brute_force(
    draw_rows: Draw, write_gallery_rows: Write, build: Build, design: str, dtype: str
) -> None:
    rows = draw_rows(500)
    engine = SearchEngine.open(build(write_gallery_rows(rows), **DESIGNS[design]))
    queries = draw_rows(20).astype(dtype) * 3
    result = engine.search(queries, SearchRequest(15, **full_effort(engine)))
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
        "lists": "ivf-rabitq, 4 lists, 1 bit, in memory",
        "lists in shards": "ivf-rabitq, 4 lists, 1 bit, in memory",
        "lists from disk": "ivf-rabitq, 4 lists, 1 bit, from disk",
        "lists of two bits": "ivf-rabitq, 4 lists, 2 bit, in memory",
        "lists and a copy": "ivf-rabitq, 4 lists, 1 bit, from disk, fp16 copy",
        "graph": "hnsw-sq8",
        "graph and a copy": "hnsw-sq8, fp16 copy",
    }
    for design, options in DESIGNS.items():
        engine = SearchEngine.open(build(embeddings, name=design, **options))
        assert engine.plan.design == names[design]
        assert engine.ram_bytes == engine.plan.ram_bytes


@pytest.mark.parametrize("rerank", ["sq8", "rabitq4"])
@pytest.mark.parametrize("code", ["ivf-rabitq", "hnsw-sq8"])
def test_a_lossy_copy_ranks_nearly_as_the_rows(
    draw_rows: Draw, write_gallery_rows: Write, build: Build, code: str, rerank: str
) -> None:
    rows = draw_rows(600)
    engine = SearchEngine.open(build(write_gallery_rows(rows), code, rerank=rerank, n_shards=2))
    queries = draw_rows(30)
    result = engine.search(queries, SearchRequest(10, **full_effort(engine)))
    expected, scores = brute_force(rows, queries, 10)
    alike = [np.isin(*pair).mean() for pair in zip(expected, result.rows, strict=True)]
    assert np.mean(alike) > {"sq8": 0.95, "rabitq4": 0.8}[rerank]
    np.testing.assert_allclose(result.scores, scores, atol={"sq8": 0.01, "rabitq4": 0.05}[rerank])


def test_the_default_effort_reaches_what_the_certificate_says(
    draw_rows: Draw, write_gallery_rows: Write, build: Build
) -> None:
    drawn = draw_rows(2200)
    rows, queries = drawn[:2000], drawn[2000:]
    engine = SearchEngine.open(build(write_gallery_rows(rows), target_recall=0.9))
    assert engine.manifest["certificate"]["is_reached"]
    found = engine.search(queries, SearchRequest(10)).rows
    truth = brute_force(rows, queries, 10)[0]
    recall = np.mean([np.isin(t, f).mean() for t, f in zip(truth, found, strict=True)])
    assert recall > 0.85


@pytest.mark.parametrize("design", DESIGNS)
def test_batches_do_not_change_the_result(
    draw_rows: Draw, write_gallery_rows: Write, build: Build, design: str
) -> None:
    engine = SearchEngine.open(build(write_gallery_rows(draw_rows(400)), **DESIGNS[design]))
    queries = draw_rows(50)
    whole = engine.search(queries, SearchRequest(7))
    for batch_queries in (1, 13):
        parts = engine.search(queries, SearchRequest(7), batch_queries=batch_queries)
        np.testing.assert_array_equal(parts.rows, whole.rows)
        np.testing.assert_array_equal(parts.scores, whole.scores)


def test_shards_do_not_change_the_result(
    draw_rows: Draw, write_gallery_rows: Write, build: Build
) -> None:
    embeddings = write_gallery_rows(draw_rows(900))
    one = SearchEngine.open(build(embeddings, name="one"))
    four = SearchEngine.open(build(embeddings, name="four", n_shards=4))
    queries = draw_rows(30)
    effort = {"breadth": 3, "n_candidates": 60}
    found, expected = (
        four.search(queries, SearchRequest(10, **effort)),
        one.search(queries, SearchRequest(10, **effort)),
    )
    np.testing.assert_array_equal(found.rows, expected.rows)
    np.testing.assert_array_equal(found.scores, expected.scores)


@pytest.mark.parametrize("design", DESIGNS)
def test_copies_come_by_row(
    draw_rows: Draw, write_gallery_rows: Write, build: Build, design: str
) -> None:
    rows = np.tile(draw_rows(40), (5, 1))
    engine = SearchEngine.open(build(write_gallery_rows(rows), **DESIGNS[design]))
    result = engine.search(rows[:40], SearchRequest(5, **full_effort(engine)))
    expected = np.arange(40)[:, None] + 40 * np.arange(5)
    np.testing.assert_array_equal(result.rows, expected)
    assert (result.scores == result.scores[:, :1]).all()


@pytest.mark.parametrize("design", DESIGNS)
def test_more_hits_than_rows_are_padded(
    draw_rows: Draw, write_gallery_rows: Write, build: Build, design: str
) -> None:
    engine = SearchEngine.open(build(write_gallery_rows(draw_rows(90)), **DESIGNS[design]))
    result = engine.search(draw_rows(3), SearchRequest(100))
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
    embeddings = Collection.open([tmp_path / "foreign"], space=space)
    engine = SearchEngine.open(build(embeddings, bad_rows="tombstone", **DESIGNS[design]))
    result = engine.search(draw_rows(4), SearchRequest(300))
    assert not np.isin(dead, result.rows).any()
    assert ((result.rows >= 0).sum(axis=1) == 297).all()
    assert engine.columns == ()


@pytest.mark.parametrize("design", DESIGNS)
def test_deleted_rows_are_never_found_and_others_take_their_places(
    draw_rows: Draw, write_gallery_rows: Write, build: Build, design: str
) -> None:
    rows = draw_rows(300)
    index = build(write_gallery_rows(rows), **DESIGNS[design])
    queries = draw_rows(12)
    # The nearest of each query, and much else.
    deleted = np.union1d(brute_force(rows, queries, 8)[0].ravel(), np.arange(0, 300, 3))
    alive = np.setdiff1d(np.arange(300), deleted)
    delete_rows(index, deleted)
    engine = SearchEngine.open(index)
    np.testing.assert_array_equal(engine.deleted, deleted)
    expected = alive[brute_force(rows[alive], queries, 10)[0]]
    full = engine.search(queries, SearchRequest(10, **full_effort(engine)))
    np.testing.assert_array_equal(full.rows, expected)
    # With the least effort there are k hits all the same.
    least = {} if design.startswith("flat") else {"breadth": 1, "n_candidates": 10}
    for k, effort in ((10, least), (10, {}), (300, {})):
        result = engine.search(queries, SearchRequest(k, **effort))
        assert not np.isin(result.rows, deleted).any()
        assert ((result.rows >= 0).sum(axis=1) == min(k, len(alive))).all()
        found = np.sort(result.rows[:, : min(k, len(alive))], axis=1)
        assert (np.diff(found, axis=1) > 0).all()


@pytest.mark.parametrize("design", DESIGNS)
def test_an_index_of_which_all_was_deleted(
    draw_rows: Draw, write_gallery_rows: Write, build: Build, design: str
) -> None:
    index = build(write_gallery_rows(draw_rows(60)), **DESIGNS[design])
    delete_rows(index, np.arange(60))
    result = SearchEngine.open(index).search(draw_rows(3), SearchRequest(5))
    assert (result.rows == -1).all() and np.isnan(result.scores).all()


@pytest.mark.parametrize("design", DESIGNS)
def test_rows_of_all_folders_are_found(
    draw_rows: Draw, write_gallery_rows: Write, tmp_path: Path, design: str
) -> None:
    rows = draw_rows(400)
    folders = [
        write_gallery_rows(rows[:250], "first"),
        write_gallery_rows(rows[250:], "second"),
    ]
    embeddings = Collection(folders)
    options = dict(DESIGNS[design])
    rows_per_shard = -(-400 // options.pop("n_shards", 1))
    plan = plan_index(400, embeddings.space, rows_per_shard=rows_per_shard, **options)
    build_index(embeddings, tmp_path / "index", plan, n_queries=20)
    engine = SearchEngine.open(tmp_path / "index")
    assert engine.n_rows == 400 and len(engine.embeddings.folders) == 2
    queries = draw_rows(10)
    result = engine.search(queries, SearchRequest(12, **full_effort(engine)))
    np.testing.assert_array_equal(result.rows, brute_force(rows, queries, 12)[0])
    captions = engine.metadata(np.array([249, 250, 399, 0]), ["caption"])["caption"].to_pylist()
    assert captions == ["caption 249", "caption 0", "caption 149", "caption 0"]


@pytest.mark.parametrize("design", DESIGNS)
def test_threads_may_share_an_engine(
    draw_rows: Draw, write_gallery_rows: Write, build: Build, design: str
) -> None:
    engine = SearchEngine.open(build(write_gallery_rows(draw_rows(400)), **DESIGNS[design]))
    batches = [draw_rows(7) for _ in range(8)]
    alone = [engine.search(batch, SearchRequest(6)) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda batch: engine.search(batch, SearchRequest(6)), batches))
    for found, expected in zip(together, alone, strict=True):
        np.testing.assert_array_equal(found.rows, expected.rows)
        np.testing.assert_array_equal(found.scores, expected.scores)


def test_hidden_tokens_are_searched_as_one_vector(
    rng: np.random.Generator, write_gallery_rows: Write, build: Build
) -> None:
    rows = rng.standard_normal((120, 3, 16))
    rows = (rows / np.linalg.norm(rows, axis=(1, 2), keepdims=True)).astype(np.float16)
    engine = SearchEngine.open(build(write_gallery_rows(rows)))
    result = engine.search(rows[:10], SearchRequest(5, **full_effort(engine)))
    np.testing.assert_array_equal(result.rows, brute_force(rows, rows[:10], 5)[0])


def test_effort_travels_with_the_call(
    draw_rows: Draw, write_gallery_rows: Write, build: Build
) -> None:
    engine = SearchEngine.open(build(write_gallery_rows(draw_rows(1500)), n_shards=2))
    queries = draw_rows(40)
    efforts = [{"breadth": p, "n_candidates": c} for p in (1, 4, 16) for c in (10, 50)]
    alone = [engine.search(queries, SearchRequest(10, **effort)).rows for effort in efforts]
    with ThreadPoolExecutor(4) as pool:
        together = list(
            pool.map(
                lambda effort: engine.search(queries, SearchRequest(10, **effort)).rows, efforts * 3
            )
        )
    for found, expected in zip(together, alone * 3, strict=True):
        np.testing.assert_array_equal(found, expected)
    assert not np.array_equal(alone[0], alone[-1])


def test_candidates_grow_with_k(draw_rows: Draw, write_gallery_rows: Write, build: Build) -> None:
    engine = SearchEngine.open(build(write_gallery_rows(draw_rows(1500))))
    certified = engine.manifest["certificate"]["effort"]
    assert engine.effort(SearchRequest(1)) == engine.effort(SearchRequest(10)) == certified
    assert engine.effort(SearchRequest(20))["n_candidates"] == min(
        1500, 2 * certified["n_candidates"]
    )
    assert engine.effort(SearchRequest(2000))["n_candidates"] == 2000


def test_out_of_range_parameters_are_refused(
    draw_rows: Draw, write_gallery_rows: Write, build: Build
) -> None:
    embeddings = write_gallery_rows(draw_rows(100))
    engine = SearchEngine.open(build(embeddings))
    queries = draw_rows(1)
    with pytest.raises(SearchError, match="k is 0, expected at least 1"):
        engine.search(queries, SearchRequest(0))
    for n_probe in (0, 3):
        with pytest.raises(SearchError, match=rf"n_probe is {n_probe}, expected 1 to 2"):
            engine.search(queries, SearchRequest(5, breadth=n_probe))
    with pytest.raises(SearchError, match="n_candidates is 4, expected at least k, which is 5"):
        engine.search(queries, SearchRequest(5, n_candidates=4))
    with pytest.raises(SearchError, match="batch_queries is 0"):
        engine.search(queries, SearchRequest(5), batch_queries=0)
    flat = SearchEngine.open(build(embeddings, "flat", name="flat"))
    with pytest.raises(SearchError, match="is searched by comparing every row"):
        flat.search(queries, SearchRequest(5, breadth=1))


def test_bad_queries_are_refused(draw_rows: Draw, write_gallery_rows: Write, build: Build) -> None:
    engine = SearchEngine.open(build(write_gallery_rows(draw_rows(60))))
    with pytest.raises(QueryError, match=r"have \(47,\) numbers each, and .* 48"):
        engine.search(np.ones((2, 47), np.float32), SearchRequest(3))
    with pytest.raises(QueryError, match=r"shape \(48,\) and dtype float32, expected \(n, 48\)"):
        engine.search(np.ones(48, np.float32), SearchRequest(3))
    with pytest.raises(QueryError, match="dtype int64"):
        engine.search(np.ones((2, 48), np.int64), SearchRequest(3))
    for bad in (np.nan, np.inf, 0.0):
        queries = np.ones((300, 48), np.float32)
        queries[290] = bad
        with pytest.raises(QueryError, match="query 290 is zero or holds NaN or infinite"):
            engine.search(queries, SearchRequest(3))


def test_no_queries_give_no_hits(draw_rows: Draw, write_gallery_rows: Write, build: Build) -> None:
    engine = SearchEngine.open(build(write_gallery_rows(draw_rows(60))))
    assert engine.search(np.empty((0, 48), np.float32), SearchRequest(3)).rows.shape == (0, 3)


def test_queries_of_another_space_are_refused(
    draw_rows: Draw, write_gallery_rows: Write, build: Build
) -> None:
    engine = SearchEngine.open(build(write_gallery_rows(draw_rows(60))))
    other = write_gallery_rows(draw_rows(4), "queries", model="ViT-H-14")
    with pytest.raises(SpaceMismatchError, match=r"(?s)ViT-L-14/openai.*ViT-H-14"):
        next(engine.search_set(load_queries(other.path), SearchRequest(3)))


@pytest.mark.parametrize("design", ["flat in memory", "lists and a copy", "graph and a copy"])
def test_one_flipped_byte_in_any_file_is_refused(
    draw_rows: Draw, write_gallery_rows: Write, build: Build, design: str
) -> None:
    index = build(write_gallery_rows(draw_rows(100)), **DESIGNS[design])
    delete_rows(index, np.array([5, 77]))
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
    SearchEngine.open(index, embeddings=[tmp_path / "elsewhere"])


def test_metadata_of_hits(draw_rows: Draw, write_gallery_rows: Write, build: Build) -> None:
    engine = SearchEngine.open(build(write_gallery_rows(draw_rows(100)), n_shards=3))
    assert engine.columns == ("image_id", "caption")
    table = engine.metadata(np.array([99, 0, 50, 0]), ["caption"])
    assert table.to_pydict() == {"caption": ["caption 99", "caption 0", "caption 50", "caption 0"]}
