"""Diffusion-prior network: the noised image embedding and the brain's tokens to a clean one.

The sequence is [brain tokens | time token | noised image tokens]; a non-causal transformer reads
all of it, and its last ``T`` outputs are the estimate of the clean embedding (x0-prediction), as
in MindEye (Scotti et al. 2023, arXiv:2305.18274, section 3.2), after the prior of DALL-E 2 (Ramesh
et al. 2022, arXiv:2204.06125, section 2.2). Embeddings enter and leave in the schedule's units,
multiplied by the image embedding scale of the recipe.

To it a linear estimate is added: shares, learned for each step, of the noised embedding and of a
linear readout of the brain. It is the optimal denoiser where image and brain are jointly Gaussian;
the transformer starts at zero and learns what that misses. Without it the prior's samples
identified far fewer images on small data (docs/training.md).

Shapes: ``B`` embeddings, ``T`` tokens, ``D`` width of a token, ``W`` width of the transformer,
``S = 2 T + 1`` sequence.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LONGEST_PERIOD = 10_000.0  # Vaswani et al. 2017 (arXiv:1706.03762), section 3.5.


def embed_step(step: Tensor, width: int) -> Tensor:
    """Return sinusoidal features of diffusion steps.

    Parameters
    ----------
    step : LongTensor of shape (B,)
    width : int, even

    Returns
    -------
    features : float32 Tensor of shape (B, width), in [-1, 1]
    """
    n_frequencies = width // 2
    exponent = torch.arange(n_frequencies, device=step.device, dtype=torch.float32) / n_frequencies
    angles = step[:, None].float() * torch.exp(-math.log(_LONGEST_PERIOD) * exponent)
    return torch.cat((angles.sin(), angles.cos()), dim=1)


class AttentionBlock(nn.Module):
    """Pre-norm self-attention and a GELU MLP of four times the width, both residual."""

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.attention_norm = nn.LayerNorm(width)
        self.to_qkv = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, sequence: Tensor) -> Tensor:
        """Map a sequence (B, S, W) to one of the same shape."""
        heads = self.to_qkv(self.attention_norm(sequence)).unflatten(2, (3, self.n_heads, -1))
        query, key, value = heads.permute(2, 0, 3, 1, 4)  # each (B, heads, S, W / heads)
        attended = F.scaled_dot_product_attention(query, key, value)
        sequence = sequence + self.attention_out(attended.transpose(1, 2).flatten(2))
        refined: Tensor = sequence + self.mlp(sequence)
        return refined


class PriorNetwork(nn.Module):
    """Estimate the clean embedding from a noised one and the brain's tokens.

    Parameters
    ----------
    tokens, dim : int
        Shape of one embedding.
    width : int
        Width of the transformer; a multiple of ``2 * n_heads``. Equal to ``dim`` in MindEye; a
        smaller one makes a prior that trains on a CPU.
    depth : int
        Attention blocks.
    n_heads : int
    """

    def __init__(self, *, tokens: int, dim: int, width: int, depth: int, n_heads: int) -> None:
        super().__init__()
        if width % (2 * n_heads):
            raise ValueError(f"width {width} must be a multiple of 2 * n_heads = {2 * n_heads}.")
        self.tokens, self.width = tokens, width
        self.brain_in = nn.Linear(dim, width)
        self.image_in = nn.Linear(dim, width)
        self.null_brain = nn.Parameter(torch.randn(tokens, width) * width**-0.5)
        self.position = nn.Parameter(torch.randn(2 * tokens + 1, width) * width**-0.5)
        self.time_in = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(AttentionBlock(width, n_heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.image_out = nn.Linear(width, dim)
        nn.init.zeros_(self.image_out.weight)
        self.readout = nn.Linear(dim, dim)
        self.shares = nn.Linear(width, 2)
        nn.init.zeros_(self.shares.weight)
        self.shares.bias.data = torch.tensor([0.0, 1.0])  # of the noised embedding, of the readout

    def forward(
        self, noised: Tensor, step: Tensor, brain: Tensor, *, drop_brain: Tensor | None = None
    ) -> Tensor:
        """Return the estimate of the clean embedding.

        Parameters
        ----------
        noised : Tensor of shape (B, T, D), scaled units
        step : LongTensor of shape (B,)
        brain : Tensor of shape (B, T, D)
            The backbone's tokens, as they are.
        drop_brain : bool Tensor of shape (B,), optional
            Rows whose brain is replaced by a learned null, for classifier-free guidance
            (Ho & Salimans 2022, arXiv:2207.12598).

        Returns
        -------
        clean : Tensor of shape (B, T, D), scaled units
        """
        condition, readout = self.brain_in(brain), self.readout(brain)
        if drop_brain is not None:
            dropped = drop_brain[:, None, None]
            condition = torch.where(dropped, self.null_brain, condition)
            readout = torch.where(dropped, 0.0, readout)
        time = self.time_in(embed_step(step, self.width).to(noised))[:, None]
        sequence = torch.cat((condition, time, self.image_in(noised)), dim=1) + self.position
        for block in self.blocks:
            sequence = block(sequence)
        of_noised, of_readout = self.shares(time).unbind(dim=2)
        linear = of_noised[..., None] * noised + of_readout[..., None] * readout
        clean: Tensor = linear + self.image_out(self.norm(sequence[:, -self.tokens :]))
        return clean
