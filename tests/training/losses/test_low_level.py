from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from training.losses.low_level import SCALING_FACTOR, latent_l1_loss, soft_contrastive_loss

# Made by soft_cont_loss of MedARC-AI/fMRI-reconstruction-NSD at 6b30ea5 (src/utils.py), outside
# this repository, in float64.
REFERENCE = Path(__file__).parents[1] / "reference"


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1])
    return (a @ b.T) / np.outer(np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1))


def cross_entropy(labels: np.ndarray, logits: np.ndarray) -> float:
    """Average over rows the cross-entropy of two softmaxes."""
    total = 0.0
    for label, logit in zip(labels, logits, strict=True):
        share = np.exp(label) / np.exp(label).sum()
        total += float((share * (np.log(np.exp(logit).sum()) - logit)).sum())
    return total / len(labels)


def tensors(*arrays: np.ndarray) -> list[torch.Tensor]:
    return [torch.from_numpy(array) for array in arrays]


@pytest.mark.parametrize("temperature", [0.075, 0.2])
def test_soft_contrast_equals_the_closed_form(rng: np.random.Generator, temperature: float) -> None:
    student, teacher, augmented = rng.normal(size=(3, 2, 4, 5))
    labels = cosines(teacher, augmented) / temperature
    logits = cosines(student, augmented) / temperature
    expected = (cross_entropy(labels, logits) + cross_entropy(labels.T, logits.T)) / 2
    actual = soft_contrastive_loss(*tensors(student, teacher, augmented), temperature=temperature)
    assert actual.item() == pytest.approx(expected, rel=1e-12)


def test_soft_contrast_equals_the_published_function() -> None:
    frozen = np.load(REFERENCE / "low_level_soft_contrastive.npz")
    views = tensors(frozen["student"], frozen["teacher"], frozen["teacher_augmented"])
    for temperature, loss in zip(frozen["temperatures"], frozen["losses"], strict=True):
        actual = soft_contrastive_loss(*views, temperature=float(temperature))
        assert actual.item() == pytest.approx(loss, rel=1e-12)


def test_a_student_that_is_the_teacher_reaches_the_entropy_of_the_labels(
    rng: np.random.Generator,
) -> None:
    teacher, noise = rng.normal(size=(2, 3, 4, 6))
    clean, augmented = tensors(teacher, teacher + 0.3 * noise)
    labels = cosines(clean.numpy(), augmented.numpy()) / 0.1
    entropy = (cross_entropy(labels, labels) + cross_entropy(labels.T, labels.T)) / 2
    same = soft_contrastive_loss(7 * clean, clean, augmented, temperature=0.1)
    assert same.item() == pytest.approx(entropy, rel=1e-12)
    other = soft_contrastive_loss(clean.roll(1, dims=1), clean, augmented, temperature=0.1)
    assert other > same


def test_tokens_of_other_images_are_candidates_too(rng: np.random.Generator) -> None:
    teacher = rng.normal(size=(2, 4, 5))
    teacher[..., 4], blind = 0, np.zeros_like(teacher)
    blind[..., 4] = 1  # Equally far from all the teacher's tokens.
    views = tensors(blind, teacher, teacher)
    for n_images in (1, 2):
        loss = soft_contrastive_loss(*(v[:n_images] for v in views), temperature=0.2)
        assert loss.item() == pytest.approx(np.log(4 * n_images), rel=1e-12)


def test_l1_is_in_the_units_of_the_vae() -> None:
    target = torch.zeros(2, 4, 3, 3)
    predicted = target.clone()
    predicted[0] = SCALING_FACTOR
    assert latent_l1_loss(predicted, target).tolist() == pytest.approx([1, 0])
    unscaled = latent_l1_loss(predicted, target, scaling_factor=1)
    assert unscaled.tolist() == pytest.approx([SCALING_FACTOR, 0])
