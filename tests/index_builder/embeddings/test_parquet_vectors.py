"""Folders whose vectors are a column of parquet files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from index_builder.embeddings import vectors
from index_builder.embeddings.errors import BadRowError, EmbeddingError, PartError
from index_builder.embeddings.reader import EmbeddingFolder
from index_builder.embeddings.space import EmbeddingSpace

Rows = Callable[..., np.ndarray]
SIZES = (23, 4, 16)
LIST_TYPES = {
    "list<float16>": pa.list_(pa.float16()),
    "list<float32>": pa.list_(pa.float32()),
    "list<float64>": pa.list_(pa.float64()),
    "large_list<float32>": pa.large_list(pa.float32()),
    "fixed_size_list<float16>": pa.list_(pa.float16(), 8),
    "fixed_size_list<float32>": pa.list_(pa.float32(), 8),
}


def write_part(
    folder: Path, number: int, lists: Any, *, name: str = "embedding", first_row: int = 0
) -> None:
    keys = [f"{first_row + i:06d}" for i in range(len(lists))]
    table = pa.table({"key": keys, name: lists, "URL": [f"u{key}" for key in keys]})
    pq.write_table(table, folder / f"part_{number}.parquet", row_group_size=5)


def as_lists(rows: np.ndarray, list_type: Any) -> Any:
    values = pa.array(rows.ravel()).cast(list_type.value_type)
    if pa.types.is_fixed_size_list(list_type):
        return pa.FixedSizeListArray.from_arrays(values, rows.shape[1])
    offsets = np.arange(0, rows.size + 1, rows.shape[1])
    if pa.types.is_large_list(list_type):
        return pa.LargeListArray.from_arrays(offsets, values)
    return pa.ListArray.from_arrays(offsets.astype(np.int32), values)


@pytest.fixture
def rows(unit_rows: Rows) -> np.ndarray:
    return unit_rows(sum(SIZES))


def write_folder(folder: Path, rows: np.ndarray, list_type: Any, **options: Any) -> Path:
    start = 0
    for number, n_rows in enumerate(SIZES):
        part = as_lists(rows[start : start + n_rows], list_type)
        write_part(folder, number, part, first_row=start, **options)
        start += n_rows
    return folder


@pytest.mark.parametrize("list_type", LIST_TYPES.values(), ids=LIST_TYPES)
def test_every_list_type(
    tmp_path: Path, rows: np.ndarray, space: EmbeddingSpace, list_type: Any
) -> None:
    folder = EmbeddingFolder.open(write_folder(tmp_path, rows, list_type), space=space)
    expected = rows.astype(np.float16 if "halffloat" in str(list_type) else np.float32)
    assert folder.dtype == expected.dtype
    assert folder.columns == ("key", "url")
    assert [part.n_rows for part in folder.parts] == list(SIZES)
    for batch_rows in (1, 7, 43):
        batches = list(folder.iter_batches(batch_rows=batch_rows, start=2))
        np.testing.assert_array_equal(np.concatenate([b.embeddings for b in batches]), expected[2:])
    wanted = np.array([42, 0, 7, 7, 25, 3])
    np.testing.assert_array_equal(folder.take(wanted), expected[wanted])
    assert folder.metadata(wanted, ["key"])["key"].to_pylist() == [f"{r:06d}" for r in wanted]


def test_behind_a_url_and_with_another_name(
    tmp_path: Path, rows: np.ndarray, space: EmbeddingSpace
) -> None:
    write_folder(tmp_path, rows, LIST_TYPES["list<float32>"], name="Vector")
    folder = EmbeddingFolder.open(f"file://{tmp_path}", space=space)
    (batch,) = folder.iter_batches(batch_rows=100)
    np.testing.assert_array_equal(batch.embeddings, rows.astype(np.float32))
    np.testing.assert_array_equal(folder.take([40, 1]), rows[[40, 1]])


def test_several_tokens_are_flattened_lists(tmp_path: Path, unit_rows: Rows) -> None:
    rows = unit_rows(9, 4, 2)
    write_part(tmp_path, 0, as_lists(rows.reshape(9, 8), LIST_TYPES["list<float16>"]))
    folder = EmbeddingFolder.open(tmp_path, space=EmbeddingSpace("m", "hidden", 4, 2, True))
    np.testing.assert_array_equal(folder.take(np.arange(9)), rows)


def test_reading_on_decodes_each_row_once(
    tmp_path: Path, rows: np.ndarray, space: EmbeddingSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = EmbeddingFolder.open(
        write_folder(tmp_path, rows, LIST_TYPES["list<float16>"]), space=space
    )
    monkeypatch.setattr(vectors, "_BLOCK_BYTES", 3 * 16)  # blocks of three rows
    n_decoded = 0
    decode = vectors.ParquetVectors._to_rows

    def count(self: vectors.ParquetVectors, lists: Any, rows: np.ndarray) -> np.ndarray:
        nonlocal n_decoded
        n_decoded += len(lists)
        return decode(self, lists, rows)

    monkeypatch.setattr(vectors.ParquetVectors, "_to_rows", count)
    for _ in range(2):
        assert sum(len(b.embeddings) for b in folder.iter_batches(batch_rows=2)) == 43
    assert n_decoded == 2 * 43


def test_without_a_space_the_width_comes_from_the_footer(tmp_path: Path, rows: np.ndarray) -> None:
    write_folder(tmp_path, rows, LIST_TYPES["list<float64>"])
    with pytest.raises(EmbeddingError, match=r"part_0\.parquet holds 1 x 8 in float32"):
        EmbeddingFolder.open(tmp_path)


def test_nan_and_null_items_are_bad_rows(
    tmp_path: Path, rows: np.ndarray, space: EmbeddingSpace
) -> None:
    lists = as_lists(rows[:9], LIST_TYPES["list<float32>"]).to_pylist()
    lists[3][2], lists[6][0] = None, float("nan")
    write_part(tmp_path, 0, pa.array(lists, LIST_TYPES["list<float32>"]))
    folder = EmbeddingFolder.open(tmp_path, space=space)
    with pytest.raises(BadRowError, match=r"part_0\.parquet, row 3 .* holds NaN"):
        list(folder.iter_batches(batch_rows=9))
    (batch,) = folder.iter_batches(batch_rows=9, bad_rows="tombstone")
    assert np.flatnonzero(~batch.is_alive).tolist() == [3, 6]


def test_float64_beyond_float32_is_infinite(tmp_path: Path, space: EmbeddingSpace) -> None:
    rows = np.full((2, 8), 1e300)
    write_part(tmp_path, 0, as_lists(rows, LIST_TYPES["list<float64>"]))
    folder = EmbeddingFolder.open(tmp_path, space=space)
    with pytest.raises(BadRowError, match=r"row 0 .* holds an infinite value"):
        list(folder.iter_batches(batch_rows=9))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda lists: lists[3].append(0.5),
            r"part_0\.parquet has 73 numbers .* of 9 rows, expected",
        ),
        (lambda lists: lists.__setitem__(3, None), "has 65 numbers .* expected 8 a row, 72 in all"),
    ],
    ids=["longer", "null"],
)
def test_lists_of_another_length_are_seen_at_opening(
    tmp_path: Path,
    rows: np.ndarray,
    space: EmbeddingSpace,
    change: Callable[..., None],
    message: str,
) -> None:
    lists = as_lists(rows[:9], LIST_TYPES["list<float32>"]).to_pylist()
    change(lists)
    write_part(tmp_path, 0, pa.array(lists, LIST_TYPES["list<float32>"]))
    with pytest.raises(PartError, match=message):
        EmbeddingFolder.open(tmp_path, space=space)


def test_lengths_that_only_sum_up_are_seen_at_reading(
    tmp_path: Path, rows: np.ndarray, space: EmbeddingSpace
) -> None:
    lists = as_lists(rows[:9], LIST_TYPES["list<float32>"]).to_pylist()
    lists[5].append(lists[7].pop())
    write_part(tmp_path, 0, pa.array(lists, LIST_TYPES["list<float32>"]))
    folder = EmbeddingFolder.open(tmp_path, space=space)
    message = r"part_0\.parquet, row {}: the list in the column 'embedding' is null or not 8 long"
    with pytest.raises(PartError, match=message.format(7)):
        folder.take([8, 7])
    with pytest.raises(PartError, match=message.format(5)):
        list(folder.iter_batches(batch_rows=1))
    np.testing.assert_array_equal(folder.take([8, 6]), rows[[8, 6]])


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (
            {"embeddings": [[1.0]]},
            r"has no column of vectors: found \['embeddings'\], expected one",
        ),
        ({"embedding": [1.0]}, "has a column 'embedding' of double, expected lists of floats"),
        ({"vector": [[1]]}, "has a column 'vector' of list<.*int64>, expected lists of floats"),
    ],
    ids=["other name", "no list", "integers"],
)
def test_no_vectors_in_it(
    tmp_path: Path, space: EmbeddingSpace, column: dict[str, list[Any]], message: str
) -> None:
    pq.write_table(pa.table(column), tmp_path / "part_0.parquet")
    with pytest.raises(PartError, match=message):
        EmbeddingFolder.open(tmp_path, space=space)


def test_vectors_alone_have_no_metadata(
    tmp_path: Path, rows: np.ndarray, space: EmbeddingSpace
) -> None:
    pq.write_table(
        pa.table({"embedding": as_lists(rows, LIST_TYPES["list<float16>"])}),
        tmp_path / "0.parquet",
    )
    folder = EmbeddingFolder.open(tmp_path, space=space)
    assert folder.columns == ()
    with pytest.raises(EmbeddingError, match="holds vectors and no metadata"):
        folder.metadata([0])
