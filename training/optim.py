"""Optimization: parameter groups, AdamW, the one-cycle schedule, and the average of the weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from .models.assemble import BrainModel, LowLevelModel
from .schema.train import AdamWRecipe

# First and last learning rate, as a fraction of the peak: those of MindEye
# (Scotti et al. 2023, arXiv:2305.18274, code; 1/25 is PyTorch's default).
_START_DIVISOR = 25.0
_END_DIVISOR = 1000.0
_MATRICES = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)


def parameter_groups(
    model: BrainModel | LowLevelModel, recipe: AdamWRecipe
) -> list[dict[str, Any]]:
    """Split what learns into three groups with their weight decay.

    ``voxels``: the matrices of the voxel layers, whose decay is the ridge penalty; ``matrices``:
    all other matrices; ``gains``: biases, norms, positions and null embeddings, without decay.
    """
    voxels = [layer.weight for layer in model.voxel_layers]
    taken = {id(parameter) for parameter in voxels}
    matrices = [
        module.weight
        for module in model.modules()
        if isinstance(module, _MATRICES) and id(module.weight) not in taken
    ]
    taken |= {id(parameter) for parameter in matrices}
    gains = [parameter for parameter in model.parameters() if id(parameter) not in taken]
    groups = (
        ("voxels", voxels, recipe.voxel_weight_decay),
        ("matrices", matrices, recipe.weight_decay),
        ("gains", gains, 0.0),
    )
    return [
        {"name": name, "params": learning, "weight_decay": decay}
        for name, parameters, decay in groups
        if (learning := [parameter for parameter in parameters if parameter.requires_grad])
    ]


class Optimization:
    """AdamW with a one-cycle schedule, clipping, loss scaling and averaging, as the recipe says.

    Parameters
    ----------
    model : BrainModel or LowLevelModel
        On its device. With ``trainable = "voxel_layers"`` the rest of it is frozen here.
    recipe : AdamWRecipe
    n_steps : int
        Of the whole run.

    Notes
    -----
    Loshchilov & Hutter 2019 (arXiv:1711.05101); Smith & Topin 2019 (arXiv:1708.07120). The fused
    kernels update in place, so that a step needs no memory beyond weights, gradients and the two
    moments: 16 bytes a parameter.
    """

    def __init__(
        self, model: BrainModel | LowLevelModel, recipe: AdamWRecipe, *, n_steps: int
    ) -> None:
        self.recipe = recipe
        if recipe.trainable == "voxel_layers":
            model.requires_grad_(False)
            model.voxel_layers.requires_grad_(True)
        self._model = model
        self._optimizer = torch.optim.AdamW(
            parameter_groups(model, recipe), lr=recipe.learning_rate, fused=True
        )
        self._rates = torch.optim.lr_scheduler.OneCycleLR(
            self._optimizer,
            max_lr=recipe.learning_rate,
            total_steps=n_steps,
            pct_start=recipe.warmup_fraction,
            div_factor=_START_DIVISOR,
            final_div_factor=_END_DIVISOR,
        )
        device = next(model.parameters()).device.type
        self._scaler = torch.amp.GradScaler(device, enabled=recipe.precision == "float16")
        self._average: AveragedModel | None = None
        if recipe.ema_decay:
            update = get_ema_multi_avg_fn(recipe.ema_decay)  # type: ignore[no-untyped-call]
            self._average = AveragedModel(model, multi_avg_fn=update)

    @property
    def learning_rate(self) -> float:
        """The rate of the next step."""
        return float(self._rates.get_last_lr()[0])

    @property
    def weights(self) -> nn.Module:
        """The model whose weights the run is about: the average, or the one that is trained."""
        return self._model if self._average is None else self._average.module

    def clear(self) -> None:
        """Forget the gradients."""
        self._optimizer.zero_grad(set_to_none=True)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss."""
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]  # not annotated

    def step(self) -> None:
        """Clip, update, and go on in the schedule."""
        if self.recipe.clip_norm:
            self._scaler.unscale_(self._optimizer)
            torch.nn.utils.clip_grad_norm_(self._model.parameters(), self.recipe.clip_norm)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._rates.step()
        if self._average is not None:
            self._average.update_parameters(self._model)

    def state(self) -> dict[str, Any]:
        """Return what `restore` needs, as tensors and plain values."""
        average = None if self._average is None else self._average.state_dict()
        return {
            "optimizer": self._optimizer.state_dict(),
            "rates": self._rates.state_dict(),
            "scaler": self._scaler.state_dict(),
            "average": average,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned."""
        self._optimizer.load_state_dict(state["optimizer"])
        self._rates.load_state_dict(state["rates"])
        self._scaler.load_state_dict(state["scaler"])
        if self._average is not None:
            self._average.load_state_dict(state["average"])
