"""One optimizer step on one batch, in pieces where it must not be in the network at once.

A contrastive loss couples all rows of a batch. A batch in pieces, or spread over processes, is
embedded once without gradients; the loss gives the gradient of each embedding; a second pass, with
the same dropout, carries it into the weights. The result is the gradient of the whole batch
(gradient caching: Gao et al. 2021, arXiv:2101.06983, section 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .losses.prior import Draws
from .objectives.contract import Objective
from .optim import Optimization
from .processes import Processes


@dataclass(frozen=True)
class Piece:
    """Rows of a batch that pass through the network together.

    Parameters
    ----------
    rows : LongTensor of shape (n,)
        Their places in the batch.
    voxels : sequence of Tensor of shape (n_s, V_s)
        Of each subject.
    """

    rows: Tensor
    voxels: Sequence[Tensor]


class Stepper:
    """Takes optimizer steps.

    Parameters
    ----------
    objective : Objective
    optimization : Optimization
    processes : Processes
    compiled : bool
        Let ``torch.compile`` fuse the passes.
    """

    def __init__(
        self,
        objective: Objective,
        optimization: Optimization,
        processes: Processes,
        *,
        compiled: bool,
    ) -> None:
        self.objective = objective
        module: nn.Module = processes.wrap(objective)
        if compiled:
            module.compile()
        self.module = module
        self.optimization, self.processes = optimization, processes
        self.batch_weight, self.row_weight = objective.weights

    def take(
        self, pieces: Sequence[Piece], targets: Tensor, draws: Draws | None, labels: Any
    ) -> Tensor:
        """Take one step.

        Parameters
        ----------
        pieces : sequence of Piece
            The rows of this process.
        targets : Tensor of shape (n, T, D)
            Of the whole batch.
        draws : Draws or None
            Of the whole batch.
        labels : object
            What the objective's `contrast` is told of the whole batch.

        Returns
        -------
        losses : Tensor of shape (2,)
            Loss of the batch as a whole, and loss of its rows, averaged.
        """
        self.optimization.clear()
        if len(pieces) == 1 and self.processes.count == 1:
            predictions, row_losses = self._pass(pieces[0], targets, draws)
            batch_loss, row_loss = self.objective.contrast(predictions, labels), row_losses.mean()
            self.optimization.backward(self.batch_weight * batch_loss + self.row_weight * row_loss)
        else:
            batch_loss, row_loss = self._take_in_pieces(pieces, targets, draws, labels)
        self.optimization.step()
        return torch.stack((batch_loss.detach(), row_loss.detach()))

    def _pass(self, piece: Piece, targets: Tensor, draws: Draws | None) -> tuple[Tensor, Tensor]:
        rows = piece.rows.to(targets.device)
        drawn = draws.rows(rows) if draws is not None else None
        predictions, losses = self.module(piece.voxels, targets[rows], drawn)
        return predictions, losses

    def _take_in_pieces(
        self, pieces: Sequence[Piece], targets: Tensor, draws: Draws | None, labels: Any
    ) -> tuple[Tensor, Tensor]:
        n, processes, device = len(targets), self.processes, targets.device
        states, embedded = [], []
        with torch.no_grad():
            for piece in pieces:
                states.append(_random_state(device))
                rows = piece.rows.to(device)
                embedded.append(self.objective(piece.voxels, targets[rows], None)[0])
        predictions = processes.join_rows(torch.cat(embedded), n).requires_grad_()
        batch_loss = self.objective.contrast(predictions, labels)
        (gradient,) = torch.autograd.grad(batch_loss, predictions)
        total = torch.zeros((), device=device)
        for at, (piece, state) in enumerate(zip(pieces, states, strict=True)):
            _set_random_state(state, device)
            with processes.apart(self.module, until_last=at == len(pieces) - 1):
                own, row_losses = self._pass(piece, targets, draws)
                carried = (own * gradient[piece.rows.to(device)]).sum()
                loss = self.batch_weight * carried + self.row_weight * row_losses.sum() / n
                self.optimization.backward(loss * processes.count)  # gradients are averaged
            total = total + row_losses.detach().sum() / n
        return batch_loss, processes.add_up(total)


def _random_state(device: torch.device) -> Tensor:
    if device.type == "cuda":
        return torch.cuda.get_rng_state(device)
    return torch.get_rng_state()


def _set_random_state(state: Tensor, device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)
