from __future__ import annotations

import torch

from training.models.backbone import Backbone


def build(n_blocks: int, gain: float = 1.0) -> Backbone:
    torch.manual_seed(0)
    return Backbone(
        9, latent_dim=6, n_blocks=n_blocks, dropout=0.0, voxel_gain=gain, tokens=3, dim=4
    ).double()


def test_starts_as_a_linear_map_with_or_without_blocks() -> None:
    voxels = torch.randn(5, 9, dtype=torch.float64)
    backbone = build(n_blocks=2)
    weight = backbone.head.weight @ backbone.voxel_layer.weight
    bias = backbone.head.weight @ backbone.voxel_layer.bias + backbone.head.bias
    tokens = backbone(voxels)
    assert tokens.shape == (5, 3, 4)
    torch.testing.assert_close(tokens.flatten(1), voxels @ weight.T + bias)


def test_blocks_take_part_once_their_weights_have_moved() -> None:
    voxels = torch.randn(5, 9, dtype=torch.float64)
    backbone = build(n_blocks=1)
    before = backbone(voxels)
    before.square().sum().backward()
    gradient = backbone.blocks[0].refine[1].weight.grad
    assert gradient is not None and gradient.abs().sum() > 0
    with torch.no_grad():
        backbone.blocks[0].refine[1].weight.normal_()  # a constant sums to 0 after LayerNorm
    assert not torch.allclose(backbone(voxels), before)


def test_voxel_gain_scales_the_initial_voxel_layer() -> None:
    torch.testing.assert_close(
        build(0, gain=0.1).voxel_layer.weight, 0.1 * build(0).voxel_layer.weight
    )
