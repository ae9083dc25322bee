"""Heads: one latent vector to all tokens of an embedding.

``DenseHead`` is one linear layer. For many tokens that layer is most of the model: 4096 x 197,376
weights, 85 % of MindEye's backbone (Scotti et al. 2023, arXiv:2305.18274). ``FactoredHead`` writes
the same shape as ``P . core . Q + bias``: the latent chooses a small core, which ``P`` spreads over
the tokens and ``Q`` over their width. Tokens of one picture resemble each other and use the same
few directions of their space, so a core of some thousand numbers says nearly all of it. The form is
Tucker's (Tucker 1966, doi:10.1007/BF02289464), and so is the start from the training targets.

Shapes: ``B`` trials, ``H`` latent width, ``T`` tokens, ``D`` width of a token, ``R`` rank over
tokens, ``C`` channels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


class DenseHead(nn.Linear):
    """Latents (B, H) to tokens (B, T, D) by a weight for every pair.

    Parameters
    ----------
    latent_dim : int
        Also the largest rank of the map.
    tokens, dim : int
        Shape of one embedding.
    """

    def __init__(self, latent_dim: int, tokens: int, dim: int) -> None:
        super().__init__(latent_dim, tokens * dim)
        self.tokens, self.dim = tokens, dim

    def forward(self, latent: Tensor) -> Tensor:
        """Return tokens of shape (B, T, D)."""
        return super().forward(latent).view(-1, self.tokens, self.dim)


class FactoredHead(nn.Module):
    """Latents (B, H) to tokens (B, T, D) through a core of shape (R, C).

    Parameters
    ----------
    latent_dim : int
    tokens, dim : int
        Shape of one embedding.
    rank : int, 1 to ``tokens``
        Patterns over the tokens.
    channels : int, 1 to ``dim``
        Directions in the space of one token.

    Raises
    ------
    ValueError
        If ``rank`` or ``channels`` is out of range.

    Notes
    -----
    With ``rank = tokens`` and ``channels = dim`` every dense map can be said. At the start the
    entries of the output have the variance that a `DenseHead` gives them.
    """

    def __init__(self, latent_dim: int, tokens: int, dim: int, *, rank: int, channels: int) -> None:
        super().__init__()
        if not 1 <= rank <= tokens:
            raise ValueError(f"rank is {rank}, expected 1 to {tokens}, the tokens.")
        if not 1 <= channels <= dim:
            raise ValueError(f"channels is {channels}, expected 1 to {dim}, the width of a token.")
        self.rank, self.channels = rank, channels
        self.core = nn.Linear(latent_dim, rank * channels, bias=False)
        self.token_basis = nn.Parameter(torch.empty(tokens, rank))
        self.channel_basis = nn.Parameter(torch.empty(channels, dim))
        self.bias = nn.Parameter(torch.zeros(tokens, dim))
        nn.init.orthogonal_(self.token_basis, gain=math.sqrt(tokens / rank))
        nn.init.orthogonal_(self.channel_basis, gain=math.sqrt(dim / channels))

    def forward(self, latent: Tensor) -> Tensor:
        """Return tokens of shape (B, T, D)."""
        core = self.core(latent).unflatten(1, (self.rank, self.channels))
        # The width first: the sum over channels is then taken for R rows, not for T.
        tokens: Tensor = self.token_basis @ (core @ self.channel_basis) + self.bias
        return tokens


def start_from_targets(head: FactoredHead, targets: Iterable[NDArray[np.float32]]) -> float:
    """Give a head the mean and the leading directions of the training targets.

    The bias becomes their mean, the bases the leading eigenvectors of the token-by-token and the
    width-by-width second moments of what is left, each scaled by the standard deviation along it:
    a core of independent numbers of unit variance then writes embeddings whose moments are the
    targets', as far as the bases reach.

    Parameters
    ----------
    head : FactoredHead
        Changed in place; its core stays as it is.
    targets : iterable of float32 arrays of shape (n, T, D)
        Blocks of training targets, read once and in the memory of one.

    Returns
    -------
    kept : float in [0, 1]
        A lower bound on the share of the targets' variance that lies in the span of the bases.

    Raises
    ------
    ValueError
        If there are no targets, a block has another shape, or they are all equal.

    Notes
    -----
    The truncated higher-order SVD of the targets as a tensor of images, tokens and width (De
    Lathauwer et al. 2000, doi:10.1137/S0895479896305696): the best basis on each side alone; what
    it loses is at most what the two sides lose apart (their Property 10), and at most twice what
    the best pair of bases would. Moments are sums in float64.
    """
    tokens, dim = head.bias.shape
    n_targets = 0
    total = torch.zeros(tokens, dim, dtype=torch.float64)
    over_tokens = torch.zeros(tokens, tokens, dtype=torch.float64)
    over_width = torch.zeros(dim, dim, dtype=torch.float64)
    for block in targets:
        if block.shape[1:] != (tokens, dim):
            raise ValueError(f"targets have shape {block.shape}, expected (n, {tokens}, {dim}).")
        rows = torch.from_numpy(block).double()
        by_token, by_width = rows.transpose(0, 1).reshape(tokens, -1), rows.reshape(-1, dim)
        n_targets += len(rows)
        total += rows.sum(dim=0)
        over_tokens.addmm_(by_token, by_token.T)
        over_width.addmm_(by_width.T, by_width)
    if not n_targets:
        raise ValueError("there are no targets to start from; give at least two.")
    mean = total / n_targets
    token_variance, token_axes = _leading(over_tokens / n_targets - mean @ mean.T)
    width_variance, width_axes = _leading(over_width / n_targets - mean.T @ mean)
    variance = token_variance.sum()
    if variance <= torch.finfo(torch.float32).eps * mean.square().sum():
        raise ValueError(f"the {n_targets} targets are all equal; give different ones.")
    rank, channels = head.rank, head.channels
    scaled_tokens = token_axes[:, :rank] * token_variance[:rank].sqrt()
    scaled_width = width_axes[:, :channels] * (width_variance[:channels] / variance).sqrt()
    with torch.no_grad():
        head.bias.copy_(mean)
        head.token_basis.copy_(scaled_tokens)
        head.channel_basis.copy_(scaled_width.T)
    lost = token_variance[rank:].sum() + width_variance[channels:].sum()
    return float((1 - lost / variance).clamp(min=0))


def _leading(moments: Tensor) -> tuple[Tensor, Tensor]:
    """Return the eigenvalues of a second moment, decreasing, and their eigenvectors."""
    variance, axes = torch.linalg.eigh(moments)
    return variance.flip(0).clamp(min=0), axes.flip(1)
