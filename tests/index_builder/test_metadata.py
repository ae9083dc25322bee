from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from index_builder import metadata
from index_builder.embeddings.collection import Collection
from index_builder.embeddings.errors import EmbeddingError
from index_builder.embeddings.space import EmbeddingSpace
from index_builder.embeddings.writer import EmbeddingWriter
from index_builder.metadata import write_metadata, write_tables

Cone = Callable[..., np.ndarray]
WriteCollection = Callable[..., Collection]


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "BATCH_ROWS", 16)
    monkeypatch.setattr(metadata, "_READ_ROWS", 40)


@pytest.fixture
def embeddings(cone: Cone, write_collection: WriteCollection) -> Collection:
    return write_collection(cone(100), cone(30), cone(70))


def read_batches(path: Path) -> list[pa.RecordBatch]:
    with pa.memory_map(str(path)) as mapped:
        reader = pa.ipc.open_file(mapped)
        return [reader.get_batch(i) for i in range(reader.num_record_batches)]


@pytest.mark.parametrize(("start", "stop"), [(0, 200), (90, 140), (16, 32), (101, 102), (7, 200)])
def test_batches_are_even_and_rows_in_order(
    embeddings: Collection, tmp_path: Path, start: int, stop: int
) -> None:
    path = tmp_path / "metadata.arrow"
    write_metadata(embeddings, path, start, stop)
    batches = read_batches(path)
    assert [len(batch) for batch in batches[:-1]] == [16] * ((stop - start - 1) // 16)
    assert 1 <= len(batches[-1]) <= 16
    found = pa.Table.from_batches(batches)
    assert found.equals(embeddings.metadata(np.arange(start, stop)))


def test_chosen_columns_in_the_order_asked(embeddings: Collection, tmp_path: Path) -> None:
    path = tmp_path / "metadata.arrow"
    write_metadata(embeddings, path, 95, 135, ["caption", "image_id"])
    (table,) = [pa.Table.from_batches(read_batches(path))]
    assert table.column_names == ["caption", "image_id"]
    assert table["image_id"].to_pylist() == [*range(95, 100), *range(30), *range(5)]


def test_a_column_that_is_not_there(embeddings: Collection, tmp_path: Path) -> None:
    with pytest.raises(EmbeddingError, match="has no metadata column 'url'"):
        write_metadata(embeddings, tmp_path / "metadata.arrow", 0, 10, ["url"])
    assert not [path for path in tmp_path.iterdir() if path.is_file()]


def test_types_are_widened_and_nulls_allowed(
    cone: Cone, space: EmbeddingSpace, tmp_path: Path
) -> None:
    folders = []
    for name, kind in (("narrow", pa.int16()), ("wide", pa.int64())):
        schema = pa.schema([pa.field("n", kind, nullable=False)])
        with EmbeddingWriter(tmp_path / name, space, command="test", details={}) as writer:
            writer.write(cone(50), pa.table([pa.array(range(50), kind)], schema=schema))
            folders.append(writer.finish())
    path = tmp_path / "metadata.arrow"
    write_metadata(Collection(folders), path, 0, 100)
    found = pa.Table.from_batches(read_batches(path))
    assert found.schema == pa.schema([pa.field("n", pa.int64(), nullable=True)])
    assert found["n"].to_pylist() == [*range(50), *range(50)]


def test_tables_of_any_size(rng: np.random.Generator, tmp_path: Path) -> None:
    whole = pa.table({"n": rng.integers(0, 1000, 500), "text": [f"{i}" * 9 for i in range(500)]})
    for sizes in ([500], [1] * 500, [0, 17, 0, 15, 16, 33, 419], [250, 250]):
        ends = np.cumsum(sizes)
        tables = [
            whole.slice(end - size, size) for size, end in zip(sizes, ends.tolist(), strict=True)
        ]
        write_tables(tmp_path / "t.arrow", whole.schema, tables)
        batches = read_batches(tmp_path / "t.arrow")
        assert [len(batch) for batch in batches] == [16] * 31 + [4]
        assert pa.Table.from_batches(batches).equals(whole)


def test_reading_in_pieces_changes_no_row(
    embeddings: Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = embeddings.metadata(np.arange(5, 195))
    for read_rows in (200, 48, 7):
        monkeypatch.setattr(metadata, "_READ_ROWS", read_rows)
        write_metadata(embeddings, tmp_path / f"{read_rows}.arrow", 5, 195)
        assert pa.Table.from_batches(read_batches(tmp_path / f"{read_rows}.arrow")).equals(expected)


def test_nothing_stands_after_an_error(tmp_path: Path) -> None:
    def stop() -> pa.Table:
        yield pa.table({"n": [1] * 20})
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_tables(tmp_path / "t.arrow", pa.schema({"n": pa.int64()}), stop())
    assert not list(tmp_path.iterdir())
