"""Latent diffusion: from noise, or a noised start, to pictures that a condition guides.

Rombach et al. 2022 (arXiv:2112.10752), sampled by UniPC (Zhao et al. 2023, arXiv:2302.04867) with
classifier-free guidance. What is shared by all decoders; they differ in what the condition is.

Shapes: ``B`` pictures, ``T`` tokens of width ``D``, ``C`` channels and ``s`` side of the latents,
``S`` side of the pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..errors import ReconstructionError
from .contract import Placement, Sampling
from .pipeline_parts import DTYPES, Weights

# Of CLIP's own training (Radford et al. 2021, arXiv:2103.00020), for pixels in [0, 1].
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_DEVIATION = (0.26862954, 0.26130258, 0.27577711)
_SAMPLE_SIZE = 64  # Side of Stable Diffusion 1's latents, for a configuration that has none.


@dataclass(frozen=True)
class Condition:
    """What the UNet is told.

    Parameters
    ----------
    tokens : Tensor of shape (B, T, D)
        For its cross-attention.
    label : Tensor of shape (B, D') or None
        Added to the time embedding, where the UNet takes one.
    """

    tokens: Tensor
    label: Tensor | None = None

    def after(self, blank: Condition) -> Condition:
        """Return twice the batch: the blank condition of one row for each, then this one."""
        tokens = torch.cat([blank.tokens.expand_as(self.tokens), self.tokens])
        if self.label is None or blank.label is None:
            return Condition(tokens)
        return Condition(tokens, torch.cat([blank.label.expand_as(self.label), self.label]))


Conditioner = Callable[[Tensor, Sequence[torch.Generator]], Condition]


class LatentDiffusion:
    """A UNet, a VAE and a noise schedule that make pictures together.

    Parameters
    ----------
    weights : Weights
    unet_part : str
        Name of the UNet among the parts; the others are ``vae`` and ``scheduler``.
    sampling : Sampling
    placement : Placement

    Attributes
    ----------
    unet_config : the UNet's configuration
    side : int
        ``S``, pixels.
    details : dict
        Of the decoders: weights, precision and all of the sampling.
    """

    def __init__(
        self, weights: Weights, unet_part: str, *, sampling: Sampling, placement: Placement
    ) -> None:
        self._sampling, self._placement = sampling, placement
        self._device = torch.device(placement.device)
        self._dtype = DTYPES[placement.precision]
        self._unet = weights.load(unet_part, placement.precision)
        self._vae = weights.load("vae", placement.precision)
        self._scheduler = weights.load("scheduler")
        self.unet_config = self._unet.config
        self._latent_side = self.unet_config.sample_size or _SAMPLE_SIZE
        self.side = self._latent_side * 2 ** (len(self._vae.config.block_out_channels) - 1)
        if not placement.offload:
            self._unet.to(self._device)
            self._vae.to(self._device)
        self.details: dict[str, str | int | float] = {
            "weights": weights.identity,
            "precision": placement.precision,
            "sampler": "unipc",
            "steps": sampling.n_steps,
            "guidance": sampling.guidance,
            "strength": sampling.strength,
            "start_pixels": sampling.start_pixels,
        }

    def decode(
        self,
        conditioner: Conditioner,
        blank: Condition,
        embeddings: NDArray[np.float32],
        *,
        seeds: Sequence[int],
        starts: NDArray[np.uint8] | None,
    ) -> NDArray[np.uint8]:
        """Make one picture of each embedding, batch by batch; arguments as of `Decoder.decode`.

        Parameters
        ----------
        conditioner : function
            From embeddings (B, T, D) and their generators, on the CPU, to their condition.
        blank : Condition
            Of one row; what guidance leads away from.
        """
        pictures = np.empty((len(embeddings), self.side, self.side, 3), dtype=np.uint8)
        for first in range(0, len(embeddings), self._placement.batch_size):
            rows = slice(first, first + self._placement.batch_size)
            generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds[rows]]
            with torch.inference_mode():
                condition = conditioner(torch.tensor(embeddings[rows]).float(), generators)
                start = None if starts is None else self._encode(starts[rows])
                latents = self._denoise(condition, blank, self._draw(generators), start)
                pictures[rows] = self._decode(latents, first)
        return pictures

    def _draw(self, generators: Sequence[torch.Generator]) -> Tensor:
        """Return noise (B, C, s, s), each row of its own generator."""
        shape = (self.unet_config.in_channels, self._latent_side, self._latent_side)
        noise = torch.stack([torch.randn(shape, generator=one) for one in generators])
        return noise.to(self._device)

    def _denoise(
        self, condition: Condition, blank: Condition, noise: Tensor, start: Tensor | None
    ) -> Tensor:
        """Return latents (B, C, s, s), of noise or of a start of this shape."""
        sampling, scheduler = self._sampling, self._scheduler
        scheduler.set_timesteps(sampling.n_steps, device=self._device)
        n_skipped = 0 if start is None else sampling.n_steps - sampling.n_steps_from_start
        timesteps = scheduler.timesteps[n_skipped:]
        scheduler.set_begin_index(n_skipped)
        latents: Tensor
        if start is None:
            latents = noise * scheduler.init_noise_sigma
        else:
            latents = scheduler.add_noise(start, noise, timesteps[:1])
        is_guided = sampling.guidance != 1
        told = condition.after(blank) if is_guided else condition
        tokens = told.tokens.to(self._device, self._dtype)
        label = None if told.label is None else told.label.to(self._device, self._dtype)
        with self._computing(self._unet):
            for timestep in timesteps:
                noised = torch.cat([latents, latents]) if is_guided else latents
                noised = scheduler.scale_model_input(noised, timestep).to(self._dtype)
                predicted = self._unet(
                    noised, timestep, encoder_hidden_states=tokens, class_labels=label
                ).sample.float()
                if is_guided:
                    unguided, guided = predicted.chunk(2)
                    predicted = unguided + sampling.guidance * (guided - unguided)
                latents = scheduler.step(predicted, timestep, latents).prev_sample
        return latents

    def _encode(self, pictures: NDArray[np.uint8]) -> Tensor:
        """Return scaled latents (B, C, s, s) of pictures of any size: the mode of the VAE's."""
        pixels = torch.tensor(pictures).permute(0, 3, 1, 2).float() / 255
        if pixels.shape[2:] != (self.side, self.side):
            pixels = F.interpolate(pixels, (self.side, self.side), mode="bilinear", antialias=True)
        pixels = normalize_for_clip(pixels) if self._uses_clip_pixels else 2 * pixels - 1
        with self._computing(self._vae):
            latents = [
                self._vae.encode(one[None].to(self._device, self._dtype)).latent_dist.mode().float()
                for one in pixels
            ]
        return torch.cat(latents) * float(self._vae.config.scaling_factor)

    def _decode(self, latents: Tensor, first: int) -> NDArray[np.uint8]:
        """Return pictures (B, S, S, 3), one at a time, for the VAE needs the most memory."""
        latents = latents / float(self._vae.config.scaling_factor)
        pictures = []
        with self._computing(self._vae):
            for number, one in enumerate(latents, start=first):
                pixels = self._vae.decode(one[None].to(self._dtype)).sample[0].float()
                if not torch.isfinite(pixels).all():
                    raise ReconstructionError(
                        f"picture {number} is not finite in {self._placement.precision}. Expected "
                        f"pixels; decode it in bf16 or fp32."
                    )
                pictures.append((pixels / 2 + 0.5).clamp(0, 1).mul(255).round().byte().cpu())
        return torch.stack(pictures).permute(0, 2, 3, 1).numpy()

    @property
    def _uses_clip_pixels(self) -> bool:
        return self._sampling.start_pixels == "clip"

    @contextmanager
    def _computing(self, network: Any) -> Iterator[None]:
        """Have a network on the device, and where it is offloaded, only meanwhile."""
        if not self._placement.offload:
            yield
            return
        network.to(self._device)
        try:
            yield
        finally:
            network.to("cpu")


def normalize_for_clip(pixels: Tensor) -> Tensor:
    """Return pixels (B, 3, h, w) in [0, 1], less CLIP's mean and over its deviation, by channel."""
    mean, deviation = (torch.tensor(of)[:, None, None] for of in (CLIP_MEAN, CLIP_DEVIATION))
    return (pixels - mean) / deviation
