"""Rows on devices: torch's processor device everywhere, CUDA devices where there are any."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from index_builder.build import build_index
from index_builder.cosine import pair_scores, unit_rows
from index_builder.deletion import delete_rows
from index_builder.embeddings.collection import Collection
from index_builder.embeddings.reader import EmbeddingFolder
from index_builder.embeddings.space import EmbeddingSpace
from index_builder.ground_truth import exact_search
from index_builder.planning import plan_index
from index_builder.reranking import rank_exactly
from index_builder.row_set import RowSet
from retrieval.errors import SearchError
from retrieval.searching import device as device_module
from retrieval.searching import device_rows as rows_module
from retrieval.searching.device import cut_rows, hold_on_devices, parse_devices
from retrieval.searching.device_nominator import DeviceNominator
from retrieval.searching.device_rows import DeviceRows, free_bytes, row_bytes
from retrieval.searching.engine import SearchEngine
from retrieval.searching.request import SearchRequest

Draw = Callable[[int], np.ndarray]
Write = Callable[..., EmbeddingFolder]
NOTHING = np.empty(0, np.int64)
CUDA = pytest.param(
    "cuda",
    marks=[
        pytest.mark.gpu,
        pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    ],
)
on_each_device = pytest.mark.parametrize("device", ["cpu", CUDA])


@pytest.fixture
def save_rows(tmp_path: Path) -> Callable[..., Collection]:
    """Save rows as they are, bad ones and any norm included, in two parts."""

    def save(rows: np.ndarray, name: str = "foreign") -> Collection:
        folder = tmp_path / name / "img_emb"
        folder.mkdir(parents=True)
        half = len(rows) // 2
        for number, part in enumerate((rows[:half], rows[half:])):
            np.save(folder / f"img_emb_{number}.npy", part)
        space = EmbeddingSpace("ViT-L-14/openai", "final", 1, rows.shape[1], False)
        return Collection.open([tmp_path / name], space=space)

    return save


def load(
    embeddings: Collection,
    device: str = "cpu",
    *,
    cuts: tuple[int, ...] = (),
    deleted: np.ndarray = NOTHING,
    work_bytes: int = 1 << 20,
) -> DeviceNominator:
    stops = [0, *cuts, embeddings.n_rows]
    parts = [(device, *pair) for pair in pairwise(stops)]
    return DeviceNominator.load(
        embeddings, parts, bad_rows="tombstone", deleted=deleted, work_bytes=work_bytes
    )


def nearest(
    nominator: DeviceNominator, queries: np.ndarray, k: int, allowed: RowSet | None = None
) -> tuple[np.ndarray, np.ndarray]:
    unit = unit_rows(queries)
    rows = nominator.candidates(unit, 1, k, n_least=k, allowed=allowed)
    assert rows.shape[0] == len(queries) and rows.shape[1] >= k
    return rank_exactly(nominator.vectors, unit, rows, k)


def flat(
    embeddings: Collection,
    queries: np.ndarray,
    k: int,
    *,
    deleted: np.ndarray = NOTHING,
    allowed: RowSet | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """What a flat search on the processor finds."""
    if allowed is not None:
        others = np.setdiff1d(np.arange(embeddings.n_rows), allowed.rows())
        deleted = np.union1d(deleted, others)
    batches = embeddings.iter_batches(batch_rows=97, bad_rows="tombstone")
    return exact_search((batch.without(deleted) for batch in batches), unit_rows(queries), k)


def assert_same(
    found: tuple[np.ndarray, np.ndarray], expected: tuple[np.ndarray, np.ndarray]
) -> None:
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])


@on_each_device
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("cuts", [(), (1,), (123, 400)], ids=["one", "two", "three"])
def test_hits_are_those_of_a_flat_search(
    draw_rows: Draw,
    save_rows: Callable[..., Collection],
    rng: np.random.Generator,
    device: str,
    dtype: str,
    cuts: tuple[int, ...],
) -> None:
    rows = draw_rows(700).astype(dtype) * rng.uniform(0.01, 100, (700, 1)).astype(dtype)
    rows[[5, 699]] = np.array([[np.nan], [0]])
    embeddings = save_rows(rows)
    deleted = np.array([0, 31, 124])
    nominator = load(embeddings, device, cuts=cuts, deleted=deleted)
    assert nominator.n_codes == 695
    queries = rng.standard_normal((40, rows.shape[1]))
    queries[:20] = draw_rows(20)
    for k in (1, 10, 200):
        expected = flat(embeddings, queries, k, deleted=deleted)
        assert_same(nearest(nominator, queries, k), expected)


@on_each_device
def test_more_hits_than_rows_are_padded(
    draw_rows: Draw, save_rows: Callable[..., Collection], device: str
) -> None:
    embeddings = save_rows(draw_rows(50))
    nominator = load(embeddings, device, cuts=(7,), deleted=np.array([3]))
    queries = draw_rows(5)
    rows, scores = nearest(nominator, queries, 90)
    assert_same((rows, scores), flat(embeddings, queries, 90, deleted=np.array([3])))
    assert ((rows >= 0).sum(axis=1) == 49).all()


@on_each_device
def test_only_allowed_rows_are_found(
    draw_rows: Draw, save_rows: Callable[..., Collection], rng: np.random.Generator, device: str
) -> None:
    embeddings = save_rows(draw_rows(600))
    nominator = load(embeddings, device, cuts=(250,))
    queries = draw_rows(15)
    for share in (0.5, 0.01, 0.0):
        allowed = RowSet.of_mask(rng.random(600) < share)
        for _ in range(2):  # the marks of a set stay on the device
            expected = flat(embeddings, queries, 20, allowed=allowed)
            assert_same(nearest(nominator, queries, 20, allowed), expected)
    assert_same(nearest(nominator, queries, 20), flat(embeddings, queries, 20))


@on_each_device
def test_marks_go_with_the_set_that_they_were_of(
    draw_rows: Draw, save_rows: Callable[..., Collection], device: str
) -> None:
    embeddings = save_rows(draw_rows(100))
    nominator = load(embeddings, device)
    queries = draw_rows(3)
    for start in range(0, 100, 10):  # each may take the address of the last
        allowed = RowSet.of_rows(np.arange(start, start + 10), 100)
        found = np.sort(nearest(nominator, queries, 10, allowed)[0], axis=1)
        np.testing.assert_array_equal(found, np.tile(np.arange(start, start + 10), (3, 1)))


@on_each_device
def test_rows_closer_than_float16_can_tell_are_told_apart(
    draw_rows: Draw, save_rows: Callable[..., Collection], rng: np.random.Generator, device: str
) -> None:
    # Cosines with the query differ by about 1e-6, and the estimates are wrong by 1e-4.
    center = draw_rows(1).astype(np.float32)
    near = center + rng.standard_normal((400, center.shape[1])).astype(np.float32) * 5e-5
    embeddings = save_rows(np.concatenate([draw_rows(500).astype(np.float32), near]))
    queries = center + rng.standard_normal((30, center.shape[1])) * 1e-2
    expected = flat(embeddings, queries, 10)
    assert (np.diff(expected[1], axis=1) > -1e-5).all()
    assert_same(nearest(load(embeddings, device, cuts=(450,)), queries, 10), expected)


@on_each_device
def test_an_engine_on_a_device_finds_what_a_flat_one_finds(
    draw_rows: Draw,
    save_rows: Callable[..., Collection],
    rng: np.random.Generator,
    tmp_path: Path,
    device: str,
) -> None:
    # As many near rows as are kept of a query: it is their exact ranking that tells them apart.
    center = draw_rows(1).astype(np.float32)
    near = center + rng.standard_normal((30, center.shape[1])).astype(np.float32) * 5e-5
    embeddings = save_rows(np.concatenate([draw_rows(500).astype(np.float32), near]))
    plan = plan_index(530, embeddings.space, dtype="float32", code="flat")
    build_index(embeddings, tmp_path / "index", plan, n_queries=20)
    queries = center + rng.standard_normal((30, center.shape[1])) * 1e-2
    for deleted in ([], [3, 510]):
        if deleted:
            delete_rows(tmp_path / "index", np.array(deleted))
        flat_engine = SearchEngine.open(tmp_path / "index")
        held = load(embeddings, device, cuts=(515,), deleted=flat_engine.deleted)
        manifest = flat_engine.manifest
        engine = SearchEngine(tmp_path / "index", manifest, embeddings, held, held.vectors)
        for k in (1, 10, 40):
            expected, found = (
                each.search(queries, SearchRequest(k)) for each in (flat_engine, engine)
            )
            assert_same((found.rows, found.scores), (expected.rows, expected.scores))
        assert engine.effort(SearchRequest(5)) == {}
        with pytest.raises(SearchError, match="by comparing every row: leave the effort out"):
            engine.search(queries, SearchRequest(5, breadth=1))


@on_each_device
@pytest.mark.parametrize("work_bytes", [3_000, 30_000, 1 << 20])
def test_copies_come_by_row_however_many(
    draw_rows: Draw, save_rows: Callable[..., Collection], device: str, work_bytes: int
) -> None:
    rows = np.concatenate([np.tile(draw_rows(4), (150, 1)), draw_rows(400)])
    embeddings = save_rows(rows)
    nominator = load(embeddings, device, cuts=(300,), work_bytes=work_bytes)
    queries = np.concatenate([rows[:4], draw_rows(3)])
    candidates = nominator.candidates(unit_rows(queries), 1, 5, n_least=5)
    assert candidates.shape[1] < 150  # what is handed on doesn't grow with the copies
    found, scores = nearest(nominator, queries, 5)
    expected = np.arange(4)[:, None] + 4 * np.arange(5)
    np.testing.assert_array_equal(found[:4], expected)
    assert_same((found, scores), flat(embeddings, queries, 5))


@on_each_device
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_no_estimate_is_further_from_the_cosine_than_the_bound(
    rng: np.random.Generator, save_rows: Callable[..., Collection], device: str, dtype: str
) -> None:
    width = 768
    rows = rng.standard_normal((300, width)).astype(np.float32)
    rows[:100] += 40  # sums of one sign, where rounding adds up
    rows[100:200] *= rng.choice([1e-4, 1, 100], (100, width))  # small beside large
    queries = unit_rows(np.concatenate([rows[::10] + rng.standard_normal((30, width)), rows[:30]]))
    embeddings = save_rows(rows.astype(dtype))
    part = ("cpu" if device == "cpu" else "cuda:0", 0, 300)
    nominator = DeviceNominator.load(embeddings, [part], bad_rows="error", deleted=NOTHING)
    halves = (queries * 256).astype(np.float16)
    change = np.linalg.norm(halves.astype(np.float64) / 256 - queries, axis=1)
    values, found = nominator._parts[0].best(halves, 300, 1 << 20, None).to_host()
    query_of = np.repeat(np.arange(len(queries)), 300)
    cosines = pair_scores(queries, rows.astype(dtype), query_of, found.reshape(-1))
    error = np.abs(values - cosines.reshape(values.shape))
    bound = change[:, None] + nominator._error
    assert (error <= bound).all()
    assert error.max() > 1e-5 and bound.max() < 2e-3  # neither idle nor useless


@on_each_device
def test_hidden_tokens_are_compared_as_one_vector(
    rng: np.random.Generator, write_gallery_rows: Write, device: str
) -> None:
    rows = rng.standard_normal((120, 3, 16))
    rows = (rows / np.linalg.norm(rows, axis=(1, 2), keepdims=True)).astype(np.float16)
    embeddings = Collection([write_gallery_rows(rows)])
    assert_same(nearest(load(embeddings, device), rows[:9], 5), flat(embeddings, rows[:9], 5))


@on_each_device
def test_float16_rows_come_back_from_the_device(
    draw_rows: Draw, save_rows: Callable[..., Collection], device: str
) -> None:
    rows = draw_rows(90)
    halves = load(save_rows(rows), device, cuts=(40,)).vectors
    assert (halves.is_exact, halves.dtype, halves.row_bytes) == (True, np.float16, 96)
    wanted = np.array([89, 0, 40, 39, 40])
    np.testing.assert_array_equal(halves.take(wanted), rows[wanted])
    assert halves.take(NOTHING).shape == (0, 48)
    floats = load(save_rows(rows.astype(np.float32), "floats"), device).vectors
    assert floats.dtype == np.float32
    np.testing.assert_array_equal(floats.take(wanted), rows[wanted])


@on_each_device
def test_threads_may_share_a_device(
    draw_rows: Draw, save_rows: Callable[..., Collection], rng: np.random.Generator, device: str
) -> None:
    embeddings = save_rows(draw_rows(300))
    nominator = load(embeddings, device, cuts=(100,))
    sets = [None, *(RowSet.of_mask(rng.random(300) < 0.5) for _ in range(2))]
    queries = draw_rows(6)
    expected = [flat(embeddings, queries, 8, allowed=allowed) for allowed in sets]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda allowed: nearest(nominator, queries, 8, allowed), sets * 5))
    for each, one in zip(found, expected * 5, strict=True):
        assert_same(each, one)


@pytest.mark.parametrize(
    ("spec", "names"),
    [
        ("cpu", ()),
        ("auto", None),
        ("cuda", None),
        ("cuda:0", ("cuda:0",)),
        ("cuda:0,cuda:2", ("cuda:0", "cuda:2")),
    ],
)
def test_devices_are_named(spec: str, names: tuple[str, ...] | None) -> None:
    assert parse_devices(spec) == names


@pytest.mark.parametrize("spec", ["", "gpu", "cuda:", "cuda:0,cpu", "cuda:1,cuda:1", "cuda:01"])
def test_other_names_are_refused(spec: str) -> None:
    with pytest.raises(SearchError, match=f"device is '{spec}', expected cpu, auto, cuda"):
        parse_devices(spec)


def test_rows_are_cut_in_proportion_to_the_room(rng: np.random.Generator) -> None:
    size = row_bytes(10)
    assert cut_rows(100, 10, {"cuda:0": 100 * size, "cuda:1": 50 * size - 1}) == [
        ("cuda:0", 0, 68),
        ("cuda:1", 68, 100),
    ]
    assert cut_rows(100, 10, {"cuda:0": 99 * size}) is None
    assert cut_rows(5, 10, {"cuda:0": -7, "cuda:1": 5 * size}) == [("cuda:1", 0, 5)]
    for _ in range(200):
        rooms = rng.integers(0, 40, rng.integers(1, 5))
        n_rows = int(rng.integers(1, 60))
        room = {f"cuda:{i}": int(n) * size for i, n in enumerate(rooms)}
        parts = cut_rows(n_rows, 10, room)
        assert (parts is None) == (rooms.sum() < n_rows)
        if parts is not None:
            assert [start for _, start, _ in parts] == [0, *(stop for _, _, stop in parts[:-1])]
            assert parts[-1][2] == n_rows
            assert all(0 < (stop - start) * size <= room[name] for name, start, stop in parts)


def hold(spec: str, embeddings: Collection) -> DeviceNominator | None:
    return hold_on_devices(spec, embeddings, bad_rows="error", deleted=NOTHING)


def test_rows_are_held_where_they_fit(
    draw_rows: Draw,
    save_rows: Callable[..., Collection],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    embeddings = save_rows(draw_rows(200))
    monkeypatch.setattr(device_module, "free_bytes", lambda names: {"cpu": 3 << 30})
    with caplog.at_level(logging.INFO, "voxseek"):
        nominator = hold("auto", embeddings)
    assert caplog.messages == ["200 rows on cpu"]
    assert nominator is not None
    queries = draw_rows(4)
    assert_same(nearest(nominator, queries, 7), flat(embeddings, queries, 7))


@pytest.mark.parametrize(("spec", "level"), [("cuda", "WARNING"), ("auto", "INFO")])
def test_the_processor_searches_where_rows_do_not_fit(
    draw_rows: Draw,
    save_rows: Callable[..., Collection],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    spec: str,
    level: str,
) -> None:
    embeddings = save_rows(draw_rows(200))
    monkeypatch.setattr(
        device_module, "free_bytes", lambda names: {"cuda:0": 2 << 30, "cuda:1": 5 << 20}
    )
    with caplog.at_level(logging.INFO, "voxseek"):
        assert hold(spec, embeddings) is None
    assert [record.levelname for record in caplog.records] == [level]
    assert caplog.messages == [
        f"searching on the processor, not on {spec}: 200 rows of 48 take 0 MiB beside 2048 MiB to "
        f"work in, and cuda:0 has 2048, cuda:1 has 5 MiB free"
    ]


def test_the_processor_searches_where_memory_went_meanwhile(
    draw_rows: Draw,
    save_rows: Callable[..., Collection],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def run_out(*arguments: object, **options: object) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate")

    embeddings = save_rows(draw_rows(200))
    monkeypatch.setattr(device_module, "free_bytes", lambda names: {"cpu": 3 << 30})
    monkeypatch.setattr(torch, "zeros", run_out)
    assert hold("cuda", embeddings) is None
    assert caplog.messages == [
        "searching on the processor, not on cuda: cpu has no room for 200 rows of 48"
    ]


def test_the_processor_is_asked_for_without_a_word(
    draw_rows: Draw, save_rows: Callable[..., Collection], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "voxseek"):
        assert hold("cpu", save_rows(draw_rows(20))) is None
    assert not caplog.messages


def test_why_there_is_no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert free_bytes(None) == "torch sees no CUDA device"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda name: (int(name[-1]) + 5, 80))
    assert free_bytes(None) == {"cuda:0": 5, "cuda:1": 6}
    assert free_bytes(["cuda:1"]) == {"cuda:1": 6}
    assert free_bytes(["cuda:2"]) == "torch sees 2 CUDA device(s), and cuda:2 isn't one of them"
    monkeypatch.setitem(sys.modules, "torch", None)
    assert free_bytes(None) == "torch is not installed; pip install 'voxseek[train]' brings it"


def test_a_torch_that_rounds_sums_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    class Old:
        __version__ = "2.7.1"
        cuda = type("cuda", (), {"is_available": staticmethod(lambda: True)})
        ops = type("ops", (), {"aten": type("aten", (), {"mm": object()})})

    monkeypatch.setitem(sys.modules, "torch", Old)
    assert free_bytes(None) == ("torch 2.7.1 gives no float32 sums of float16 products; 2.8 does")


def test_blocks_stay_within_the_memory_they_may_take() -> None:
    part = DeviceRows.empty("cpu", 10, 1010, 16)
    for n_queries, work_bytes in ((1, 1 << 12), (100, 1 << 12), (1000, 1 << 12)):
        blocks = list(part._blocks(n_queries, work_bytes))
        assert [first for first, _ in blocks] == [0, *(stop for _, stop in blocks[:-1])]
        assert blocks[-1][1] == 1000
        longest = max(stop - first for first, stop in blocks)
        assert longest == 1 or longest * max(n_queries, 16) * 8 <= work_bytes


def test_what_is_listed_stays_within_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "_LISTED_BYTES", 100 * 2 * 16)
    part = DeviceRows.empty("cpu", 0, 250, 16)
    part.put(0, np.ones((250, 16), np.float16), np.ones(250, np.float32), np.ones(250, bool))
    floor = np.array([0.0, 17.0], np.float32)
    listed = list(part.at_least(np.ones((2, 16), np.float16), floor, 1 << 20, None))
    assert [rows.shape for rows in listed] == [(2, 100), (2, 100), (2, 50)]
    np.testing.assert_array_equal(np.hstack(listed)[0], np.arange(250))
    assert (np.hstack(listed)[1] == -1).all()
