"""MindEye's own diffusion-prior network: all CLIP tokens at once.

The sequence is [brain tokens | time token | noised image tokens + their positions]; its last ``T``
outputs are the estimate of the clean embedding. What the published network is (Scotti et al. 2023,
arXiv:2305.18274, section 3.2 and its code, over the transformer of DALLE2-pytorch 1.14.2), number
for number, arranged to be fast: attention is one fused call, the tables of the positions are made
once a call, and the last layer computes only the tokens that are read. `PriorNetwork` is ours.

Attention compares by cosine: queries and keys have unit norm, and their products are multiplied by
16 (Henry et al. 2020, arXiv:2010.04245). All heads share one key and one value (Shazeer 2019,
arXiv:1911.02150), a learned null key and value stand before the sequence, and the first 32 channels
turn with the position (Su et al. 2021, arXiv:2104.09864). The distance to what lies before adds a
learned bias (Raffel et al. 2020, arXiv:1910.10683, section 2.1); what lies after has that of
distance 0, as published.

The noised embedding and the estimate are in the schedule's units, multiplied by the image embedding
scale, sqrt(D); the brain's tokens come as the trunk gives them, not scaled.

Shapes: ``B`` embeddings, ``T`` tokens, ``D`` width of a token, ``S = 2 T + 1`` sequence, ``N``
tokens of it that are read, ``h`` heads of width ``d``.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

_SIMILARITY_SCALE = 16.0
_ROTARY_CHANNELS = 32
_ROTARY_BASE = 10_000.0
N_BUCKETS = 32
_LONGEST_DISTANCE = 128
_LONGEST_PERIOD = 10_000.0  # Vaswani et al. 2017 (arXiv:1706.03762), section 3.5.
_MLP_RATIO = 4


class Places(NamedTuple):
    """What depends on nothing but the positions, made once for all layers.

    Parameters
    ----------
    cosine, sine : float32 Tensor of shape (S, R / 2)
        Of the angles by which the first R channels turn.
    bias : Tensor of shape (h, S, S + 1)
        Of query i and key j, the null key first; minus infinity where i must not see j.
    """

    cosine: Tensor
    sine: Tensor
    bias: Tensor


class MindEyePrior(nn.Module):
    """Estimate the clean embedding from a noised one and the brain's tokens.

    Parameters
    ----------
    tokens, dim : int
        Shape of one embedding; 257, 768 in MindEye. The width must be even.
    depth, n_heads, head_dim : int
        6, 12, 64 in MindEye.
    checkpoint : bool
        In training, compute each layer anew for the backward pass instead of keeping its
        activations (Chen et al. 2016, arXiv:1604.06174).
    """

    def __init__(
        self,
        *,
        tokens: int,
        dim: int,
        depth: int,
        n_heads: int,
        head_dim: int,
        checkpoint: bool = False,
    ) -> None:
        super().__init__()
        self.tokens, self.dim, self.head_dim = tokens, dim, head_dim
        self.checkpoint = checkpoint
        self.time_in = time_mlp(dim)
        self.position = nn.Parameter(torch.randn(tokens, dim) * dim**-0.5)
        self.null_brain = nn.Parameter(torch.randn(tokens, dim))
        self.null_image = nn.Parameter(torch.randn(tokens, dim))
        self.bias = DistanceBias(n_heads)
        self.layers = nn.ModuleList(CosineLayer(dim, n_heads, head_dim) for _ in range(depth))
        self.norm = GainNorm(dim)
        self.image_out = nn.Linear(dim, dim, bias=False)

    def forward(
        self,
        noised: Tensor,
        step: Tensor,
        brain: Tensor,
        *,
        drop_brain: Tensor | None = None,
        drop_image: Tensor | None = None,
    ) -> Tensor:
        """Return the estimate of the clean embedding.

        Parameters
        ----------
        noised : Tensor of shape (B, T, D), scaled units
        step : LongTensor of shape (B,)
        brain : Tensor of shape (B, T, D)
            The trunk's tokens, not scaled.
        drop_brain, drop_image : bool Tensor of shape (B,), optional
            Rows whose brain or noised image is replaced by a learned null, for classifier-free
            guidance (Ho & Salimans 2022, arXiv:2207.12598); in MindEye, each with probability
            0.2, independently.

        Returns
        -------
        clean : Tensor of shape (B, T, D), scaled units
        """
        if drop_brain is not None:
            brain = torch.where(drop_brain[:, None, None], self.null_brain.to(brain), brain)
        if drop_image is not None:
            noised = torch.where(drop_image[:, None, None], self.null_image.to(noised), noised)
        time = self.time_in(step_features(step, self.dim))[:, None]
        sequence = torch.cat((brain, time.to(noised), noised + self.position), dim=1)
        places = self.bias.places(sequence.shape[1], self.head_dim)
        last = len(self.layers) - 1
        for number, layer in enumerate(self.layers):
            n_read = self.tokens if number == last else sequence.shape[1]
            if self.checkpoint and self.training and torch.is_grad_enabled():
                sequence = recompute(layer, sequence, places, n_read, use_reentrant=False)
            else:
                sequence = layer(sequence, places, n_read)
        clean: Tensor = self.image_out(self.norm(by_largest(sequence)))
        return clean


class CosineLayer(nn.Module):
    """Attention and a gated MLP of four times the width, both pre-norm and residual.

    Parameters
    ----------
    dim, n_heads, head_dim : int
    dropout : float in [0, 1)
        Of the attention weights and inside the MLP; MindEye's network of all tokens has none.
    inner_norm : bool
        Normalize inside the MLP too (Shleifer et al. 2021, arXiv:2110.09456).
    """

    def __init__(
        self,
        dim: int,
        n_heads: int,
        head_dim: int,
        *,
        dropout: float = 0.0,
        inner_norm: bool = False,
    ) -> None:
        super().__init__()
        self.attention = CosineAttention(dim, n_heads, head_dim, dropout)
        self.mlp = GatedMLP(dim, dropout, inner_norm)

    def forward(
        self,
        sequence: Tensor,
        places: Places,
        n_read: int,
        past: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Map a sequence (B, S, D) to its last ``n_read`` tokens (B, N, D).

        Parameters
        ----------
        sequence : Tensor of shape (B, S, D)
        places : Places
        n_read : int, at most S
        past : pair of Tensor, optional
            `CosineAttention.remember` of what stands before the sequence; its positions count.
        """
        read = sequence[:, -n_read:] + self.attention(sequence, places, n_read, past)
        mapped: Tensor = read + self.mlp(read)
        return mapped


class CosineAttention(nn.Module):
    """Multi-query attention by cosine; see the head of this file."""

    def __init__(self, dim: int, n_heads: int, head_dim: int, dropout: float) -> None:
        super().__init__()
        self.n_heads, self.dropout = n_heads, dropout
        self.norm = GainNorm(dim)
        self.to_query = nn.Linear(dim, n_heads * head_dim, bias=False)
        self.to_key_value = nn.Linear(dim, 2 * head_dim, bias=False)
        self.null = nn.Parameter(torch.randn(2, head_dim))
        self.out = nn.Linear(n_heads * head_dim, dim, bias=False)
        self.out_norm = GainNorm(dim)

    def forward(
        self,
        sequence: Tensor,
        places: Places,
        n_read: int,
        past: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Return what the last ``n_read`` tokens (B, N, D) gather from all."""
        normed = self.norm(sequence)
        key, value = self._key_value(normed, places, past)
        query = self.to_query(normed[:, -n_read:]).unflatten(2, (self.n_heads, -1)).transpose(1, 2)
        query = _turn(query, places.cosine[-n_read:], places.sine[-n_read:])
        attended = F.scaled_dot_product_attention(
            F.normalize(query, dim=-1),
            key[:, None].expand(-1, self.n_heads, -1, -1),
            value[:, None].expand(-1, self.n_heads, -1, -1),
            attn_mask=places.bias[None, :, -n_read:].to(value.dtype),
            dropout_p=self.dropout if self.training else 0.0,
            scale=_SIMILARITY_SCALE,
        )
        gathered: Tensor = self.out_norm(self.out(attended.transpose(1, 2).flatten(2)))
        return gathered

    def remember(self, sequence: Tensor, places: Places) -> tuple[Tensor, Tensor]:
        """Return keys and values (B, 1 + S, d) of a sequence, for what will stand after it."""
        return self._key_value(self.norm(sequence), places, None)

    def _key_value(
        self, normed: Tensor, places: Places, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        key, value = self.to_key_value(normed).chunk(2, dim=-1)
        n_keys = normed.shape[1]
        key = _turn(key, places.cosine[-n_keys:], places.sine[-n_keys:])
        key = F.normalize(key, dim=-1)
        if past is None:
            null_key, null_value = self.null.to(value.dtype)[:, None, None]
            before = F.normalize(null_key, dim=-1), null_value
        else:
            before = past
        before_key, before_value = (part.expand(len(key), -1, -1) for part in before)
        return torch.cat((before_key, key), dim=1), torch.cat((before_value, value), dim=1)


class GatedMLP(nn.Module):
    """SwiGLU (Shazeer 2020, arXiv:2002.05202), pre-norm, without biases."""

    def __init__(self, dim: int, dropout: float, inner_norm: bool) -> None:
        super().__init__()
        self.norm = GainNorm(dim)
        self.widen = nn.Linear(dim, 2 * _MLP_RATIO * dim, bias=False)
        self.inner_norm = GainNorm(_MLP_RATIO * dim) if inner_norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.narrow = nn.Linear(_MLP_RATIO * dim, dim, bias=False)

    def forward(self, sequence: Tensor) -> Tensor:
        """Map (B, S, D) to the same shape."""
        values, gates = self.widen(self.norm(sequence)).chunk(2, dim=-1)
        mapped: Tensor = self.narrow(self.dropout(self.inner_norm(values * F.silu(gates))))
        return mapped


class GainNorm(nn.Module):
    """LayerNorm with a gain and no offset; in half precision with an epsilon of its own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))

    def forward(self, values: Tensor) -> Tensor:
        """Normalize the last axis."""
        epsilon = 1e-3 if values.dtype in (torch.float16, torch.bfloat16) else 1e-5
        return F.layer_norm(values, self.gain.shape, self.gain, None, epsilon)


class DistanceBias(nn.Module):
    """Bias of the attention by the distance to what lies before, one a head."""

    def __init__(self, n_heads: int) -> None:
        super().__init__()
        self.of_bucket = nn.Embedding(N_BUCKETS, n_heads)

    def places(self, n: int, head_dim: int, *, is_causal: bool = False) -> Places:
        """Return the tables for a sequence of length ``n`` of heads of a given width.

        Parameters
        ----------
        n, head_dim : int
        is_causal : bool
            Hide from each token what lies after it.
        """
        device = self.of_bucket.weight.device
        angles = torch.arange(n, device=device).float()[:, None] * rotary_frequencies(head_dim).to(
            device
        )
        # Query i is at distance i - j from key j, the null key being key 0: all rows of the bias
        # are windows of one line that runs over the distances from n - 1 down to -n.
        distances = torch.arange(n - 1, -n - 1, -1, device=device)
        line = self.of_bucket(distance_bucket(distances)).T
        if is_causal:
            line = line.masked_fill(distances < -1, -math.inf)
        return Places(angles.cos(), angles.sin(), line.unfold(1, n + 1, 1).flip(1))


def distance_bucket(distances: Tensor) -> Tensor:
    """Return the bucket, in [0, 32), of distances to what lies before; 0 for what lies after.

    Raffel et al. 2020 (arXiv:1910.10683), section 2.1: half of the buckets hold one distance each,
    the others grow by a constant factor up to distance 128.
    """
    exact = N_BUCKETS // 2
    before = distances.clamp(min=0)
    share = torch.log(before.float() / exact) / math.log(_LONGEST_DISTANCE / exact)
    wide = (exact + (share.clamp(min=0) * exact).long()).clamp(max=N_BUCKETS - 1)
    return torch.where(before < exact, before, wide)


def rotary_frequencies(head_dim: int) -> Tensor:
    """Return the angles a position, float32 of shape (R / 2,), for heads of a given width.

    Constants of the architecture: R is 32, or the head's width where that is less.
    """
    n_channels = min(_ROTARY_CHANNELS, head_dim)
    return 1.0 / _ROTARY_BASE ** (torch.arange(0, n_channels, 2).float() / n_channels)


def step_features(step: Tensor, width: int) -> Tensor:
    """Return sines and cosines of the diffusion step, float32 of shape (B, width).

    The frequencies end at 1 / 10000, where those of `embed_step` end one short of it.
    """
    exponent = torch.arange(width // 2, device=step.device).float() / (width // 2 - 1)
    angles = step[:, None].float() * torch.exp(-math.log(_LONGEST_PERIOD) * exponent)
    return torch.cat((angles.sin(), angles.cos()), dim=1)


def time_mlp(dim: int) -> nn.Sequential:
    """Return the network from `step_features` to the time token, both of width ``dim``."""
    return nn.Sequential(
        nn.Linear(dim, 2 * dim),
        nn.SiLU(),
        nn.Linear(2 * dim, 2 * dim),
        nn.SiLU(),
        nn.Linear(2 * dim, dim),
    )


def by_largest(values: Tensor) -> Tensor:
    """Return values (B, N, D) divided by the largest of each token, which gets no gradient."""
    return values / values.amax(dim=-1, keepdim=True).detach()


def _turn(vectors: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn neighboring channels of vectors (..., S, d) against each other, as far as tables go."""
    n_turned = 2 * cosine.shape[-1]
    turned, rest = vectors[..., :n_turned], vectors[..., n_turned:]
    first, second = turned[..., 0::2], turned[..., 1::2]
    pairs = (first * cosine - second * sine, second * cosine + first * sine)
    return torch.cat((torch.stack(pairs, dim=-1).flatten(-2), rest), dim=-1)
