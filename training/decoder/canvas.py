"""What the flow runs on: pixels, or the latents of a frozen autoencoder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..encoders.latent_pictures import LatentPictures
from ..encoders.vae import LatentEncoder
from ..errors import RunError
from ..models.low_level import map_to_tokens, tokens_to_map
from .schema import LatentsRecipe, PixelsRecipe

_LATENT_BATCH = 8


class Canvas(Protocol):
    """A change of form between pictures and what the flow runs on.

    Attributes
    ----------
    side : int
        Of the pictures, in pixels.
    weights : str
        What names the frozen weights that are needed; empty for none.
    """

    side: int
    weights: str

    def keep(self, pictures: NDArray[np.uint8]) -> Tensor:
        """Return what is held in memory of pictures (n, side, side, 3) while training."""
        ...

    def paint(self, kept: Tensor) -> Tensor:
        """Return float32 (n, channels, h, w), of mean near 0 and numbers of order 1."""
        ...

    def show(self, painted: Tensor) -> NDArray[np.uint8]:
        """Return pictures (n, side, side, 3) of what `paint` made, or the flow."""
        ...


class PixelCanvas:
    """Pixels in [-1, 1]; held as bytes."""

    weights = ""

    def __init__(self, side: int) -> None:
        self.side = side

    def keep(self, pictures: NDArray[np.uint8]) -> Tensor:
        """Return the bytes, channels first."""
        return torch.from_numpy(np.ascontiguousarray(pictures.transpose(0, 3, 1, 2)))

    def paint(self, kept: Tensor) -> Tensor:
        """Scale 0 to 255 to [-1, 1]."""
        return kept.float() / 127.5 - 1

    def show(self, painted: Tensor) -> NDArray[np.uint8]:
        """Scale [-1, 1] to 0 to 255; what is beyond is cut off."""
        bytes_ = ((painted.clamp(-1, 1) + 1) * 127.5).round().byte()
        return np.asarray(bytes_.permute(0, 2, 3, 1).cpu().numpy())


class LatentCanvas:
    """Scaled latents of Stable Diffusion's VAE, or of TAESD; see `LatentEncoder`.

    Parameters
    ----------
    recipe : LatentsRecipe
    pretrained : path
        Weights of encoder and decoder: a folder of the family's layout.
    device : str
        A torch device.

    Raises
    ------
    EncoderError
        If there are no such weights.
    MissingExtraError
        If diffusers is absent.
    """

    def __init__(
        self, recipe: LatentsRecipe, pretrained: str | os.PathLike[str], device: str
    ) -> None:
        where = os.fspath(pretrained)
        self._encoder = LatentEncoder(recipe.family, where, recipe.side, device)
        self._decoder = LatentPictures(self._encoder.space, where, device)
        self.side = recipe.side
        self.weights = self._encoder.space.model

    def keep(self, pictures: NDArray[np.uint8]) -> Tensor:
        """Encode pictures, a few at a time."""
        channels_first = pictures.transpose(0, 3, 1, 2)
        batches = [
            self._encoder.encode(
                channels_first[at : at + _LATENT_BATCH].astype(np.float32) / np.float32(255)
            )
            for at in range(0, len(pictures), _LATENT_BATCH)
        ]
        return tokens_to_map(torch.from_numpy(np.concatenate(batches)))

    def paint(self, kept: Tensor) -> Tensor:
        """Return the latents: the scaling factor has made them of order 1."""
        return kept

    def show(self, painted: Tensor) -> NDArray[np.uint8]:
        """Decode latents, a few at a time."""
        tokens = map_to_tokens(painted).cpu().numpy()
        batches: Sequence[NDArray[np.uint8]] = [
            self._decoder.decode(tokens[at : at + _LATENT_BATCH])
            for at in range(0, len(tokens), _LATENT_BATCH)
        ]
        return np.concatenate(batches)


def open_canvas(
    recipe: PixelsRecipe | LatentsRecipe,
    *,
    pretrained: str | os.PathLike[str] | None = None,
    device: str = "cpu",
) -> Canvas:
    """Return the canvas of a recipe's section ``pictures``.

    Raises
    ------
    RunError
        If latents have no weights, or pixels have some.
    EncoderError
        As `LatentCanvas`.
    """
    if isinstance(recipe, LatentsRecipe):
        if pretrained is None:
            raise RunError(
                f"the decoder draws latents of {recipe.family}, and no weights of it are given. "
                f"Give its folder: --vae DIR."
            )
        return LatentCanvas(recipe, pretrained, device)
    if pretrained is not None:
        raise RunError(
            "the decoder draws pixels, which need no autoencoder. Leave --vae out, or train with "
            "the recipe flow_latent."
        )
    return PixelCanvas(recipe.side)
