from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from training.losses.phases import phase_at
from training.recipe import Recipe


def test_bimixco_comes_first_and_softclip_warms_along_half_a_cosine(
    small_recipe: Callable[..., Recipe],
) -> None:
    recipe = small_recipe(
        "loss.mixing_fraction=0.25",
        "loss.mixing_temperature=0.006",
        "loss.soft_temperature_start=0.004",
        "loss.soft_temperature_end=0.0075",
    ).loss
    assert phase_at(0.0, recipe).loss == phase_at(0.249, recipe).loss == "bimixco"
    assert phase_at(0.1, recipe).temperature == 0.006
    assert phase_at(0.25, recipe).loss == "softclip"
    assert phase_at(0.25, recipe).temperature == pytest.approx(0.004)
    assert phase_at(0.625, recipe).temperature == pytest.approx(0.00575)
    assert phase_at(1.0, recipe).temperature == pytest.approx(0.0075)
    quarter = 0.004 + 0.0035 * (1 - math.cos(math.pi / 4)) / 2
    assert phase_at(0.25 + 0.75 / 4, recipe).temperature == pytest.approx(quarter)


@pytest.mark.parametrize(("fraction", "expected"), [(0.0, "softclip"), (1.0, "bimixco")])
def test_one_phase_may_fill_all_of_training(
    small_recipe: Callable[..., Recipe], fraction: float, expected: str
) -> None:
    recipe = small_recipe(f"loss.mixing_fraction={fraction}").loss
    assert {phase_at(epoch / 10, recipe).loss for epoch in range(10)} == {expected}


def test_fractions_outside_training_are_refused(small_recipe: Callable[..., Recipe]) -> None:
    with pytest.raises(ValueError, match=r"fraction of training is 1\.5, expected 0 to 1"):
        phase_at(1.5, small_recipe().loss)
