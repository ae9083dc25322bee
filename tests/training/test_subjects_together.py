"""Several subjects in one run, and a finished run fitted to a new one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from training.checkpoint import Run
from training.errors import RunError
from training.loop import train
from training.predict import predict
from training.recipe import Recipe

Maker = Callable[..., Any]
LEARNABLE = ("train.epochs=30", "prior=none", "train.learning_rate=0.01")


def top1(predictions: Any, targets: Any) -> float:
    wanted = {int(i): row for row, i in enumerate(targets.metadata()["image_id"].to_pylist())}
    rows = np.array([wanted[int(i)] for i in predictions.metadata()["image_id"].to_pylist()])
    asked = predictions.take(np.arange(predictions.n_rows)).astype(np.float32)
    scores = asked @ targets.take(rows).astype(np.float32).T
    return float((scores.argmax(axis=1) == np.arange(len(rows))).mean())


def test_each_subject_of_a_joint_run_is_decoded_through_its_own_layer(
    make_brain: Maker, small_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    brains = [make_brain("a"), make_brain("b", n_voxels=33)]  # the same images and targets
    subjects = [brain.subject for brain in brains]
    run = tmp_path / "run"
    summary = train(subjects, brains[0].targets, small_recipe(*LEARNABLE), run)
    assert summary.validation is not None and summary.validation["n_images"] == 16
    manifest = Run.open(run).manifest
    assert [subject["n_voxels"] for subject in manifest["subjects"]] == [50, 33]
    assert manifest["n_training_trials"] == 2 * 60 * 3 and manifest["n_training_images"] == 60
    for brain in brains:
        out = predict(run, brain.subject, tmp_path / f"of {brain.subject.name}")
        assert top1(out, brain.targets) > 0.9
    with pytest.raises(RunError, match="trained on a with 50 voxels, b with 33 voxels"):
        predict(run, make_brain("c").subject, tmp_path / "of c")
    with pytest.raises(RunError, match="subject a is given twice"):
        train([subjects[0], subjects[0]], brains[0].targets, small_recipe(), tmp_path / "twice")


def test_fitting_a_run_to_a_new_subject_can_leave_all_but_its_layer_as_it_was(
    make_brain: Maker, small_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    old, new = make_brain("old"), make_brain("new", n_voxels=33, n_train=20)
    shared, fitted = tmp_path / "shared", tmp_path / "fitted"
    train([old.subject], old.targets, small_recipe(*LEARNABLE), shared)
    recipe = small_recipe(*LEARNABLE, "train.trainable=voxel_layers", "data.sessions=2")
    train([new.subject], old.targets, recipe, fitted, finetune=shared)
    before, after = Run.open(shared), Run.open(fitted)
    assert after.manifest["finetune"] == before.fingerprint
    assert after.manifest["n_training_trials"] < 60  # of two sessions in three
    for name, tensor in before.model.state_dict().items():
        if not name.startswith("voxel_layers"):
            assert torch.equal(tensor, after.model.state_dict()[name]), name
    assert top1(predict(fitted, new.subject, tmp_path / "p"), old.targets) > 0.5  # chance 1/12
    everything = small_recipe(*LEARNABLE, "data.sessions=2")
    train([new.subject], old.targets, everything, tmp_path / "all", finetune=shared)
    moved = Run.open(tmp_path / "all").model.state_dict()["trunk.head.weight"]
    assert not torch.equal(moved, before.model.state_dict()["trunk.head.weight"])


def test_only_a_run_of_the_same_architecture_can_be_the_start(
    make_brain: Maker, small_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    brain = make_brain()
    train([brain.subject], brain.targets, small_recipe("train.epochs=1"), tmp_path / "run")
    for override, part in (("model.latent_dim=20", "trunk"), ("prior=none", "prior")):
        with pytest.raises(RunError, match=f"another architecture than the recipe: {part}"):
            train(
                [brain.subject],
                brain.targets,
                small_recipe(override),
                tmp_path / part,
                finetune=tmp_path / "run",
            )
    with pytest.raises(RunError, match="no training trials in its first 1 sessions"):
        lonely = make_brain("late", n_train=1, n_repeats=1, n_test=40)
        train([lonely.subject], lonely.targets, small_recipe("data.sessions=1"), tmp_path / "late")
