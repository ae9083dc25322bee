from __future__ import annotations

import numpy as np
import pytest
import torch

from training.losses.softclip import softclip_loss


def unit(rng: np.random.Generator, n: int) -> np.ndarray:
    rows = rng.normal(size=(n, 6))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def reference(p: np.ndarray, t: np.ndarray, tau: float) -> float:
    labels = np.exp(t @ t.T / tau)
    labels /= labels.sum(axis=1, keepdims=True)
    total = 0.0
    for logits in (p @ t.T / tau, t @ p.T / tau):
        for i in range(len(p)):
            log_sum = np.log(np.exp(logits[i]).sum())
            total -= float((labels[i] * (logits[i] - log_sum)).sum())
    return total / (2 * len(p))


@pytest.mark.parametrize("temperature", [0.05, 0.3])
def test_equals_the_float64_reference(rng: np.random.Generator, temperature: float) -> None:
    p, t = unit(rng, 8), unit(rng, 8)
    loss = softclip_loss(torch.from_numpy(p), torch.from_numpy(t), temperature=temperature)
    assert loss.item() == pytest.approx(reference(p, t, temperature), rel=1e-12)


def test_perfect_predictions_reach_the_entropy_of_the_labels(rng: np.random.Generator) -> None:
    t = torch.from_numpy(unit(rng, 8))
    labels = (t @ t.T / 0.2).softmax(dim=1)
    entropy = -(labels * labels.log()).sum(dim=1).mean()
    torch.testing.assert_close(softclip_loss(t, t, temperature=0.2), entropy)
    shifted = t.roll(1, dims=0)
    assert softclip_loss(shifted, t, temperature=0.2) > entropy


def test_low_temperature_tends_to_identification(rng: np.random.Generator) -> None:
    p, t = torch.from_numpy(unit(rng, 8)), torch.from_numpy(unit(rng, 8))
    right = torch.arange(8)
    hard = torch.nn.functional.cross_entropy(p @ t.T / 1e-3, right)
    hard = hard + torch.nn.functional.cross_entropy(t @ p.T / 1e-3, right)
    torch.testing.assert_close(softclip_loss(p, t, temperature=1e-3), hard / 2)


def test_more_negatives_take_their_share_of_the_label(rng: np.random.Generator) -> None:
    p, t, others = (
        torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(n, 6))), dim=1)
        for n in (7, 7, 5)
    )
    loss = softclip_loss(p, t, temperature=0.2, negatives=others)
    pool = torch.cat((t, others))
    wide, own = (t @ pool.T / 0.2).softmax(1), (t @ t.T / 0.2).softmax(1)
    expected = torch.nn.functional.cross_entropy(p @ pool.T / 0.2, wide)
    expected = expected + torch.nn.functional.cross_entropy(t @ p.T / 0.2, own)
    torch.testing.assert_close(loss, expected / 2)
