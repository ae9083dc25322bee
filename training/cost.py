"""What a recipe costs: parameters, arithmetic and memory, counted without allocating anything.

The model is built on PyTorch's meta device, where tensors have shapes and no contents, and one
training pass of one micro-batch is run there: operations are counted by PyTorch's own counter, and
activations are what the backward pass holds on to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from .losses.prior import Draws
from .models.assemble import build_model, count_parameters
from .objectives.assemble import build_objective
from .recipe import Recipe, load_recipe
from .schema.prior import MindEyeFinalPriorRecipe, MindEyePriorRecipe
from .schema.train import AdamWRecipe

# Subject 1 of NSD as MindEye trains on it (arXiv:2305.18274, code): what sizes are told for.
NSD_VOXELS, NSD_IMAGES, NSD_REPEATS = 15_724, 8_859, 3
_ANY_TARGET = (1, 768)  # CLIP ViT-L/14's final embedding, for recipes of any target
_OPTIMIZER_BYTES = 16  # weight, gradient and AdamW's two moments, float32 each
_SUSTAINED = 100e12  # operations a second, for hours that can be compared
_GIB = 1 << 30


@dataclass(frozen=True)
class Cost:
    """What training costs.

    Parameters
    ----------
    n_parameters : dict of str to int
        By part, with ``total``.
    step_operations : int
        Floating-point operations of one optimizer step, a multiplication and an addition counted
        as two; 0 for a closed form.
    memory_bytes : int
        Weights, gradients, optimizer, average, and what one micro-batch leaves for its backward
        pass, in float32; voxels and targets (``data.memory``) come on top.
    """

    n_parameters: dict[str, int]
    step_operations: int
    memory_bytes: int


def estimate_cost(recipe: Recipe, *, n_voxels: int, tokens: int, dim: int) -> Cost:
    """Count the cost of training a recipe on one subject.

    Parameters
    ----------
    recipe : Recipe
    n_voxels : int
    tokens, dim : int
        Shape of one target.
    """
    with torch.device("meta"):
        model = build_model(recipe, n_voxels=[n_voxels], tokens=tokens, dim=dim)
    n_parameters = count_parameters(model)
    train = recipe.train
    if not isinstance(train, AdamWRecipe):
        return Cost(n_parameters, 0, 4 * n_parameters["total"])
    objective = build_objective(model, recipe, torch.float32)
    n = min(train.micro_batch_size, train.batch_size)
    voxels, targets, draws = _inputs(recipe, n, n_voxels, tokens, dim)
    held: dict[int, int] = {}

    def hold(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            storage = tensor.untyped_storage()
            held[id(storage)] = storage.nbytes()
        return tensor

    with (
        FlopCounterMode(display=False) as counter,
        torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor),
    ):
        predictions, losses = objective([voxels], targets, draws)
        (predictions.sum() + losses.sum()).backward()
    passes = train.batch_size / n
    # Gradient caching embeds every piece once more, forward only: a third of its training pass.
    extra = 4 / 3 if passes > 1 else 1.0
    bytes_a_parameter = _OPTIMIZER_BYTES + (4 if train.ema_decay else 0)
    return Cost(
        n_parameters=n_parameters,
        step_operations=int(counter.get_total_flops() * passes * extra),
        memory_bytes=bytes_a_parameter * n_parameters["total"] + sum(held.values()),
    )


def _inputs(
    recipe: Recipe, n: int, n_voxels: int, tokens: int, dim: int
) -> tuple[Tensor, Tensor, Draws | None]:
    targets = torch.empty(n, tokens, dim, device="meta")
    voxels = torch.empty(n, n_voxels, device="meta")
    if recipe.prior is None:
        return voxels, targets, None
    dropped = torch.empty(n, dtype=torch.bool, device="meta")
    drops = {"drop_brain": dropped}
    if isinstance(recipe.prior, MindEyePriorRecipe | MindEyeFinalPriorRecipe):
        drops["drop_image"] = dropped
    step = torch.empty(n, dtype=torch.long, device="meta")
    return voxels, targets, Draws(step, torch.empty_like(targets), drops)


def describe_recipe(name: str, header: str) -> dict[str, Any]:
    """Describe a shipped recipe for subject 1 of NSD: its header, size, memory and arithmetic.

    Returns
    -------
    description : dict
        ``lines`` for people; ``n_parameters``, ``memory_bytes``, ``step_operations``,
        ``run_operations`` for programs.
    """
    recipe = load_recipe(name)
    target = recipe.target
    tokens, dim = (target.tokens, target.dim) if target else _ANY_TARGET
    cost = estimate_cost(recipe, n_voxels=NSD_VOXELS, tokens=tokens, dim=dim)
    total = cost.n_parameters["total"]
    lines = [
        *header.splitlines(),
        f"NSD subject 1, {tokens} x {dim} targets: {total / 1e6:,.1f} M parameters, "
        f"{cost.memory_bytes / _GIB:,.1f} GiB of memory to train in float32.",
    ]
    operations = 0
    if isinstance(recipe.train, AdamWRecipe):
        n_samples = NSD_IMAGES * (NSD_REPEATS if recipe.data.repeats == "single" else 1)
        n_steps = -(-n_samples // recipe.train.batch_size) * recipe.train.epochs
        operations = n_steps * cost.step_operations
        hours = operations / _SUSTAINED / 3600
        lines.append(
            f"{n_steps:,} steps of {cost.step_operations / 1e12:,.3f} TFLOP: "
            f"{hours:,.2f} h at {_SUSTAINED / 1e12:.0f} TFLOP/s."
        )
    return {
        "lines": lines,
        "n_parameters": cost.n_parameters,
        "memory_bytes": cost.memory_bytes,
        "step_operations": cost.step_operations,
        "run_operations": operations,
    }
