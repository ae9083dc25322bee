from __future__ import annotations

import pytest
import torch

from training.decoder.network import FlowNetwork


def make(tokens: int = 1, image_channels: int = 3, patch: int = 2) -> FlowNetwork:
    torch.manual_seed(0)
    network = FlowNetwork(
        image_channels=image_channels,
        image_side=16,
        tokens=tokens,
        dim=10,
        patch=patch,
        channels=16,
        n_levels=2,
        n_blocks=1,
        width=32,
        layout_channels=8,
        sketch_side=4,
        sketch_rank=6,
    )
    for tensor in network.state_dict().values():  # what begins at zero shows nothing
        if not tensor.any():
            torch.nn.init.normal_(tensor, std=0.1)
    return network.eval()


def inputs(tokens: int, image_channels: int) -> tuple[torch.Tensor, ...]:
    draw = torch.Generator().manual_seed(1)
    return (
        torch.randn(3, image_channels, 16, 16, generator=draw),
        torch.tensor([0.1, 0.5, 0.9]),
        torch.randn(3, tokens, 10, generator=draw),
        torch.tensor([0.4, 0.7, 1.0]),
    )


@pytest.mark.parametrize(("tokens", "channels", "patch"), [(1, 3, 2), (20, 4, 1), (5, 3, 4)])
def test_rows_are_estimated_apart(tokens: int, channels: int, patch: int) -> None:
    network, given = make(tokens, channels, patch), inputs(tokens, channels)
    with torch.inference_mode():
        together = network(*given)
        assert together.shape == given[0].shape and bool(together.isfinite().all())
        for row in range(3):
            alone = network(*(part[row : row + 1] for part in given))
            torch.testing.assert_close(alone, together[row : row + 1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("changed", [0, 1, 2, 3])
def test_everything_that_is_told_is_heard(changed: int) -> None:
    network, given = make(), list(inputs(1, 3))
    with torch.inference_mode():
        before = network(*given)
        given[changed] = given[changed].flip(0)
        after = network(*given)
    assert (before - after).abs().amax(dim=(1, 2, 3))[[0, 2]].min() > 1e-4


def test_at_a_cosine_of_zero_the_direction_is_not_heard() -> None:
    network, (noised, time, directions, _) = make(tokens=5), inputs(5, 3)
    cosines = torch.tensor([0.0, 0.6, 0.0])
    with torch.inference_mode():
        before = network(noised, time, directions, cosines)
        after = network(noised, time, directions.flip(1), cosines)
    assert torch.equal(before[[0, 2]], after[[0, 2]])
    assert not torch.allclose(before[1], after[1], atol=1e-4)


def test_it_begins_as_the_sketch() -> None:
    network, (noised, time, directions, cosines) = make(), inputs(1, 3)
    for parameter in network.head.parameters():
        torch.nn.init.zeros_(parameter)
    with torch.inference_mode():
        drawn = network(noised, time, directions, cosines)
        torch.testing.assert_close(drawn, network.sketch(directions, cosines))


def test_the_order_of_tokens_matters() -> None:
    network, given = make(tokens=5), inputs(5, 3)
    with torch.inference_mode():
        turned = network(given[0], given[1], given[2].roll(1, dims=1), given[3])
        assert not torch.allclose(network(*given), turned, atol=1e-4)
