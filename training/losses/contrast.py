"""Cross-entropies of identification with given labels, brain to image and image to brain."""

from __future__ import annotations

import torch
from torch import Tensor


def brain_to_image(
    predictions: Tensor,
    targets: Tensor,
    labels: Tensor,
    temperature: float,
    negatives: Tensor | None = None,
) -> Tensor:
    """Return how far each brain is from choosing its image among those of the batch.

    Parameters
    ----------
    predictions, targets : Tensor of shape (n, width), unit rows
    labels : Tensor of shape (n, n + n_negatives) or (n, n)
        Share of each target, then of each negative, in each brain; where the negatives' are left
        out they are 0.
    temperature : float > 0, unitless
    negatives : Tensor of shape (n_negatives, width), unit rows, optional
        Targets of other images.

    Returns
    -------
    loss : scalar Tensor, nats
    """
    pool = targets if negatives is None else torch.cat((targets, negatives))
    logits = predictions @ pool.T / temperature
    chosen = logits.log_softmax(dim=1)[:, : labels.shape[1]]
    return -(labels * chosen).sum(dim=1).mean()


def image_to_brain(
    predictions: Tensor, targets: Tensor, labels: Tensor, temperature: float
) -> Tensor:
    """Return how far each image is from choosing its brain among those of the batch.

    Parameters
    ----------
    predictions, targets : Tensor of shape (n, width), unit rows
    labels : Tensor of shape (n, n)
        Share of each brain in each image.
    temperature : float > 0, unitless

    Returns
    -------
    loss : scalar Tensor, nats
    """
    logits = targets @ predictions.T / temperature
    return -(labels * logits.log_softmax(dim=1)).sum(dim=1).mean()
