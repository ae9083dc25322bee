"""Backbone: voxels of one trial to embedding tokens.

A linear voxel layer reads the brain, residual MLP blocks refine, a linear head writes all tokens.
The voxel layer has no norm, no dropout and no non-linearity: with its own weight decay it is a
ridge regression inside the network, and replacing MindEye's non-linear stem by it was the largest
single gain of MindEye2 (Scotti et al. 2024, arXiv:2403.11207, Table 4). The blocks are pre-norm,
so that with all of them at zero the backbone is the linear map that wins on small data.

Shapes: ``B`` trials, ``V`` voxels, ``H`` latent width, ``T`` tokens, ``D`` width of a token.
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


class Backbone(nn.Module):
    """Voxels (B, V) to tokens (B, T, D).

    Parameters
    ----------
    n_voxels : int
    latent_dim : int
        Width of the voxel layer's output; also the largest rank of the voxel-to-token map.
    n_blocks : int
        Residual blocks; 0 leaves a linear map.
    dropout : float in [0, 1)
        Inside the blocks only.
    voxel_gain : float > 0
        Factor on the default initialization of the voxel layer. With fewer trials than voxels the
        data never reach most directions of voxel space, and what the initialization put there
        stays and is read as noise at test time; a small gain starts from almost nothing, as ridge
        regression does.
    tokens, dim : int
        Shape of one target embedding.
    """

    def __init__(
        self,
        n_voxels: int,
        *,
        latent_dim: int,
        n_blocks: int,
        dropout: float,
        voxel_gain: float,
        tokens: int,
        dim: int,
    ) -> None:
        super().__init__()
        self.tokens, self.dim = tokens, dim
        self.voxel_layer = nn.Linear(n_voxels, latent_dim)
        self.blocks = nn.ModuleList(ResidualBlock(latent_dim, dropout) for _ in range(n_blocks))
        self.head = nn.Linear(latent_dim, tokens * dim)
        self.voxel_layer.weight.data.mul_(voxel_gain)

    def forward(self, voxels: Tensor) -> Tensor:
        """Return tokens of shape (B, T, D) for normalized voxels of shape (B, V)."""
        latent = self.voxel_layer(voxels)
        for block in self.blocks:
            latent = block(latent)
        tokens: Tensor = self.head(latent).unflatten(1, (self.tokens, self.dim))
        return tokens
