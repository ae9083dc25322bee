from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from training.models.assemble import BrainModel, build_model
from training.optim import Optimization, parameter_groups
from training.recipe import Recipe

Make = Callable[..., Recipe]


def model_of(recipe: Recipe, tokens: int = 2) -> BrainModel:
    torch.manual_seed(0)
    return build_model(recipe, n_voxels=[50], tokens=tokens, dim=12)


def test_every_parameter_is_in_one_group_and_only_matrices_decay(small_recipe: Make) -> None:
    recipe = small_recipe("train.voxel_weight_decay=3.0", "train.weight_decay=0.5").train
    model = model_of(small_recipe("model.n_blocks=2"))
    groups = parameter_groups(model, recipe)
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert len(decay) == sum(len(group["params"]) for group in groups)
    assert set(decay) == {id(p) for p in model.parameters()}
    assert decay[id(model.voxel_layers[0].weight)] == 3.0
    assert decay[id(model.voxel_layers[0].bias)] == 0.0
    assert decay[id(model.trunk.head.weight)] == 0.5
    assert decay[id(model.prior.null_brain)] == decay[id(model.prior.position)] == 0.0
    norms = [module for module in model.modules() if isinstance(module, nn.LayerNorm)]
    assert norms and all(decay[id(norm.weight)] == 0.0 for norm in norms)


def test_only_the_voxel_layers_learn_where_that_is_asked(small_recipe: Make) -> None:
    recipe = small_recipe("train.trainable=voxel_layers")
    model = model_of(recipe)
    optimization = Optimization(model, recipe.train, n_steps=4)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimization.backward(model([torch.randn(3, 50)])[1].square().sum())
    optimization.step()
    moved = {n for n, tensor in model.state_dict().items() if not torch.equal(tensor, before[n])}
    assert moved == {"voxel_layers.0.weight", "voxel_layers.0.bias"}


def test_the_rate_rises_to_its_peak_and_falls_to_a_thousandth_of_its_start(
    small_recipe: Make,
) -> None:
    recipe = small_recipe("train.learning_rate=0.01", "train.warmup_fraction=0.25").train
    model = model_of(small_recipe(), tokens=1)
    optimization = Optimization(model, recipe, n_steps=40)
    rates = []
    for _ in range(39):
        rates.append(optimization.learning_rate)
        optimization.backward(model([torch.randn(3, 50)])[1].sum())
        optimization.step()
    rates.append(optimization.learning_rate)
    assert rates[0] == pytest.approx(0.01 / 25)
    assert max(rates) == rates[9] == pytest.approx(0.01)
    assert rates[-1] == pytest.approx(0.01 / 25 / 1000)


def test_the_average_follows_its_closed_form(small_recipe: Make) -> None:
    recipe = small_recipe("train.ema_decay=0.75", "prior=none")
    model = model_of(recipe)
    optimization = Optimization(model, recipe.train, n_steps=6)
    expected: dict[str, torch.Tensor] = {}
    for step in range(5):
        optimization.clear()
        optimization.backward(model([torch.randn(3, 50)])[1].square().sum())
        optimization.step()
        for name, tensor in model.state_dict().items():
            before = expected.get(name)
            expected[name] = tensor.clone() if step == 0 else 0.75 * before + 0.25 * tensor
    for name, tensor in optimization.weights.state_dict().items():
        torch.testing.assert_close(tensor, expected[name])
    assert optimization.weights is not model


def test_a_gradient_that_overflows_float16_is_skipped(small_recipe: Make) -> None:
    recipe = small_recipe("train.precision=float16", "prior=none", "train.clip_norm=1.0")
    model = model_of(recipe)
    optimization = Optimization(model, recipe.train, n_steps=6)
    optimization.backward(model([torch.randn(3, 50)])[1].square().sum())
    optimization.step()
    before = model.trunk.head.weight.detach().clone()
    optimization.clear()
    optimization.backward(model([torch.randn(3, 50)])[1].sum() * float("inf"))
    optimization.step()
    assert torch.equal(model.trunk.head.weight, before)
