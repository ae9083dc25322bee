from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from index_builder import metadata as metadata_module
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
