"""Latents of Stable Diffusion's VAE back to pictures: what a low-level run predicts, to look at."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from index_builder.embeddings.space import EmbeddingSpace

from ..errors import EncoderError
from ..models.low_level import LATENT_CHANNELS, tokens_to_map
from .vae import CONFIG, STRIDE, WEIGHTS, import_diffusers, load_autoencoder
from .weights import fill, read_tensors

TINY_WEIGHTS = "taesd_decoder.safetensors"
_FAMILY = re.compile(r"(sd-vae|taesd)-\d+px/.+")


class LatentPictures:
    """Decodes latents of ``sd-vae`` or ``taesd``; see `training.encoders.vae.LatentEncoder`.

    Parameters
    ----------
    space : EmbeddingSpace
        Of the latents, as a low-level run has it.
    pretrained : path
        Weights of the same family: a folder of diffusers' layout or a weight file of the VAE;
        ``taesd_decoder.safetensors`` or its folder.
    device : str
        A torch device.

    Attributes
    ----------
    side : int
        Of the pictures, in pixels.

    Raises
    ------
    EncoderError
        If the space isn't one of such latents, or there are no such weights.
    MissingExtraError
        If diffusers is absent.
    """

    def __init__(self, space: EmbeddingSpace, pretrained: str | Path, device: str = "cpu") -> None:
        match = _FAMILY.fullmatch(space.model)
        if match is None or space.dim != LATENT_CHANNELS:
            raise EncoderError(
                f"{space} is no space of VAE latents; expected targets of voxseek embed --encoder "
                f"sd-vae or taesd."
            )
        given = Path(pretrained)
        load = _load_vae_decoder if match.group(1) == "sd-vae" else _load_tiny_decoder
        self._device = torch.device(device)
        self._network = load(given).eval().requires_grad_(False).to(self._device)
        self.side = STRIDE * round(space.tokens**0.5)

    def decode(self, latents: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
        """Return pictures (n, side, side, 3) of latents (n, tokens, 4), rows of the map first."""
        tokens = torch.from_numpy(np.ascontiguousarray(latents, dtype=np.float32))
        with torch.inference_mode():
            pixels: Tensor = self._network(tokens_to_map(tokens.to(self._device)))
            bytes_ = (255 * pixels.clamp(0, 1)).round().byte()
        return np.asarray(bytes_.permute(0, 2, 3, 1).cpu().numpy())


class _VaeDecoder(nn.Module):
    """A VAE's decoder from scaled latents to pixels in [0, 1]."""

    def __init__(self, autoencoder: Any) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, latents: Tensor) -> Tensor:
        scaled = latents / float(self.autoencoder.config.scaling_factor)
        decoded: Tensor = self.autoencoder.decode(scaled).sample
        return decoded / 2 + 0.5  # from [-1, 1]


def _load_vae_decoder(given: Path) -> nn.Module:
    file = given / WEIGHTS if given.is_dir() else given
    if not file.is_file() or (given.is_dir() and not (given / CONFIG).is_file()):
        raise EncoderError(
            f"{given} is neither a weight file nor a folder that holds {CONFIG} and {WEIGHTS}. "
            f"Give the VAE that made the targets: --vae DIR|FILE."
        )
    return _VaeDecoder(load_autoencoder(file))


def _load_tiny_decoder(given: Path) -> nn.Module:
    file = given / TINY_WEIGHTS if given.is_dir() else given
    if not file.is_file():
        raise EncoderError(
            f"{given} is neither a weight file nor a folder that holds {TINY_WEIGHTS}. Give the "
            f"decoder of taesd: --vae DIR|FILE."
        )
    network: nn.Module = import_diffusers().AutoencoderTiny().decoder
    state = read_tensors(file, within="state_dict")
    fill(network, {_without_clamp(name): value for name, value in state.items()}, file)
    return nn.Sequential(network, _ToUnit())


def _without_clamp(name: str) -> str:
    """Return diffusers' name of a weight: its layers begin after the clamp, the published first."""
    number, _, rest = name.partition(".")
    return f"layers.{int(number) - 1}.{rest}" if number.isdecimal() else name


class _ToUnit(nn.Module):
    def forward(self, pixels: Tensor) -> Tensor:
        return pixels / 2 + 0.5
