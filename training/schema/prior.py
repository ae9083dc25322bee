"""Section ``prior``: the diffusion prior; a recipe without it trains none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from .ranges import LARGE, Within


@dataclass(frozen=True)
class ChainRecipe:
    """The diffusion that every prior is trained and sampled with.

    Parameters
    ----------
    n_steps : int
        Steps of the noise schedule.
    image_embed_scale : float
        Multiplies the embeddings before noising, so that their entries are of order 1:
        ``sqrt(dim)`` for unit tokens (MindEye).
    drop_brain : float
        Probability of training a row without the brain, for classifier-free guidance.
    sampler : {"ddpm", "ddim"}
        What `predict` samples with: the full chain, or ``n_sampling_steps`` deterministic ones.
    n_sampling_steps : int
        Evaluations of ``ddim``.
    guidance : float
        Classifier-free guidance weight; 1 = none.
    """

    n_steps: Annotated[int, Within(1, 10_000)]
    image_embed_scale: Annotated[float, Within(1e-6, 1e6)]
    drop_brain: Annotated[float, Within(0, 0.99)]
    sampler: Literal["ddpm", "ddim"]
    n_sampling_steps: Annotated[int, Within(1, 10_000)]
    guidance: Annotated[float, Within(0, 100)]


@dataclass(frozen=True)
class LinearSkipPriorRecipe(ChainRecipe):
    """A transformer of any width around a linear estimate; see `PriorNetwork`."""

    kind: Literal["linear_skip"]
    depth: Annotated[int, Within(1, LARGE)]
    n_heads: Annotated[int, Within(1, LARGE)]
    width: Annotated[int, Within(1, LARGE)]


@dataclass(frozen=True)
class MindEyePriorRecipe(ChainRecipe):
    """The transformer of MindEye's prior; see `MindEyePrior` in ``models/mindeye_prior.py``.

    Parameters
    ----------
    drop_image : float
        Probability of training a row without its noised embedding.
    checkpoint : bool
        Keep no activations of the layers and compute them again in the backward pass: a third
        more time for most of the memory of a step.
    """

    kind: Literal["mindeye"]
    depth: Annotated[int, Within(1, LARGE)]
    n_heads: Annotated[int, Within(1, LARGE)]
    head_dim: Annotated[int, Within(1, LARGE)]
    drop_image: Annotated[float, Within(0, 0.99)]
    checkpoint: bool


@dataclass(frozen=True)
class MindEyeFinalPriorRecipe(ChainRecipe):
    """The transformer of the prior of one final embedding; see `MindEyeFinalPrior`.

    Parameters
    ----------
    n_text : int
        Learned text tokens before the brain's.
    time_table : bool
        A learned token for each step; otherwise tokens from sines.
    inner_norm : bool
        A norm inside the layers' MLP.
    dropout : float
    drop_image : float
        Probability of training a row without its noised embedding.
    """

    kind: Literal["mindeye_final"]
    depth: Annotated[int, Within(1, LARGE)]
    n_heads: Annotated[int, Within(1, LARGE)]
    head_dim: Annotated[int, Within(1, LARGE)]
    n_text: Annotated[int, Within(0, LARGE)]
    time_table: bool
    inner_norm: bool
    dropout: Annotated[float, Within(0, 0.99)]
    drop_image: Annotated[float, Within(0, 0.99)]


PriorRecipe = LinearSkipPriorRecipe | MindEyePriorRecipe | MindEyeFinalPriorRecipe
