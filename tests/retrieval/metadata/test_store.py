from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from index_builder import metadata as metadata_module
from index_builder.embeddings import mapped_reads
from index_builder.embeddings.reader import EmbeddingFolder
from index_builder.manifest import read_index_manifest, shards_of
from retrieval.errors import SearchError
from retrieval.metadata import store as store_module
from retrieval.metadata.store import MetadataStore


@pytest.fixture
def gallery(
    draw_rows: Callable[[int], np.ndarray], write_gallery_rows: Callable[..., EmbeddingFolder]
) -> EmbeddingFolder:
    return write_gallery_rows(draw_rows(230))


@pytest.fixture
def store(
    gallery: EmbeddingFolder, build: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> MetadataStore:
    """Three shards, several record batches each."""
    monkeypatch.setattr(metadata_module, "BATCH_ROWS", 16)
    monkeypatch.setattr(metadata_module, "_READ_ROWS", 64)
    monkeypatch.setattr(store_module, "BATCH_ROWS", 16)
    index = build(gallery, n_shards=3)
    return MetadataStore.open(shards_of(index, read_index_manifest(index)))


def test_random_rows_equal_the_folders_own(
    store: MetadataStore, gallery: EmbeddingFolder, rng: np.random.Generator
) -> None:
    rows = rng.integers(0, 230, 500)
    assert store.take(rows).equals(gallery.metadata(rows).combine_chunks())


def test_columns_come_in_the_order_asked(store: MetadataStore) -> None:
    table = store.take(np.array([3]), ["caption", "image_id"])
    assert table.to_pylist() == [{"caption": "caption 3", "image_id": 3}]
    assert table.column_names == ["caption", "image_id"]


def test_no_rows_keep_the_schema(store: MetadataStore, gallery: EmbeddingFolder) -> None:
    table = store.take(np.empty(0, np.int64))
    assert len(table) == 0 and table.schema.equals(gallery.metadata([0]).schema)


def test_unknown_columns_and_rows_are_refused(store: MetadataStore) -> None:
    with pytest.raises(SearchError, match="no metadata column 'url'; it has image_id, caption"):
        store.take(np.array([0]), ["url"])
    for row in (-1, 230):
        with pytest.raises(SearchError, match=rf"row {row} was asked for, .* rows 0 to 229"):
            store.take(np.array([0, row]))


@pytest.mark.parametrize("few_rows", [1, 1000])
@pytest.mark.parametrize("read_ahead", [0, 1 << 27])
def test_how_rows_are_gathered_changes_nothing(
    write_store: Callable[..., MetadataStore],
    table: Any,
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
    few_rows: int,
    read_ahead: int,
) -> None:
    monkeypatch.setattr(store_module, "_FEW_ROWS", few_rows)
    monkeypatch.setattr(store_module, "_READ_AHEAD_BYTES", read_ahead)
    table = table.drop_columns(["punsafe"])  # its NaN would equal nothing
    store = write_store(table)
    for n_rows in (1, 2, 50, 3000):
        rows = rng.integers(0, len(table), n_rows)
        for columns in (None, ["tags"], ["width", "caption"]):
            taken = store.take(rows, columns)
            expected = table.select(columns or table.column_names).take(pa.array(rows))
            assert taken.equals(expected.combine_chunks())


def test_rows_of_one_record_batch_come_in_the_order_asked(
    write_store: Callable[..., MetadataStore], table: Any, rng: np.random.Generator
) -> None:
    store = write_store(table)
    for n_rows in (1, 3, 4, 90):
        rows = rng.integers(64, 128, n_rows)
        taken = store.take(rows, ["URL", "width"])
        expected = table.select(["URL", "width"]).take(pa.array(rows))
        assert taken.equals(expected.combine_chunks())


@pytest.mark.parametrize("n_pages_read", [0.0, float("nan")])
@pytest.mark.parametrize("n_kept", [0, 1, 1000])
def test_neither_who_reads_nor_what_is_kept_changes_anything(
    write_store: Callable[..., MetadataStore],
    table: Any,
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
    n_pages_read: float,
    n_kept: int,
) -> None:
    monkeypatch.setattr(mapped_reads, "_n_pages_read", lambda: n_pages_read)
    monkeypatch.setattr(store_module, "_KEPT_BATCHES", n_kept)
    table = table.drop_columns(["punsafe"])  # its NaN would equal nothing
    store = write_store(table)
    rows = rng.permutation(len(table))
    for _ in range(2):
        taken = store.take(rows)
        assert taken.equals(table.take(pa.array(rows)).combine_chunks())


def test_threads_may_share_a_store(
    store: MetadataStore, gallery: EmbeddingFolder, rng: np.random.Generator
) -> None:
    batches = [rng.integers(0, 230, 40) for _ in range(12)]
    with ThreadPoolExecutor(4) as pool:
        tables = list(pool.map(store.take, batches))
    for rows, taken in zip(batches, tables, strict=True):
        assert taken.equals(gallery.metadata(rows).combine_chunks())


@pytest.mark.parametrize("n_batches", [1, 4, 100])
def test_tables_together_are_all_rows_in_order(
    write_store: Callable[..., MetadataStore], table: Any, n_batches: int
) -> None:
    pieces = list(write_store(table).iter_tables(["caption", "URL"], n_batches=n_batches))
    bounds = [(start, stop) for start, stop, _ in pieces]
    assert [stop for _, stop in bounds[:-1]] == [start for start, _ in bounds[1:]]
    assert (bounds[0][0], bounds[-1][1]) == (0, len(table))
    assert max(stop - start for start, stop in bounds) <= 64 * n_batches
    together = pa.concat_tables([piece for _, _, piece in pieces]).combine_chunks()
    assert together.equals(table.select(["caption", "URL"]).combine_chunks())


def test_a_store_without_metadata_has_no_columns() -> None:
    store = MetadataStore([], [], 10)
    assert store.columns == () and store.n_rows == 10
    assert store.take(np.array([3])).num_columns == 0
    assert list(store.iter_tables([], n_batches=3)) == []
    with pytest.raises(SearchError, match="no metadata column 'url'; it has none at all"):
        store.empty_table(["url"])
