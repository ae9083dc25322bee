from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import nn

from training.models.assemble import build_model
from training.optim import make_optimizer, parameter_groups
from training.recipe import Recipe


def test_every_parameter_is_in_one_group_and_only_matrices_decay(
    small_recipe: Callable[..., Recipe],
) -> None:
    recipe = small_recipe("train.voxel_weight_decay=3.0", "train.weight_decay=0.5").train
    model = build_model(small_recipe("model.n_blocks=2"), n_voxels=50, tokens=2, dim=12)
    groups = parameter_groups(model, recipe)
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert len(decay) == sum(len(group["params"]) for group in groups)
    assert set(decay) == {id(p) for p in model.parameters()}
    assert decay[id(model.backbone.voxel_layer.weight)] == 3.0
    assert decay[id(model.backbone.voxel_layer.bias)] == 0.0
    assert decay[id(model.backbone.head.weight)] == 0.5
    assert decay[id(model.prior.null_brain)] == decay[id(model.prior.position)] == 0.0
    norms = [module for module in model.modules() if isinstance(module, nn.LayerNorm)]
    assert norms and all(decay[id(norm.weight)] == 0.0 for norm in norms)


def test_the_rate_rises_to_its_peak_and_falls_to_a_thousandth_of_its_start(
    small_recipe: Callable[..., Recipe],
) -> None:
    recipe = small_recipe("train.learning_rate=0.01", "train.warmup_fraction=0.25").train
    model = build_model(small_recipe(), n_voxels=50, tokens=1, dim=12)
    optimizer, schedule = make_optimizer(model, recipe, n_steps=40)
    rates = []
    for _ in range(40):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step() if len(rates) < 40 else None
    assert rates[0] == pytest.approx(0.01 / 25)
    assert max(rates) == rates[9] == pytest.approx(0.01)
    assert rates[-1] == pytest.approx(0.01 / 25 / 1000)
