from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from index_builder.embeddings.errors import MissingExtraError
from training.models.low_level import LatentDecoder, LowLevelTrunk, map_to_tokens, tokens_to_map

# A small run of MedARC-AI/fMRI-reconstruction-NSD at 6b30ea5 (src/models.py,
# Voxel2StableDiffusionModel) over diffusers 0.13.0, made outside this repository with
# PyTorch 2.14.1 in float32 on a CPU.
REFERENCE = Path(__file__).parents[1] / "reference"
Fill = Callable[[nn.Module], nn.Module]
Compare = Callable[[torch.Tensor, np.ndarray], float]
MINDEYE = {
    "stem_dropout": 0.5,
    "block_dropout": 0.25,
    "start_channels": 64,
    "start_side": 16,
    "channels": [64, 128, 256],
    "feature_dim": 512,
}
SMALL = MINDEYE | {"start_channels": 8, "start_side": 3, "channels": [32, 32], "feature_dim": 16}


def test_equals_the_published_low_level_model(fill_by_name: Fill, relative_error: Compare) -> None:
    frozen = np.load(REFERENCE / "low_level_mindeye.npz")
    trunk = fill_by_name(LowLevelTrunk(latent_dim=24, n_blocks=3, **MINDEYE))
    with torch.no_grad():
        vae_latents, features = trunk(torch.from_numpy(frozen["latent"]))
    assert vae_latents.shape == (2, 4, 64, 64) and features.shape == (2, 256, 512)
    assert relative_error(vae_latents[:, :, ::3, ::3], frozen["vae_latents"]) < 1e-4
    assert relative_error(features[:, ::5, ::7], frozen["features"]) < 1e-4


def test_parameters_of_the_published_size() -> None:
    width, voxels = 4096, 15_724
    with torch.device("meta"):
        trunk = LowLevelTrunk(latent_dim=width, n_blocks=4, **MINDEYE)
    branch = [trunk.decoder.upsampler, trunk.decoder.features]
    convolutional = sum(p.numel() for part in branch for p in part.parameters())
    total = sum(p.numel() for p in trunk.parameters())
    dense = 4 * width**2 + 5 * 2 * width + width * 16_384 + 2 * 64
    assert total == dense + convolutional
    assert width * voxels + dense == pytest.approx(199e6, rel=2e-3)


def test_a_feature_is_of_the_place_of_its_token(fill_by_name: Fill) -> None:
    torch.manual_seed(0)
    decoder = fill_by_name(
        LatentDecoder(
            5,
            dropout=0.0,
            bias=True,
            start_channels=8,
            start_side=3,
            channels=[32, 32],
            feature_dim=16,
        )
    )
    start = decoder.start(torch.randn(1, 5))
    features = decoder.features[0](start)
    assert map_to_tokens(features)[0, 5].tolist() == features[0, :, 1, 2].tolist()
    vae_latents, tokens = decoder(torch.randn(2, 5))
    assert vae_latents.shape == (2, 4, 6, 6) and tokens.shape == (2, 9, 16)
    torch.testing.assert_close(tokens_to_map(map_to_tokens(vae_latents)), vae_latents)


def test_every_weight_is_reached_by_both_outputs(fill_by_name: Fill) -> None:
    torch.manual_seed(0)
    trunk = fill_by_name(LowLevelTrunk(latent_dim=6, n_blocks=2, **SMALL)).train()
    vae_latents, features = trunk(torch.randn(4, 6))
    (vae_latents.square().mean() + features.square().mean()).backward()
    silent = [
        name
        for name, parameter in trunk.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    ]
    assert silent == []


@pytest.mark.parametrize("channels", [[], [64, 48]])
def test_widths_must_suit_the_norms(channels: list[int]) -> None:
    with pytest.raises(ValueError, match=r"channels is .*expected one or more multiples of 32"):
        LowLevelTrunk(latent_dim=6, n_blocks=1, **(SMALL | {"channels": channels}))


def test_without_diffusers_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers.models.autoencoders.vae", None)
    with pytest.raises(MissingExtraError, match=r"low-level branch needs it.*voxseek\[train\]"):
        LowLevelTrunk(latent_dim=6, n_blocks=1, **SMALL)
