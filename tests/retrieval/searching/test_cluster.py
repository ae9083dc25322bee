"""A search by many machines: workers of a Dask cluster on this one, slow, failing and killed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from index_builder.cosine import unit_rows
from index_builder.deletion import delete_rows
from index_builder.embeddings.errors import ArtefactError
from index_builder.embeddings.reader import EmbeddingFolder
from index_builder.errors import IndexDamagedError, SchedulerError
from retrieval.errors import ClusterError, QueryError, SearchError
from retrieval.searching import shard_workers
from retrieval.searching.cluster import ClusterSearch
from retrieval.searching.engine import SearchEngine
from retrieval.searching.held_shards import ShardQuestion, answer_shard, name_of
from retrieval.searching.queries import load_queries
from retrieval.searching.request import SearchRequest
from retrieval.searching.result import SearchResult
from tests.index_builder.execution.clusters import Cluster
from tests.retrieval.searching.shard_answers import answer_as_marked, mark

Draw = Callable[[int], np.ndarray]
Write = Callable[..., EmbeddingFolder]
Build = Callable[..., Path]

DESIGNS: dict[str, dict[str, Any]] = {
    "flat from disk": {"code": "flat", "tier": "disk", "n_shards": 3},
    "flat in memory": {"code": "flat", "tier": "memory", "n_shards": 3},
    "lists": {"code": "ivf-rabitq", "n_shards": 5},
    "lists from disk and a copy": {
        "code": "ivf-rabitq",
        "tier": "disk",
        "rerank": "fp16",
        "n_shards": 3,
    },
    "lists and bytes": {"code": "ivf-rabitq", "rerank": "sq8", "n_shards": 2},
    "graph": {"code": "hnsw-sq8", "n_shards": 3},
}


@pytest.fixture
def build(build: Build) -> Build:
    """Builds of which the certificates, which aren't used here, take little time."""
    return partial(build, n_queries=20)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two workers, of four threads so that a shard that waits doesn't hold up others."""
    with Cluster(tmp_path_factory.mktemp("cluster"), n_workers=2, n_threads=4) as started:
        yield started


def full_effort(engine: SearchEngine) -> dict[str, int]:
    if engine.plan.code == "flat":
        return {}
    n_lists = engine.plan.n_lists
    return {"breadth": n_lists or engine.plan.rows_per_shard, "n_candidates": engine.n_rows}


def assert_same(found: SearchResult, expected: SearchResult) -> None:
    np.testing.assert_array_equal(found.rows, expected.rows)
    np.testing.assert_array_equal(found.scores, expected.scores)
    np.testing.assert_array_equal(found.n_duplicates, expected.n_duplicates)


def wait_for_workers(engine: ClusterSearch, n_workers: int) -> None:
    while len(engine._shard_workers.workers.addresses()) < n_workers:
        time.sleep(0.05)


def shard_names(engine: SearchEngine) -> list[str]:
    return [each["folder"] for each in engine.manifest["shards"]]


def without_shard(
    engine: SearchEngine, queries: np.ndarray, k: int, *shards: str
) -> tuple[np.ndarray, np.ndarray]:
    """What an exact search finds outside of some shards."""
    rows = engine.embeddings.take(np.arange(engine.n_rows)).astype(np.float64)
    scores = (unit_rows(queries) @ rows.T) / np.linalg.norm(rows, axis=1)
    for each in engine.manifest["shards"]:
        if each["folder"] in shards:
            scores[:, each["row_start"] : each["row_stop"]] = -2
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(scores, order, axis=1)


@pytest.mark.parametrize("design", DESIGNS)
def test_a_cluster_finds_what_one_machine_finds(
    draw_rows: Draw, write_gallery_rows: Write, build: Build, cluster: Cluster, design: str
) -> None:
    index = build(write_gallery_rows(draw_rows(700)), **DESIGNS[design])
    delete_rows(index, np.arange(0, 700, 9))
    one, queries = SearchEngine.open(index), draw_rows(20)
    with ClusterSearch.open(index, scheduler=str(cluster.file)) as many:
        assert (many.n_rows, many.columns, many.space) == (one.n_rows, one.columns, one.space)
        assert (many.fingerprint, many.plan) == (one.fingerprint, one.plan)
        np.testing.assert_array_equal(many.deleted, one.deleted)
        for k in (1, 10, 690):
            request = SearchRequest(k, **full_effort(one))
            found = many.search(queries, request)
            assert found.shards_missing == ()
            assert_same(found, one.search(queries, request))
            assert_same(many.search(queries, request, batch_queries=7), found)
        assert many.effort(SearchRequest(5)) == one.effort(SearchRequest(5))


@pytest.mark.parametrize("design", ["lists", "lists from disk and a copy", "graph"])
def test_a_cluster_ranks_what_one_machine_ranks_and_more(
    draw_rows: Draw, write_gallery_rows: Write, build: Build, cluster: Cluster, design: str
) -> None:
    index = build(write_gallery_rows(draw_rows(1500)), **DESIGNS[design])
    one, queries = SearchEngine.open(index), draw_rows(40)
    request = SearchRequest(10, breadth=16 if design == "graph" else 1, n_candidates=10)
    expected = one.search(queries, request)
    # What each shard finds by itself, ordered by score and row.
    question = ShardQuestion(one.path, one.fingerprint, None, "", (), 10, request.breadth, 10)
    unit = unit_rows(queries)
    alone = [
        answer_shard(ShardQuestion(**{**vars(question), "shard": name}), unit, None)
        for name in shard_names(one)
    ]
    rows, scores = (np.concatenate(each, axis=1) for each in zip(*alone, strict=True))
    order = np.lexsort((rows, -np.where(rows < 0, -2, scores)), axis=1)[:, :10]
    with ClusterSearch.open(index, scheduler=str(cluster.file)) as many:
        found = many.search(queries, request)
    np.testing.assert_array_equal(found.rows, np.take_along_axis(rows, order, axis=1))
    np.testing.assert_array_equal(found.scores, np.take_along_axis(scores, order, axis=1))
    assert (found.scores >= np.nan_to_num(expected.scores, nan=-2)).all()
    assert (found.scores > expected.scores).any()


def test_one_shard_gives_the_same_with_any_effort(
    draw_rows: Draw, write_gallery_rows: Write, build: Build, cluster: Cluster
) -> None:
    index = build(write_gallery_rows(draw_rows(1500)))
    one, queries = SearchEngine.open(index), draw_rows(30)
    with ClusterSearch.open(index, scheduler=cluster.address) as many:
        for request in (None, SearchRequest(10, breadth=1), SearchRequest(5, n_candidates=5)):
            assert_same(many.search(queries, request), one.search(queries, request))


@pytest.mark.parametrize("design", ["flat from disk", "lists", "graph"])
def test_filters_and_near_duplicates_are_those_of_one_machine(
    draw_rows: Draw,
    write_gallery_rows: Write,
    build: Build,
    cluster: Cluster,
    rng: np.random.Generator,
    design: str,
) -> None:
    rows = np.concatenate([draw_rows(500), draw_rows(50), draw_rows(50)])
    rows[550:] = rows[500:550]
    columns = {"width": pa.array(rng.integers(0, 1000, 600)), "punsafe": pa.array(rng.random(600))}
    index = build(write_gallery_rows(rows, columns=columns), **DESIGNS[design])
    delete_rows(index, np.array([3, 77, 501]))
    one, queries = SearchEngine.open(index), np.concatenate([draw_rows(6), rows[500:506]])
    requests = [
        SearchRequest(8, unsafe_from=None, duplicate_from=0.999),
        SearchRequest(8, where="width < 500", duplicate_from=0.99),
        SearchRequest(8, where="width < 3"),
        SearchRequest(8, unsafe_from=None, excluded=rows[500:506]),
    ]
    with ClusterSearch.open(index, scheduler=str(cluster.file)) as many:
        for request in requests:
            effort = full_effort(one)
            asked = SearchRequest(**{**vars(request), **effort})
            for _ in range(2):  # the rows that may be found stay with the workers
                assert_same(many.search(queries, asked), one.search(queries, asked))


def test_it_is_used_as_an_engine_is(
    draw_rows: Draw, write_gallery_rows: Write, build: Build, cluster: Cluster, tmp_path: Path
) -> None:
    index = build(write_gallery_rows(draw_rows(300)), n_shards=3)
    np.save(tmp_path / "queries.npy", draw_rows(9))
    queries = load_queries(tmp_path / "queries.npy")
    one = SearchEngine.open(index)
    with ClusterSearch.open(index, scheduler=str(cluster.file), deadline_seconds=60) as many:
        request = SearchRequest(4, **full_effort(one))
        pairs = zip(
            many.search_set(queries, request, batch_queries=4),
            one.search_set(queries, request, batch_queries=4),
            strict=True,
        )
        for found, expected in pairs:
            assert_same(found, expected)
        rows = np.array([299, 0, 150])
        assert many.metadata(rows, ["caption"]).equals(one.metadata(rows, ["caption"]))
        np.testing.assert_array_equal(many.take(rows), one.take(rows))
        with pytest.raises(QueryError, match=r"have \(47,\) numbers each"):
            many.search(np.ones((2, 47), np.float32))
        with pytest.raises(SearchError, match="n_probe is 99, expected 1 to"):
            many.search(draw_rows(1), SearchRequest(3, breadth=99))
        assert many.ram_bytes == 0
    with pytest.raises(SearchError, match="deadline_seconds is 0, expected more than 0"):
        ClusterSearch.open(index, scheduler=str(cluster.file), deadline_seconds=0)


def test_wide_queries_are_sent_in_small_batches(
    rng: np.random.Generator, write_gallery_rows: Write, build: Build, cluster: Cluster
) -> None:
    rows = rng.standard_normal((40, 64, 512))
    rows = (rows / np.linalg.norm(rows, axis=(1, 2), keepdims=True)).astype(np.float16)
    index = build(write_gallery_rows(rows), "flat", n_shards=2)
    with ClusterSearch.open(index, scheduler=str(cluster.file)) as many:
        assert many.batch_queries(SearchRequest(3)) == 128  # 16 MiB
        found = many.search(rows[:3], SearchRequest(3))
    np.testing.assert_array_equal(found.rows[:, 0], [0, 1, 2])


def test_shards_that_are_late_are_named_and_the_rest_is_right(
    draw_rows: Draw, write_gallery_rows: Write, build: Build, cluster: Cluster
) -> None:
    index = build(write_gallery_rows(draw_rows(600)), n_shards=4)
    one, queries = SearchEngine.open(index), draw_rows(10)
    request = SearchRequest(10, **full_effort(one))
    expected = one.search(queries, request)
    late = [mark(index, "wait", "shards/0001"), mark(index, "wait", "shards/0003")]
    options: dict[str, Any] = {"scheduler": str(cluster.file), "answer": answer_as_marked}
    with ClusterSearch.open(index, **options) as patient:
        assert_same(patient.search(queries, request), expected)  # opens all shards
        late[0].touch()
        with ClusterSearch.open(index, **options, deadline_seconds=4) as hasty:
            found = hasty.search(queries, request)
            assert found.shards_missing == ("shards/0001",)
            rows, scores = without_shard(one, queries, 10, "shards/0001")
            np.testing.assert_array_equal(found.rows, rows)
            np.testing.assert_allclose(found.scores, scores, atol=1e-6)
            late[1].touch()
            found = hasty.search(queries, request)
            assert found.shards_missing == ("shards/0001", "shards/0003")
            rows, _ = without_shard(one, queries, 10, *found.shards_missing)
            np.testing.assert_array_equal(found.rows, rows)
            for each in late:
                each.unlink()
        assert_same(patient.search(queries, request), expected)


def test_no_shard_in_time_is_an_error(
    draw_rows: Draw, write_gallery_rows: Write, build: Build, cluster: Cluster
) -> None:
    index = build(write_gallery_rows(draw_rows(60)), n_shards=2)
    marks = [mark(index, "wait", f"shards/000{number}") for number in range(2)]
    for each in marks:
        each.touch()
    with (
        ClusterSearch.open(
            index, scheduler=str(cluster.file), deadline_seconds=0.3, answer=answer_as_marked
        ) as many,
        pytest.raises(
            ClusterError, match=r"none of the 2 shards of .* answered in time, of 2 worker\(s\)"
        ),
    ):
        many.search(draw_rows(2))
    for each in marks:
        each.unlink()


def test_an_error_of_the_file_system_is_tried_elsewhere(
    draw_rows: Draw, write_gallery_rows: Write, build: Build, cluster: Cluster
) -> None:
    index = build(write_gallery_rows(draw_rows(200)), n_shards=3)
    one, queries = SearchEngine.open(index), draw_rows(4)
    request = SearchRequest(5, **full_effort(one))
    options: dict[str, Any] = {"scheduler": str(cluster.file), "answer": answer_as_marked}
    with ClusterSearch.open(index, **options) as many:
        mark(index, "fail-once", "shards/0001").touch()
        assert_same(many.search(queries, request), one.search(queries, request))
        assert not mark(index, "fail-once", "shards/0001").exists()
        mark(index, "fail", "shards/0001").touch()
        with pytest.raises(ClusterError, match=r"shards/0001 of .* was asked for 3 times, of tcp"):
            many.search(queries, request)
        with ClusterSearch.open(index, **options, deadline_seconds=60) as hasty:
            found = hasty.search(queries, request)
        assert found.shards_missing == ("shards/0001",)
        rows, _ = without_shard(one, queries, 5, "shards/0001")
        np.testing.assert_array_equal(found.rows, rows)


def test_other_errors_of_workers_are_raised_here(
    draw_rows: Draw, write_gallery_rows: Write, build: Build, cluster: Cluster
) -> None:
    index = build(write_gallery_rows(draw_rows(200)), n_shards=3)
    queries, file = draw_rows(4), str(cluster.file)
    with ClusterSearch.open(index, scheduler=file, answer=answer_as_marked) as many:
        mark(index, "err", "shards/0002").touch()
        with pytest.raises(KeyError, match="a mistake in shards/0002"):
            many.search(queries)
    index = build(write_gallery_rows(draw_rows(200), "others"), n_shards=3, name="altered")
    codes = index / "shards" / "0001" / "codes.npy"
    content = bytearray(codes.read_bytes())
    content[-1] ^= 1
    codes.write_bytes(content)
    with (
        ClusterSearch.open(index, scheduler=file, deadline_seconds=60) as many,
        pytest.raises(ArtefactError, match=r"codes\.npy differs from its recorded SHA-256"),
    ):
        many.search(queries)
    (index / "shards" / "0001" / "shard.json").write_text("{}")
    with pytest.raises(ArtefactError, match=r"shard\.json"):
        ClusterSearch.open(index, scheduler=file)


def test_an_index_that_changed_meanwhile_is_refused(
    draw_rows: Draw, write_gallery_rows: Write, build: Build, cluster: Cluster
) -> None:
    index = build(write_gallery_rows(draw_rows(200)), n_shards=2)
    with ClusterSearch.open(index, scheduler=str(cluster.file)) as many:
        delete_rows(index, np.array([5]))
        with pytest.raises(IndexDamagedError, match=r"was opened with .*: it changed meanwhile"):
            many.search(draw_rows(2))


def test_moved_embeddings_are_found_by_the_workers(
    draw_rows: Draw, write_gallery_rows: Write, build: Build, cluster: Cluster, tmp_path: Path
) -> None:
    index = build(write_gallery_rows(draw_rows(200)), n_shards=2)
    one, queries = SearchEngine.open(index), draw_rows(3)
    expected = one.search(queries)
    (tmp_path / "embeddings").rename(tmp_path / "elsewhere")
    moved = [tmp_path / "elsewhere"]
    with ClusterSearch.open(index, scheduler=str(cluster.file), embeddings=moved) as many:
        found = many.search(queries)
    assert (found.scores >= expected.scores).all()


def test_threads_may_share_a_cluster(
    draw_rows: Draw, write_gallery_rows: Write, build: Build, cluster: Cluster
) -> None:
    index = build(write_gallery_rows(draw_rows(400)), n_shards=3)
    one = SearchEngine.open(index)
    batches = [draw_rows(3) for _ in range(8)]
    request = SearchRequest(6, **full_effort(one))
    expected = [one.search(batch, request) for batch in batches]
    with (
        ClusterSearch.open(index, scheduler=str(cluster.file)) as many,
        ThreadPoolExecutor(4) as pool,
    ):
        found = list(pool.map(lambda batch: many.search(batch, request), batches))
    for each, alone in zip(found, expected, strict=True):
        assert_same(each, alone)


def test_a_scheduler_that_is_not_there(
    draw_rows: Draw,
    write_gallery_rows: Write,
    build: Build,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("index_builder.execution.dask.SECONDS_TO_CONNECT", 1)
    index = build(write_gallery_rows(draw_rows(60)))
    with pytest.raises(
        SchedulerError, match=r"no Dask scheduler answers at .*none\.json within 1 s"
    ):
        ClusterSearch.open(index, scheduler=str(tmp_path / "none.json"))


@pytest.mark.slow
def test_lost_workers_are_replaced(
    draw_rows: Draw,
    write_gallery_rows: Write,
    build: Build,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shard_workers, "_SECONDS_FOR_A_WORKER", 0.5)
    index = build(write_gallery_rows(draw_rows(600)), n_shards=5)
    one, queries = SearchEngine.open(index), draw_rows(10)
    request = SearchRequest(10, where="image_id % 3 > 0", **full_effort(one))
    expected = one.search(queries, request)
    (tmp_path / "cluster").mkdir()
    with Cluster(tmp_path / "cluster", n_workers=2) as cluster:
        options: dict[str, Any] = {"scheduler": str(cluster.file), "answer": answer_as_marked}
        with ClusterSearch.open(index, **options) as many:
            wait_for_workers(many, 2)
            assert_same(many.search(queries, request), expected)
            # One dies of a question, and leaves others behind that it was asked.
            mark(index, "die-once", "shards/0002").touch()
            assert_same(many.search(queries, request), expected)
            assert not mark(index, "die-once", "shards/0002").exists()
            assert sum(worker.poll() is None for worker in cluster.workers) == 1
            # A new one takes its share; then the other is killed between two searches.
            cluster.add_worker()
            wait_for_workers(many, 2)
            next(worker for worker in cluster.workers if worker.poll() is None).kill()
            assert_same(many.search(queries, request), expected)
            cluster.workers[-1].kill()
            with pytest.raises(ClusterError, match=r"has had no worker for 0\.5 s"):
                many.search(queries, request)
            cluster.scheduler.kill()
            with pytest.raises(SchedulerError, match="went away or dropped the work"):
                many.search(queries, request)


def test_names_of_shards_are_those_of_the_manifest(
    draw_rows: Draw, write_gallery_rows: Write, build: Build
) -> None:
    from index_builder.manifest import read_index_manifest, shards_of

    index = build(write_gallery_rows(draw_rows(60)), n_shards=3)
    manifest = read_index_manifest(index)
    names = [name_of(shard) for shard in shards_of(index, manifest)]
    assert names == [each["folder"] for each in manifest["shards"]]
