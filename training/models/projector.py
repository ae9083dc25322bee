"""Projector: backbone tokens to the retrieval embedding.

LayerNorm, GELU, Linear, three times, per token (MindEye's projector: Scotti et al. 2023,
arXiv:2305.18274, section 3.2), here added to the tokens themselves with the last layer starting at
zero: at the start the retrieval embedding is the tokens, a linear readout, and the three layers
learn what that can't say. Without the sum they cost accuracy on small data (docs/training.md).
"""

from __future__ import annotations

from torch import Tensor, nn


class Projector(nn.Module):
    """Tokens (B, T, D) to the retrieval embedding of the same shape, not normalized.

    Parameters
    ----------
    dim : int
        Width of one token.
    hidden_dim : int
        Width of the two inner layers; 2048 in MindEye.
    """

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        last = nn.Linear(hidden_dim, dim)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.correct = nn.Sequential(
            nn.LayerNorm(dim),
            nn.GELU(),
            nn.Linear(dim, hidden_dim),
            nn.LayerNorm(hidden_dim),
            nn.GELU(),
            nn.Linear(hidden_dim, hidden_dim),
            nn.LayerNorm(hidden_dim),
            nn.GELU(),
            last,
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the retrieval embedding of shape (B, T, D)."""
        retrieval: Tensor = tokens + self.correct(tokens)
        return retrieval
