"""Stable Diffusion's VAE as an encoder: what the low-level branch is trained to predict.

A latent is an embedding whose tokens are the places of the latent map, row by row. ``sd-vae`` is
the VAE itself (Rombach et al. 2022, arXiv:2112.10752); ``taesd`` is a small network distilled from
it (github.com/madebyollin/taesd), with nearly the same latents for a fraction of the work.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from index_builder.embeddings.artefact import sha256_file
from index_builder.embeddings.errors import MissingExtraError
from index_builder.embeddings.space import EmbeddingSpace

from ..errors import EncoderError
from ..models.low_level import LATENT_CHANNELS, map_to_tokens
from .square import square_pixels
from .weights import fill, read_tensors

STRIDE = 8  # Pixels a latent, along each side.
CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"  # diffusers' names
TINY_WEIGHTS = "taesd_encoder.safetensors"

# The configuration of Stable Diffusion 1 and 2, for weight files that come without one.
_STABLE_DIFFUSION = {
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "latent_channels": LATENT_CHANNELS,
    "scaling_factor": 0.18215,
}
# What diffusers once called the parts of an attention block, and calls them now.
_RENAMED = {
    ".query.": ".to_q.",
    ".key.": ".to_k.",
    ".value.": ".to_v.",
    ".proj_attn.": ".to_out.0.",
}


class LatentEncoder:
    """Pictures to the latents of Stable Diffusion's VAE: (side / 8) ** 2 tokens of 4 channels.

    Parameters
    ----------
    family : {"sd-vae", "taesd"}
    pretrained : str
        For ``sd-vae``: a folder of diffusers' layout (``config.json`` and
        ``diffusion_pytorch_model.safetensors``), or a safetensors or PyTorch file with the names of
        diffusers or of Stable Diffusion's own code, whose configuration is ``config.json`` beside
        it, else that of Stable Diffusion 1 and 2. For ``taesd``: ``taesd_encoder.safetensors`` or
        its folder.
    resolution : int, a multiple of 8
        Side of the square that a picture is resized to, in pixels. MindEye's targets are of 512,
        MindEye2's of 224.
    device : str
        A torch device.

    Raises
    ------
    EncoderError
        If there are no such weights, they are of another network, or the resolution isn't a
        multiple of 8.
    MissingExtraError
        If diffusers is absent.

    Notes
    -----
    The latents of ``sd-vae`` are the mode of the encoder's distribution, multiplied by the scaling
    factor of the configuration, as in the code of Scotti et al. 2023 (arXiv:2305.18274).
    """

    takes_text = False

    def __init__(
        self, family: str, pretrained: str, resolution: int = 512, device: str = "cpu"
    ) -> None:
        if resolution < STRIDE or resolution % STRIDE:
            raise EncoderError(
                f"{family} at {resolution} pixels has no whole latent map; expected a multiple of "
                f"{STRIDE}, such as {family}-512."
            )
        given = Path(pretrained)
        file = _find_weights(family, given)
        network = _FAMILIES[family].load(file)
        name = (given if given.is_dir() else file.with_suffix("")).resolve().name
        self._device = torch.device(device)
        self._network = network.eval().requires_grad_(False).to(self._device)
        self._resolution = resolution
        weights = f"{name}@{sha256_file(file)[:12]}"
        self.space = EmbeddingSpace(
            model=f"{family}-{resolution}px/{weights}",
            layer="hidden",
            tokens=(resolution // STRIDE) ** 2,
            dim=LATENT_CHANNELS,
            unit_norm=False,
        )
        self.details: dict[str, str | int] = {
            "encoder": family,
            "resolution": resolution,
            "weights": weights,
        }

    def prepare(self, picture: Image.Image) -> NDArray[np.float32]:
        """Resize to a square, bilinearly and antialiased: (3, side, side) in [0, 1]."""
        return np.asarray(square_pixels(picture, self._resolution).numpy(), dtype=np.float32)

    def encode(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Embed prepared pictures: (n, tokens, 4), rows of the latent map first.

        Raises
        ------
        EncoderError
            If a latent isn't finite.
        """
        pixels = torch.from_numpy(batch).to(self._device)
        with torch.inference_mode():
            tokens = map_to_tokens(self._network(2 * pixels - 1)).float().cpu().numpy()
        finite = np.isfinite(tokens).all(axis=(1, 2))
        if not finite.all():
            raise EncoderError(
                f"{self.space.model} gave a latent that is not finite for row "
                f"{int(np.argmin(finite))} of the batch. Are its weights whole?"
            )
        return np.asarray(tokens, dtype=np.float32)


class _ScaledMode(nn.Module):
    """The mode of a VAE's latents, times its scaling factor, of pixels in [-1, 1]."""

    def __init__(self, autoencoder: Any) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, pixels: Tensor) -> Tensor:
        """Map pixels (n, 3, side, side) to latents (n, 4, side / 8, side / 8)."""
        latents: Tensor = self.autoencoder.encode(pixels).latent_dist.mode()
        return latents * float(self.autoencoder.config.scaling_factor)


def load_autoencoder(file: Path) -> Any:
    """Return a VAE of Stable Diffusion, as diffusers has it, with the weights of a file.

    Raises
    ------
    EncoderError
        If the file or the configuration beside it is of another network.
    MissingExtraError
        If diffusers is absent.
    """
    diffusers = import_diffusers()
    config = _read_config(file.parent / CONFIG)
    state = read_tensors(file, within="state_dict")
    try:
        network = diffusers.AutoencoderKL.from_config(config)
        if not any(name.startswith("encoder.down_blocks.") for name in state):
            from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

            state = convert_ldm_vae_checkpoint(state, config)
    except (KeyError, TypeError, ValueError) as error:
        raise EncoderError(
            f"the configuration of {file} makes no VAE: {error!r}. Expected config.json of a VAE "
            f"of Stable Diffusion beside it, or none."
        ) from error
    stride = 2 ** (len(network.config.block_out_channels) - 1)
    if network.config.latent_channels != LATENT_CHANNELS or stride != STRIDE:
        raise EncoderError(
            f"{file} is a VAE of {network.config.latent_channels} channels, {stride} pixels a "
            f"latent; expected {LATENT_CHANNELS} and {STRIDE}. Give a VAE of Stable Diffusion."
        )
    fill(network, {_current_name(name): value for name, value in state.items()}, file)
    return network


def _load_vae(file: Path) -> nn.Module:
    return _ScaledMode(load_autoencoder(file))


def _load_tiny(file: Path) -> nn.Module:
    network: nn.Module = import_diffusers().AutoencoderTiny().encoder
    state = read_tensors(file, within="state_dict")
    fill(network, {f"layers.{name}": value for name, value in state.items()}, file)
    return network


@dataclass(frozen=True)
class _Family:
    """One kind of autoencoder.

    Parameters
    ----------
    in_folder : tuple of str
        What a folder of its weights holds; the last is the weight file.
    load : function
        From a weight file to the network that maps pixels in [-1, 1] to scaled latents.
    """

    in_folder: tuple[str, ...]
    load: Callable[[Path], nn.Module]


_FAMILIES = {
    "sd-vae": _Family((CONFIG, WEIGHTS), _load_vae),
    "taesd": _Family((TINY_WEIGHTS,), _load_tiny),
}


def _find_weights(family: str, given: Path) -> Path:
    """Return the weight file that a path, of a folder or a file, stands for."""
    expected = _FAMILIES[family].in_folder
    if given.is_file():
        return given
    if not all((given / name).is_file() for name in expected):
        raise EncoderError(
            f"pretrained is {str(given)!r}, which is neither a weight file nor a folder that holds "
            f"{' and '.join(expected)}. Give the weights of {family}: --pretrained DIR|FILE."
        )
    return given / expected[-1]


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return _STABLE_DIFFUSION
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        named = config.get("_class_name", "AutoencoderKL")
    except (AttributeError, ValueError) as error:
        raise EncoderError(
            f"{path} is not a configuration of diffusers: {error}. Download it again."
        ) from error
    if named != "AutoencoderKL":
        raise EncoderError(
            f"{path} is the configuration of {named!r}, expected 'AutoencoderKL', the VAE of "
            f"Stable Diffusion. In a folder of the whole pipeline it is the folder vae."
        )
    return config


def _current_name(name: str) -> str:
    if ".attentions." in name:
        for former, current in _RENAMED.items():
            name = name.replace(former, current)
    return name


def import_diffusers() -> Any:
    """Return the library, or raise `MissingExtraError` if it is absent."""
    try:
        import diffusers
    except ImportError as error:
        raise MissingExtraError("diffusers", "train", "a VAE encoder") from error
    return diffusers
