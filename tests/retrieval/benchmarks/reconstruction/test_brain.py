from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from index_builder.embeddings.reader import EmbeddingFolder
from index_builder.embeddings.writer import EmbeddingWriter
from retrieval.benchmarks.reconstruction import brain
from retrieval.benchmarks.reconstruction.brain import fit_encoding
from retrieval.errors import BenchmarkError
from training.encoders.pixels import PixelEncoder
from training.errors import RunError
from training.subjects.subject import Subject, write_subject
from training.subjects.trials import build_trials

N_IMAGES, N_TEST, N_VOXELS = 90, 10, 12
SPLITS = {image_id: "test" if image_id < N_TEST else "train" for image_id in range(N_IMAGES)}


@pytest.fixture
def features(rng: np.random.Generator) -> np.ndarray:
    encoder = PixelEncoder(4)
    pictures = [
        Image.fromarray(rng.integers(0, 256, (4, 4), dtype=np.uint8)) for _ in range(N_IMAGES)
    ]
    return encoder.encode(np.stack([encoder.prepare(picture) for picture in pictures]))


@pytest.fixture
def targets(tmp_path: Path, features: np.ndarray) -> EmbeddingFolder:
    space = PixelEncoder(4).space
    with EmbeddingWriter(tmp_path / "targets", space, command="test", details={}) as writer:
        order = np.arange(N_IMAGES)[::-1]
        writer.write(features[order], pa.table({"image_id": order}))
        return writer.finish()


def make_subject(
    folder: Path, voxels: np.ndarray, image_ids: np.ndarray, splits: dict[int, str] = SPLITS
) -> Subject:
    return write_subject(
        folder,
        name="subj01",
        voxels=voxels.astype(np.float32),
        trials=build_trials(image_ids, np.zeros(len(image_ids), np.int64), splits),
        rois={
            "V1": np.arange(N_VOXELS) < 5,
            "one": np.arange(N_VOXELS) == 3,
            "V2": np.arange(N_VOXELS) >= 5,
        },
        images=None,
        command="test",
        details={},
    )


@pytest.fixture
def subject(tmp_path: Path, rng: np.random.Generator, features: np.ndarray) -> Subject:
    """Every image twice, but for the last, and noise that cancels between the two."""
    image_ids = np.concatenate([np.arange(N_IMAGES), np.arange(N_IMAGES - 1)])
    responses = features @ rng.normal(size=(16, N_VOXELS))
    noise = 0.05 * rng.normal(size=(N_IMAGES, N_VOXELS))
    voxels = responses[image_ids] + np.concatenate([noise, -noise[:-1]])
    return make_subject(tmp_path / "subject", voxels, image_ids)


def test_linear_voxels_are_predicted_from_what_was_seen(
    subject: Subject, targets: EmbeddingFolder, features: np.ndarray
) -> None:
    model = fit_encoding(subject, targets)
    test = np.arange(N_TEST)
    own = model.correlations(features[test], test, "test")
    other = model.correlations(features[np.roll(test, 1)], test, "test")
    assert list(own) == ["all voxels", "V1", "V2"]  # one voxel has no pattern
    assert own["all voxels"].min() > 0.98
    assert abs(other["all voxels"].mean()) < 0.3


def test_correlations_are_over_voxels_of_z_scored_means(
    subject: Subject, targets: EmbeddingFolder, features: np.ndarray, monkeypatch
) -> None:
    monkeypatch.setattr(brain, "_BLOCK_BYTES", 1)  # an image at a time
    model = fit_encoding(subject, targets)
    test = np.arange(N_TEST)
    made = features[np.roll(test, 3)]
    train = subject.voxels[subject.trial_rows("train")]
    z = (subject.voxels - train.mean(axis=0)) / train.std(axis=0)
    shown = subject.trials["image_id"].to_numpy()
    measured = np.stack([z[shown == image_id].mean(axis=0) for image_id in test])
    predicted = model.solution.predict(made)
    for region, mask in subject.rois.items():
        if region == "one":
            continue
        expected = [
            np.corrcoef(a[mask], b[mask])[0, 1] for a, b in zip(measured, predicted, strict=True)
        ]
        found = model.correlations(made, test, "test")[region]
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_an_encoding_model_needs_training_trials_and_their_embeddings(
    tmp_path: Path, subject: Subject, targets: EmbeddingFolder
) -> None:
    untrained = make_subject(
        tmp_path / "untrained", np.ones((2, N_VOXELS)), np.arange(2), {0: "test", 1: "test"}
    )
    with pytest.raises(BenchmarkError, match="has no training trials, so no encoding model"):
        fit_encoding(untrained, targets)
    stranger = make_subject(
        tmp_path / "stranger",
        np.ones((2, N_VOXELS)),
        np.array([1, 777]),
        {1: "test", 777: "train"},
    )
    with pytest.raises(RunError, match="has no target for image_id 777"):
        fit_encoding(stranger, targets)
    with pytest.raises(BenchmarkError, match=r"80 embeddings of .* take 0.0 GiB, and half of 0.0"):
        fit_encoding(subject, targets, memory_bytes=1000)


def test_another_split_than_that_of_the_images_is_a_mistake(
    subject: Subject, targets: EmbeddingFolder, features: np.ndarray
) -> None:
    model = fit_encoding(subject, targets)
    with pytest.raises(ValueError, match="image ids are not those of the split"):
        model.correlations(features[:N_TEST], np.arange(N_TEST), "train")
