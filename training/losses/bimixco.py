"""BiMixCo: contrast brains that are mixtures of two trials with the images of both.

Each trial of a batch may be mixed with a partner; its label is then spread over the two images.
"Bidirectional": the same labels are used for brain-to-image and for image-to-brain. Kim et al.
2020 (arXiv:2010.06300) for images; on fMRI, MindEye (Scotti et al. 2023, arXiv:2305.18274, 3.3).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .contrast import brain_to_image, image_to_brain


@dataclass(frozen=True)
class Mixing:
    """Who is mixed with whom, and in what shares.

    Parameters
    ----------
    lam : float32 array of shape (n_trials,), in [0, 1]
        Share of the trial itself, 1 where it is not mixed; its partner holds ``1 - lam``.
    partner : int64 array of shape (n_trials,)
        A permutation; it may have fixed points.
    """

    lam: NDArray[np.float32]
    partner: NDArray[np.int64]

    def labels(self, device: torch.device | str = "cpu") -> Tensor:
        """Return the share of each image in each brain, float32 (n_trials, n_trials).

        Shares add up: a trial that is its own partner stays one-hot.
        """
        lam = torch.from_numpy(self.lam).to(device)
        labels = torch.diag(lam)
        labels[
            torch.arange(len(lam), device=device), torch.from_numpy(self.partner).to(device)
        ] += 1 - lam
        return labels


def draw_mixing(
    subjects: NDArray[np.int64],
    rng: np.random.Generator,
    *,
    probability: float,
    concentration: float,
) -> Mixing:
    """Draw partners of the same subject, whose voxels can be added.

    Parameters
    ----------
    subjects : int64 array of shape (n_trials,), increasing
    rng : numpy Generator
    probability : float in [0, 1]
        That a trial is mixed at all; MindEye: 0.5.
    concentration : float > 0
        Both parameters of the Beta distribution of the share; MindEye: 0.15, so that most
        mixtures are close to one of the two trials.
    """
    lam = rng.beta(concentration, concentration, len(subjects))
    lam[rng.random(len(subjects)) >= probability] = 1.0
    _, first, counts = np.unique(subjects, return_index=True, return_counts=True)
    partner = [start + rng.permutation(count) for start, count in zip(first, counts, strict=True)]
    return Mixing(lam.astype(np.float32), np.concatenate(partner))


def bimixco_loss(
    predictions: Tensor,
    targets: Tensor,
    labels: Tensor,
    *,
    temperature: float,
    negatives: Tensor | None = None,
) -> Tensor:
    """Contrast mixed brain predictions with the images of both trials, both ways.

    Parameters
    ----------
    predictions : Tensor of shape (n_trials, width), unit rows
        Embeddings decoded from mixed voxels.
    targets : Tensor of shape (n_trials, width), unit rows
        Of distinct images: a second trial of the same image would be a false negative.
    labels : Tensor of shape (n_trials, n_trials)
        See `Mixing.labels`.
    temperature : float > 0, unitless
    negatives : Tensor of shape (n_negatives, width), unit rows, optional
        Targets of other images, told apart from brain to image only.

    Returns
    -------
    loss : scalar Tensor, nats

    Notes
    -----
    Kim et al. 2020 (arXiv:2010.06300); on fMRI, Scotti et al. 2023 (arXiv:2305.18274), 3.3. As
    there, the image-to-brain direction uses the transposed labels as they are: its rows sum to
    the share of all brains that an image has.
    """
    forward = brain_to_image(predictions, targets, labels, temperature, negatives)
    return (forward + image_to_brain(predictions, targets, labels.T, temperature)) / 2
