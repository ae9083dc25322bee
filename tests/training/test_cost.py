"""Sizes of the shipped recipes against what the papers' code prints, and the counting itself."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from training.cost import describe_recipe, estimate_cost
from training.models.assemble import summarize_parameters
from training.recipe import Recipe, list_recipes, load_recipe

VOXELS = 15_724  # subject 1 of NSD


@pytest.mark.parametrize(
    ("name", "without_prior", "prior"),
    [
        # MedARC-AI/fMRI-reconstruction-NSD, printed by Train_MindEye.ipynb; its prior counts 16
        # rotary frequencies that don't train.
        ("mindeye_hidden", 947_579_904, 56_055_184 - 16),
        ("mindeye_final", 142_076_928, None),
        # MedARC-AI/MindEyeV2, printed by Train.ipynb: voxel layer, and backbone without the
        # low-level branch, 15,158,628 of 1,903,020,028 at the published width.
        ("mindeye2_1024", 16_102_400 + 453_360_280, 259_865_216 - 16),
        ("mindeye2", 64_409_600 + 1_903_020_028 - 15_158_628, 259_865_216 - 16),
    ],
)
def test_published_models_have_their_published_sizes(
    name: str, without_prior: int, prior: int | None
) -> None:
    recipe = load_recipe(name)
    target = recipe.target
    assert target is not None
    counts = summarize_parameters(recipe, n_voxels=[VOXELS], tokens=target.tokens, dim=target.dim)
    assert counts["total"] - counts["prior"] == without_prior
    assert prior is None or counts["prior"] == prior


def test_the_low_level_model_has_its_published_size() -> None:
    counts = summarize_parameters(
        load_recipe("mindeye_low_level"), n_voxels=[VOXELS], tokens=4096, dim=4
    )
    assert counts["total"] == 206_065_604  # made and counted from the published classes


def test_light_stays_light() -> None:
    counts = summarize_parameters(load_recipe("light"), n_voxels=[VOXELS], tokens=257, dim=768)
    assert counts["total"] <= 15_000_000


def test_operations_and_memory_follow_the_arithmetic(small_recipe: Callable[..., Recipe]) -> None:
    sizes = ("model.latent_dim=24", "model.n_blocks=0", "model.projector_dim=0", "prior=none")
    batch = ("train.batch_size=8", "train.micro_batch_size=8")
    recipe = small_recipe(*sizes, *batch)
    cost = estimate_cost(recipe, n_voxels=50, tokens=2, dim=12)
    # Forward, and backward for weights and for inputs but the voxels, whose gradient nobody asks.
    assert cost.step_operations == 2 * 8 * (2 * 50 * 24 + 3 * 24 * 24)
    held = 8 * (50 + 24 + 24) * 4
    assert 16 * cost.n_parameters["total"] + held <= cost.memory_bytes
    assert cost.memory_bytes <= 16 * cost.n_parameters["total"] + 3 * held
    pieces = estimate_cost(
        small_recipe(*sizes, "train.batch_size=8", "train.micro_batch_size=2"),
        n_voxels=50,
        tokens=2,
        dim=12,
    )
    assert pieces.step_operations == pytest.approx(4 / 3 * cost.step_operations, rel=1e-6)
    assert pieces.memory_bytes < cost.memory_bytes
    averaged = estimate_cost(
        small_recipe(*sizes, *batch, "train.ema_decay=0.9"), n_voxels=50, tokens=2, dim=12
    )
    assert averaged.memory_bytes - cost.memory_bytes == 4 * cost.n_parameters["total"]


@pytest.mark.parametrize("name", sorted(list_recipes()))
def test_every_recipe_tells_its_size_memory_and_arithmetic(name: str) -> None:
    described = describe_recipe(name, list_recipes()[name])
    assert "M parameters" in "\n".join(described["lines"])
    assert described["memory_bytes"] >= 4 * described["n_parameters"]["total"]
    assert (described["run_operations"] > 0) == (name != "linear")
