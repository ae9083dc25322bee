from __future__ import annotations

import pytest
import torch

from training.models.prior import PriorNetwork, embed_step


@pytest.fixture
def network() -> PriorNetwork:
    torch.manual_seed(0)
    network = PriorNetwork(tokens=3, dim=6, width=8, depth=2, n_heads=2)
    torch.nn.init.normal_(network.image_out.weight)
    torch.nn.init.normal_(network.shares.weight)
    return network


def test_starts_as_a_linear_readout_of_the_brain() -> None:
    network = PriorNetwork(tokens=3, dim=6, width=8, depth=2, n_heads=2)
    noised, brain, step = torch.randn(2, 3, 6), torch.randn(2, 3, 6), torch.tensor([1, 4])
    expected = network.readout(brain) + network.image_out.bias
    torch.testing.assert_close(network(noised, step, brain), expected)


def test_estimate_depends_on_noise_step_and_brain(network: PriorNetwork) -> None:
    noised, brain, step = torch.randn(2, 3, 6), torch.randn(2, 3, 6), torch.tensor([1, 4])
    clean = network(noised, step, brain)
    assert clean.shape == (2, 3, 6)
    for changed in (
        network(noised + 1, step, brain),
        network(noised, step + 1, brain),
        network(noised, step, brain + 1),
    ):
        assert not torch.allclose(changed, clean, atol=1e-3)


def test_attention_is_not_causal(network: PriorNetwork) -> None:
    noised, brain, step = torch.randn(1, 3, 6), torch.randn(1, 3, 6), torch.tensor([1])
    clean = network(noised, step, brain)
    noised[:, 2] += 1
    assert not torch.allclose(network(noised, step, brain)[:, 0], clean[:, 0], atol=1e-4)


def test_a_dropped_brain_is_not_seen_and_touches_no_other_row(network: PriorNetwork) -> None:
    noised, step = torch.randn(2, 3, 6), torch.tensor([1, 1])
    drop = torch.tensor([True, False])
    one, other = torch.randn(2, 2, 3, 6)
    first = network(noised, step, one, drop_brain=drop)
    second = network(noised, step, other, drop_brain=drop)
    torch.testing.assert_close(first[0], second[0])
    torch.testing.assert_close(first[1], network(noised, step, one)[1])
    assert not torch.allclose(first[1], second[1], atol=1e-3)


def test_step_features_are_sines_and_cosines() -> None:
    features = embed_step(torch.tensor([0, 3]), 6)
    torch.testing.assert_close(features[0], torch.tensor([0.0, 0, 0, 1, 1, 1]))
    assert features[1, 0].item() == pytest.approx(0.14112, abs=1e-5)  # sin 3
    assert features[1, 3].item() == pytest.approx(-0.98999, abs=1e-5)  # cos 3


def test_width_must_suit_the_heads() -> None:
    with pytest.raises(ValueError, match="width 10 must be a multiple of 2 \\* n_heads = 8"):
        PriorNetwork(tokens=1, dim=4, width=10, depth=1, n_heads=4)
