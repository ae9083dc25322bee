"""Versatile Diffusion's image branch: 257 tokens of CLIP ViT-L/14 to a picture; MindEye's decoder.

Xu et al. 2022 (arXiv:2211.08332). The whole pipeline mixes a branch for images and one for texts;
at a mixing of 0, MindEye's (Scotti et al. 2023, arXiv:2305.18274), the one for images is all, and
that is a UNet as of Stable Diffusion 1, with 257 tokens of a picture in place of 77 of a text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .contract import Placement, Sampling, require_decodable
from .denoising import Condition, LatentDiffusion, normalize_for_clip
from .pipeline_parts import Weights

PUBLISHED = "shi-labs/versatile-diffusion"
TOKENS = 257  # Class token and 16 x 16 patches of CLIP ViT-L/14 at 224 pixels.

Blank = Literal["zeros", "black"]


class VersatileDiffusion:
    """Pictures of hidden CLIP embeddings; see `contract.Decoder`.

    Each embedding is divided by the norm of its class token, as the network knows them: what
    predictions have lost of that scale comes back.

    Parameters
    ----------
    weights : str
        A folder with ``image_unet``, ``vae`` and ``scheduler`` in diffusers' layout, or a
        repository of the hub, such as the published one.
    sampling : Sampling
        Guidance of 3.5 in MindEye.
    placement : Placement
    blank : {"zeros", "black"}
        What guidance leads away from: tokens of zeros, as in MindEye's code; or the embedding of a
        black picture, as in the pipeline of Versatile Diffusion, which reads ``image_encoder`` too.
    tokens : int
        Of the embeddings: 257, but for smaller encoders.

    Raises
    ------
    ReconstructionError
        If a part is missing or can't be read.
    MissingExtraError
        If diffusers, or transformers for a black picture, is absent.
    """

    name = "versatile-diffusion"

    def __init__(
        self,
        weights: str = PUBLISHED,
        *,
        sampling: Sampling | None = None,
        placement: Placement | None = None,
        blank: Blank = "zeros",
        tokens: int = TOKENS,
    ) -> None:
        if blank not in get_args(Blank):
            raise ValueError(f"blank is {blank!r}, expected 'zeros' or 'black'.")
        encoder = ("image_encoder",) if blank == "black" else ()
        parts = Weights(weights, ("image_unet", "vae", "scheduler", *encoder), published=PUBLISHED)
        self._diffusion = LatentDiffusion(
            parts,
            "image_unet",
            sampling=sampling or Sampling(guidance=3.5),
            placement=placement or Placement(),
        )
        self.tokens = tokens
        self.dim = int(self._diffusion.unet_config.cross_attention_dim)
        self.side = self._diffusion.side
        if blank == "black":
            self._blank = _of_class_norm(_embed_black(parts))
        else:
            self._blank = torch.zeros(1, tokens, self.dim)
        self.details: dict[str, str | int | float] = {
            "decoder": self.name,
            "blank": blank,
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
            lambda rows, _: Condition(_of_class_norm(rows)),
            Condition(self._blank),
            embeddings,
            seeds=seeds,
            starts=starts,
        )


def _of_class_norm(tokens: Tensor) -> Tensor:
    """Return tokens (B, T, D), each row over the norm of its first token."""
    lengths: Tensor = torch.linalg.vector_norm(tokens[:, :1], dim=-1, keepdim=True)
    return tokens / lengths.clamp_min(1e-6)


def _embed_black(weights: Weights) -> Tensor:
    """Return the hidden embedding of a black picture, (1, T, D), not normalized."""
    encoder = weights.load("image_encoder").float()
    side = encoder.config.image_size
    with torch.inference_mode():
        last = encoder.vision_model(normalize_for_clip(torch.zeros(1, 3, side, side)))
        normed = encoder.vision_model.post_layernorm(last.last_hidden_state)
        projected: Tensor = encoder.visual_projection(normed)
    return projected
