from __future__ import annotations

import numpy as np
import pytest
import torch

from training.decoder.condition import find_center, find_directions, turn_away


@pytest.fixture
def embeddings(rng: np.random.Generator) -> np.ndarray:
    return (rng.normal(size=(40, 3, 5)) + 2).astype(np.float32)


def test_the_center_is_the_mean_of_unit_embeddings(embeddings: np.ndarray) -> None:
    rows = embeddings.reshape(40, -1)
    expected = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).mean(axis=0).reshape(3, 5)
    for blocks in ([embeddings], [embeddings[:7], embeddings[7:]]):
        np.testing.assert_allclose(find_center(blocks).numpy(), expected, rtol=1e-5)


def test_directions_ignore_the_norm_and_have_mean_square_one(embeddings: np.ndarray) -> None:
    center = find_center([embeddings])
    directions = find_directions(torch.from_numpy(embeddings), center)
    scaled = find_directions(torch.from_numpy(7 * embeddings), center)
    torch.testing.assert_close(scaled, directions, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(directions.square().mean(dim=(1, 2)), torch.ones(40))
    row = torch.from_numpy(embeddings[5] / np.linalg.norm(embeddings[5])) - center
    cosine = torch.cosine_similarity(row.flatten(), directions[5].flatten(), dim=0)
    assert float(cosine) == pytest.approx(1, abs=1e-5)


def test_directions_are_turned_to_exactly_the_cosine(embeddings: np.ndarray) -> None:
    directions = find_directions(torch.from_numpy(embeddings), find_center([embeddings]))
    cosines = torch.linspace(0, 1, 40)
    weights = torch.randn(40, 40, generator=torch.Generator().manual_seed(1))
    turned = turn_away(directions, cosines, weights)
    found = torch.cosine_similarity(turned.flatten(1), directions.flatten(1), dim=1)
    torch.testing.assert_close(found, cosines, atol=1e-4, rtol=0)
    torch.testing.assert_close(turned.square().mean(dim=(1, 2)), torch.ones(40))
    torch.testing.assert_close(turned[-1], directions[-1], atol=1e-4, rtol=1e-4)


def test_directions_are_turned_towards_others_alone(rng: np.random.Generator) -> None:
    # Embeddings of a plane: what they are turned towards lies in it, too.
    plane = rng.normal(size=(2, 12))
    flat = torch.from_numpy((rng.normal(size=(30, 2)) @ plane).astype(np.float32))[:, None]
    directions = find_directions(flat, torch.zeros(1, 12))
    weights = torch.randn(30, 30, generator=torch.Generator().manual_seed(1))
    turned = turn_away(directions, torch.full((30,), 0.5), weights)[:, 0].numpy()
    inside = turned @ np.linalg.pinv(plane) @ plane
    np.testing.assert_allclose(inside, turned, atol=1e-4)
