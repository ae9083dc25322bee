"""Steps of training a decoder, and the state between them.

A step's pictures, times and noise follow from (seed, step) alone, so that the state after it is
weights, optimizer and schedule, and no random generator.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..samples import TargetTable
from .canvas import Canvas
from .condition import find_directions, turn_away
from .flow import draw_times, flow_loss, interpolate
from .network import FlowNetwork
from .recipe import DecoderRecipe
from .schema import TrainingRecipe

_VALIDATION_BATCH = 64
# First and last learning rate, as a fraction of the peak, as for brain models (training/optim.py).
_START_DIVISOR, _END_DIVISOR = 25.0, 1000.0


@dataclass(frozen=True, eq=False)
class Examples:
    """Pictures with their embeddings, to draw batches from.

    Parameters
    ----------
    canvas : Canvas
    kept : Tensor of shape (n, ...)
        What `Canvas.keep` made of the pictures.
    table : TargetTable
        Of the same images, row for row.
    center : float32 Tensor of shape (tokens, dim)
        Of the embeddings that are trained on.
    """

    canvas: Canvas
    kept: Tensor
    table: TargetTable
    center: Tensor

    def __len__(self) -> int:
        return len(self.kept)

    def take(self, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Return painted pictures (n, C, h, w) and directions (n, tokens, dim), on the CPU."""
        embeddings = torch.from_numpy(self.table.read(rows))
        painted = self.canvas.paint(self.kept[torch.from_numpy(rows)])
        return painted, find_directions(embeddings, self.center)


class DecoderTraining:
    """Network, optimizer and pictures of one decoder, and its steps.

    Parameters
    ----------
    network : FlowNetwork
        On its device.
    recipe : DecoderRecipe
    examples : Examples
        To train on.
    validation : Examples or None
        Held out.
    """

    def __init__(
        self,
        network: FlowNetwork,
        recipe: DecoderRecipe,
        examples: Examples,
        validation: Examples | None,
    ) -> None:
        self.network, self.recipe = network, recipe
        self.examples, self.validation = examples, validation
        self.device = next(network.parameters()).device
        way = recipe.train
        self.batch_size = min(way.batch_size, len(examples))
        self.optimizer = torch.optim.AdamW(
            network.parameters(), lr=way.learning_rate, weight_decay=way.weight_decay, fused=True
        )
        self.rates = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer,
            max_lr=way.learning_rate,
            total_steps=way.steps,
            pct_start=way.warmup_fraction,
            div_factor=_START_DIVISOR,
            final_div_factor=_END_DIVISOR,
        )
        update = get_ema_multi_avg_fn(way.ema_decay)  # type: ignore[no-untyped-call]
        self.average = AveragedModel(network, multi_avg_fn=update)

    def weights(self) -> dict[str, Tensor]:
        """Return the averaged weights by name."""
        return dict(self.average.module.state_dict())

    def state(self) -> dict[str, Any]:
        """Return what `restore` needs, as tensors and plain values."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rates": self.rates.state_dict(),
            "average": self.average.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.rates.load_state_dict(state["rates"])
        self.average.load_state_dict(state["average"])

    def step(self, number: int) -> Tensor:
        """Take one optimizer step, and return its loss, detached."""
        way, flow = self.recipe.train, self.recipe.flow
        rows = draw_rows(len(self.examples), self.batch_size, way, number)
        clean, directions = (part.to(self.device) for part in self.examples.take(rows))
        seed = int(np.random.default_rng([way.seed, 1, number]).integers(2**62))
        draw = torch.Generator(self.device).manual_seed(seed)
        n = len(clean)

        def uniform() -> Tensor:
            return torch.rand(n, generator=draw, device=self.device)

        noise = torch.randn(clean.shape, generator=draw, device=self.device)
        times = draw_times(
            n, draw, location=flow.time_location, scale=flow.time_scale, device=self.device
        )
        cosines = 1 - (1 - flow.least_cosine) * uniform()
        turns = torch.randn(n, n, generator=draw, device=self.device)
        turned = turn_away(directions, cosines, turns)
        told = cosines.masked_fill(uniform() < flow.blind_fraction, 0.0)
        self.network.train()
        estimate = self.network(interpolate(noise, clean, times), times, turned, told)
        loss = flow_loss(estimate, clean, times).mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # not annotated
        if way.clip_norm:
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), way.clip_norm)
        self.optimizer.step()
        self.rates.step()
        self.average.update_parameters(self.network)
        return loss.detach()

    @torch.inference_mode()
    def validate(self) -> float | None:
        """Return the loss of held-out pictures with their own embeddings; None without any.

        Times are the middles of equal shares of the distribution, and noise is the same each time.
        """
        held_out = self.validation
        if held_out is None:
            return None
        flow, network = self.recipe.flow, self.average.module.eval()
        draw = torch.Generator().manual_seed(self.recipe.train.seed)
        shares = (torch.randperm(len(held_out), generator=draw) + 0.5) / len(held_out)
        logits = flow.time_location + flow.time_scale * torch.special.ndtri(shares)
        all_times = torch.sigmoid(logits)
        losses = []
        for at in range(0, len(held_out), _VALIDATION_BATCH):
            rows = np.arange(at, min(at + _VALIDATION_BATCH, len(held_out)))
            clean, told = held_out.take(rows)
            noise = torch.randn(clean.shape, generator=draw)
            parts = (clean, noise, all_times[rows], told)
            clean, noise, times, told = (part.to(self.device) for part in parts)
            noised = interpolate(noise, clean, times)
            estimate = network(noised, times, told, torch.ones_like(times))
            losses.append(flow_loss(estimate, clean, times))
        return float(torch.cat(losses).mean())


def draw_rows(n_rows: int, batch_size: int, way: TrainingRecipe, step: int) -> NDArray[np.int64]:
    """Return the rows of a step's batch: all rows are drawn once before any is again.

    What is left of a shuffle after its last whole batch waits for the next shuffle.
    """
    n_batches = n_rows // batch_size
    turn, place = divmod(step, n_batches)
    order = np.random.default_rng([way.seed, 0, turn]).permutation(n_rows)
    return order[place * batch_size : (place + 1) * batch_size]
