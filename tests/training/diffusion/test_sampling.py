from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor

from training.diffusion.sampling import Denoiser, draw_noise, sample_ddim, sample_ddpm
from training.diffusion.schedule import NoiseSchedule, cosine_schedule

MEAN, STD = 1.5, 0.4


def gaussian_denoiser(schedule: NoiseSchedule) -> Denoiser:
    """Return the optimal denoiser of N(MEAN, STD^2): the posterior mean, linear in the input."""

    def denoise(noised: Tensor, step: Tensor) -> Tensor:
        left = schedule.alphas_cumprod[step].reshape(-1, 1).to(noised)
        gain = left.sqrt() * STD**2 / (left * STD**2 + 1 - left)
        return MEAN + gain * (noised - left.sqrt() * MEAN)

    return denoise


def seeded(n: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(1000 + i) for i in range(n)]


@pytest.mark.parametrize("sampler", [sample_ddpm, sample_ddim])
def test_samples_of_a_known_gaussian_have_its_mean_and_deviation(
    sampler: Callable[..., Tensor],
) -> None:
    schedule = cosine_schedule(200)
    steps = {"n_steps": 100} if sampler is sample_ddim else {}
    samples = sampler(gaussian_denoiser(schedule), schedule, (500,), seeded(40), **steps)
    assert samples.shape == (40, 500)
    assert samples.mean().item() == pytest.approx(MEAN, abs=0.015)
    assert samples.std().item() == pytest.approx(STD, rel=0.04)


def nonlinear(noised: Tensor, step: Tensor) -> Tensor:
    return torch.tanh(noised) * (1 + step.reshape(-1, 1) / 100)


def test_ddpm_takes_the_same_steps_as_diffusers() -> None:
    schedule = cosine_schedule(25)
    theirs = DDPMScheduler(
        25, beta_schedule="squaredcos_cap_v2", prediction_type="sample", clip_sample=False
    )
    theirs.set_timesteps(25)
    current = draw_noise(generators := seeded(3), (7,))
    for step in theirs.timesteps:
        at = torch.full((3,), int(step))
        clean = nonlinear(current, at)
        # Their noise is drawn inside: take a step without it, add ours at their variance.
        ahead = theirs.step(clean, step, current, generator=torch.Generator().manual_seed(9))
        current = ahead.prev_sample
        if step > 0:
            drawn = torch.randn(3, 7, generator=torch.Generator().manual_seed(9))
            deviation = theirs._get_variance(int(step)).sqrt()
            current = current + deviation * (draw_noise(generators, (7,)) - drawn)
    ours = sample_ddpm(nonlinear, schedule, (7,), seeded(3))
    torch.testing.assert_close(ours, current, rtol=1e-4, atol=1e-4)


def test_ddim_takes_the_same_steps_as_diffusers() -> None:
    schedule = cosine_schedule(25)
    theirs = DDIMScheduler(
        25, beta_schedule="squaredcos_cap_v2", prediction_type="sample", clip_sample=False
    )
    theirs.set_timesteps(25)
    current = draw_noise(seeded(3), (7,))
    for step in theirs.timesteps:
        clean = nonlinear(current, torch.full((3,), int(step)))
        current = theirs.step(clean, step, current, eta=0.0).prev_sample
    ours = sample_ddim(nonlinear, schedule, (7,), seeded(3), n_steps=25)
    torch.testing.assert_close(ours, current, rtol=1e-4, atol=1e-4)


def test_a_sample_does_not_depend_on_its_neighbours() -> None:
    schedule = cosine_schedule(10)
    together = sample_ddpm(nonlinear, schedule, (4,), seeded(3))
    alone = sample_ddpm(nonlinear, schedule, (4,), seeded(3)[2:])
    torch.testing.assert_close(together[2:], alone)
    assert not torch.allclose(together[0], together[1])


@pytest.mark.parametrize("n_steps", [0, 11])
def test_ddim_refuses_more_evaluations_than_steps(n_steps: int) -> None:
    with pytest.raises(ValueError, match=f"n_steps is {n_steps}, expected 1 to 10"):
        sample_ddim(nonlinear, cosine_schedule(10), (4,), seeded(1), n_steps=n_steps)
