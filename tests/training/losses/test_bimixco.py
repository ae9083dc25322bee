from __future__ import annotations

import numpy as np
import pytest
import torch

from training.losses.bimixco import bimixco_loss, draw_mixing, mix_voxels


def unit(rng: np.random.Generator, n: int, width: int = 6) -> np.ndarray:
    rows = rng.normal(size=(n, width))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def reference(p: np.ndarray, t: np.ndarray, lam: np.ndarray, k: np.ndarray, tau: float) -> float:
    n = len(p)
    labels = np.zeros((n, n))
    for i in range(n):
        labels[i, i] += lam[i]
        labels[i, k[i]] += 1 - lam[i]
    logits = p @ t.T / tau
    rows = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    columns = logits - np.log(np.exp(logits).sum(axis=0, keepdims=True))
    return float(-0.5 * ((labels * rows).sum() + (labels * columns).sum()) / n)


@pytest.mark.parametrize("temperature", [0.05, 0.5])
def test_equals_the_float64_reference_with_fixed_points(
    rng: np.random.Generator, temperature: float
) -> None:
    p, t = unit(rng, 9), unit(rng, 9)
    lam, partner = rng.random(9), rng.permutation(9)
    partner[[0, partner.tolist().index(0)]] = 0, partner[0]  # image 0 is its own partner
    loss = bimixco_loss(*map(torch.from_numpy, (p, t, lam, partner)), temperature=temperature)
    assert partner[0] == 0
    assert loss.item() == pytest.approx(reference(p, t, lam, partner, temperature), rel=1e-12)


def test_without_mixing_it_is_the_cross_entropy_of_identification(
    rng: np.random.Generator,
) -> None:
    p, t = torch.from_numpy(unit(rng, 7)), torch.from_numpy(unit(rng, 7))
    loss = bimixco_loss(p, t, torch.ones(7).double(), torch.arange(7).flip(0), temperature=0.1)
    right = torch.arange(7)
    expected = torch.nn.functional.cross_entropy(p @ t.T / 0.1, right)
    expected = expected + torch.nn.functional.cross_entropy(t @ p.T / 0.1, right)
    torch.testing.assert_close(loss, expected / 2)


def test_mixing_is_a_convex_combination_with_the_partner(rng: np.random.Generator) -> None:
    voxels = torch.from_numpy(rng.normal(size=(4, 5)))
    lam, partner = torch.tensor([1.0, 0.25, 0.5, 0.0]).double(), torch.tensor([2, 0, 1, 3])
    mixed = mix_voxels(voxels, lam, partner)
    torch.testing.assert_close(mixed[0], voxels[0])
    torch.testing.assert_close(mixed[1], 0.25 * voxels[1] + 0.75 * voxels[0])
    torch.testing.assert_close(mixed[3], voxels[3])


def test_shares_follow_the_beta_distribution_at_the_given_rate(rng: np.random.Generator) -> None:
    lam, partner = draw_mixing(40_000, rng, probability=0.5, concentration=0.15)
    mixed = lam[lam < 1 - 1e-12].astype(np.float64)
    assert np.array_equal(np.sort(partner), np.arange(40_000))
    # Beta(a, a) has mean 1/2 and variance 1 / (4 (2 a + 1)); rounding to 1 hides a few percent.
    assert (lam == 1).mean() == pytest.approx(0.5, abs=0.03)
    spread = np.concatenate((mixed, 1 - mixed))
    assert spread.var() == pytest.approx(1 / (4 * 1.3), rel=0.1)
    never, _ = draw_mixing(100, rng, probability=0.0, concentration=0.15)
    assert (never == 1).all()
