from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from index_builder.embeddings.space import EmbeddingSpace

LaionFolder = Callable[..., Path]


@pytest.fixture
def space() -> EmbeddingSpace:
    return EmbeddingSpace("ViT-L-14/openai", "final", 1, 8, True)


@pytest.fixture
def unit_rows(rng: np.random.Generator) -> Callable[..., np.ndarray]:
    """Random rows of unit norm over all their axes but the first, float16 unless said."""

    def draw(n_rows: int, *shape: int, dtype: str = "float16") -> np.ndarray:
        rows = rng.standard_normal((n_rows, *(shape or (8,))))
        axes = tuple(range(1, rows.ndim))
        return (rows / np.sqrt((rows**2).sum(axes, keepdims=True))).astype(dtype)

    return draw


@pytest.fixture
def laion_folder(tmp_path: Path) -> LaionFolder:
    """Write a foreign folder the way clip-retrieval does: plain np.save and parquet."""

    def write(
        arrays: Sequence[np.ndarray],
        *,
        name: str = "laion",
        modality: str = "img_emb",
        pattern: str = "{}",
        tables: Sequence[pa.Table] | None = None,
        with_metadata: bool = True,
    ) -> Path:
        folder = tmp_path / name
        (folder / modality).mkdir(parents=True)
        for i, array in enumerate(arrays):
            np.save(folder / modality / f"{modality}_{pattern.format(i)}.npy", array)
        if with_metadata:
            (folder / "metadata").mkdir(exist_ok=True)
            row = 0
            for i, array in enumerate(arrays):
                rows = range(row, row + len(array))
                table = (
                    tables[i]
                    if tables
                    else pa.table(
                        {
                            "image_path": [f"{r:06d}.jpg" for r in rows],
                            "URL": [f"https://example.org/{r}" for r in rows],
                            "TEXT": [f"picture {r}" for r in rows],
                        }
                    )
                )
                file = folder / "metadata" / f"metadata_{pattern.format(i)}.parquet"
                pq.write_table(table, file, row_group_size=5)
                row += len(array)
        return folder

    return write
