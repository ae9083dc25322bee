from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from index_builder import chunks, list_tiers
from index_builder.build import build_index
from index_builder.cosine import unit_rows
from index_builder.embeddings.collection import Collection
from index_builder.embeddings.space import EmbeddingSpace
from index_builder.errors import IndexDamagedError
from index_builder.factory import CodeLists, encode, make_coarse, make_coder
from index_builder.inverted_file import InvertedFile, ListsWriter
from index_builder.manifest import shards_of
from index_builder.planning import IndexPlan, plan_index
from index_builder.quantizer import Quantizer, save_quantizer, train_quantizer
from index_builder.row_set import RowSet
from index_builder.shards import Shard

Cone = Callable[..., np.ndarray]
N_ROWS, N_LISTS = 900, 8


@pytest.fixture
def write(tmp_path: Path, space: EmbeddingSpace) -> Callable[..., Any]:
    """Write lists in shards, without the dead rows; return what opens them."""

    def write_lists(
        rows: np.ndarray,
        *,
        bits: int = 1,
        n_lists: int = N_LISTS,
        stops: Sequence[int] = (),
        dead: Sequence[int] = (),
    ) -> tuple[IndexPlan, Quantizer, list[Shard]]:
        plan = plan_index(len(rows), space, code="ivf-rabitq", bits=bits, n_lists=n_lists)
        quantizer = train_quantizer(unit_rows(rows), n_lists, 0)
        save_quantizer(quantizer, tmp_path / "quantizer", "f")
        shards = []
        for start, stop in zip([0, *stops], [*stops, len(rows)], strict=True):
            folder = tmp_path / "shards" / f"{start}"
            writer = ListsWriter(folder, plan, quantizer, stop - start)
            alive = np.setdiff1d(np.arange(start, stop), dead)
            for piece in np.array_split(alive, 3):
                writer.add((piece - start).astype(np.uint32), rows[piece])
            writer.finish()
            shards.append(Shard(folder, start, stop))
        return plan, quantizer, shards

    return write_lists


def faiss_candidates(
    quantizer: Quantizer, rows: np.ndarray, queries: np.ndarray, bits: int, n_probe: int, k: int
) -> np.ndarray:
    """What FAISS's own index finds, one that holds all codes."""
    reference = faiss.IndexIVFRaBitQ(
        quantizer.coarse, rows.shape[1], quantizer.n_lists, faiss.METRIC_L2, True, bits
    )
    reference.own_fields = False
    reference.is_trained = True
    reference.qb = 4
    vectors = quantizer.transform(unit_rows(rows))
    chosen = np.ascontiguousarray(quantizer.route(vectors, 1)[:, 0])
    numbers = np.arange(len(rows))
    arrays = (np.ascontiguousarray(vectors), numbers, chosen)
    reference.add_core(len(rows), *(faiss.swig_ptr(array) for array in arrays))
    reference.nprobe = n_probe
    asked = quantizer.transform(unit_rows(queries))
    lists = quantizer.route(asked, n_probe)
    distances = ((quantizer.centroids[lists] - asked[:, None]) ** 2).sum(axis=2)
    found: np.ndarray = reference.search_preassigned(
        np.ascontiguousarray(asked), k, lists, distances.astype(np.float32)
    )[1]
    return found


def require_alike(found: np.ndarray, expected: np.ndarray, *, exactly: bool) -> None:
    """Compare candidates: the same, or nearly.

    FAISS passes over a code of several bits whose first bit promises too little beside the best
    codes seen so far. It errs for up to 0.3 % of the candidates; for which, depends on how the
    codes are cut into shards and buffers.
    """
    if exactly:
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(found >= 0, expected >= 0)
    alike = [np.isin(rows, others).mean() for rows, others in zip(found, expected, strict=True)]
    assert np.mean(alike) > 0.98


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("stops", [(), (300, 301)])
@pytest.mark.parametrize("n_probe", [2, N_LISTS])
def test_candidates_equal_those_of_one_faiss_index(
    cone: Cone,
    write: Callable[..., Any],
    tmp_path: Path,
    bits: int,
    stops: tuple[int, ...],
    n_probe: int,
) -> None:
    rows, queries = cone(N_ROWS), cone(20)
    _, quantizer, shards = write(rows, bits=bits, stops=stops)
    expected = faiss_candidates(quantizer, rows, queries, bits, n_probe, 40)
    lists = InvertedFile.open(tmp_path, shards, bits=bits, tier="memory")
    found = lists.candidates(unit_rows(queries), n_probe, 40, n_least=1)
    require_alike(found, expected, exactly=bits == 1 or not stops)


# Bytes of a buffer: all lists at once, a few of them, a part of one; and the gap that reads join.
BUFFERS = [(32 << 20, 64 << 10), (9000, 64 << 10), (9000, 0), (1500, 700), (14, 0), (1, 1 << 20)]


@pytest.mark.parametrize(("buffer_bytes", "gap_bytes"), BUFFERS)
@pytest.mark.parametrize("bits", [1, 2, 4])
def test_lists_from_disk_find_what_lists_in_memory_find(
    cone: Cone,
    write: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    bits: int,
    buffer_bytes: int,
    gap_bytes: int,
) -> None:
    monkeypatch.setattr(chunks, "READ_BUFFER_BYTES", buffer_bytes)
    monkeypatch.setattr(chunks, "_GAP_BYTES", gap_bytes)
    monkeypatch.setattr(list_tiers, "_READ_BYTES", 300)
    n = N_ROWS if buffer_bytes > 100 else 150
    rows, queries = cone(n), unit_rows(cone(15))
    _, _, shards = write(rows, bits=bits, stops=(n // 3, n // 3 + 1), dead=[0, 5, n - 1])
    memory, disk = (
        InvertedFile.open(tmp_path, shards, bits=bits, tier=tier) for tier in ("memory", "disk")
    )
    assert disk.n_codes == memory.n_codes == n - 3
    for n_probe, k in ((1, 5), (3, 40), (N_LISTS, 40), (N_LISTS, n)):
        expected = memory.candidates(queries, n_probe, k, n_least=1)
        found = disk.candidates(queries, n_probe, k, n_least=1)
        require_alike(found, expected, exactly=bits == 1 or buffer_bytes == 32 << 20)


def test_every_wanted_code_is_read_once(
    cone: Cone, write: Callable[..., Any], tmp_path: Path, rng: np.random.Generator
) -> None:
    _, _, shards = write(cone(N_ROWS), n_lists=30)
    disk = InvertedFile.open(tmp_path, shards, bits=1, tier="disk")
    (shard,) = disk._tier._shards  # type: ignore[attr-defined]  # what is under test
    with pytest.MonkeyPatch.context() as patched:
        for buffer_codes, gap_codes in ((10_000, 0), (10_000, 20), (100, 5), (7, 3), (1, 50)):
            patched.setattr(chunks, "READ_BUFFER_BYTES", buffer_codes * 14)
            patched.setattr(chunks, "_GAP_BYTES", gap_codes * 14)
            wanted = np.sort(rng.choice(30, 12, replace=False))
            seen = []
            for chunk in chunks.cut(shard, wanted):
                assert len(np.unique(chunk.lists)) == len(chunk.lists)
                held = np.full(chunk.n_codes, -1)
                end = 0
                for start, stop, first in chunk.reads:
                    assert first == end  # reads fill the buffer without a hole
                    held[end : end + stop - start] = np.arange(start, stop)
                    end += stop - start
                assert end == chunk.n_codes <= max(1, buffer_codes)
                for start, size, first in zip(chunk.starts, chunk.sizes, chunk.firsts, strict=True):
                    codes = held[first : first + size]
                    np.testing.assert_array_equal(codes, np.arange(start, start + size))
                    seen.append(codes)
            expected = [np.arange(shard.starts[i], shard.starts[i + 1]) for i in wanted]
            np.testing.assert_array_equal(np.concatenate(seen), np.concatenate(expected))


@pytest.mark.parametrize("tier", ["memory", "disk"])
def test_several_threads_may_search_at_once(
    cone: Cone,
    write: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tier: Any,
) -> None:
    monkeypatch.setattr(chunks, "READ_BUFFER_BYTES", 2000)
    _, _, shards = write(cone(N_ROWS), stops=(450,))
    lists = InvertedFile.open(tmp_path, shards, bits=1, tier=tier)
    queries = unit_rows(cone(40))
    efforts = [(n_probe, k) for n_probe in (1, 3, N_LISTS) for k in (5, 60)] * 3

    def search(effort: tuple[int, int]) -> np.ndarray:
        return lists.candidates(queries, *effort, n_least=1)

    alone = [search(effort) for effort in efforts]
    with ThreadPoolExecutor(6) as pool:
        for found, expected in zip(pool.map(search, efforts), alone, strict=True):
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("tier", ["memory", "disk"])
def test_queries_do_not_meet(
    cone: Cone, write: Callable[..., Any], tmp_path: Path, tier: Any
) -> None:
    _, _, shards = write(cone(N_ROWS), stops=(100,))
    lists = InvertedFile.open(tmp_path, shards, bits=1, tier=tier)
    queries = unit_rows(cone(30))
    together = lists.candidates(queries, 3, 50, n_least=1)
    for query, expected in zip(queries, together, strict=True):
        alone = lists.candidates(query[None], 3, 50, n_least=1)
        np.testing.assert_array_equal(alone[0], expected)
    assert lists.candidates(queries[:0], 3, 50, n_least=1).shape == (0, 50)


@pytest.mark.parametrize("tier", ["memory", "disk"])
@pytest.mark.parametrize("bits", [1, 4])
def test_empty_lists_empty_shards_and_more_candidates_than_codes(
    cone: Cone, write: Callable[..., Any], tmp_path: Path, tier: Any, bits: int
) -> None:
    rows = np.repeat(cone(3), 40, axis=0)  # three places: most of 20 lists stay empty
    dead = [*range(30), 119]
    _, _, shards = write(rows, bits=bits, n_lists=20, stops=(30, 60), dead=dead)
    lists = InvertedFile.open(tmp_path, shards, bits=bits, tier=tier)
    assert lists.n_codes == 89
    assert (lists.list_rows == 0).sum() >= 15
    assert len(np.load(shards[0].folder / "codes.npy")) == 0
    queries = unit_rows(cone(6))
    found = lists.candidates(queries, 20, 200, n_least=1)
    np.testing.assert_array_equal(np.sort(found[:, :89]), np.tile(np.arange(30, 119), (6, 1)))
    assert (found[:, 89:] == -1).all()
    few = lists.candidates(queries, 1, 200, n_least=1)
    assert ((few >= 0).sum(axis=1) >= 1).all()


@pytest.mark.parametrize("tier", ["memory", "disk"])
def test_an_index_without_a_row(
    cone: Cone, write: Callable[..., Any], tmp_path: Path, tier: Any
) -> None:
    _, _, shards = write(cone(50), n_lists=2, stops=(20,), dead=range(50))
    lists = InvertedFile.open(tmp_path, shards, bits=1, tier=tier)
    found = lists.candidates(unit_rows(cone(3)), 1, 5, n_least=5)
    np.testing.assert_array_equal(found, np.full((3, 5), -1))
    assert lists.read_bytes(1) == 0


@pytest.mark.parametrize("tier", ["memory", "disk"])
def test_lists_are_added_until_they_hold_enough(
    cone: Cone, write: Callable[..., Any], tmp_path: Path, tier: Any
) -> None:
    _, _, shards = write(cone(700))
    lists = InvertedFile.open(tmp_path, shards, bits=1, tier=tier)
    assert lists.list_rows.max() < 500
    queries = unit_rows(cone(5))
    few = lists.candidates(queries, 1, 700, n_least=1)
    assert ((few >= 0).sum(axis=1) < 500).all()
    enough = lists.candidates(queries, 1, 700, n_least=500)
    assert ((enough >= 0).sum(axis=1) >= 500).all()
    every = lists.candidates(queries, 1, 700, n_least=10_000)
    np.testing.assert_array_equal(np.sort(every, axis=1), np.tile(np.arange(700), (5, 1)))


def test_equal_estimates_come_by_row(cone: Cone, write: Callable[..., Any], tmp_path: Path) -> None:
    rows = np.tile(cone(30), (6, 1))  # copies, in several shards
    _, _, shards = write(rows, n_lists=4, stops=(30, 95))
    for tier in ("memory", "disk"):
        lists = InvertedFile.open(tmp_path, shards, bits=1, tier=tier)
        for n_candidates in (4, 6):
            found = lists.candidates(unit_rows(rows[:30]), 4, n_candidates, n_least=1)
            expected = np.arange(30)[:, None] + 30 * np.arange(n_candidates)
            np.testing.assert_array_equal(found, expected)


def test_breadths_rise_and_read_more(cone: Cone, write: Callable[..., Any], tmp_path: Path) -> None:
    _, _, shards = write(cone(N_ROWS), n_lists=12)
    lists = InvertedFile.open(tmp_path, shards, bits=1, tier="disk")
    assert lists.breadths() == [1, 2, 4, 8]
    assert (lists.most_breadth, lists.breadth_name) == (12, "n_probe")
    read = [lists.read_bytes(breadth) for breadth in (1, 2, 4, 12)]
    assert read == sorted(set(read)) and read[-1] == N_ROWS * 14
    # Of queries that come from where rows are: the rows of a list, weighed by its rows.
    sizes = lists.list_rows.astype(float)
    assert read[0] == int((sizes * sizes / N_ROWS).sum() * 14)


def test_the_same_bytes_in_any_batches(cone: Cone, tmp_path: Path, space: EmbeddingSpace) -> None:
    rows = cone(400)
    plan = plan_index(400, space, code="ivf-rabitq", bits=2)
    quantizer = train_quantizer(unit_rows(rows), plan.n_lists, 0)
    alive = np.setdiff1d(np.arange(400), [0, 17, 399])
    written = []
    for n_batches in (1, 7, 397):
        writer = ListsWriter(tmp_path / f"{n_batches}", plan, quantizer, 400)
        for piece in np.array_split(alive, n_batches):
            writer.add(piece.astype(np.uint32), rows[piece])
        names = writer.finish()
        written.append([(tmp_path / f"{n_batches}" / name).read_bytes() for name in names])
    assert written[0] == written[1] == written[2]
    sizes, stored = (np.load(tmp_path / "1" / name) for name in ("list_sizes.npy", "rows.npy"))
    assert sizes.sum() == len(stored) == 397
    for members in np.split(stored, np.cumsum(sizes)[:-1]):
        assert (np.diff(members.astype(int)) > 0).all()  # rising within a list
    np.testing.assert_array_equal(np.sort(stored), alive)


def damage_sizes(folder: Path) -> None:
    sizes = np.load(folder / "list_sizes.npy")
    sizes[0] += 1
    np.save(folder / "list_sizes.npy", sizes)


def negate_a_size(folder: Path) -> None:
    sizes = np.load(folder / "list_sizes.npy")
    sizes[:2] = [-1, sizes[0] + sizes[1] + 1]
    np.save(folder / "list_sizes.npy", sizes)


def drop_a_list(folder: Path) -> None:
    np.save(folder / "list_sizes.npy", np.array([len(np.load(folder / "codes.npy"))]))


def float_sizes(folder: Path) -> None:
    np.save(folder / "list_sizes.npy", np.load(folder / "list_sizes.npy").astype(float))


def drop_a_code(folder: Path) -> None:
    np.save(folder / "codes.npy", np.load(folder / "codes.npy")[:-1])


def shorten_codes(folder: Path) -> None:
    np.save(folder / "codes.npy", np.ascontiguousarray(np.load(folder / "codes.npy")[:, :-1]))


def drop_a_row(folder: Path) -> None:
    np.save(folder / "rows.npy", np.load(folder / "rows.npy")[:-1])


def widen_rows(folder: Path) -> None:
    np.save(folder / "rows.npy", np.load(folder / "rows.npy").astype(np.int64))


@pytest.mark.parametrize("tier", ["memory", "disk"])
@pytest.mark.parametrize(
    "damage",
    [
        damage_sizes,
        negate_a_size,
        drop_a_list,
        float_sizes,
        drop_a_code,
        shorten_codes,
        drop_a_row,
        widen_rows,
    ],
)
def test_files_that_contradict_each_other(
    cone: Cone,
    write: Callable[..., Any],
    tmp_path: Path,
    tier: Any,
    damage: Callable[[Path], None],
) -> None:
    _, _, shards = write(cone(200), stops=(50,))
    damage(shards[1].folder)
    with pytest.raises(
        IndexDamagedError,
        match=r"shards/50 has list sizes .* expected 8 lists of codes of 14 bytes",
    ):
        InvertedFile.open(tmp_path, shards, bits=1, tier=tier)


def test_codes_of_other_bits_than_planned(
    cone: Cone, write: Callable[..., Any], tmp_path: Path
) -> None:
    _, _, shards = write(cone(200), bits=2)
    with pytest.raises(IndexDamagedError, match=r"codes uint8 \(200, \d+\) .* of 14 bytes"):
        InvertedFile.open(tmp_path, shards, bits=1, tier="disk")


# FAISS scans lists where they stand, in an array of Python's.


def make_lists(rng: np.random.Generator, n: int) -> tuple[Any, np.ndarray, np.ndarray]:
    """Return centroids, codes of random rows (n, code_size), and the rows."""
    coarse, _ = make_coarse(rng.standard_normal((2, 16)).astype(np.float32))
    rows = rng.standard_normal((n, 16)).astype(np.float32)
    return coarse, encode(make_coder(coarse, 1), rows, np.zeros(n, np.int64)), rows


def test_the_array_stays_the_callers(rng: np.random.Generator) -> None:
    coarse, codes, rows = make_lists(rng, 5000)
    flat = codes.reshape(-1)
    before = flat.copy()
    lists, distances = np.zeros((4, 1), np.int64), np.zeros((4, 1), np.float32)
    for _ in range(300):
        shown = CodeLists(coarse, 1)
        shown.show(flat, np.array([0, 1]), np.array([5000, 0]), np.array([0, 0]))
        estimates, list_of, places = shown.search(rows[:4], 3, lists, distances)
        assert (list_of == 0).all() and (places >= 0).all() and np.isfinite(estimates).all()
        del shown
    gc.collect()
    np.testing.assert_array_equal(flat, before)
    flat[:] = 7  # still ours to write to
    assert (codes == 7).all()


def test_a_small_array_and_none_at_all(rng: np.random.Generator) -> None:
    coarse, codes, rows = make_lists(rng, 3)
    lists, distances = np.array([[0, 1]]), np.zeros((1, 2), np.float32)
    shown = CodeLists(coarse, 1)
    nothing = np.empty(0, np.int64)
    shown.show(np.empty(0, np.uint8), nothing, nothing, nothing)
    _, _, places = shown.search(rows[:1], 2, lists, distances)
    assert (places == -1).all()
    shown.show(codes[:1].reshape(-1), np.array([1]), np.array([1]), np.array([0]))
    _, list_of, places = shown.search(rows[:1], 2, lists, distances)
    assert list_of[0, 0] == 1 and places.tolist() == [[0, -1]]


def test_a_list_of_minus_one_is_none(rng: np.random.Generator) -> None:
    coarse, codes, rows = make_lists(rng, 50)
    shown = CodeLists(coarse, 1)
    size = codes.shape[1]
    shown.show(codes.reshape(-1), np.array([0, 1]), np.array([20, 30]), np.array([0, 20 * size]))
    lists = np.array([[0, -1], [-1, 1], [-1, -1]])
    _, list_of, places = shown.search(rows[:3], 50, lists, np.zeros((3, 2), np.float32))
    assert (places >= 0).sum(axis=1).tolist() == [20, 30, 0]
    assert set(list_of[0, :20]) == {0} and set(list_of[1, :30]) == {1}


@pytest.mark.parametrize(("size", "first"), [(51, 0), (50, 1), (1, 50 * 10), (0, 501)])
def test_a_list_that_ends_beyond_the_codes(rng: np.random.Generator, size: int, first: int) -> None:
    coarse, codes, _ = make_lists(rng, 50)
    assert codes.shape == (50, 10)
    with pytest.raises(ValueError, match="a list ends beyond the codes that were shown"):
        CodeLists(coarse, 1).show(
            codes.reshape(-1), np.array([0]), np.array([size]), np.array([first])
        )


def test_a_built_index_is_opened_by_its_manifest(
    cone: Cone, write_collection: Callable[..., Collection], tmp_path: Path
) -> None:
    embeddings = write_collection(cone(500), cone(100))
    plan = plan_index(600, embeddings.space, code="ivf-rabitq", bits=3, rows_per_shard=250)
    manifest = build_index(embeddings, tmp_path / "index", plan, n_queries=5)
    shards = shards_of(tmp_path / "index", manifest)
    lists = InvertedFile.open(tmp_path / "index", shards, bits=3, tier="memory")
    assert lists.n_codes == 600 and lists.ram_bytes == plan.ram_bytes
    rows = np.arange(600)
    unit = unit_rows(embeddings.take(rows))
    found = lists.candidates(unit, lists.most_breadth, 1, n_least=1)[:, 0]
    assert (found == rows).mean() > 0.95


@pytest.mark.parametrize("tier", ["memory", "disk"])
@pytest.mark.parametrize("bits", [1, 2])
@pytest.mark.parametrize("share", [0.7, 0.1, 0.004])
@pytest.mark.parametrize("buffer_bytes", [300, 1 << 20])
def test_allowed_rows_are_found_as_if_they_were_all(
    cone: Cone,
    write: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rng: np.random.Generator,
    tier: Any,
    bits: int,
    share: float,
    buffer_bytes: int,
) -> None:
    monkeypatch.setattr(chunks, "READ_BUFFER_BYTES", buffer_bytes)
    dead = [5, 300, 301, 899]
    _, _, shards = write(cone(N_ROWS), bits=bits, stops=(300,), dead=dead)
    lists = InvertedFile.open(tmp_path, shards, bits=bits, tier=tier)
    is_allowed = rng.random(N_ROWS) < share
    is_allowed[dead] = True  # a row without a code is in no list
    allowed = RowSet.of_mask(is_allowed)
    queries = unit_rows(cone(20))
    every = lists.candidates(queries, N_LISTS, N_ROWS, n_least=1)
    found = lists.candidates(queries, N_LISTS, 40, n_least=1, allowed=allowed)
    expected = np.full((20, 40), -1)
    for i, rows in enumerate(every):
        kept = rows[(rows >= 0) & allowed.holds(rows)][:40]
        expected[i, : len(kept)] = kept
    require_alike(found, expected, exactly=bits == 1)
    some = lists.candidates(queries, 1, 8, n_least=8, allowed=allowed)
    n_alive = len(allowed.without(np.array(dead)))
    assert ((some >= 0).sum(axis=1) >= min(8, n_alive)).all()
    assert allowed.holds(some[some >= 0]).all()


def test_fewer_rows_take_more_lists(cone: Cone, write: Callable[..., Any], tmp_path: Path) -> None:
    _, _, shards = write(cone(N_ROWS))
    lists = InvertedFile.open(tmp_path, shards, bits=1, tier="memory")
    assert [lists.widened(2, share) for share in (1, 0.9, 0.25, 1e-6)] == [2, 3, 4, N_LISTS]
