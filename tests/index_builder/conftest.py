from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from index_builder.embeddings.collection import Collection
from index_builder.embeddings.reader import EmbeddingFolder
from index_builder.embeddings.space import EmbeddingSpace
from index_builder.embeddings.writer import EmbeddingWriter
from index_builder.rotation import draw_signs, rotate

WIDTH = 48  # not a power of two: the rotation's windows overlap


def draw_cone(rng: np.random.Generator, n: int, width: int = WIDTH) -> np.ndarray:
    """Unit rows in a narrow cone, in clusters, as CLIP embeddings are."""
    axis = np.full(width, 0.7 / np.sqrt(width))
    centers = rng.standard_normal((max(4, n // 40), width)) * 0.5 / np.sqrt(width)
    noise = rng.standard_normal((n, width)) * 0.5 / np.sqrt(width)
    rows = axis + centers[rng.integers(len(centers), size=n)] + noise
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


@pytest.fixture
def space() -> EmbeddingSpace:
    return EmbeddingSpace("ViT-L-14/openai", "final", 1, WIDTH, True)


@pytest.fixture
def cone(rng: np.random.Generator) -> Callable[..., np.ndarray]:
    return lambda n, width=WIDTH: draw_cone(rng, n, width)


@pytest.fixture
def write_folder(tmp_path: Path, space: EmbeddingSpace) -> Callable[..., EmbeddingFolder]:
    """Write an embedding folder of three parts with captions."""

    def write(rows: np.ndarray, name: str = "embeddings", n_parts: int = 3) -> EmbeddingFolder:
        with EmbeddingWriter(tmp_path / name, space, command="test", details={}) as writer:
            start = 0
            for part in np.array_split(rows, n_parts):
                numbers = range(start, start + len(part))
                table = pa.table(
                    {"image_id": list(numbers), "caption": [f"caption {i}" for i in numbers]}
                )
                writer.write(part, table)
                start += len(part)
            return writer.finish()

    return write


@pytest.fixture
def write_collection(write_folder: Callable[..., EmbeddingFolder]) -> Callable[..., Collection]:
    """Write an embedding folder of each array of rows, and open them as one collection."""

    def write(*arrays: np.ndarray, name: str = "embeddings", n_parts: int = 3) -> Collection:
        names = [name, *(f"{name}{i}" for i in range(1, len(arrays)))]
        return Collection(
            [write_folder(rows, each, n_parts) for rows, each in zip(arrays, names, strict=True)]
        )

    return write


@pytest.fixture
def write_foreign(tmp_path: Path) -> Callable[..., Path]:
    """Save rows as a folder without a manifest, bad rows and all."""

    def write(rows: np.ndarray, name: str = "foreign") -> Path:
        folder = tmp_path / name / "img_emb"
        folder.mkdir(parents=True)
        np.save(folder / "img_emb_0.npy", rows)
        return folder.parent

    return write


@pytest.fixture
def make_quantizer() -> Callable[..., Any]:
    """What writers of graphs and of copies use of a quantizer, for unit rows."""

    def make(unit: np.ndarray) -> Any:
        mean = unit.mean(axis=0, dtype=np.float64).astype(np.float32)
        signs = draw_signs(unit.shape[1], 7)
        transformed = rotate(unit - mean, signs)
        return SimpleNamespace(
            mean=mean,
            signs=signs,
            low=float(transformed.min()),
            high=float(transformed.max()),
            transform=lambda rows: rotate(rows - mean, signs),
        )

    return make
