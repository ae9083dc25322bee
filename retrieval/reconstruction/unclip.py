"""Stable unCLIP: one final embedding of CLIP, ViT-H or ViT-L, to a picture.

Stable Diffusion 2.1, fine-tuned by Stability AI to take a noised embedding of a picture beside its
text, after unCLIP (Ramesh et al. 2022, arXiv:2204.06125). The text is empty here.

MindEye2's own unCLIP (Scotti et al. 2024, arXiv:2403.11207), of 256 tokens of ViT-bigG, is another
network: its one public form is a checkpoint of generative-models, which this doesn't read.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import ReconstructionError
from .contract import Placement, Sampling, require_decodable
from .denoising import Condition, LatentDiffusion
from .image_variations import scale_to
from .pipeline_parts import Weights

PUBLISHED = "stabilityai/stable-diffusion-2-1-unclip"
_PARTS = (
    "unet",
    "vae",
    "scheduler",
    "image_normalizer",
    "image_noising_scheduler",
    "text_encoder",
    "tokenizer",
)


class StableUnclip:
    """Pictures of final CLIP embeddings by Stable unCLIP; see `contract.Decoder`.

    Parameters
    ----------
    weights : str
        A folder of diffusers' layout, whole but for the encoder of pictures and its settings, or a
        repository of the hub: the published one takes ViT-H/14 (1024 numbers), the one that ends
        with ``-small`` ViT-L/14 (768).
    sampling : Sampling
        Guidance of 10 in the pipeline of diffusers.
    placement : Placement
    unit_norm : bool
        Whether embeddings come with unit norm, as in the targets of layer ``final``; they are then
        scaled to the length that is typical of the embeddings that the network was trained with.

    Raises
    ------
    ReconstructionError
        If a part is missing, can't be read, or doesn't fit the others.
    MissingExtraError
        If diffusers or transformers is absent.

    Notes
    -----
    The network takes an embedding noised a little, at the first step of its own schedule, and an
    embedding of that step's number, as diffusers does for a noise level of 0. The typical length
    is the root of the mean square: of mean m and deviation s, both in the weights,
    ``sqrt(sum(m ** 2 + s ** 2))``.
    """

    name = "stable-unclip"
    tokens = 1

    def __init__(
        self,
        weights: str = PUBLISHED,
        *,
        sampling: Sampling | None = None,
        placement: Placement | None = None,
        unit_norm: bool = False,
    ) -> None:
        parts = Weights(weights, _PARTS, published=PUBLISHED)
        self._diffusion = LatentDiffusion(
            parts,
            "unet",
            sampling=sampling or Sampling(guidance=10.0),
            placement=placement or Placement(),
        )
        normalizer = parts.load("image_normalizer")
        self._mean, self._deviation = normalizer.mean.detach(), normalizer.std.detach()
        self._kept = float(parts.load("image_noising_scheduler").alphas_cumprod[0])
        self.dim = self._mean.shape[-1]
        label_dim = self._diffusion.unet_config.projection_class_embeddings_input_dim
        if label_dim != 2 * self.dim:
            raise ReconstructionError(
                f"unet of {weights} takes labels of {label_dim} numbers, its image_normalizer "
                f"embeddings of {self.dim}; expected half as many. Take both from one repository, "
                f"such as {PUBLISHED}."
            )
        self._norm = None
        if unit_norm:
            self._norm = float((self._mean**2 + self._deviation**2).sum().sqrt())
        self._text = _encode_nothing(parts)
        self.side = self._diffusion.side
        self.details: dict[str, str | int | float] = {
            "decoder": self.name,
            "norm": self._norm or "as given",
            **self._diffusion.details,
        }

    def decode(
        self,
        embeddings: NDArray[np.float32],
        *,
        seeds: Sequence[int],
        starts: NDArray[np.uint8] | None = None,
    ) -> NDArray[np.uint8]:
        """Make one picture of each embedding; see `contract.Decoder.decode`."""
        require_decodable(self, embeddings, seeds, starts)
        return self._diffusion.decode(
            self._condition,
            Condition(self._text, torch.zeros(1, 2 * self.dim)),
            embeddings,
            seeds=seeds,
            starts=starts,
        )

    def _condition(self, rows: Tensor, generators: Sequence[torch.Generator]) -> Condition:
        """Return the empty text, and as label the noised rows with the noise level, 0."""
        rows = scale_to(rows[:, 0], self._norm)
        noise = torch.stack([torch.randn(self.dim, generator=one) for one in generators])
        clean = (rows - self._mean) / self._deviation
        noised = self._kept**0.5 * clean + (1 - self._kept) ** 0.5 * noise
        level = torch.zeros_like(rows)  # Sines of 0 in its second half,
        level[:, : self.dim // 2] = 1  # cosines in its first.
        label = torch.cat([noised * self._deviation + self._mean, level], dim=1)
        return Condition(self._text.expand(len(rows), -1, -1), label)


def _encode_nothing(weights: Weights) -> Tensor:
    """Return the tokens of the empty text, (1, T, D)."""
    tokenizer = weights.load("tokenizer")
    encoder = weights.load("text_encoder").float()
    numbers = tokenizer(
        "", padding="max_length", max_length=tokenizer.model_max_length, return_tensors="pt"
    ).input_ids
    with torch.inference_mode():
        tokens: Tensor = encoder(numbers).last_hidden_state
    return tokens
