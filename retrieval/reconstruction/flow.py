"""A decoder that was trained here, on a lab's own pictures; see `training.decoder`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from index_builder.embeddings.float16 import to_float32
from index_builder.embeddings.reader import EmbeddingFolder
from training.decoder.artefact import TrainedDecoder
from training.decoder.canvas import open_canvas
from training.decoder.condition import find_directions
from training.decoder.flow import guide, integrate, interpolate
from training.decoder.pictures import square_bytes
from training.diffusion.sampling import draw_noise
from training.errors import TrainingError
from training.samples import TargetTable
from training.subjects.subject import Subject

from ..errors import ReconstructionError
from .contract import Placement, Sampling, require_decodable

_FEWEST_ROWS = 2


@dataclass(frozen=True, eq=False)
class Gap:
    """How predictions differ from the embeddings of the pictures, as `measure_gap` found it.

    Parameters
    ----------
    center : float32 array of shape (tokens, dim)
        Mean of the predictions, each of norm 1.
    cosine : float in [0, 1]
        Mean, over pictures, of the cosine between the prediction's direction from its center and
        the embedding's from its own.
    """

    center: NDArray[np.float32]
    cosine: float


def measure_gap(
    predictions: EmbeddingFolder, targets: EmbeddingFolder, decoder: TrainedDecoder
) -> Gap:
    """Measure the gap on images that will not be reconstructed: those of the validation split.

    Parameters
    ----------
    predictions, targets : EmbeddingFolder
        Joined by the column ``image_id``.
    decoder : TrainedDecoder
        Of the space of both.

    Raises
    ------
    ReconstructionError
        If there are fewer than two predictions.
    SpaceMismatchError
        If the spaces differ.
    RunError
        If a predicted image has no target.
    """
    for folder in (predictions, targets):
        decoder.space.require_comparable(
            folder.space, mine=str(decoder.path), theirs=str(folder.path)
        )
    if predictions.n_rows < _FEWEST_ROWS:
        raise ReconstructionError(
            f"{predictions.path} has {predictions.n_rows} rows, expected at least {_FEWEST_ROWS} "
            f"to measure how predictions differ from targets. Predict the validation split."
        )
    image_ids = predictions.metadata(columns=["image_id"])["image_id"].to_numpy()
    truth = TargetTable(targets, image_ids, memory_bytes=0).read(np.arange(len(image_ids)))
    shape = (-1, decoder.space.tokens, decoder.space.dim)
    predicted = to_float32(predictions.take(np.arange(predictions.n_rows)).reshape(shape))
    norms = np.linalg.norm(predicted, axis=(1, 2), keepdims=True)
    center = np.asarray((predicted / norms).mean(axis=0), dtype=np.float32)
    pointing = find_directions(torch.from_numpy(predicted), torch.from_numpy(center))
    expected = find_directions(torch.from_numpy(truth), decoder.center)
    cosines = (pointing * expected).flatten(1).mean(dim=1)
    return Gap(center, float(cosines.mean().clamp(0, 1)))


class FlowDecoder:
    """Pictures of embeddings by flow matching; see `contract.Decoder`.

    Parameters
    ----------
    folder : path
        Of `voxseek decoder train`.
    sampling : Sampling or None
        None: as its recipe says. ``strength`` of a start is 1 minus the time at which the flow
        joins it.
    placement : Placement or None
        In single precision, without offloading.
    gap : Gap or None
        Of the predictions that will be decoded. None: embeddings lie around the targets' own
        center, and the network is told the cosine of its recipe.
    vae : path or None
        Frozen weights, for a decoder that draws latents.

    Raises
    ------
    ArtefactError
        If the folder is no finished decoder, or was altered.
    ReconstructionError
        If the weights of the autoencoder are missing or others than it was trained with, or the
        placement is not for it.
    """

    name = "flow"

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        sampling: Sampling | None = None,
        placement: Placement | None = None,
        gap: Gap | None = None,
        vae: str | os.PathLike[str] | None = None,
    ) -> None:
        self._placement = placement or Placement(batch_size=32)
        if self._placement.precision != "fp32" or self._placement.offload:
            raise ReconstructionError(
                "the decoder flow is small: it runs in fp32, and is not offloaded. Leave "
                "--precision and --offload out."
            )
        self.trained = TrainedDecoder.open(folder)
        recipe = self.trained.recipe
        try:
            self._canvas = open_canvas(
                recipe.pictures, pretrained=vae, device=self._placement.device
            )
        except TrainingError as error:
            raise ReconstructionError(f"{self.trained.path}: {error}") from error
        if self._canvas.weights != self.trained.manifest["weights"]:
            raise ReconstructionError(
                f"{vae} is {self._canvas.weights}, and {self.trained.path} was trained with "
                f"{self.trained.manifest['weights']}. Give the autoencoder of then: --vae DIR."
            )
        self._sampling = sampling or Sampling(
            guidance=recipe.sampling.guidance, n_steps=recipe.sampling.n_steps
        )
        center = self.trained.center if gap is None else torch.from_numpy(gap.center)
        self._cosine = recipe.sampling.cosine if gap is None else gap.cosine
        self._device = torch.device(self._placement.device)
        self._center = center.to(self._device)
        network = self.trained.network.to(self._device)
        self._network = network.to(memory_format=torch.channels_last)
        self.tokens, self.dim = self.trained.space.tokens, self.trained.space.dim
        self.side = recipe.pictures.side
        self.details: dict[str, str | int | float] = {
            "weights": self.trained.fingerprint,
            "n_steps": self._sampling.n_steps,
            "guidance": self._sampling.guidance,
            "strength": self._sampling.strength,
            "cosine": self._cosine,
            "center": "targets" if gap is None else "predictions",
        }

    def decode(
        self,
        embeddings: NDArray[np.float32],
        *,
        seeds: Sequence[int],
        starts: NDArray[np.uint8] | None = None,
    ) -> NDArray[np.uint8]:
        """Make one picture of each embedding; see `contract.Decoder.decode`.

        Notes
        -----
        With a start the flow begins on the line between the picture's noise and the start, at time
        1 - strength, as SDEdit does in diffusion (Meng et al. 2022, arXiv:2108.01073).
        """
        require_decodable(self, embeddings, seeds, starts)
        size = self._placement.batch_size
        pictures = [
            self._decode(
                embeddings[at : at + size],
                seeds[at : at + size],
                None if starts is None else starts[at : at + size],
            )
            for at in range(0, len(embeddings), size)
        ]
        return np.concatenate([np.empty((0, self.side, self.side, 3), np.uint8), *pictures])

    def require_unseen(self, subject: Subject, split: str) -> None:
        """Raise if the decoder was trained on a picture of a subject's split.

        Raises
        ------
        RunError
            Says how many, and what to do.
        ArtefactError, SubjectError
            If a picture can't be had.
        """
        squares = [
            square_bytes(subject.open_image(image_id), self.side)
            for image_id in subject.image_ids(split).tolist()
        ]
        if squares:
            where = f"{subject.path}, split {split}"
            self.trained.require_unseen(np.stack(squares), where=where)

    @torch.inference_mode()
    def _decode(
        self,
        embeddings: NDArray[np.float32],
        seeds: Sequence[int],
        starts: NDArray[np.uint8] | None,
    ) -> NDArray[np.uint8]:
        told = torch.from_numpy(np.ascontiguousarray(embeddings)).to(self._device)
        directions = find_directions(told, self._center)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        noise = draw_noise(generators, self.trained.recipe.image_shape).to(self._device)
        begin, n_steps, start = 0.0, self._sampling.n_steps, noise
        if starts is not None:
            begin, n_steps = 1 - self._sampling.strength, self._sampling.n_steps_from_start
            squares = [square_bytes(Image.fromarray(picture), self.side) for picture in starts]
            painted = self._canvas.paint(self._canvas.keep(np.stack(squares))).to(self._device)
            start = interpolate(noise, painted, torch.full((len(noise),), begin).to(noise))

        def estimate(noised: Tensor, time: Tensor) -> Tensor:
            return self._estimate(noised, time, directions)

        painted = integrate(estimate, start, begin=begin, n_steps=n_steps)
        if not bool(painted.isfinite().all()):
            raise ReconstructionError(
                f"{self.trained.path} made a picture that isn't finite. Draw with less guidance."
            )
        return self._canvas.show(painted)

    def _estimate(self, noised: Tensor, time: Tensor, directions: Tensor) -> Tensor:
        cosines = torch.full_like(time, self._cosine)
        guidance = self._sampling.guidance
        if guidance == 1:
            clean: Tensor = self._network(noised, time, directions, cosines)
            return clean
        doubled = (torch.cat([part, part]) for part in (noised, time, directions))
        both: Tensor = self._network(*doubled, torch.cat([cosines, torch.zeros_like(cosines)]))
        conditioned, blind = both.chunk(2)
        return guide(conditioned, blind, guidance)
