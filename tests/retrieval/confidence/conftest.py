from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from index_builder.embeddings.reader import EmbeddingFolder
from index_builder.embeddings.space import EmbeddingSpace
from index_builder.embeddings.writer import EmbeddingWriter
from retrieval.searching.engine import SearchEngine
from retrieval.searching.queries import QuerySet, load_queries

N_GALLERY = 600
NOISE = 0.2  # per coordinate; about half of the first hits are then right


@pytest.fixture
def gallery(draw_rows: Callable[[int], np.ndarray]) -> np.ndarray:
    return draw_rows(N_GALLERY)


@pytest.fixture
def index(
    gallery: np.ndarray,
    write_gallery_rows: Callable[..., EmbeddingFolder],
    build: Callable[..., Path],
) -> Path:
    return build(write_gallery_rows(gallery), "flat")


@pytest.fixture
def engine(index: Path) -> SearchEngine:
    return SearchEngine.open(index)


@pytest.fixture
def write_predictions(tmp_path: Path, rng: np.random.Generator) -> Callable[..., QuerySet]:
    """Write noisy copies of rows as voxseek predict does: with the image, the split and the run."""

    def write(
        rows: np.ndarray,
        image_ids: Any,
        name: str = "validation",
        *,
        noise: float = NOISE,
        split: str = "validation",
        run: str = "a" * 64,
        n_trials: Any = 3,
        without: str = "",
    ) -> QuerySet:
        space = EmbeddingSpace("ViT-L-14/openai", "final", 1, rows.shape[1], True)
        noisy = rows + noise * rng.standard_normal(rows.shape)
        noisy /= np.linalg.norm(noisy, axis=1, keepdims=True)
        columns = {"image_id": image_ids, "split": [split] * len(rows)}
        columns["n_trials"] = np.full(len(rows), 1) * n_trials
        columns.pop(without, None)
        details = {"run": run, "head": "retrieval"}
        with EmbeddingWriter(
            tmp_path / name, space, command="voxseek predict", details=details
        ) as writer:
            writer.write(noisy.astype(np.float16), pa.table(columns))
            return load_queries(writer.finish().path)

    return write


@pytest.fixture
def validation(gallery: np.ndarray, write_predictions: Callable[..., QuerySet]) -> QuerySet:
    return write_predictions(gallery[:200], range(200))


@pytest.fixture
def test_set(gallery: np.ndarray, write_predictions: Callable[..., QuerySet]) -> QuerySet:
    return write_predictions(gallery[200:600], range(200, 600), "test", split="test")
