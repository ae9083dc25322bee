from __future__ import annotations

from collections.abc import Callable

import torch

from training.models.assemble import build_model, count_parameters, summarize_parameters
from training.recipe import Recipe


def test_counts_follow_the_arithmetic_of_the_layers(small_recipe: Callable[..., Recipe]) -> None:
    counts = summarize_parameters(
        small_recipe("model.n_blocks=2", "prior.depth=0"), n_voxels=50, tokens=2, dim=12
    )
    assert counts["voxel_layer"] == 50 * 24 + 24
    assert counts["blocks"] == 2 * (2 * 24 + 24 * 24 + 24)
    assert counts["head"] == 24 * 24 + 24
    assert counts["projector"] == 2 * 12 + (12 * 16 + 16) + 32 + (16 * 16 + 16) + 32 + (
        16 * 12 + 12
    )
    assert counts["prior"] == 0
    assert counts["total"] == sum(n for name, n in counts.items() if name != "total")


def test_the_full_size_model_is_counted_without_being_made(
    small_recipe: Callable[..., Recipe],
) -> None:
    recipe = small_recipe(
        "model.latent_dim=4096",
        "model.n_blocks=4",
        "model.projector_dim=2048",
        "prior.width=768",
        "prior.depth=6",
        "prior.n_heads=12",
    )
    counts = summarize_parameters(recipe, n_voxels=15724, tokens=257, dim=768)
    assert counts["head"] == 808_649_472  # MindEye, subject 1 (arXiv:2305.18274, code)
    assert counts["projector"] == 7_354_624


def test_retrieval_is_the_projected_tokens_flattened(small_recipe: Callable[..., Recipe]) -> None:
    torch.manual_seed(0)
    model = build_model(small_recipe(), n_voxels=50, tokens=2, dim=12).eval()
    torch.nn.init.normal_(model.projector.correct[-1].weight)
    tokens, retrieval = model(torch.randn(3, 50))
    assert tokens.shape == (3, 2, 12)
    torch.testing.assert_close(retrieval, model.projector(tokens).reshape(3, 24))
    assert count_parameters(model)["total"] == sum(p.numel() for p in model.parameters())
