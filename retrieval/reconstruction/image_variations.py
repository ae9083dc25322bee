"""Stable Diffusion, image variations: one embedding of CLIP ViT-L/14, layer final, to a picture.

Stable Diffusion 1 (Rombach et al. 2022, arXiv:2112.10752), fine-tuned by Lambda Labs to take the
embedding of a picture as its only token. MindEye (Scotti et al. 2023, arXiv:2305.18274) tried it
with its model for LAION-5B; Versatile Diffusion was better.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .contract import Placement, Sampling, require_decodable
from .denoising import Condition, LatentDiffusion
from .pipeline_parts import Weights

PUBLISHED = "lambdalabs/sd-image-variations-diffusers@v2.0"


class ImageVariations:
    """Pictures of final CLIP embeddings; see `contract.Decoder`.

    Parameters
    ----------
    weights : str
        A folder with ``unet``, ``vae`` and ``scheduler`` in diffusers' layout, or a repository of
        the hub, such as the published one.
    sampling : Sampling
        Guidance of 7.5 in the pipeline of diffusers and in MindEye's code; it leads away from an
        embedding of zeros.
    placement : Placement
    norm : float > 0 or None
        Length that each embedding is scaled to; None: as it comes. The network was trained with
        CLIP's embeddings as the encoder gives them; predictions of unit-norm targets need the mean
        length of those.

    Raises
    ------
    ReconstructionError
        If a part is missing or can't be read.
    MissingExtraError
        If diffusers is absent.
    """

    name = "image-variations"
    tokens = 1

    def __init__(
        self,
        weights: str = PUBLISHED,
        *,
        sampling: Sampling | None = None,
        placement: Placement | None = None,
        norm: float | None = None,
    ) -> None:
        if norm is not None and not 0 < norm < np.inf:
            raise ValueError(f"norm is {norm}, expected a length above 0, or None.")
        parts = Weights(weights, ("unet", "vae", "scheduler"), published=PUBLISHED)
        self._diffusion = LatentDiffusion(
            parts,
            "unet",
            sampling=sampling or Sampling(guidance=7.5),
            placement=placement or Placement(),
        )
        self._norm = norm
        self.dim = int(self._diffusion.unet_config.cross_attention_dim)
        self.side = self._diffusion.side
        self.details: dict[str, str | int | float] = {
            "decoder": self.name,
            "norm": norm or "as given",
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
            lambda rows, _: Condition(scale_to(rows, self._norm)),
            Condition(torch.zeros(1, self.tokens, self.dim)),
            embeddings,
            seeds=seeds,
            starts=starts,
        )


def scale_to(rows: Tensor, norm: float | None) -> Tensor:
    """Return rows (..., D) scaled to a length, or as they are for None."""
    return rows if norm is None else rows * (norm / rows.norm(dim=-1, keepdim=True))
