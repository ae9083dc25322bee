from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.training.reference.published import (
    NAMES,
    SEEDS,
    Published,
    published,
    relative_difference,
)
from training.diffusion.sampling import draw_noise, sample_ddpm
from training.diffusion.schedule import cosine_schedule
from training.models.mindeye_final_prior import MindEyeFinalPrior
from training.models.mindeye_prior import MindEyePrior, distance_bucket, step_features
from training.reference_weights import ReferenceFinalPrior, ReferenceWeights


def build_prior(weights: ReferenceWeights, *, checkpoint: bool = False) -> nn.Module:
    """Build the network of a checkpoint and fill it."""
    prior = weights.prior
    sizes = {"depth": prior.depth, "n_heads": prior.n_heads, "head_dim": prior.head_dim}
    network: nn.Module
    if isinstance(prior, ReferenceFinalPrior):
        network = MindEyeFinalPrior(
            dim=weights.dim,
            **sizes,
            n_text=prior.n_text,
            n_steps=prior.n_steps if prior.has_time_table else None,
            dropout=0.05,
            inner_norm=prior.inner_norm,
        )
    else:
        network = MindEyePrior(
            tokens=weights.tokens, dim=weights.dim, **sizes, checkpoint=checkpoint
        )
    network.load_state_dict(prior.weights)
    return network.eval()


@pytest.fixture(params=NAMES)
def frozen(request: pytest.FixtureRequest) -> Published:
    return published(request.param)


def small_prior(checkpoint: bool = False) -> MindEyePrior:
    torch.manual_seed(0)
    return MindEyePrior(tokens=6, dim=8, depth=2, n_heads=2, head_dim=6, checkpoint=checkpoint)


def small_final_prior(dropout: float = 0.0) -> MindEyeFinalPrior:
    torch.manual_seed(0)
    return MindEyeFinalPrior(
        dim=8,
        depth=2,
        n_heads=2,
        head_dim=6,
        n_text=5,
        n_steps=None,
        dropout=dropout,
        inner_norm=False,
    )


def inputs(tokens: int, n: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(n, tokens, 8), torch.arange(n) * 7, torch.randn(n, tokens, 8)


def test_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        network = MindEyePrior(tokens=257, dim=768, depth=6, n_heads=12, head_dim=64)
    # 56,055,184 in the authors' notebook, of which 16 are the constants of the rotation.
    assert sum(parameter.numel() for parameter in network.parameters()) == 56_055_184 - 16


@torch.inference_mode()
def test_estimates_as_the_published_code(frozen: Published, tmp_path: Path) -> None:
    network, run = build_prior(frozen.load(tmp_path)), frozen.run
    clean = network(run["noised"], run["step"], run["tokens"])
    assert relative_difference(clean, run["clean"]) < 1e-5


@torch.inference_mode()
def test_loses_as_the_published_code_with_rows_dropped(frozen: Published, tmp_path: Path) -> None:
    weights, run = frozen.load(tmp_path), frozen.run
    target = run["target"] * weights.image_embed_scale
    noised = cosine_schedule(weights.prior.n_steps).add_noise(target, run["noise"], run["step"])
    clean = build_prior(weights)(
        noised,
        run["step"],
        run["tokens"],
        drop_brain=run["drop_brain"],
        drop_image=run["drop_image"],
    )
    assert relative_difference(clean, run["dropped_clean"]) < 1e-4
    loss = nn.functional.mse_loss(clean, target)
    assert loss.item() == pytest.approx(run["loss"].item(), rel=1e-4)


@torch.inference_mode()
def test_samples_as_the_published_code(frozen: Published, tmp_path: Path) -> None:
    weights, run = frozen.load(tmp_path), frozen.run
    network, brain = build_prior(weights), run["tokens"][:2]
    shape = (weights.tokens, weights.dim)

    def generators() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in SEEDS]

    torch.testing.assert_close(draw_noise(generators(), shape)[:, 0], run["first_draw"])
    sample = sample_ddpm(
        lambda noised, step: network(noised, step, brain),
        cosine_schedule(weights.prior.n_steps),
        shape,
        generators(),
    )
    assert relative_difference(sample / weights.image_embed_scale, run["sample"]) < 1e-4


def test_a_checkpointed_step_has_the_same_gradients() -> None:
    noised, step, brain = inputs(6)
    plain, other = small_prior(), small_prior(checkpoint=True)
    drop = torch.tensor([True, False, False])
    for network in (plain, other):
        network.train()
        network(noised, step, brain, drop_brain=drop, drop_image=~drop).square().sum().backward()
    for (name, expected), found in zip(plain.named_parameters(), other.parameters(), strict=True):
        assert expected.grad is not None and expected.grad.abs().sum() > 0, name
        torch.testing.assert_close(found.grad, expected.grad)


def test_a_checkpointed_layer_is_computed_twice() -> None:
    calls = []
    network = small_prior(checkpoint=True)
    network.layers[0].attention.register_forward_hook(lambda *_: calls.append(1))
    network.eval()(*inputs(6)).sum().backward()
    assert len(calls) == 1
    network.train()(*inputs(6)).sum().backward()
    assert len(calls) == 3


@pytest.mark.parametrize(("build", "tokens"), [(small_prior, 6), (small_final_prior, 1)])
def test_a_row_does_not_depend_on_its_neighbours(
    build: Callable[[], nn.Module], tokens: int
) -> None:
    network, (noised, step, brain) = build(), inputs(tokens)
    together = network(noised, step, brain)
    torch.testing.assert_close(network(noised[1:2], step[1:2], brain[1:2]), together[1:2])
    assert not torch.allclose(together[0], together[1], atol=1e-3)


def test_rows_of_the_final_prior_have_a_dropout_of_their_own() -> None:
    noised, step, brain = (part[:1].repeat(2, *[1] * (part.ndim - 1)) for part in inputs(1))
    network = small_final_prior(dropout=0.5)
    first, second = network.train()(noised, step, brain)
    assert not torch.allclose(first, second, atol=1e-3)
    first, second = network.eval()(noised, step, brain)
    torch.testing.assert_close(first, second)


def test_the_text_of_the_final_prior_learns() -> None:
    network = small_final_prior()
    network(*inputs(1)).square().sum().backward()
    assert network.text.grad is not None and (network.text.grad != 0).any(dim=2).all()


@pytest.mark.parametrize(("build", "tokens"), [(small_prior, 6), (small_final_prior, 1)])
def test_half_precision_stays_near_single(build: Callable[[], nn.Module], tokens: int) -> None:
    network, (noised, step, brain) = build(), inputs(tokens)
    expected = network(noised, step, brain)
    with torch.autocast("cpu", torch.bfloat16):
        found = network(noised, step, brain)
    assert relative_difference(found.detach().float(), expected.detach()) < 0.1
    found.float().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())


def test_buckets_follow_the_published_rule() -> None:
    """Raffel et al. 2020 (arXiv:1910.10683), section 2.1, in exact numbers."""
    distances = torch.arange(-50, 600)
    expected = []
    for distance in distances.tolist():
        if distance < 16:
            expected.append(max(distance, 0))
        else:
            expected.append(min(16 + math.floor(16 * math.log(distance / 16, 8) + 1e-9), 31))
    assert distance_bucket(distances).tolist() == expected


def test_step_features_are_sines_and_cosines_down_to_one_in_ten_thousand() -> None:
    features = step_features(torch.tensor([0, 3]), 6)
    torch.testing.assert_close(features[0], torch.tensor([0.0, 0, 0, 1, 1, 1]))
    angles = torch.tensor([3.0, 0.03, 0.0003])
    torch.testing.assert_close(features[1], torch.cat((angles.sin(), angles.cos())))
