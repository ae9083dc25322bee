from __future__ import annotations

import gc
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from index_builder import vector_copy
from index_builder.cosine import unit_rows
from index_builder.embeddings.errors import RowRangeError
from index_builder.embeddings.reader import EmbeddingFolder
from index_builder.embeddings.space import EmbeddingSpace
from index_builder.errors import IndexDamagedError
from index_builder.reranking import rank_exactly
from index_builder.rotation import rotate
from index_builder.scalar_codes import decode_eight_bits, decode_four_bits
from index_builder.vector_copy import VECTORS_FILE, CopyWriter, open_vectors

Cone = Callable[..., np.ndarray]
KINDS = ("fp16", "sq8", "rabitq4")
LEAST_COSINE = {"fp16": 1 - 1e-6, "sq8": 0.9997, "rabitq4": 0.985}


def make_plan(rerank: str, width: int, dtype: str = "float16") -> Any:
    space = EmbeddingSpace("ViT-L-14/openai", "final", 1, width, True)
    return SimpleNamespace(rerank=rerank, space=space, dtype=dtype)


@pytest.fixture
def write(
    tmp_path: Path, make_quantizer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """Write a copy in shards, without the dead rows, and return plan and shards."""

    def write_copy(
        rows: np.ndarray,
        rerank: str,
        stops: Sequence[int] = (),
        dead: Sequence[int] = (),
        batch: int = 100,
        name: str = "index",
    ) -> tuple[Any, list[Any]]:
        quantizer = make_quantizer(unit_rows(rows))
        monkeypatch.setattr(vector_copy, "load_quantizer", lambda folder: quantizer)
        plan = make_plan(rerank, rows.shape[1], str(rows.dtype))
        shards = []
        for start, stop in zip([0, *stops], [*stops, len(rows)], strict=True):
            folder = tmp_path / name / rerank / f"{start}"
            writer = CopyWriter(folder, plan, quantizer, stop - start)
            alive = np.setdiff1d(np.arange(start, stop), dead)
            for first in range(0, len(alive), batch):
                chosen = alive[first : first + batch]
                writer.add((chosen - start).astype(np.uint32), rows[chosen])
            assert writer.finish() == [VECTORS_FILE]
            shards.append(SimpleNamespace(folder=folder, row_start=start, row_stop=stop))
        return plan, shards

    return write_copy


def as_source(rows: np.ndarray) -> Any:
    space = EmbeddingSpace("ViT-L-14/openai", "final", 1, rows.shape[1], True)
    return SimpleNamespace(space=space, dtype=rows.dtype, take=lambda wanted: rows[wanted])


@pytest.mark.parametrize("rerank", KINDS)
@pytest.mark.parametrize("width", [48, 33])
def test_copies_are_near_their_rows_in_any_order(
    rng: np.random.Generator,
    cone: Cone,
    write: Callable[..., Any],
    tmp_path: Path,
    rerank: str,
    width: int,
) -> None:
    rows = cone(500, width)
    plan, shards = write(rows, rerank, (120, 121, 400))
    vectors = open_vectors(tmp_path, plan, shards, as_source(rows))
    for n in (0, 1, 7, 400):
        wanted = rng.integers(0, 500, n)
        taken = vectors.take(wanted)
        assert taken.shape == (n, width)
        assert taken.dtype == vectors.dtype
        cosines = np.einsum("ij,ij->i", unit_rows(taken), unit_rows(rows[wanted]))
        assert (cosines > LEAST_COSINE[rerank]).all()


def test_halves_of_halves_score_bit_for_bit_as_the_rows(
    cone: Cone, write: Callable[..., Any], tmp_path: Path
) -> None:
    rows = cone(300) * np.float16(0.7)  # of any norm
    plan, shards = write(rows, "fp16", (100,))
    vectors = open_vectors(tmp_path, plan, shards, as_source(rows))
    assert vectors.is_exact
    np.testing.assert_array_equal(vectors.take(np.arange(300)), rows)
    queries, nominees = unit_rows(cone(5)), np.tile(np.arange(300), (5, 1))
    for found, expected in zip(
        rank_exactly(vectors, queries, nominees, 20),
        rank_exactly(as_source(rows), queries, nominees, 20),
        strict=True,
    ):
        np.testing.assert_array_equal(found, expected)


def test_halves_of_singles_are_rounded_unit_rows(
    cone: Cone, write: Callable[..., Any], tmp_path: Path
) -> None:
    rows = cone(50).astype(np.float32) * 1e6
    plan, shards = write(rows, "fp16")
    vectors = open_vectors(tmp_path, plan, shards, as_source(rows))
    assert not vectors.is_exact
    np.testing.assert_array_equal(vectors.take(np.arange(50)), unit_rows(rows).astype(np.float16))


@pytest.mark.parametrize("rerank", ["sq8", "rabitq4"])
def test_codes_are_decoded_and_turned_back(
    cone: Cone,
    write: Callable[..., Any],
    make_quantizer: Callable[..., Any],
    tmp_path: Path,
    rerank: str,
) -> None:
    rows = cone(200)
    plan, shards = write(rows, rerank)
    vectors = open_vectors(tmp_path, plan, shards, as_source(rows))
    assert not vectors.is_exact
    quantizer = make_quantizer(unit_rows(rows))
    stored = np.load(shards[0].folder / VECTORS_FILE)
    decoded = (
        decode_eight_bits(stored, quantizer.low, quantizer.high)
        if rerank == "sq8"
        else decode_four_bits(stored, 48)
    )
    turn = rotate(np.eye(48, dtype=np.float32), quantizer.signs)  # a row e becomes e @ turn
    expected = decoded @ turn.T + quantizer.mean
    np.testing.assert_allclose(vectors.take(np.arange(200)), expected, atol=2e-6)


@pytest.mark.parametrize("rerank", KINDS)
def test_a_row_is_the_same_beside_any_others(
    cone: Cone, write: Callable[..., Any], tmp_path: Path, rerank: str
) -> None:
    rows = cone(400)
    plan, shards = write(rows, rerank, (150,))
    vectors = open_vectors(tmp_path, plan, shards, as_source(rows))
    every = vectors.take(np.arange(400))
    for row in (0, 149, 150, 399):
        np.testing.assert_array_equal(vectors.take(np.array([row])), every[row : row + 1])


@pytest.mark.parametrize("rerank", KINDS)
def test_the_same_bytes_in_any_batches_and_zeros_for_dead_rows(
    cone: Cone, write: Callable[..., Any], tmp_path: Path, rerank: str
) -> None:
    rows = cone(300)
    dead = [0, 5, 6, 7, 299]
    written = [
        write(rows, rerank, dead=dead, batch=batch, name=str(batch)) for batch in (300, 77, 1)
    ]
    files = [shards[0].folder / VECTORS_FILE for _, shards in written]
    assert len({hashlib.sha256(file.read_bytes()).hexdigest() for file in files}) == 1
    stored = np.load(files[0])
    assert not stored[dead].any()
    assert stored[np.setdiff1d(np.arange(300), dead)].any(axis=1).all()
    bytes_a_row = {"fp16": 96, "sq8": 48, "rabitq4": 28}[rerank]
    assert open_vectors(tmp_path, *written[0], as_source(rows)).row_bytes == bytes_a_row
    assert files[0].stat().st_size == 128 + 300 * bytes_a_row


@pytest.mark.parametrize("rerank", KINDS)
@pytest.mark.parametrize("shape", [(48,), (3, 16)])
def test_a_batch_may_be_all_dead(
    cone: Cone,
    make_quantizer: Callable[..., Any],
    tmp_path: Path,
    rerank: str,
    shape: tuple[int, ...],
) -> None:
    rows = cone(20)
    writer = CopyWriter(tmp_path, make_plan(rerank, 48), make_quantizer(unit_rows(rows)), 30)
    writer.add(np.empty(0, np.uint32), np.empty((0, *shape), np.float16))
    writer.add(np.arange(10, 30, dtype=np.uint32), rows.reshape(20, *shape))
    writer.finish()
    stored = np.load(tmp_path / VECTORS_FILE)
    assert not stored[:10].any() and stored[10:].any(axis=1).all()


def test_the_source_ranks_as_it_is(
    cone: Cone, write_folder: Callable[..., EmbeddingFolder], tmp_path: Path
) -> None:
    embeddings = write_folder(cone(60))
    vectors = open_vectors(tmp_path, make_plan("source", 48), [], embeddings)
    assert vectors.is_exact
    assert (vectors.space, vectors.dtype) == (embeddings.space, embeddings.dtype)
    wanted = np.array([3, 1, 3])
    np.testing.assert_array_equal(vectors.take(wanted), embeddings.take(wanted))


def test_nothing_stands_until_all_of_it_does(
    cone: Cone, tmp_path: Path, make_quantizer: Callable[..., Any]
) -> None:
    rows = cone(40)
    writer = CopyWriter(tmp_path, make_plan("fp16", 48), None, 40)
    writer.add(np.arange(20, dtype=np.uint32), rows[:20])
    assert not (tmp_path / VECTORS_FILE).exists()
    del writer
    gc.collect()
    assert not list(tmp_path.iterdir())


def test_a_copy_that_was_cut_short(cone: Cone, write: Callable[..., Any], tmp_path: Path) -> None:
    plan, shards = write(cone(50), "sq8", (20,))
    file = shards[1].folder / VECTORS_FILE
    content = file.read_bytes()
    for kept in (content[:-1], content[:50], b""):
        file.write_bytes(kept)
        with pytest.raises(
            IndexDamagedError, match=r"vectors.npy is not a whole npy file .* it was truncated"
        ):
            open_vectors(tmp_path, plan, shards, as_source(cone(50)))
    file.unlink()
    with pytest.raises(IndexDamagedError, match=r"vectors.npy is not a whole npy file"):
        open_vectors(tmp_path, plan, shards, as_source(cone(50)))


@pytest.mark.parametrize(
    "array", [np.zeros((29, 48), np.uint8), np.zeros((30, 47), np.uint8), np.zeros((30, 48), "f4")]
)
def test_a_copy_of_another_shape(
    cone: Cone, write: Callable[..., Any], tmp_path: Path, array: np.ndarray
) -> None:
    plan, shards = write(cone(50), "sq8", (20,))
    np.save(shards[1].folder / VECTORS_FILE, array)
    with pytest.raises(IndexDamagedError, match=r"vectors.npy holds .* expected uint8 \(30, 48\)"):
        open_vectors(tmp_path, plan, shards, as_source(cone(50)))


@pytest.mark.parametrize("row", [-1, 50])
def test_rows_that_are_not_there(
    cone: Cone, write: Callable[..., Any], tmp_path: Path, row: int
) -> None:
    plan, shards = write(cone(50), "fp16")
    vectors = open_vectors(tmp_path, plan, shards, as_source(cone(50)))
    with pytest.raises(RowRangeError, match=f"row {row} was asked for, .* rows 0 to 49"):
        vectors.take(np.array([3, row]))


def test_a_copy_needs_a_kind_and_a_quantizer(tmp_path: Path) -> None:
    for rerank in ("source", "sq8"):
        with pytest.raises(ValueError, match=f"rerank is '{rerank}', which makes no copy"):
            CopyWriter(tmp_path, make_plan(rerank, 48), None, 10)
