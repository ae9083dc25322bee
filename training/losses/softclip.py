"""SoftCLIP: contrast with the similarities among the images themselves as soft labels."""

from __future__ import annotations

import torch
from torch import Tensor

from .contrast import brain_to_image, image_to_brain


def softclip_loss(
    predictions: Tensor, targets: Tensor, *, temperature: float, negatives: Tensor | None = None
) -> Tensor:
    """Contrast brain predictions with images; alike images share the label.

    Parameters
    ----------
    predictions : Tensor of shape (n_trials, width), unit rows
    targets : Tensor of shape (n_trials, width), unit rows
    temperature : float > 0, unitless
        Of labels and logits alike. How soft the labels are depends on the encoder: the narrower
        the cone of its embeddings, the smaller a temperature they need.
    negatives : Tensor of shape (n_negatives, width), unit rows, optional
        Targets of other images, which take their share of the label, from brain to image only.

    Returns
    -------
    loss : scalar Tensor, nats

    Notes
    -----
    Scotti et al. 2023 (arXiv:2305.18274), section 3.3, equation of L_SoftCLIP, averaged over both
    directions. Its minimum is the entropy of the labels, not 0.
    """
    labels = (targets @ targets.T / temperature).softmax(dim=1)
    wide = labels
    if negatives is not None:
        pool = torch.cat((targets, negatives))
        wide = (targets @ pool.T / temperature).softmax(dim=1)
    forward = brain_to_image(predictions, targets, wide, temperature, negatives)
    return (forward + image_to_brain(predictions, targets, labels, temperature)) / 2
