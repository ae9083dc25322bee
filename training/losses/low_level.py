"""Losses of the low-level branch: its VAE latents, and its features against a teacher's."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

# Of Stable Diffusion's VAE, from its published configuration: what gives its latents unit variance,
# as latent diffusion wants them (Rombach et al. 2022, arXiv:2112.10752).
SCALING_FACTOR = 0.18215


def latent_l1_loss(
    predicted: Tensor, target: Tensor, *, scaling_factor: float = SCALING_FACTOR
) -> Tensor:
    """Return the mean absolute error of VAE latents, row by row, in units of the VAE itself.

    Parameters
    ----------
    predicted, target : Tensor of one shape (B, ...)
        Latents multiplied by the VAE's scaling factor.
    scaling_factor : float > 0
        By which the error is divided, as MindEye does; MindEye2 doesn't: 1.

    Returns
    -------
    losses : Tensor of shape (B,)

    Notes
    -----
    The low-level pipeline of Scotti et al. 2023 (arXiv:2305.18274), and section 2.2 of Scotti et
    al. 2024 (arXiv:2403.11207); the division is from their code.
    """
    return (predicted - target).abs().flatten(1).mean(dim=1) / scaling_factor


def soft_contrastive_loss(
    student: Tensor, teacher: Tensor, teacher_augmented: Tensor, *, temperature: float
) -> Tensor:
    """Contrast the branch's features with a teacher's; alike places share the label.

    All tokens of all images are each other's candidates. What a token of the student should find
    in an augmented view is what the same token of the clean view finds there, softly, and the
    other way round.

    Parameters
    ----------
    student : Tensor of shape (B, T, F)
        Features of the low-level branch.
    teacher, teacher_augmented : Tensor of shape (B, T, F)
        The teacher's features of the images, and of an augmented view of each. Norms don't count:
        all tokens are compared by cosine.
    temperature : float > 0, unitless
        Of labels and logits alike; 0.075 in MindEye, 0.2 in MindEye2.

    Returns
    -------
    loss : scalar Tensor, nats

    Notes
    -----
    The low-level pipeline of Scotti et al. 2023 (arXiv:2305.18274), as their code computes it. Its
    minimum is the mean entropy of the labels, not 0.
    """
    seen, clean, augmented = (
        F.normalize(features.flatten(0, 1), dim=1)
        for features in (student, teacher, teacher_augmented)
    )
    similarity = clean @ augmented.T / temperature
    logits = seen @ augmented.T / temperature
    to_augmented = -(similarity.softmax(dim=1) * logits.log_softmax(dim=1)).sum(dim=1).mean()
    to_student = -(similarity.T.softmax(dim=1) * logits.T.log_softmax(dim=1)).sum(dim=1).mean()
    return (to_augmented + to_student) / 2
