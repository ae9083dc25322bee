from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from index_builder.embeddings.reader import EmbeddingFolder
from index_builder.embeddings.space import EmbeddingSpace
from index_builder.embeddings.writer import EmbeddingWriter
from training.recipe import Recipe, load_recipe
from training.subjects.subject import Subject, write_subject

SMALL = (
    "model.latent_dim=24",
    "model.projector_dim=16",
    "prior.depth=1",
    "prior.width=16",
    "prior.n_heads=2",
    "prior.n_steps=10",
    "prior.n_sampling_steps=4",
    "train.epochs=4",
    "train.batch_size=16",
    "train.device='cpu'",
    "train.n_threads=1",
    "train.save_every_epochs=1",
)


@pytest.fixture
def small_recipe() -> Callable[..., Recipe]:
    """Make the shipped `tiny` recipe small enough for a test, with further overrides."""
    return lambda *overrides: load_recipe("tiny", (*SMALL, *overrides))


@dataclass(frozen=True)
class Brain:
    """A subject whose voxels are a noisy linear map of its targets."""

    subject: Subject
    targets: EmbeddingFolder


@pytest.fixture
def make_brain(tmp_path: Path) -> Callable[..., Brain]:
    """Write a linear subject and its targets; sessions differ in gain and baseline."""

    def make(
        name: str = "sim",
        *,
        n_train: int = 60,
        n_validation: int = 8,
        n_test: int = 12,
        n_repeats: int = 3,
        n_voxels: int = 50,
        tokens: int = 1,
        dim: int = 12,
        noise: float = 0.3,
        seed: int = 5,
    ) -> Brain:
        rng = np.random.default_rng(seed)
        n_images = n_train + n_validation + n_test
        embeddings = rng.normal(size=(n_images, tokens, dim)).astype(np.float32)
        embeddings /= np.linalg.norm(embeddings, axis=(1, 2), keepdims=True)
        layer = "final" if tokens == 1 else "hidden"
        space = EmbeddingSpace("test", layer, tokens, dim, unit_norm=True)
        image_ids = 100 + 7 * np.arange(n_images)
        with EmbeddingWriter(
            tmp_path / f"{name}-targets", space, command="test", details={}, dtype="float32"
        ) as writer:
            order = rng.permutation(n_images)  # the join by image_id must not rely on row order
            writer.write(
                embeddings[order].reshape(-1, *space.row_shape),
                pa.table({"image_id": image_ids[order]}),
            )
            targets = writer.finish()
        splits = np.repeat(["train", "validation", "test"], [n_train, n_validation, n_test])
        shown = rng.permutation(np.repeat(np.arange(n_images), n_repeats))
        sessions = np.arange(len(shown)) * 3 // len(shown)
        repeat = [int((shown[:i] == image).sum()) for i, image in enumerate(shown)]
        readout = rng.normal(size=(tokens * dim, n_voxels))
        voxels = embeddings.reshape(n_images, -1)[shown] @ readout
        voxels += noise * rng.normal(size=voxels.shape)
        voxels = voxels * np.array([1.0, 2.0, 0.5])[sessions, None] + sessions[:, None]
        trials = pa.table(
            {
                "trial": np.arange(len(shown)),
                "image_id": image_ids[shown],
                "session": sessions,
                "repeat": np.array(repeat, np.int64),
                "split": splits[shown].tolist(),
            }
        )
        subject = write_subject(
            tmp_path / name,
            name=name,
            voxels=voxels.astype(np.float32),
            trials=trials,
            rois={"all": np.ones(n_voxels, bool)},
            images=None,
            command="test",
            details={},
        )
        return Brain(subject, targets)

    return make
