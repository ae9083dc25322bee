from __future__ import annotations

import math

import pytest
import torch

from training.diffusion.schedule import cosine_schedule


def test_follows_the_cosine_of_nichol_and_dhariwal() -> None:
    def signal(share: float) -> float:
        return math.cos((share + 0.008) / 1.008 * math.pi / 2) ** 2

    kept = cosine_schedule(100).alphas_cumprod
    for step in (0, 10, 50, 90):  # the last steps are capped at beta 0.999
        assert kept[step].item() == pytest.approx(signal((step + 1) / 100) / signal(0), rel=1e-4)
    assert (kept.diff() < 0).all()
    assert kept[-1] < 1e-5


def test_noised_embeddings_have_the_scheduled_mean_and_variance() -> None:
    schedule = cosine_schedule(20)
    clean = torch.full((20_000, 1, 1), 3.0, dtype=torch.float64)
    noise = torch.randn(clean.shape, dtype=torch.float64, generator=torch.manual_seed(0))
    noised = schedule.add_noise(clean, noise, torch.full((20_000,), 7))
    left = schedule.alphas_cumprod[7]
    assert noised.mean().item() == pytest.approx(3 * left.sqrt().item(), abs=0.02)
    assert noised.var().item() == pytest.approx(1 - left.item(), rel=0.03)


def test_a_schedule_needs_a_step() -> None:
    with pytest.raises(ValueError, match="n_steps is 0, expected at least 1"):
        cosine_schedule(0)
