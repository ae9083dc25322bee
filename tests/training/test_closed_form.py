from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from training.checkpoint import Run
from training.errors import RecipeError, RunError
from training.loop import train
from training.predict import predict
from training.recipe import load_recipe
from training.ridge import fit_ridge
from training.samples import average_batches
from training.study import Study

Maker = Callable[..., Any]
SMALL = ("model.latent_dim=9", "train.n_folds=3", "train.n_threads=1")


def test_a_linear_run_is_the_ridge_solution_and_predicts_like_any_run(
    make_brain: Maker, tmp_path: Path
) -> None:
    brain = make_brain(tokens=2)
    recipe = load_recipe("linear", SMALL)
    summary = train([brain.subject], brain.targets, recipe, tmp_path / "run")
    assert summary.n_epochs == summary.n_steps == 0 and summary.kept_epoch is None
    assert summary.validation is not None and summary.validation["brain_to_image_top1"] > 0.8
    study = Study([brain.subject], brain.targets, recipe.data, seed=0)
    voxels = np.concatenate(
        [study.samples.voxels(b)[0] for b in average_batches(study.samples, batch_size=16)]
    )
    expected = fit_ridge(voxels, study.read_targets, latent_dim=9, n_folds=3).for_retrieval()
    run = Run.open(tmp_path / "run")
    with torch.inference_mode():
        _, retrieval = run.model.decode(torch.from_numpy(voxels), 0)
    np.testing.assert_allclose(retrieval.numpy(), expected.predict(voxels), rtol=1e-3, atol=1e-4)
    folder = predict(tmp_path / "run", brain.subject, tmp_path / "predictions")
    assert folder.n_rows == 12
    with pytest.raises(RunError, match="was trained without a prior"):
        predict(tmp_path / "run", brain.subject, tmp_path / "p", head="prior")


def test_a_closed_form_is_of_one_subject_and_fits_its_memory(
    make_brain: Maker, tmp_path: Path
) -> None:
    brain, other = make_brain(), make_brain("b")
    recipe = load_recipe("linear", SMALL)
    with pytest.raises(RunError, match="solved for one subject, and 2 are given"):
        train([brain.subject, other.subject], brain.targets, recipe, tmp_path / "two")
    tight = load_recipe("linear", (*SMALL, "data.memory=1000"))
    with pytest.raises(RunError, match=r"60 images x 50 voxels take 12,000 bytes.* allows 1,000"):
        train([brain.subject], brain.targets, tight, tmp_path / "tight")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.n_blocks=1", r"expected model\.kind 'linear_start' with n_blocks 0"),
        ("train.smallest_penalty=1e6", r"smallest_penalty is 1000000\.0, expected at most"),
    ],
)
def test_what_no_closed_form_solves_is_refused(override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe("linear", (override,))
