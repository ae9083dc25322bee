from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from training.errors import RunError
from training.models.assemble import build_model, count_parameters, summarize_parameters
from training.recipe import Recipe, load_recipe


def test_counts_follow_the_arithmetic_of_the_layers(small_recipe: Callable[..., Recipe]) -> None:
    counts = summarize_parameters(
        small_recipe("model.n_blocks=2", "prior=none"), n_voxels=[50, 7], tokens=2, dim=12
    )
    assert counts["voxel_layers"] == 50 * 24 + 24 + 7 * 24 + 24
    assert counts["trunk"] == 2 * (2 * 24 + 24 * 24 + 24) + 24 * 24 + 24
    assert counts["projector"] == 2 * 12 + (12 * 16 + 16) + 32 + (16 * 16 + 16) + 32 + (
        16 * 12 + 12
    )
    assert "prior" not in counts
    assert counts["total"] == sum(n for name, n in counts.items() if name != "total")


def test_retrieval_is_the_projected_tokens_flattened(small_recipe: Callable[..., Recipe]) -> None:
    torch.manual_seed(0)
    model = build_model(small_recipe(), n_voxels=[50], tokens=2, dim=12).eval()
    torch.nn.init.normal_(model.projector.correct[-1].weight)
    tokens, retrieval = model([torch.randn(3, 50)])
    assert tokens.shape == (3, 2, 12)
    torch.testing.assert_close(retrieval, model.projector(tokens).reshape(3, 24))
    assert count_parameters(model)["total"] == sum(p.numel() for p in model.parameters())


def test_subjects_pass_through_layers_of_their_own(small_recipe: Callable[..., Recipe]) -> None:
    torch.manual_seed(0)
    model = build_model(small_recipe(), n_voxels=[50, 7], tokens=2, dim=12).eval()
    first, second = torch.randn(3, 50), torch.randn(2, 7)
    tokens, retrieval = model([first, second])
    for subject, voxels, rows in ((0, first, slice(0, 3)), (1, second, slice(3, 5))):
        own_tokens, own_retrieval = model.decode(voxels, subject)
        torch.testing.assert_close(own_tokens, tokens[rows])
        torch.testing.assert_close(own_retrieval, retrieval[rows])
    torch.testing.assert_close(
        tokens[3:], model.trunk(model.voxel_layers[1](second)), rtol=0, atol=1e-6
    )


def test_voxel_gain_scales_the_initial_voxel_layers(small_recipe: Callable[..., Recipe]) -> None:
    def weight(gain: float) -> torch.Tensor:
        torch.manual_seed(0)
        recipe = small_recipe(f"model.voxel_gain={gain}")
        return build_model(recipe, n_voxels=[9], tokens=1, dim=4).voxel_layers[0].weight

    torch.testing.assert_close(weight(0.1), 0.1 * weight(1.0))


def test_a_head_larger_than_its_targets_is_refused() -> None:
    with pytest.raises(RunError, match=r"are 16 and 192, and the targets are 4 x 768"):
        build_model(load_recipe("light"), n_voxels=[50], tokens=4, dim=768)


def test_the_prior_of_one_token_is_for_one_token() -> None:
    with pytest.raises(RunError, match=r"'mindeye_final' is of one token, and the targets have 2"):
        recipe = load_recipe("mindeye_final", ("model.latent_dim=8",))
        build_model(recipe, n_voxels=[50], tokens=2, dim=768)
