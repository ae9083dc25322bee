"""Optimization: parameter groups and the one-cycle schedule."""

from __future__ import annotations

import torch
from torch import nn

from .models.assemble import BrainModel
from .recipe import TrainRecipe

# First and last learning rate, as a fraction of the peak: those of MindEye
# (Scotti et al. 2023, arXiv:2305.18274, code; 1/25 is PyTorch's default).
_START_DIVISOR = 25.0
_END_DIVISOR = 1000.0


def parameter_groups(model: BrainModel, recipe: TrainRecipe) -> list[dict[str, object]]:
    """Split the parameters into three groups with their weight decay.

    ``voxels``: the matrix of the voxel layer, whose decay is the ridge penalty; ``matrices``: all
    other matrices; ``gains``: biases, norms, positions and null embeddings, without decay.
    """
    voxel_matrix = model.backbone.voxel_layer.weight
    matrices = [
        module.weight
        for module in model.modules()
        if isinstance(module, nn.Linear) and module.weight is not voxel_matrix
    ]
    decayed = {id(parameter) for parameter in (voxel_matrix, *matrices)}
    gains = [parameter for parameter in model.parameters() if id(parameter) not in decayed]
    return [
        {"name": "voxels", "params": [voxel_matrix], "weight_decay": recipe.voxel_weight_decay},
        {"name": "matrices", "params": matrices, "weight_decay": recipe.weight_decay},
        {"name": "gains", "params": gains, "weight_decay": 0.0},
    ]


def make_optimizer(
    model: BrainModel, recipe: TrainRecipe, *, n_steps: int
) -> tuple[torch.optim.AdamW, torch.optim.lr_scheduler.OneCycleLR]:
    """Return AdamW and its one-cycle schedule over ``n_steps`` steps.

    Notes
    -----
    Loshchilov & Hutter 2019 (arXiv:1711.05101); Smith & Topin 2019 (arXiv:1708.07120).
    """
    optimizer = torch.optim.AdamW(parameter_groups(model, recipe), lr=recipe.learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=recipe.learning_rate,
        total_steps=n_steps,
        pct_start=recipe.warmup_fraction,
        div_factor=_START_DIVISOR,
        final_div_factor=_END_DIVISOR,
    )
    return optimizer, schedule
