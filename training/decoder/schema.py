"""The sections of a decoder's recipe: pictures, network, flow, sampling, training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from ..schema.ranges import LARGE, Within

N_GROUPS, HEAD_DIM = 8, 32  # of the network's norms, and of its attention


@dataclass(frozen=True)
class PixelsRecipe:
    """The flow runs on pixels.

    Parameters
    ----------
    side : int
        Of the pictures, in pixels; others are resized, and squeezed to a square.
    """

    kind: Literal["pixels"]
    side: Annotated[int, Within(8, 1024)]


@dataclass(frozen=True)
class LatentsRecipe:
    """The flow runs on the latents of a frozen autoencoder, whose weights are given.

    Parameters
    ----------
    family : {"sd-vae", "taesd"}
    side : int, a multiple of 8
        Of the pictures, in pixels: 8 of them are one latent along a side.
    """

    kind: Literal["latents"]
    family: Literal["sd-vae", "taesd"]
    side: Annotated[int, Within(64, 1024)]


@dataclass(frozen=True)
class NetworkRecipe:
    """Sizes of the U-Net; see `FlowNetwork`."""

    patch: Annotated[int, Within(1, 64)]
    channels: Annotated[int, Within(8, 4096)]
    n_levels: Annotated[int, Within(1, 6)]
    n_blocks: Annotated[int, Within(1, 16)]
    width: Annotated[int, Within(8, LARGE)]
    layout_channels: Annotated[int, Within(8, 4096)]
    sketch_side: Annotated[int, Within(1, 1024)]
    sketch_rank: Annotated[int, Within(1, 8192)]


@dataclass(frozen=True)
class FlowRecipe:
    """What the network is shown while it trains.

    Parameters
    ----------
    time_location, time_scale : float
        Of the logit-normal distribution of times; see `draw_times`.
    blind_fraction : float
        Share of pictures that are shown with a cosine of 0, which is no condition at all, for
        guidance; Ho & Salimans 2022 (arXiv:2207.12598): .1.
    least_cosine : float
        Directions are turned away to cosines spread evenly from this to 1; see `turn_away`. 1
        turns none: for embeddings of pictures alone.
    """

    time_location: Annotated[float, Within(-10, 10)]
    time_scale: Annotated[float, Within(0, 10)]
    blind_fraction: Annotated[float, Within(0, 0.99)]
    least_cosine: Annotated[float, Within(0, 1)]


@dataclass(frozen=True)
class SamplingRecipe:
    """How pictures are drawn, where nothing else is said.

    Parameters
    ----------
    n_steps : int
        See `integrate`.
    guidance : float
        See `guide`; 1: none, at half the work.
    cosine : float
        What the network is told of embeddings whose own cosine wasn't measured.
    """

    n_steps: Annotated[int, Within(1, 1000)]
    guidance: Annotated[float, Within(1, 100)]
    cosine: Annotated[float, Within(0, 1)]


@dataclass(frozen=True)
class TrainingRecipe:
    """Optimization, seed and device.

    Parameters
    ----------
    steps, batch_size : int
        Batches of different pictures, reshuffled when all have been shown.
    learning_rate, warmup_fraction : float
        Peak of the one-cycle schedule, and share of the steps before it.
    weight_decay, clip_norm : float
        AdamW's, and the largest norm of the gradient; 0 = no clipping.
    ema_decay : float
        The decoder's weights are an exponential moving average over steps.
    seed : int
    device : {"auto", "cpu", "cuda"}
    n_threads : int
        CPU threads; results are the same bytes again only with the same number.
    save_every_steps : int
        How often metrics are told and the state for resuming is written.
    """

    steps: Annotated[int, Within(1, LARGE)]
    batch_size: Annotated[int, Within(3, LARGE)]
    learning_rate: Annotated[float, Within(1e-9, 1e3)]
    warmup_fraction: Annotated[float, Within(0.001, 0.99)]
    weight_decay: Annotated[float, Within(0, 1e4)]
    clip_norm: Annotated[float, Within(0, 1e9)]
    ema_decay: Annotated[float, Within(0, 0.999999)]
    seed: Annotated[int, Within(0, 2**31 - 1)]
    device: Literal["auto", "cpu", "cuda"]
    n_threads: Annotated[int, Within(1, 1024)]
    save_every_steps: Annotated[int, Within(1, LARGE)]
