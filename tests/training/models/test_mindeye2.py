from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from training.models.low_level import LatentDecoder
from training.models.mindeye import MindEyeProjector
from training.models.mindeye2 import MindEye2Trunk

# Small runs of MedARC-AI/MindEyeV2 at c184718 (src/models.py, BrainNetwork) over diffusers 0.13.0,
# made outside this repository with PyTorch 2.14.1 in float32 on a CPU.
REFERENCE = Path(__file__).parents[1] / "reference"
Fill = Callable[[nn.Module], nn.Module]
Compare = Callable[[torch.Tensor, np.ndarray], float]


def count(*modules: nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def test_equals_the_published_backbone(fill_by_name: Fill, relative_error: Compare) -> None:
    frozen = np.load(REFERENCE / "mindeye2_backbone.npz")
    trunk = fill_by_name(MindEye2Trunk(latent_dim=24, n_blocks=3, dropout=0.15, tokens=6, dim=10))
    projector = fill_by_name(MindEyeProjector(10, 10))
    with torch.no_grad():
        tokens = trunk(torch.from_numpy(frozen["latent"]))
        assert relative_error(tokens, frozen["tokens"]) < 1e-5
        assert relative_error(projector(tokens), frozen["retrieval"]) < 1e-5


def test_the_low_level_branch_equals_the_published_one(
    fill_by_name: Fill, relative_error: Compare
) -> None:
    frozen = np.load(REFERENCE / "mindeye2_low_level.npz")
    trunk = fill_by_name(MindEye2Trunk(latent_dim=24, n_blocks=3, dropout=0.15, tokens=6, dim=10))
    branch = fill_by_name(
        LatentDecoder(
            24,
            dropout=0.3,
            bias=True,
            start_channels=64,
            start_side=7,
            channels=[32, 64, 128],
            feature_dim=512,
        )
    )
    with torch.no_grad():
        vae_latents, features = branch(trunk.refine(torch.from_numpy(frozen["latent"])))
    assert vae_latents.shape == (3, 4, 28, 28) and features.shape == (3, 49, 512)
    assert relative_error(vae_latents[:, :, ::2, ::2], frozen["vae_latents"]) < 1e-4
    assert relative_error(features[:, ::5, ::7], frozen["features"]) < 1e-4


def test_published_parameter_counts() -> None:
    n_voxels = 15_724  # Of subject 1. The numbers are printed in the notebooks of the authors.
    with torch.device("meta"):
        projector = MindEyeProjector(1664, 1664)
        small, large = (
            MindEye2Trunk(latent_dim=width, n_blocks=4, dropout=0.15, tokens=256, dim=1664)
            for width in (1024, 4096)
        )
        branch = LatentDecoder(
            4096,
            dropout=0.3,
            bias=True,
            start_channels=64,
            start_side=7,
            channels=[32, 64, 128],
            feature_dim=512,
        )
        assert count(nn.Linear(n_voxels, 1024)) == 16_102_400
        assert count(nn.Linear(n_voxels, 4096)) == 64_409_600
    assert count(small, projector) == 453_360_280
    assert count(large, projector, branch) == 1_903_020_028


def test_over_a_sequence_of_one_it_is_affine_and_the_width_mixers_say_nothing(
    fill_by_name: Fill,
) -> None:
    torch.manual_seed(0)
    trunk = fill_by_name(
        MindEye2Trunk(latent_dim=12, n_blocks=4, dropout=0.15, tokens=3, dim=5)
    ).double()
    latent, other = torch.randn(2, 4, 12, dtype=torch.float64)
    moved = trunk(latent) - trunk(other)
    torch.testing.assert_close(moved.flatten(1), (latent - other) @ trunk.head.weight.T)
    before = trunk(latent)
    with torch.no_grad():
        for parameter in trunk.width_mixers.parameters():
            parameter.normal_()
    torch.testing.assert_close(trunk(latent), before)
    assert not torch.allclose(trunk.refine(latent), latent)


def test_dropout_of_the_sequence_mixers_moves_single_latents(fill_by_name: Fill) -> None:
    torch.manual_seed(0)
    trunk = fill_by_name(MindEye2Trunk(latent_dim=200, n_blocks=1, dropout=0.5, tokens=1, dim=1))
    latent = torch.randn(1, 200)
    shift = trunk.train().refine(latent) - latent
    shares = torch.unique(shift.round(decimals=4), return_counts=True)[1] / 200
    assert shares.tolist() == pytest.approx([0.5, 0.5], abs=0.1)
