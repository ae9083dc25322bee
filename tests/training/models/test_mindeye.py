from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from tests.training.reference.published import NAMES, published, relative_difference
from training.models.mindeye import MindEyeProjector, MindEyeTrunk


def build(*, n_voxels: int, tokens: int) -> nn.ModuleList:
    """Build the published widths without allocating them."""
    with torch.device("meta"):
        trunk = MindEyeTrunk(
            latent_dim=4096,
            n_blocks=4,
            stem_dropout=0.5,
            block_dropout=0.15,
            tokens=tokens,
            dim=768,
        )
        return nn.ModuleList([nn.Linear(n_voxels, 4096), trunk, MindEyeProjector(768, 2048)])


@pytest.mark.parametrize(
    ("n_voxels", "tokens", "expected"),
    [
        (15_724, 257, 947_579_904),  # subject 1, printed by the authors' own notebook
        (14_278, 257, 941_657_088),
        (13_039, 257, 936_582_144),
        (12_682, 257, 935_119_872),
        (15_724, 1, 142_076_928),
        (14_278, 1, 136_154_112),
        (13_039, 1, 131_079_168),
        (12_682, 1, 129_616_896),
    ],
)
def test_has_the_published_number_of_parameters(n_voxels: int, tokens: int, expected: int) -> None:
    model = build(n_voxels=n_voxels, tokens=tokens)
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


@pytest.mark.parametrize("name", NAMES)
def test_decodes_as_the_published_code(name: str, tmp_path: Path) -> None:
    frozen = published(name)
    weights = frozen.load(tmp_path)
    voxel_layer = nn.Linear(weights.n_voxels, weights.latent_dim)
    trunk = MindEyeTrunk(
        latent_dim=weights.latent_dim,
        n_blocks=weights.n_blocks,
        stem_dropout=0.5,
        block_dropout=0.15,
        tokens=weights.tokens,
        dim=weights.dim,
    ).eval()
    projector = MindEyeProjector(weights.dim, weights.projector_dim)
    voxel_layer.load_state_dict(weights.voxel_layer)
    trunk.load_state_dict(weights.trunk)
    projector.load_state_dict(weights.projector)
    with torch.inference_mode():
        tokens = trunk(voxel_layer(frozen.run["voxels"]))
        retrieval = projector(tokens)
    assert relative_difference(tokens, frozen.run["tokens"]) < 1e-5
    assert relative_difference(retrieval, frozen.run["retrieval"]) < 1e-5


def test_dropout_follows_the_non_linearities_in_training_alone() -> None:
    torch.manual_seed(0)
    trunk = MindEyeTrunk(
        latent_dim=400, n_blocks=1, stem_dropout=0.5, block_dropout=0.15, tokens=1, dim=2
    )
    latent = torch.randn(50, 400)
    dropped = (trunk.stem(latent) == 0).float().mean()
    assert dropped.item() == pytest.approx(0.5, abs=0.02)
    assert (trunk.blocks[0](latent) == 0).float().mean().item() == pytest.approx(0.15, abs=0.02)
    trunk.eval()
    torch.testing.assert_close(trunk(latent), trunk(latent))
    assert (trunk.stem(latent) != 0).all()
