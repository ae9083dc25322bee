"""MindEye's own networks: the trunk after the voxel layer, and the projector.

What the published model is (Scotti et al. 2023, arXiv:2305.18274, section 3.2 and its code), layer
for layer, for its checkpoints (`training.reference_weights`) and for comparisons. The linear layer
that reads the voxels is not part of it here: it is the subject's voxel layer, and the trunk starts
with the norm and the non-linearity that follow it.

Shapes: ``B`` trials, ``H`` latent width, ``T`` tokens, ``D`` width of a token. The model of all
CLIP tokens has T, D = 257, 768; that of the final embedding alone 1, 768.
"""

from __future__ import annotations

from torch import Tensor, nn


class MindEyeTrunk(nn.Module):
    """What the voxel layer gives (B, H) to tokens (B, T, D).

    Parameters
    ----------
    latent_dim : int
        4096 in MindEye.
    n_blocks : int
        4 in MindEye. A block is Linear, LayerNorm, GELU, Dropout, and the sum with its input.
    stem_dropout, block_dropout : float in [0, 1)
        0.5 and 0.15 in MindEye.
    tokens, dim : int
        Shape of one target embedding.
    """

    def __init__(
        self,
        *,
        latent_dim: int,
        n_blocks: int,
        stem_dropout: float,
        block_dropout: float,
        tokens: int,
        dim: int,
    ) -> None:
        super().__init__()
        self.tokens, self.dim = tokens, dim
        self.stem = nn.Sequential(nn.LayerNorm(latent_dim), nn.GELU(), nn.Dropout(stem_dropout))
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Linear(latent_dim, latent_dim),
                nn.LayerNorm(latent_dim),
                nn.GELU(),
                nn.Dropout(block_dropout),
            )
            for _ in range(n_blocks)
        )
        self.head = nn.Linear(latent_dim, tokens * dim)

    def forward(self, latent: Tensor) -> Tensor:
        """Return tokens of shape (B, T, D) for the voxel layer's output of shape (B, H)."""
        latent = self.stem(latent)
        for block in self.blocks:
            latent = latent + block(latent)
        tokens: Tensor = self.head(latent).unflatten(1, (self.tokens, self.dim))
        return tokens


class MindEyeProjector(nn.Module):
    """Tokens (B, T, D) to the retrieval embedding of the same shape, not normalized.

    LayerNorm, GELU, Linear, three times, on each token by itself.

    Parameters
    ----------
    dim : int
        Width of one token.
    hidden_dim : int
        Width of the two inner layers; 2048 in MindEye.
    """

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(dim),
            nn.GELU(),
            nn.Linear(dim, hidden_dim),
            nn.LayerNorm(hidden_dim),
            nn.GELU(),
            nn.Linear(hidden_dim, hidden_dim),
            nn.LayerNorm(hidden_dim),
            nn.GELU(),
            nn.Linear(hidden_dim, dim),
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the retrieval embedding of shape (B, T, D)."""
        retrieval: Tensor = self.layers(tokens)
        return retrieval
