"""BiMixCo: contrast brains that are mixtures of two trials with the images of both.

Each trial of a batch may be mixed with a partner; its label is then spread over the two images.
"Bidirectional": the same labels are used for brain-to-image and for image-to-brain. Kim et al.
2020 (arXiv:2010.06300) for images; on fMRI, MindEye (Scotti et al. 2023, arXiv:2305.18274, 3.3).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def draw_mixing(
    n_trials: int, rng: np.random.Generator, *, probability: float, concentration: float
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Draw who is mixed with whom, and in what shares.

    Parameters
    ----------
    n_trials : int
    rng : numpy Generator
    probability : float in [0, 1]
        That a trial is mixed at all; MindEye: 0.5.
    concentration : float > 0
        Both parameters of the Beta distribution of the share; MindEye: 0.15, so that most
        mixtures are close to one of the two trials.

    Returns
    -------
    lam : float32 array of shape (n_trials,), in [0, 1]
        Share of the trial itself; 1 where it is not mixed.
    partner : int64 array of shape (n_trials,)
        A permutation; it may have fixed points.
    """
    lam = rng.beta(concentration, concentration, n_trials)
    lam[rng.random(n_trials) >= probability] = 1.0
    return lam.astype(np.float32), rng.permutation(n_trials)


def mix_voxels(voxels: Tensor, lam: Tensor, partner: Tensor) -> Tensor:
    """Return ``lam * voxels + (1 - lam) * voxels[partner]`` for voxels of shape (n_trials, V)."""
    return lam[:, None] * voxels + (1 - lam)[:, None] * voxels[partner]


def bimixco_loss(
    predictions: Tensor, targets: Tensor, lam: Tensor, partner: Tensor, *, temperature: float
) -> Tensor:
    """Contrast mixed brain predictions with the images of both trials, both ways.

    Parameters
    ----------
    predictions : Tensor of shape (n_trials, width), unit rows
        Embeddings decoded from mixed voxels.
    targets : Tensor of shape (n_trials, width), unit rows
        Of distinct images: a second trial of the same image would be a false negative.
    lam : Tensor of shape (n_trials,), in [0, 1]
        Share of the trial itself; its partner holds ``1 - lam``.
    partner : LongTensor of shape (n_trials,)
        May contain fixed points; such rows stay one-hot, because shares add up.
    temperature : float > 0, unitless

    Returns
    -------
    loss : scalar Tensor, nats

    Notes
    -----
    Kim et al. 2020 (arXiv:2010.06300); on fMRI, Scotti et al. 2023 (arXiv:2305.18274), 3.3. As
    there, the image-to-brain direction uses the transposed labels as they are: its rows sum to
    the share of all brains that an image has.
    """
    labels = torch.diag(lam)
    labels[torch.arange(len(lam), device=lam.device), partner] += 1 - lam
    logits = predictions @ targets.T / temperature
    brain_to_image = -(labels * logits.log_softmax(dim=1)).sum(dim=1).mean()
    image_to_brain = -(labels.T * logits.T.log_softmax(dim=1)).sum(dim=1).mean()
    return (brain_to_image + image_to_brain) / 2
