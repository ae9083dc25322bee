"""Metadata of embedding folders."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from index_builder.embeddings.errors import EmbeddingError, PartError
from index_builder.embeddings.reader import EmbeddingFolder
from index_builder.embeddings.space import EmbeddingSpace

Rows = Callable[..., np.ndarray]
Laion = Callable[..., Path]
SIZES = (13, 1, 20, 9)
N_ROWS = sum(SIZES)


@pytest.fixture
def folder(laion_folder: Laion, unit_rows: Rows, space: EmbeddingSpace) -> EmbeddingFolder:
    return EmbeddingFolder.open(laion_folder([unit_rows(n) for n in SIZES]), space=space)


@pytest.fixture
def open_tables(
    laion_folder: Laion, unit_rows: Rows, space: EmbeddingSpace
) -> Callable[..., EmbeddingFolder]:
    def open_(*tables: pa.Table) -> EmbeddingFolder:
        arrays = [unit_rows(len(table)) for table in tables]
        return EmbeddingFolder.open(laion_folder(arrays, tables=tables), space=space)

    return open_


def test_rows_in_the_order_asked(folder: EmbeddingFolder, rng: np.random.Generator) -> None:
    rows = rng.integers(0, N_ROWS, 200)
    table = folder.metadata(rows)
    assert table.column_names == ["image_path", "url", "caption"]
    assert table["caption"].to_pylist() == [f"picture {row}" for row in rows]
    assert table["url"].to_pylist() == [f"https://example.org/{row}" for row in rows]


def test_columns_in_the_order_asked(folder: EmbeddingFolder) -> None:
    table = folder.metadata([3], ["caption", "image_path"])
    assert table.to_pylist() == [{"caption": "picture 3", "image_path": "000003.jpg"}]
    assert table.column_names == ["caption", "image_path"]


def test_no_rows_and_all_rows(folder: EmbeddingFolder) -> None:
    assert folder.metadata([]).num_rows == 0
    assert folder.metadata([], ["url"]).column_names == ["url"]
    assert folder.metadata()["image_path"].to_pylist() == [f"{r:06d}.jpg" for r in range(N_ROWS)]


@pytest.mark.parametrize("batch_rows", [1, 5, 13, 14, 43, 1000])
def test_tables_go_along_with_batches(folder: EmbeddingFolder, batch_rows: int) -> None:
    tables = list(folder.iter_metadata(batch_rows=batch_rows, columns=["caption"]))
    batches = list(folder.iter_batches(batch_rows=batch_rows))
    assert [len(table) for table in tables] == [len(batch.embeddings) for batch in batches]
    captions = [caption for table in tables for caption in table["caption"].to_pylist()]
    assert captions == [f"picture {row}" for row in range(N_ROWS)]


def test_only_the_row_groups_needed_are_read(
    folder: EmbeddingFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow.parquet as pq

    groups = []
    read = pq.ParquetFile.read_row_group

    def spy(self: pq.ParquetFile, i: int, **options: object) -> pa.Table:
        groups.append((i, options["columns"]))
        return read(self, i, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", spy)
    assert folder.metadata([12, 11, 15], ["url"]).num_rows == 3
    assert groups == [(2, ["URL"]), (0, ["URL"])]  # five rows a group


def test_an_unknown_column(folder: EmbeddingFolder) -> None:
    message = r"has no metadata column 'URL'; it has image_path, url, caption"
    with pytest.raises(EmbeddingError, match=message):
        folder.metadata([0], ["URL"])
    with pytest.raises(EmbeddingError, match=message):
        folder.iter_metadata(batch_rows=1, columns=["URL"])


def test_vectors_without_metadata(
    laion_folder: Laion, unit_rows: Rows, space: EmbeddingSpace
) -> None:
    folder = laion_folder([unit_rows(3)])
    alone = EmbeddingFolder.open(folder / "img_emb", space=space)
    assert alone.columns == () and alone.n_rows == 3
    with pytest.raises(
        EmbeddingError, match=r"no metadata\. If it is the img_emb folder of a larger"
    ):
        alone.metadata()


def test_case_and_order_of_names_may_differ(open_tables: Callable[..., EmbeddingFolder]) -> None:
    folder = open_tables(
        pa.table({"URL": ["a"], "TEXT": ["b"], "Similarity": [0.5]}),
        pa.table({"similarity": [0.25], "text": ["d"], "url": ["c"]}),
    )
    assert folder.metadata().to_pylist() == [
        {"url": "a", "caption": "b", "similarity": 0.5},
        {"url": "c", "caption": "d", "similarity": 0.25},
    ]


def test_text_keeps_its_name_beside_a_caption(open_tables: Callable[..., EmbeddingFolder]) -> None:
    assert open_tables(pa.table({"TEXT": ["a"], "caption": ["b"]})).columns == ("text", "caption")


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (pa.array([1], pa.int32()), pa.array([2**40]), pa.int64()),
        (pa.array([None], pa.null()), pa.array(["x"]), pa.string()),
        (pa.array([1]), pa.array([0.5]), pa.float64()),
        (pa.array(["x"]), pa.array(["y"], pa.large_string()), pa.large_string()),
    ],
    ids=["wider", "null", "pandas made floats of it", "large strings"],
)
def test_types_are_reconciled(
    open_tables: Callable[..., EmbeddingFolder], first: pa.Array, second: pa.Array, expected: object
) -> None:
    folder = open_tables(pa.table({"value": first}), pa.table({"value": second}))
    table = folder.metadata([1, 0])
    assert table.schema.field("value").type == expected
    assert table["value"].to_pylist() == [second[0].as_py(), first[0].as_py()]
    (whole,) = folder.iter_metadata(batch_rows=10)
    assert whole.schema == table.schema


def test_types_that_do_not_go_together(open_tables: Callable[..., EmbeddingFolder]) -> None:
    with pytest.raises(
        PartError, match=r"metadata_1\.parquet has a column of another type .*value"
    ):
        open_tables(pa.table({"value": ["x"]}), pa.table({"value": [1]}))


def test_values_that_do_not_fit_the_common_type(
    open_tables: Callable[..., EmbeddingFolder],
) -> None:
    folder = open_tables(pa.table({"value": [2**60 + 1]}), pa.table({"value": [0.5]}))
    with pytest.raises(PartError, match=r"metadata_0\.parquet has values that don't fit the type"):
        folder.metadata([0])


def test_damage_inside_a_file_is_named_when_it_is_met(
    folder: EmbeddingFolder, unit_rows: Rows
) -> None:
    file = Path(folder.path) / "metadata" / "metadata_2.parquet"
    content = bytearray(file.read_bytes())
    content[4:300] = bytes(296)
    file.write_bytes(content)
    assert folder.metadata([0]).num_rows == 1
    with pytest.raises(PartError, match=r"metadata_2\.parquet is not a readable parquet file"):
        folder.metadata([14])
    with pytest.raises(PartError, match=r"metadata_2\.parquet is not a readable parquet file"):
        list(folder.iter_metadata(batch_rows=5))


def test_a_file_that_ends_before_its_last_row(
    folder: EmbeddingFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow.parquet as pq

    read = pq.ParquetFile.iter_batches

    def stop_early(self: pq.ParquetFile, **options: object) -> Iterator[pa.RecordBatch]:
        yield from list(read(self, **options))[:-1]

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", stop_early)
    message = r"metadata_0\.parquet is not .* promises 13 rows, and it holds 12"
    with pytest.raises(PartError, match=message):
        list(folder.iter_metadata(batch_rows=1))


def test_other_columns_than_the_first_part(open_tables: Callable[..., EmbeddingFolder]) -> None:
    with pytest.raises(
        PartError,
        match=r"metadata_1\.parquet has columns \['caption'\], and .*metadata_0\.parquet has "
        r"\['caption', 'url'\]",
    ):
        open_tables(pa.table({"url": ["a"], "caption": ["b"]}), pa.table({"caption": ["c"]}))


def test_names_that_collide_in_lower_case(open_tables: Callable[..., EmbeddingFolder]) -> None:
    with pytest.raises(
        PartError, match=r"columns \['URL', 'url'\], of which two get the same name"
    ):
        open_tables(pa.table({"URL": ["a"], "url": ["b"]}))
