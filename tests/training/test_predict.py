from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from index_builder.embeddings.reader import EmbeddingFolder
from training.errors import RunError
from training.loop import train
from training.predict import predict

Maker = Callable[..., Any]


@pytest.fixture
def trained(make_brain: Maker, small_recipe: Maker, tmp_path: Path) -> Any:
    brain = make_brain(n_train=150, tokens=2, dim=8)
    recipe = small_recipe("train.epochs=30", "train.learning_rate=0.01", "loss.prior_weight=1")
    train([brain.subject], brain.targets, recipe, tmp_path / "run")
    return brain


def rows_of(folder: EmbeddingFolder) -> np.ndarray:
    return folder.take(np.arange(folder.n_rows)).reshape(folder.n_rows, -1).astype(np.float32)


def top1(predictions: EmbeddingFolder, targets: EmbeddingFolder) -> float:
    """Identify by plain cosine against the raw targets, as everything downstream does."""
    known = targets.metadata()["image_id"].to_pylist()
    shown = predictions.metadata()["image_id"].to_pylist()
    wanted = rows_of(targets)[[known.index(image_id) for image_id in shown]]
    scores = rows_of(predictions) @ wanted.T
    return float((scores.argmax(axis=1) == np.arange(len(shown))).mean())


def test_retrieval_predictions_identify_the_images(trained: Any, tmp_path: Path) -> None:
    found = predict(tmp_path / "run", trained.subject, tmp_path / "p")
    assert found.space == dataclasses.replace(trained.targets.space, unit_norm=True)
    np.testing.assert_allclose(np.linalg.norm(rows_of(found), axis=1), 1, atol=1e-3)
    assert top1(found, trained.targets) > 0.8  # chance is 1/12
    table = found.metadata()
    assert table["image_id"].to_pylist() == trained.subject.image_ids("test").tolist()
    assert set(table["n_trials"].to_pylist()) == {3}
    assert set(table["subject"].to_pylist()) == {"sim"}
    assert set(table["split"].to_pylist()) == {"test"}


def test_prior_samples_identify_the_images_and_keep_their_length(
    trained: Any, tmp_path: Path
) -> None:
    found = predict(tmp_path / "run", trained.subject, tmp_path / "p", head="prior")
    assert not found.space.unit_norm
    assert top1(found, trained.targets) > 0.5
    lengths = np.linalg.norm(rows_of(found), axis=1)
    assert 0.5 < lengths.mean() < 1.5  # in the targets' units, whose length is 1


def test_prior_samples_follow_the_seed_and_not_the_batch_size(trained: Any, tmp_path: Path) -> None:
    def sample(name: str, **options: int) -> np.ndarray:
        return rows_of(
            predict(tmp_path / "run", trained.subject, tmp_path / name, head="prior", **options)
        )

    whole = sample("whole")
    np.testing.assert_allclose(sample("fives", batch_size=5), whole, atol=2e-3)
    assert not np.allclose(sample("other", seed=1), whole, atol=1e-2)


@pytest.mark.parametrize("head", ["retrieval", "prior"])
@pytest.mark.parametrize("averaging", ["inputs", "outputs"])
def test_averaging_one_repeat_is_no_averaging(
    make_brain: Maker, small_recipe: Maker, tmp_path: Path, head: Any, averaging: Any
) -> None:
    brain = make_brain(n_repeats=1)
    train([brain.subject], brain.targets, small_recipe(), tmp_path / "run")
    mean = predict(tmp_path / "run", brain.subject, tmp_path / "m", head=head, averaging=averaging)
    single = predict(tmp_path / "run", brain.subject, tmp_path / "s", head=head, average=False)
    order = np.argsort(single.metadata()["image_id"].to_numpy())
    np.testing.assert_allclose(rows_of(mean), rows_of(single)[order], atol=2e-3)


def test_averaged_outputs_are_the_mean_of_single_trials(trained: Any, tmp_path: Path) -> None:
    run, subject = tmp_path / "run", trained.subject
    single = predict(run, subject, tmp_path / "single", average=False, batch_size=7)
    table = single.metadata()
    assert single.n_rows == 36
    rows = subject.trial_rows("test")
    assert table["trial"].to_pylist() == subject.trials["trial"].to_numpy()[rows].tolist()
    assert table["image_id"].to_pylist() == subject.trials["image_id"].to_numpy()[rows].tolist()
    mean = predict(run, subject, tmp_path / "mean", averaging="outputs")
    shown = table["image_id"].to_numpy()
    for i, image_id in enumerate(mean.metadata()["image_id"].to_pylist()):
        expected = rows_of(single)[shown == image_id].mean(axis=0)
        np.testing.assert_allclose(rows_of(mean)[i], expected / np.linalg.norm(expected), atol=1e-3)


def test_guidance_moves_samples_along_the_brains_contribution(
    make_brain: Maker, small_recipe: Maker, tmp_path: Path
) -> None:
    brain = make_brain()
    samples = {}
    for guidance in (0, 1, 2):
        recipe = small_recipe(f"prior.guidance={guidance}", "prior.n_sampling_steps=1")
        train([brain.subject], brain.targets, recipe, tmp_path / f"run{guidance}")
        out = tmp_path / f"p{guidance}"
        found = predict(tmp_path / f"run{guidance}", brain.subject, out, head="prior")
        samples[guidance] = rows_of(found)
    # With one evaluation the sample is the estimate itself, linear in the guidance.
    np.testing.assert_allclose(samples[2], 2 * samples[1] - samples[0], atol=2e-3)
    assert not np.allclose(samples[2], samples[1], atol=1e-2)


def test_what_does_not_belong_together_is_refused(
    make_brain: Maker, small_recipe: Maker, tmp_path: Path
) -> None:
    brain, other = make_brain(n_validation=0), make_brain("other")
    run = tmp_path / "run"
    train([brain.subject], brain.targets, small_recipe("prior=none", "train.epochs=1"), run)
    with pytest.raises(RunError, match=r"is subject other with 50 voxels, and .* trained on sim"):
        predict(run, other.subject, tmp_path / "p")
    with pytest.raises(RunError, match="has no trials in the split 'validation'"):
        predict(run, brain.subject, tmp_path / "p", split="validation")
    with pytest.raises(RunError, match=r"without a prior \(its recipe has no section prior\)"):
        predict(run, brain.subject, tmp_path / "p", head="prior")
    with pytest.raises(ValueError, match="head is 'best', expected one of retrieval, prior"):
        predict(run, brain.subject, tmp_path / "p", head="best")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="averaging is 'both', expected 'inputs' or 'outputs'"):
        predict(run, brain.subject, tmp_path / "p", averaging="both")  # type: ignore[arg-type]


def test_an_interrupted_prediction_goes_on(trained: Any, tmp_path: Path) -> None:
    run, subject, out = tmp_path / "run", trained.subject, tmp_path / "p"
    whole = predict(run, subject, tmp_path / "whole", batch_size=5)

    class Stopped(Exception):
        pass

    calls = 0
    original = pa.table

    def stop_at_the_second(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise Stopped
        return original(*args, **options)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        patch.setattr("training.predict.pa.table", stop_at_the_second)
        predict(run, subject, out, batch_size=5)
    resumed = predict(run, subject, out, batch_size=5)
    assert resumed.fingerprint == whole.fingerprint
