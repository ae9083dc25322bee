from __future__ import annotations

import torch

from training.models.head import DenseHead
from training.models.linear_start import LinearStartTrunk


def build(n_blocks: int) -> LinearStartTrunk:
    torch.manual_seed(0)
    head = DenseHead(6, 3, 4)
    return LinearStartTrunk(6, n_blocks=n_blocks, dropout=0.0, head=head).double()


def test_starts_as_a_linear_map_with_or_without_blocks() -> None:
    latent, trunk = torch.randn(5, 6, dtype=torch.float64), build(n_blocks=2)
    tokens = trunk(latent)
    assert tokens.shape == (5, 3, 4)
    torch.testing.assert_close(tokens, trunk.head(latent))


def test_blocks_take_part_once_their_weights_have_moved() -> None:
    latent, trunk = torch.randn(5, 6, dtype=torch.float64), build(n_blocks=1)
    before = trunk(latent)
    before.square().sum().backward()
    gradient = trunk.blocks[0].refine[1].weight.grad
    assert gradient is not None and gradient.abs().sum() > 0
    with torch.no_grad():
        trunk.blocks[0].refine[1].weight.normal_()  # a constant sums to 0 after LayerNorm
    assert not torch.allclose(trunk(latent), before)
