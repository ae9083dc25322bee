from __future__ import annotations

import numpy as np
import pytest
import torch

from training.losses.bimixco import Mixing, bimixco_loss, draw_mixing


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
    labels = Mixing(lam, partner).labels()
    loss = bimixco_loss(torch.from_numpy(p), torch.from_numpy(t), labels, temperature=temperature)
    assert partner[0] == 0
    assert loss.item() == pytest.approx(reference(p, t, lam, partner, temperature), rel=1e-12)


def test_without_mixing_it_is_the_cross_entropy_of_identification(
    rng: np.random.Generator,
) -> None:
    p, t = torch.from_numpy(unit(rng, 7)), torch.from_numpy(unit(rng, 7))
    labels = Mixing(np.ones(7), np.arange(7)[::-1].copy()).labels()
    loss = bimixco_loss(p, t, labels, temperature=0.1)
    right = torch.arange(7)
    expected = torch.nn.functional.cross_entropy(p @ t.T / 0.1, right)
    expected = expected + torch.nn.functional.cross_entropy(t @ p.T / 0.1, right)
    torch.testing.assert_close(loss, expected / 2)


def test_more_negatives_are_told_apart_from_brain_to_image_only(rng: np.random.Generator) -> None:
    p, t, others = (torch.from_numpy(unit(rng, n)) for n in (7, 7, 5))
    loss = bimixco_loss(p, t, torch.eye(7).double(), temperature=0.1, negatives=others)
    right = torch.arange(7)
    expected = torch.nn.functional.cross_entropy(p @ torch.cat((t, others)).T / 0.1, right)
    expected = expected + torch.nn.functional.cross_entropy(t @ p.T / 0.1, right)
    torch.testing.assert_close(loss, expected / 2)


def test_partners_are_of_the_same_subject(rng: np.random.Generator) -> None:
    subjects = np.repeat([0, 2, 3], [5, 1, 9])
    mixing = draw_mixing(subjects, rng, probability=0.5, concentration=0.15)
    assert np.array_equal(subjects[mixing.partner], subjects)
    assert np.array_equal(np.sort(mixing.partner), np.arange(15))


def test_shares_follow_the_beta_distribution_at_the_given_rate(rng: np.random.Generator) -> None:
    everyone = np.zeros(40_000, np.int64)
    drawn = draw_mixing(everyone, rng, probability=0.5, concentration=0.15)
    lam, partner = drawn.lam, drawn.partner
    mixed = lam[lam < 1 - 1e-12].astype(np.float64)
    assert np.array_equal(np.sort(partner), np.arange(40_000))
    # Beta(a, a) has mean 1/2 and variance 1 / (4 (2 a + 1)); rounding to 1 hides a few percent.
    assert (lam == 1).mean() == pytest.approx(0.5, abs=0.03)
    spread = np.concatenate((mixed, 1 - mixed))
    assert spread.var() == pytest.approx(1 / (4 * 1.3), rel=0.1)
    never = draw_mixing(everyone[:100], rng, probability=0.0, concentration=0.15)
    assert (never.lam == 1).all()
