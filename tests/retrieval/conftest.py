from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from index_builder.build import build_index
from index_builder.embeddings.collection import Collection
from index_builder.embeddings.reader import EmbeddingFolder
from index_builder.embeddings.space import EmbeddingSpace
from index_builder.embeddings.writer import EmbeddingWriter
from index_builder.planning import plan_index

GALLERY_WIDTH = 48


@pytest.fixture
def draw_rows(rng: np.random.Generator) -> Callable[[int], np.ndarray]:
    """Unit rows in a narrow cone, in clusters, as CLIP embeddings are."""

    def draw(n: int) -> np.ndarray:
        axis = np.full(GALLERY_WIDTH, 0.7 / np.sqrt(GALLERY_WIDTH))
        centers = rng.standard_normal((max(4, n // 40), GALLERY_WIDTH)) / 14
        rows = axis + centers[rng.integers(len(centers), size=n)]
        rows += rng.standard_normal((n, GALLERY_WIDTH)) / 14
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)

    return draw


@pytest.fixture
def write_gallery_rows(tmp_path: Path) -> Callable[..., EmbeddingFolder]:
    """Write rows as an embedding folder with captions, or with the columns given."""

    def write(
        rows: np.ndarray,
        name: str = "embeddings",
        *,
        model: str = "ViT-L-14/openai",
        columns: dict[str, Any] | None = None,
    ) -> EmbeddingFolder:
        tokens, dim = rows.shape[1:] if rows.ndim == 3 else (1, rows.shape[1])
        layer = "hidden" if rows.ndim == 3 else "final"
        space = EmbeddingSpace(model, layer, tokens, dim, True)  # type: ignore[arg-type]  # literal
        with EmbeddingWriter(tmp_path / name, space, command="test", details={}) as writer:
            numbers = range(len(rows))
            captions = [f"caption {i}" for i in numbers]
            table = pa.table(columns or {"image_id": list(numbers), "caption": captions})
            half = len(rows) // 2
            for part in (slice(0, half), slice(half, None)):
                if len(rows[part]):
                    writer.write(rows[part], table.slice(part.start, part.stop))
            return writer.finish()

    return write


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., Path]:
    """Build an index of a folder, or of several, and return where it stands."""

    def run(
        embeddings: EmbeddingFolder | Collection,
        code: str = "ivf-rabitq",
        *,
        n_shards: int = 1,
        bits: int | None = None,
        tier: str | None = None,
        rerank: str | None = None,
        name: str = "index",
        **options: Any,
    ) -> Path:
        source = embeddings if isinstance(embeddings, Collection) else Collection([embeddings])
        plan = plan_index(
            source.n_rows,
            source.space,
            code=code,  # type: ignore[arg-type]  # literals, parametrized
            bits=bits,
            tier=tier,  # type: ignore[arg-type]
            rerank=rerank,  # type: ignore[arg-type]
            rows_per_shard=-(-source.n_rows // n_shards),
        )
        build_index(source, tmp_path / name, plan, **options)
        return tmp_path / name

    return run
