from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from training.models.head import DenseHead, FactoredHead, start_from_targets


def draw_targets(n: int, tokens: int, dim: int, *, seed: int = 0) -> np.ndarray:
    """Targets with a common mean and spectra over tokens and width, not separable."""
    rng = np.random.default_rng(seed)
    over_tokens = rng.standard_normal((tokens, tokens)) / np.arange(1, tokens + 1)
    over_width = (rng.standard_normal((dim, dim)) / np.arange(1, dim + 1)).T
    separable = over_tokens @ rng.standard_normal((n, tokens, dim)) @ over_width
    spoiled = separable + 0.3 * rng.standard_normal((n, tokens, dim)) * rng.random((tokens, dim))
    return (2 + spoiled).astype(np.float32)


def blocks_of(targets: np.ndarray, n_rows: int) -> Iterator[np.ndarray]:
    return (targets[start : start + n_rows] for start in range(0, len(targets), n_rows))


def leading_left(matrix: np.ndarray, n: int) -> np.ndarray:
    return np.linalg.svd(matrix, full_matrices=False)[0][:, :n]


def projector_on(basis: np.ndarray) -> np.ndarray:
    q = np.linalg.qr(basis)[0]
    return q @ q.T


def test_dense_head_is_one_linear_layer() -> None:
    head = DenseHead(5, 3, 4)
    latent = torch.randn(2, 5)
    expected = (latent @ head.weight.T + head.bias).reshape(2, 3, 4)
    torch.testing.assert_close(head(latent), expected)


def test_full_bases_can_say_any_dense_map() -> None:
    torch.manual_seed(0)
    dense = DenseHead(5, 3, 4).double()
    factored = FactoredHead(5, 3, 4, rank=3, channels=4).double()
    with torch.no_grad():
        left = torch.linalg.inv(factored.token_basis)
        right = torch.linalg.inv(factored.channel_basis)
        core = left @ dense.weight.T.reshape(5, 3, 4) @ right
        factored.core.weight.copy_(core.flatten(1).T)
        factored.bias.copy_(dense.bias.reshape(3, 4))
    latent = torch.randn(7, 5, dtype=torch.float64)
    torch.testing.assert_close(factored(latent), dense(latent))


def test_tokens_are_the_sum_over_the_core() -> None:
    torch.manual_seed(0)
    head = FactoredHead(5, 6, 7, rank=2, channels=3).double()
    torch.nn.init.normal_(head.bias)
    latent = torch.randn(4, 5, dtype=torch.float64)
    core = head.core(latent).reshape(4, 2, 3)
    expected = torch.einsum("tr,brc,cd->btd", head.token_basis, core, head.channel_basis)
    torch.testing.assert_close(head(latent), expected + head.bias)


def test_starts_at_the_scale_of_a_dense_head() -> None:
    torch.manual_seed(0)
    latent = torch.randn(400, 64)
    dense, factored = DenseHead(64, 20, 48), FactoredHead(64, 20, 48, rank=5, channels=12)
    assert factored(latent).var().item() == pytest.approx(dense(latent).var().item(), rel=0.1)


def test_parameters_are_counted_without_memory() -> None:
    with torch.device("meta"):
        dense = DenseHead(512, 257, 768)
        factored = FactoredHead(512, 257, 768, rank=16, channels=256)
    assert sum(p.numel() for p in dense.parameters()) == 513 * 257 * 768 == 101_253_888
    expected = 512 * 16 * 256 + 257 * 16 + 256 * 768 + 257 * 768
    assert sum(p.numel() for p in factored.parameters()) == expected == 2_495_248


@pytest.mark.parametrize("n_rows", [1, 7, 60])
def test_bases_are_those_of_the_unfoldings(n_rows: int) -> None:
    targets = draw_targets(60, 6, 9)
    head = FactoredHead(4, 6, 9, rank=2, channels=3)
    start_from_targets(head, blocks_of(targets, n_rows))
    centered = targets.astype(np.float64) - targets.mean(axis=0, dtype=np.float64)
    over_tokens = leading_left(centered.transpose(1, 0, 2).reshape(6, -1), 2)
    over_width = leading_left(centered.transpose(2, 0, 1).reshape(9, -1), 3)
    np.testing.assert_allclose(head.bias.detach(), targets.mean(axis=0), rtol=1e-5)
    for basis, expected in (
        (head.token_basis.detach().numpy(), over_tokens),
        (head.channel_basis.detach().numpy().T, over_width),
    ):
        np.testing.assert_allclose(projector_on(basis), expected @ expected.T, atol=1e-4)


def test_what_is_kept_is_bounded_from_both_sides() -> None:
    targets = draw_targets(60, 6, 9)
    head = FactoredHead(4, 6, 9, rank=2, channels=3)
    bound = start_from_targets(head, blocks_of(targets, 16))
    centered = targets.astype(np.float64) - targets.mean(axis=0, dtype=np.float64)
    left = projector_on(head.token_basis.detach().numpy())
    right = projector_on(head.channel_basis.detach().numpy().T)
    kept = np.square(left @ centered @ right).sum() / np.square(centered).sum()
    # No pair of bases can lose less than either side alone must, nor half of what both lose.
    singular = [
        np.linalg.svd(centered.transpose(axes).reshape(n, -1), compute_uv=False) ** 2
        for axes, n in (((1, 0, 2), 6), ((2, 0, 1), 9))
    ]
    lost = [s[n:].sum() / s.sum() for s, n in zip(singular, (2, 3), strict=True)]
    assert bound == pytest.approx(1 - sum(lost), abs=1e-5)
    assert bound <= kept <= 1 - max(lost)
    rng = np.random.default_rng(1)
    for _ in range(20):
        left, right = (projector_on(rng.standard_normal(s)) for s in ((6, 2), (9, 3)))
        assert np.square(left @ centered @ right).sum() < kept * np.square(centered).sum()


def test_a_core_of_unit_variance_has_the_moments_of_separable_targets() -> None:
    rng = np.random.default_rng(3)
    over_tokens, over_width = rng.standard_normal((4, 4)), rng.standard_normal((5, 5))
    # Every sign pattern of one entry: second moments exactly the identity, so separable targets.
    units = np.concatenate([np.eye(20), -np.eye(20)]).reshape(40, 4, 5) * np.sqrt(20)
    targets = (over_tokens @ units @ over_width).astype(np.float32)
    head = FactoredHead(3, 4, 5, rank=4, channels=5)
    assert start_from_targets(head, [targets]) == pytest.approx(1)
    map_of_core = np.kron(head.token_basis.detach(), head.channel_basis.detach().T)
    expected = np.kron(over_tokens @ over_tokens.T, over_width.T @ over_width)
    np.testing.assert_allclose(map_of_core @ map_of_core.T, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("rank", "channels", "message"),
    [(0, 4, "rank is 0, expected 1 to 3"), (2, 5, "channels is 5, expected 1 to 4")],
)
def test_bases_beyond_the_embedding_are_refused(rank: int, channels: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FactoredHead(5, 3, 4, rank=rank, channels=channels)


def test_targets_that_give_no_start_are_refused() -> None:
    head = FactoredHead(5, 3, 4, rank=2, channels=2)
    with pytest.raises(ValueError, match=r"targets have shape \(2, 4, 4\), expected \(n, 3, 4\)"):
        start_from_targets(head, [np.zeros((2, 4, 4), np.float32)])
    with pytest.raises(ValueError, match="there are no targets to start from"):
        start_from_targets(head, [])
    with pytest.raises(ValueError, match="the 6 targets are all equal"):
        start_from_targets(head, [np.ones((3, 3, 4), np.float32)] * 2)
