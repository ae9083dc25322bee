"""Blurry pictures of the low-level branch: where image-to-image starts from."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from training.encoders.device import one_device
from training.encoders.latent_pictures import LatentPictures
from training.predict import Predictor
from training.subjects.subject import Subject


class LowLevelPictures:
    """What a low-level run says a subject saw, decoded by the VAE.

    Parameters
    ----------
    run : path
        A run with the head latent.
    subject : Subject
    split : {"train", "validation", "test"}
    vae : path
        Weights that decode the run's latents; see `LatentPictures`.
    device : str

    Attributes
    ----------
    details : dict
        Run by fingerprint, and VAE by name.

    Raises
    ------
    RunError
        If the run isn't a low-level one of this subject.
    EncoderError
        If the weights aren't the VAE's.
    """

    def __init__(
        self,
        run: str | os.PathLike[str],
        subject: Subject,
        *,
        split: str,
        vae: str | os.PathLike[str],
        device: str = "auto",
    ) -> None:
        self._predictor = Predictor(run, subject, split=split, head="latent", device=device)
        space = self._predictor.run.space
        self._pictures = LatentPictures(space, os.fspath(vae), one_device(device))
        self._batches = {
            int(self._predictor.table.image_ids[batch.images[0]]): batch
            for batch in self._predictor.average_batches(1)
        }
        self.details = {"run": self._predictor.run.fingerprint, "latents": space.model}

    def make(self, image_ids: Sequence[int]) -> NDArray[np.uint8]:
        """Return pictures (n, side, side, 3) of images, each from the mean of its trials."""
        latents = [
            self._predictor.decode(self._batches[image_id])[0].cpu().numpy()
            for image_id in image_ids
        ]
        return self._pictures.decode(np.concatenate(latents))
