from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from index_builder.embeddings.reader import EmbeddingFolder
from index_builder.embeddings.space import EmbeddingSpace
from index_builder.embeddings.writer import EmbeddingWriter

DIM = 24


def make_targets(
    folder: Path, n_images: int, *, metadata: dict[str, list[object]] | None = None
) -> EmbeddingFolder:
    """Smooth random pictures, and embeddings that depend on them, with a steep spectrum."""
    rng = np.random.default_rng(99)
    pictures = folder / "pictures"
    pictures.mkdir(parents=True)
    coarse = rng.integers(0, 255, size=(n_images, 6, 6, 3), dtype=np.uint8)
    for image_id, pixels in enumerate(coarse):
        picture = Image.fromarray(pixels).resize((32, 32), Image.Resampling.BICUBIC)
        picture.save(pictures / f"{image_id}.png")
    projection = rng.standard_normal((coarse[0].size, DIM)) / np.arange(1, DIM + 1)
    embeddings = (coarse.reshape(n_images, -1) / 255.0) @ projection
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    columns = {
        "image_id": list(range(n_images)),
        "image_path": [f"../pictures/{image_id}.png" for image_id in range(n_images)],
        "caption": [f"blobs {image_id}" for image_id in range(n_images)],
    } | (metadata or {})
    space = EmbeddingSpace("blobs", "final", 1, DIM, True)
    with EmbeddingWriter(folder / "targets", space, command="test", details={}) as writer:
        writer.write(embeddings.astype(np.float16), pa.table(columns))
        return writer.finish()


@pytest.fixture(scope="session")
def targets(tmp_path_factory: pytest.TempPathFactory) -> EmbeddingFolder:
    return make_targets(tmp_path_factory.mktemp("blobs"), 120)


@pytest.fixture
def targets_with(tmp_path: Path) -> Callable[..., EmbeddingFolder]:
    """Targets of six pictures with other metadata."""
    return lambda **columns: make_targets(tmp_path / "other", 6, metadata=columns)
