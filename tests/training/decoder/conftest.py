from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from index_builder.embeddings.reader import EmbeddingFolder
from index_builder.embeddings.space import EmbeddingSpace
from index_builder.embeddings.writer import EmbeddingWriter
from training.decoder.recipe import DecoderRecipe, load_decoder_recipe
from training.subjects.subject import Subject, write_subject

SIDE = 8
SMALL = (
    f"pictures.side={SIDE}",
    "network.patch=1",
    "network.channels=16",
    "network.n_levels=2",
    "network.width=32",
    "network.layout_channels=8",
    f"network.sketch_side={SIDE // 2}",
    "train.steps=8",
    "train.batch_size=16",
    "train.device='cpu'",
    "train.n_threads=1",
    "train.save_every_steps=2",
)


@pytest.fixture
def small_recipe() -> Callable[..., DecoderRecipe]:
    """Make the shipped `flow_tiny` recipe small enough for a test, with further overrides."""
    return lambda *overrides: load_decoder_recipe("flow_tiny", (*SMALL, *overrides))


@dataclass(frozen=True)
class Lab:
    """A subject who saw two-colored pictures, and embeddings that tell their colors."""

    subject: Subject
    targets: EmbeddingFolder
    colors: np.ndarray
    image_ids: np.ndarray


def draw(color: np.ndarray) -> Image.Image:
    """Fill the left half of a picture with one color and the right half with another."""
    pixels = np.empty((SIDE, SIDE, 3), np.uint8)
    pixels[:, : SIDE // 2], pixels[:, SIDE // 2 :] = color[:3], color[3:]
    return Image.fromarray(pixels)


@pytest.fixture
def make_lab(tmp_path: Path) -> Callable[..., Lab]:
    def make(
        name: str = "lab",
        *,
        n_train: int = 60,
        n_validation: int = 8,
        n_test: int = 12,
        tokens: int = 1,
        copies: int = 0,
        with_paths: bool = True,
        dim: int = 24,
    ) -> Lab:
        rng = np.random.default_rng(11)
        n = n_train + n_validation + n_test
        colors = rng.integers(0, 256, (n, 6))
        if copies:  # the first training pictures are the first test pictures
            colors[:copies] = colors[n_train + n_validation :][:copies]
        readout = rng.normal(size=(6, tokens, dim))
        embeddings = np.einsum("nc,ctd->ntd", colors / 128 - 1, readout) + 2.0
        embeddings /= np.linalg.norm(embeddings, axis=(1, 2), keepdims=True)
        folder = tmp_path / f"{name}-pictures"
        folder.mkdir()
        image_ids = 10 + 3 * np.arange(n)
        for image_id, color in zip(image_ids, colors, strict=True):
            draw(color).save(folder / f"{image_id}.png")
        space = EmbeddingSpace("test", "final" if tokens == 1 else "hidden", tokens, dim, True)
        order = rng.permutation(n)  # the join by image_id must not rely on row order
        columns = {"image_id": image_ids[order]}
        if with_paths:
            columns["image_path"] = [f"../{name}-pictures/{i}.png" for i in image_ids[order]]
        with EmbeddingWriter(
            tmp_path / f"{name}-targets", space, command="test", details={}, dtype="float32"
        ) as writer:
            rows = embeddings[order].astype(np.float32).reshape(-1, *space.row_shape)
            writer.write(rows, pa.table(columns))
            targets = writer.finish()
        splits = np.repeat(["train", "validation", "test"], [n_train, n_validation, n_test])
        subject = write_subject(
            tmp_path / name,
            name=name,
            voxels=np.zeros((n, 2), np.float32),
            trials=pa.table(
                {
                    "trial": np.arange(n),
                    "image_id": image_ids,
                    "session": np.zeros(n, np.int64),
                    "repeat": np.zeros(n, np.int64),
                    "split": splits.tolist(),
                }
            ),
            rois={},
            images=pa.table(
                {
                    "image_id": image_ids,
                    "path": [str(folder / f"{i}.png") for i in image_ids],
                    "caption": pa.nulls(n, pa.string()),
                }
            ),
            command="test",
            details={},
        )
        return Lab(subject, targets, colors, image_ids)

    return make
