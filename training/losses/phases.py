"""Phases: which contrastive loss, at which temperature, at which fraction of training.

MindEye trains with BiMixCo first (a third of its epochs) and SoftCLIP after, whose temperature
rises along half a cosine (Scotti et al. 2023, arXiv:2305.18274, section 3.3 and its code).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ..schema.loss import ContrastiveRecipe


@dataclass(frozen=True)
class Phase:
    """The contrastive loss at one moment of training.

    Parameters
    ----------
    loss : {"bimixco", "softclip"}
    temperature : float > 0
    """

    loss: Literal["bimixco", "softclip"]
    temperature: float


def phase_at(fraction: float, recipe: ContrastiveRecipe) -> Phase:
    """Return the phase at a fraction of training in [0, 1]."""
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction of training is {fraction}, expected 0 to 1.")
    if fraction < recipe.mixing_fraction:
        return Phase("bimixco", recipe.mixing_temperature)
    share = 1 - recipe.mixing_fraction
    progress = (fraction - recipe.mixing_fraction) / share if share else 1.0
    start, end = recipe.soft_temperature_start, recipe.soft_temperature_end
    return Phase("softclip", end + (start - end) * (1 + math.cos(math.pi * progress)) / 2)
