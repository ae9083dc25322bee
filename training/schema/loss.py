"""Section ``loss``: weights, temperatures and phases; a closed form has none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from .ranges import LARGE, Within


@dataclass(frozen=True)
class ContrastiveRecipe:
    """Weights, temperatures and phases of retrieval and prior; see `phase_at`.

    Temperatures depend on the encoder: the narrower the cone of its embeddings, the smaller.

    Parameters
    ----------
    extra_negatives : int
        Targets of so many other training images, drawn anew each step, that the brain-to-image
        direction is told apart from beside those of the batch. Targets are frozen, so these are
        never stale, as those of a memory bank are.
    """

    kind: Literal["contrastive"]
    contrastive_weight: Annotated[float, Within(0, 1e6)]
    prior_weight: Annotated[float, Within(0, 1e6)]
    extra_negatives: Annotated[int, Within(0, LARGE)]
    mixing_fraction: Annotated[float, Within(0, 1)]
    mixing_probability: Annotated[float, Within(0, 1)]
    mixing_concentration: Annotated[float, Within(1e-3, 1e3)]
    mixing_temperature: Annotated[float, Within(1e-4, 1e3)]
    soft_temperature_start: Annotated[float, Within(1e-4, 1e3)]
    soft_temperature_end: Annotated[float, Within(1e-4, 1e3)]


@dataclass(frozen=True)
class LatentLossRecipe:
    """The absolute error of VAE latents, and contrast with a teacher's features.

    Parameters
    ----------
    latent_weight, feature_weight : float
        MindEye: 1 and 0.1. Without a teacher, ``feature_weight`` must be 0.
    latent_unit : float
        The error is told in units of it; MindEye: the VAE's scaling factor, 0.18215.
    feature_temperature : float
        MindEye: 0.075.
    """

    kind: Literal["latent"]
    latent_weight: Annotated[float, Within(0, 1e6)]
    latent_unit: Annotated[float, Within(1e-6, 1e6)]
    feature_weight: Annotated[float, Within(0, 1e6)]
    feature_temperature: Annotated[float, Within(1e-4, 1e3)]
