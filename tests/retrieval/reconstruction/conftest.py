"""A brain that sees small gray pictures, whose embedding space is the pixels themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from PIL import Image

from index_builder.embeddings.reader import EmbeddingFolder
from training.encoders.pixels import PixelEncoder
from training.loop import train
from training.recipe import load_recipe
from training.subjects.subject import Subject, write_subject
from training.subjects.trials import build_trials
from training.targets import embed_pictures, list_pictures

SIDE = 4
N_IMAGES, N_TEST = 40, 6
SMALL = (
    *("model.latent_dim=24", "model.projector_dim=16", "train.epochs=3", "train.batch_size=16"),
    *("prior.depth=1", "prior.width=16", "prior.n_heads=2", "prior.n_steps=10"),
    *("prior.n_sampling_steps=4", "train.device='cpu'", "train.n_threads=1"),
)


@dataclass(frozen=True)
class Scene:
    """Pictures, their embeddings, a subject that saw them, and a run trained on it."""

    pictures: Path
    targets: EmbeddingFolder
    subject: Subject
    run: Path


@pytest.fixture(scope="session")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    root = tmp_path_factory.mktemp("scene")
    rng = np.random.default_rng(3)
    (root / "pictures").mkdir()
    for image_id in range(N_IMAGES):
        cells = rng.integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
        picture = Image.fromarray(np.kron(cells, np.ones((8, 8), np.uint8)))
        picture.convert("RGB").save(root / "pictures" / f"{image_id:02d}.png")
    pictures = list_pictures(root / "pictures")
    targets = embed_pictures(pictures, root / "targets", PixelEncoder(SIDE))
    rows = targets.take(np.arange(N_IMAGES)).astype(np.float64)
    shown = rng.permutation(np.repeat(np.arange(N_IMAGES), 2))
    voxels = rows[shown] @ rng.normal(size=(SIDE * SIDE, 50))
    subject = write_subject(
        root / "subject",
        name="seer",
        voxels=voxels + 0.2 * rng.normal(size=voxels.shape),
        trials=build_trials(
            shown,
            np.zeros(len(shown), np.int64),
            {i: "test" if i < N_TEST else "train" for i in range(N_IMAGES)},
        ),
        rois={},
        images=pa.table(
            {
                "image_id": range(N_IMAGES),
                "path": [f"{root}/pictures/{i:02d}.png" for i in range(N_IMAGES)],
                "caption": [None] * N_IMAGES,
            }
        ),
        command="test",
        details={},
    )
    train([subject], targets, load_recipe("tiny", SMALL), root / "run")
    return Scene(root / "pictures", targets, subject, root / "run")


@dataclass
class GridDecoder:
    """Draws an embedding as the gray cells that it is, under noise from the seed."""

    name: str = "grid"
    tokens: int = 1
    dim: int = SIDE * SIDE
    side: int = 2 * SIDE
    details: dict[str, str | int | float] = field(default_factory=lambda: {"noise": 20})
    n_calls_left: int = 10_000

    def decode(
        self,
        embeddings: NDArray[np.float32],
        *,
        seeds: Sequence[int],
        starts: NDArray[np.uint8] | None = None,
    ) -> NDArray[np.uint8]:
        if not self.n_calls_left:
            raise KeyboardInterrupt
        self.n_calls_left -= 1
        cells = 128 + 250 * embeddings.reshape(-1, SIDE, SIDE)
        noise = [np.random.default_rng(seed).normal(0, 20, (SIDE, SIDE)) for seed in seeds]
        gray = np.clip(cells + np.stack(noise), 0, 255).repeat(2, axis=1).repeat(2, axis=2)
        pictures = np.repeat(gray[..., None], 3, axis=-1)
        if starts is not None:
            pictures = (pictures + starts.mean(axis=(1, 2), keepdims=True)) / 2
        return pictures.astype(np.uint8)


@pytest.fixture
def grid_decoder() -> type[GridDecoder]:
    return GridDecoder
