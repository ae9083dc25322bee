from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from training.decoder.flow import (
    LEAST_WAY,
    draw_times,
    flow_loss,
    guide,
    integrate,
    interpolate,
    velocity_of,
)

MEAN, SPREAD = 0.7, 0.4


def posterior_mean(noised: Tensor, time: Tensor) -> Tensor:
    """Return E[clean | noised] for clean pictures of N(MEAN, SPREAD ** 2), entry by entry."""
    t = time[:, None, None, None].double()
    variance = (t * SPREAD) ** 2 + (1 - t) ** 2
    return MEAN + t * SPREAD**2 * (noised - t * MEAN) / variance


def noise(n: int = 4) -> Tensor:
    draw = torch.Generator().manual_seed(3)
    return torch.randn(n, 3, 2, 2, generator=draw, dtype=torch.float64)


def test_the_flow_of_a_gaussian_ends_where_the_closed_form_does() -> None:
    # Along the exact flow a standard normal number x becomes MEAN + SPREAD * x.
    start = noise()
    expected = MEAN + SPREAD * start
    errors = [
        float((integrate(posterior_mean, start, begin=0.0, n_steps=n) - expected).abs().max())
        for n in (20, 40, 80, 160)
    ]
    assert errors[-1] < 1e-3
    orders = [before / after for before, after in pairwise(errors)]
    assert all(3.3 < order < 4.7 for order in orders)  # second order: half the step, a quarter


def test_a_flow_may_begin_on_the_way() -> None:
    start, begin = noise(), 0.35
    spread = ((begin * SPREAD) ** 2 + (1 - begin) ** 2) ** 0.5
    on_the_way = begin * MEAN + spread * start
    reached = integrate(posterior_mean, on_the_way, begin=begin, n_steps=100)
    torch.testing.assert_close(reached, MEAN + SPREAD * start, atol=1e-3, rtol=0)


def test_one_step_lands_on_the_estimate() -> None:
    start = noise()
    landed = integrate(posterior_mean, start, begin=0.0, n_steps=1)
    torch.testing.assert_close(landed, torch.full_like(start, MEAN))
    for n_steps, begin in ((0, 0.0), (5, 1.0), (5, -0.1)):
        with pytest.raises(ValueError, match=r"expected 1 or more, from \[0, 1\)"):
            integrate(posterior_mean, start, begin=begin, n_steps=n_steps)


def test_velocity_and_loss_are_those_of_the_straight_line() -> None:
    start, clean = noise(), noise().flip(0) + 1
    time = torch.tensor([0.0, 0.3, 0.6, 0.9], dtype=torch.float64)
    noised = interpolate(start, clean, time)
    torch.testing.assert_close(noised[1], 0.7 * start[1] + 0.3 * clean[1])
    torch.testing.assert_close(velocity_of(clean, noised, time), clean - start)
    estimate = clean + 0.01 * torch.arange(4.0)[:, None, None, None]
    error = velocity_of(estimate, noised, time) - (clean - start)
    expected = error.square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(flow_loss(estimate, clean, time), expected)
    at_the_end = flow_loss(clean + 1, clean, torch.ones(4, dtype=torch.float64))
    torch.testing.assert_close(at_the_end, torch.full((4,), LEAST_WAY**-2, dtype=torch.float64))


def test_times_are_logit_normal() -> None:
    draw = torch.Generator().manual_seed(0)
    times = draw_times(40_000, draw, location=-0.5, scale=0.8, device=torch.device("cpu"))
    logits = torch.logit(times.double())
    assert float(logits.mean()) == pytest.approx(-0.5, abs=0.02)
    assert float(logits.std()) == pytest.approx(0.8, abs=0.02)


def test_guidance_goes_on_beyond_the_condition() -> None:
    told, blind = noise(), noise().flip(1)
    torch.testing.assert_close(guide(told, blind, 1.0), told)
    torch.testing.assert_close(guide(told, blind, 0.0), blind)
    torch.testing.assert_close(guide(told, blind, 2.5), blind + 2.5 * (told - blind))
