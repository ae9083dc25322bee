from __future__ import annotations

import torch

from training.diffusion.schedule import cosine_schedule
from training.losses.prior import Draws, prior_loss
from training.models.prior import PriorNetwork


def test_equals_the_mean_squared_error_of_the_estimate_row_by_row() -> None:
    torch.manual_seed(0)
    network = PriorNetwork(tokens=2, dim=6, width=8, depth=1, n_heads=2).double()
    schedule = cosine_schedule(10)
    brain, clean, noise = torch.randn(3, 4, 2, 6, dtype=torch.float64)
    step, drop = torch.tensor([0, 3, 6, 9]), torch.tensor([False, True, False, True])
    draws = Draws(step, noise, {"drop_brain": drop})
    losses = prior_loss(network, schedule, brain, clean, draws)
    errors = []
    for i in range(4):
        left = schedule.alphas_cumprod[step[i]]
        noised = left.sqrt() * clean[i] + (1 - left).sqrt() * noise[i]
        estimate = network(noised[None], step[i, None], brain[i, None], drop_brain=drop[i, None])
        errors.append(((estimate[0] - clean[i]) ** 2).mean())
    torch.testing.assert_close(losses.double(), torch.stack(errors), rtol=1e-6, atol=1e-6)
    some = torch.tensor([2, 1])
    kept = prior_loss(network, schedule, brain[some], clean[some], draws.rows(some))
    torch.testing.assert_close(kept, losses[some])
