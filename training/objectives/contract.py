"""What an objective is: a model with a loss of whole batches and a loss of single rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..losses.prior import Draws


class Objective(nn.Module, ABC):
    """A module that decodes rows of a batch, and what is asked of the batch as a whole.

    Attributes
    ----------
    weights : tuple of two floats
        Of the batch's loss, and of the rows'.
    loss_names : tuple of two str
        What metrics call them.
    """

    weights: tuple[float, float]
    loss_names: tuple[str, str]

    @abstractmethod
    def forward(
        self, voxels: Sequence[Tensor], targets: Tensor, draws: Draws | None
    ) -> tuple[Tensor, Tensor]:
        """Return what the batch's loss is about, (B, ...), and the loss of each row, (B,)."""

    @abstractmethod
    def draw(self, targets: Tensor, generator: torch.Generator) -> Draws | None:
        """Draw what chance decides for the targets (n, T, D) of a whole batch."""

    @abstractmethod
    def contrast(self, predictions: Tensor, labels: Any) -> Tensor:
        """Return the loss of a whole batch from all its predictions (n, ...)."""
