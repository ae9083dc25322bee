from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from index_builder import metadata as metadata_module
from retrieval.metadata import store as store_module
from retrieval.metadata.store import MetadataStore

N_ROWS = 1003


@pytest.fixture
def write_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., MetadataStore]:
    """Write a table as the metadata of three shards, in record batches of 64 rows."""
    monkeypatch.setattr(metadata_module, "BATCH_ROWS", 64)
    monkeypatch.setattr(store_module, "BATCH_ROWS", 64)

    def write(table: Any) -> MetadataStore:
        bounds = [0, 397, 700, len(table)]
        paths = [tmp_path / f"metadata-{first}.arrow" for first in bounds[:-1]]
        for path, start, stop in zip(paths, bounds[:-1], bounds[1:], strict=True):
            piece = table.slice(start, stop - start)
            metadata_module.write_tables(path, table.schema, [piece])
        return MetadataStore(paths, bounds[:-1], len(table))

    return write


@pytest.fixture
def table(rng: np.random.Generator) -> Any:
    """Columns as LAION has them, nulls among them, and others that are harder to handle."""
    missing = rng.random(N_ROWS) < 0.1
    words = np.array(["A red fox", "the blue Fox", "100% \"quoted\" 'fox'", "zebra_1", ""])
    unsafe = rng.random(N_ROWS).astype(np.float32)
    unsafe[::97] = np.nan
    return pa.table(
        {
            "URL": [f"https://example.org/{i}.jpg" for i in range(N_ROWS)],
            "caption": pa.array(words[rng.integers(0, 5, N_ROWS)], mask=missing),
            "width": pa.array(rng.integers(100, 2000, N_ROWS), pa.int32()),
            "height": pa.array(rng.integers(100, 2000, N_ROWS), pa.int64()),
            "punsafe": pa.array(unsafe, mask=missing),
            "pwatermark": pa.array(rng.random(N_ROWS), mask=missing),
            "aesthetic": pa.array(rng.uniform(0, 10, N_ROWS).astype(np.float16)),
            "text_width": pa.array([str(i % 500) for i in range(N_ROWS)]),
            "is_drawn": pa.array(rng.random(N_ROWS) < 0.5),
            "day": pa.array(rng.integers(0, 20_000, N_ROWS).astype("datetime64[D]")),
            'odd "name"; --': pa.array(rng.integers(0, 9, N_ROWS)),
            "tags": pa.array([["a", "b"][: i % 3] for i in range(N_ROWS)]),
        }
    )


@pytest.fixture
def store(write_store: Callable[..., MetadataStore], table: Any) -> MetadataStore:
    return write_store(table)
