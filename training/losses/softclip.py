"""SoftCLIP: contrast with the similarities among the images themselves as soft labels."""

from __future__ import annotations

from torch import Tensor


def softclip_loss(predictions: Tensor, targets: Tensor, *, temperature: float) -> Tensor:
    """Contrast brain predictions with images; alike images share the label.

    Parameters
    ----------
    predictions : Tensor of shape (n_trials, width), unit rows
    targets : Tensor of shape (n_trials, width), unit rows
    temperature : float > 0, unitless
        Of labels and logits alike. How soft the labels are depends on the encoder: the narrower
        the cone of its embeddings, the smaller a temperature they need.

    Returns
    -------
    loss : scalar Tensor, nats

    Notes
    -----
    Scotti et al. 2023 (arXiv:2305.18274), section 3.3, equation of L_SoftCLIP, averaged over both
    directions. Its minimum is the entropy of the labels, not 0.
    """
    labels = (targets @ targets.T / temperature).softmax(dim=1)
    logits = predictions @ targets.T / temperature
    brain_to_image = -(labels * logits.log_softmax(dim=1)).sum(dim=1).mean()
    image_to_brain = -(labels * logits.T.log_softmax(dim=1)).sum(dim=1).mean()
    return (brain_to_image + image_to_brain) / 2
