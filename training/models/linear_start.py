"""The trunk of our own models: latents to tokens, beginning as a linear map.

Residual MLP blocks refine the latents of the voxel layer, a head writes all tokens. The voxel layer
before it has no norm, no dropout and no non-linearity: with its own weight decay it is a ridge
regression inside the network, and replacing MindEye's non-linear stem by it was the largest single
gain of MindEye2 (Scotti et al. 2024, arXiv:2403.11207, Table 4). The blocks are pre-norm and start
at zero, so that training begins with the linear map that wins on small data.

Shapes: ``B`` trials, ``H`` latent width, ``T`` tokens, ``D`` width of a token.
"""

from __future__ import annotations

from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """One pre-norm block: ``x + Dropout(GELU(Linear(LayerNorm(x))))``.

    The linear layer starts at zero, and so does the block's contribution: training begins with the
    linear map, whatever the scale of the latents.

    Parameters
    ----------
    latent_dim : int
    dropout : float in [0, 1)
    """

    def __init__(self, latent_dim: int, dropout: float) -> None:
        super().__init__()
        linear = nn.Linear(latent_dim, latent_dim)
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
        self.refine = nn.Sequential(
            nn.LayerNorm(latent_dim), linear, nn.GELU(), nn.Dropout(dropout)
        )

    def forward(self, latent: Tensor) -> Tensor:
        """Refine latents of shape (B, H)."""
        refined: Tensor = latent + self.refine(latent)
        return refined


class LinearStartTrunk(nn.Module):
    """Latents (B, H) to tokens (B, T, D).

    Parameters
    ----------
    latent_dim : int
        Also the largest rank of the voxel-to-token map.
    n_blocks : int
        Residual blocks; 0 leaves a linear map.
    dropout : float in [0, 1)
        Inside the blocks only.
    head : Module
        Latents to tokens, linear.
    """

    def __init__(self, latent_dim: int, *, n_blocks: int, dropout: float, head: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(ResidualBlock(latent_dim, dropout) for _ in range(n_blocks))
        self.head = head

    def forward(self, latent: Tensor) -> Tensor:
        """Return tokens of shape (B, T, D)."""
        for block in self.blocks:
            latent = block(latent)
        tokens: Tensor = self.head(latent)
        return tokens
