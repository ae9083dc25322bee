"""MindEye2's trunk: latents of one trial to embedding tokens, as it was published.

MindEye2 (Scotti et al. 2024, arXiv:2403.11207, section 2.2) calls it an MLP mixer; it runs over a
sequence of one latent. Each of its blocks is a mixer over the latent's width and a mixer over the
sequence, and each kind has a residual stream of its own: a mixer's output is added to the former
output of the same kind, not to its input.

A norm over a sequence of one is its bias, so a sequence mixer passes on nothing of what it reads.
The trunk that follows is therefore affine: the latent plus constants, then the head. The width
mixers change no output and receive no gradient; in training, the dropout of the sequence mixers
adds a noise of learned size to the latents. All of it is kept: it is what the published weights
and parameter counts belong to, and an affine map with a projector on top is what they score with.

Shapes: ``B`` trials, ``H`` latent width, ``T`` tokens, ``D`` width of a token.
"""

from __future__ import annotations

from torch import Tensor, nn


def _mixer(width: int, dropout: float) -> nn.Sequential:
    """LayerNorm, Linear, GELU, Dropout, Linear, all of one width."""
    return nn.Sequential(
        nn.LayerNorm(width),
        nn.Linear(width, width),
        nn.GELU(),
        nn.Dropout(dropout),
        nn.Linear(width, width),
    )


class MindEye2Trunk(nn.Module):
    """Latents (B, H), the output of a subject's voxel layer, to tokens (B, T, D).

    Parameters
    ----------
    latent_dim : int
        4096 in the paper, 1024 in its smaller configuration.
    n_blocks : int
        4 in the paper.
    dropout : float in [0, 1)
        Inside both mixers of a block; 0.15 in the paper's code.
    tokens, dim : int
        Shape of one target embedding; 256 x 1664 of OpenCLIP's ViT-bigG/14 in the paper.
    """

    def __init__(
        self, *, latent_dim: int, n_blocks: int, dropout: float, tokens: int, dim: int
    ) -> None:
        super().__init__()
        self.tokens, self.dim = tokens, dim
        self.width_mixers = nn.ModuleList(_mixer(latent_dim, dropout) for _ in range(n_blocks))
        self.sequence_mixers = nn.ModuleList(_mixer(1, dropout) for _ in range(n_blocks))
        self.head = nn.Linear(latent_dim, tokens * dim)

    def refine(self, latent: Tensor) -> Tensor:
        """Return what the head reads, and the low-level branch too, of shape (B, H)."""
        mixed = latent
        for width_mixer, sequence_mixer in zip(
            self.width_mixers, self.sequence_mixers, strict=True
        ):
            mixed = mixed + width_mixer(latent)
            latent = latent + sequence_mixer(mixed[..., None])[..., 0]
        return latent

    def forward(self, latent: Tensor) -> Tensor:
        """Return tokens of shape (B, T, D) for latents of shape (B, H)."""
        tokens: Tensor = self.head(self.refine(latent)).unflatten(1, (self.tokens, self.dim))
        return tokens
