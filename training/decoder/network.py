"""The decoder's network: a small U-Net around a sketch, that estimates the clean picture.

    direction, cosine ─┬─ sketch: the coarse picture that a linear map makes of them
                       └─ tokens, pooled ─ vector ─ scale and shift of every block; and a layout
    noised, sketch ─ patches ─ blocks, halved ─ middle: layout, attention ─ blocks, doubled
    clean = sketch + what comes out, which begins at zero

B batch, T tokens, D dim, W width of the vector, G side of a grid. Sizes of the papers' networks
(Ho et al. 2020, arXiv:2006.11239, appendix B) are far above what two cores can train in minutes;
patches of several pixels, of which each is one place of the first grid, are what makes up for it.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .schema import HEAD_DIM, N_GROUPS
from .sketch import Sketch

_TIME_CHANNELS = 64
_LONGEST_PERIOD = 1000.0  # of the sines of time, in the shortest
_MOST_QUERIES = 8


class FlowNetwork(nn.Module):
    """Noised pictures and what they shall show to an estimate of the clean pictures.

    Parameters
    ----------
    image_channels, image_side : int
        Of the pictures, or latents, that the flow runs on.
    tokens, dim : int
        Of an embedding.
    patch : int
        Places of a picture along a side that are one place of the first grid.
    channels : int, a multiple of 8
        At the first grid; each halving doubles them. Those of the last are a multiple of 32.
    n_levels : int
        Grids, each half as wide as the one before.
    n_blocks : int
        Residual blocks a level, on the way down; one more on the way up.
    width : int
        Of the vector.
    layout_channels : int
        Channels of the layout: what is where, on the coarsest grid.
    sketch_side, sketch_rank : int
        See `Sketch`.
    """

    def __init__(
        self,
        *,
        image_channels: int,
        image_side: int,
        tokens: int,
        dim: int,
        patch: int,
        channels: int,
        n_levels: int,
        n_blocks: int,
        width: int,
        layout_channels: int,
        sketch_side: int,
        sketch_rank: int,
    ) -> None:
        super().__init__()
        self.patch = patch
        side = image_side // patch
        patch_channels = image_channels * patch**2
        self.sketch = Sketch(
            width=tokens * dim,
            channels=image_channels,
            side=image_side,
            coarse_side=sketch_side,
            rank=sketch_rank,
        )
        self.condition = ConditionEncoder(tokens, dim, width)
        self.time = nn.Sequential(
            nn.Linear(_TIME_CHANNELS, width), nn.SiLU(), nn.Linear(width, width)
        )
        self.layout = Layout(width, layout_channels, side >> (n_levels - 1))
        self.stem = nn.Conv2d(2 * patch_channels, channels, 3, padding=1)
        self.place = nn.Parameter(torch.zeros(1, channels, side, side))

        self.down = nn.ModuleList()
        kept, now = [channels], channels
        for level in range(n_levels):
            for _ in range(n_blocks):
                self.down.append(Block(now, channels << level, width))
                now = channels << level
                kept.append(now)
            if level + 1 < n_levels:
                self.down.append(Halve(now))
                kept.append(now)
        self.middle = nn.ModuleList(
            [Block(now + layout_channels, now, width), Attention(now), Block(now, now, width)]
        )
        self.up = nn.ModuleList()
        for level in reversed(range(n_levels)):
            for _ in range(n_blocks + 1):
                self.up.append(Block(now + kept.pop(), channels << level, width))
                now = channels << level
            if level:
                self.up.append(Double(now, channels << (level - 1)))
                now = channels << (level - 1)
        self.norm = nn.GroupNorm(N_GROUPS, now)
        self.head = _zeroed(nn.Conv2d(now, patch_channels, 3, padding=1))

    def forward(self, noised: Tensor, time: Tensor, directions: Tensor, cosines: Tensor) -> Tensor:
        """Estimate the clean pictures.

        Parameters
        ----------
        noised : float32 Tensor of shape (B, image_channels, image_side, image_side)
        time : float32 Tensor of shape (B,), in [0, 1]
        directions : float32 Tensor of shape (B, T, D)
            Of `condition.find_directions`.
        cosines : float32 Tensor of shape (B,), in [0, 1]
            Of the directions with those of the pictures' own embeddings. At 0 nothing is known,
            and the direction isn't heard.

        Returns
        -------
        clean : float32 Tensor like ``noised``
        """
        directions = directions * (cosines > 0)[:, None, None]
        sketch = self.sketch(directions, cosines)
        told = self.condition(directions, cosines)  # (B, W)
        vector = F.silu(told + self.time(_sines(time)))
        patches = F.pixel_unshuffle(torch.cat([noised, sketch], dim=1), self.patch)
        now = self.stem(patches.contiguous(memory_format=torch.channels_last)) + self.place
        kept = [now]
        for part in self.down:
            now = part(now, vector)
            kept.append(now)
        now = torch.cat([now, self.layout(told)], dim=1)
        for part in self.middle:
            now = part(now, vector)
        for part in self.up:
            if isinstance(part, Block):
                now = torch.cat([now, kept.pop()], dim=1)
            now = part(now, vector)
        correction = F.pixel_shuffle(self.head(F.silu(self.norm(now))), self.patch)
        clean: Tensor = sketch + correction
        return clean


class ConditionEncoder(nn.Module):
    """Directions and their cosines to one vector, (B, W): tokens are pooled by learned queries.

    One token needs no pooling: its value is what every query gets.
    """

    def __init__(self, tokens: int, dim: int, width: int) -> None:
        super().__init__()
        n_queries = min(tokens, _MOST_QUERIES)
        self.value = nn.Linear(dim, width)
        self.place = nn.Parameter(torch.zeros(tokens, width))
        self.key = nn.Linear(width, width)
        self.queries = nn.Parameter(torch.randn(n_queries, width) / math.sqrt(width))
        self.joined = nn.Linear(n_queries * width, width)
        self.cosine = nn.Linear(2, width)

    def forward(self, directions: Tensor, cosines: Tensor) -> Tensor:
        """Pool (B, T, D), and add how far it is true."""
        values = self.value(directions) + self.place  # (B, T, W)
        queries = self.queries.expand(len(values), -1, -1)
        pooled = F.scaled_dot_product_attention(queries, self.key(values), values)
        sines = (1 - cosines.square()).clamp_min(0).sqrt()
        trust = self.cosine(torch.stack([cosines, sines], dim=1))
        told: Tensor = self.joined(F.silu(pooled.flatten(1))) + trust
        return told


class Layout(nn.Module):
    """The vector to a map on the coarsest grid, (B, channels, G, G): what is where.

    Scale and shift say the same at all places; without this, where things are would have to be
    made of them and of learned places, which takes far longer to learn.
    """

    def __init__(self, width: int, channels: int, side: int) -> None:
        super().__init__()
        self.side = side
        self.map = nn.Linear(width, channels * side**2)

    def forward(self, told: Tensor) -> Tensor:
        """Lay out (B, W)."""
        layout: Tensor = self.map(F.silu(told))
        return layout.reshape(len(told), -1, self.side, self.side)


class Block(nn.Module):
    """Two convolutions around the identity; the vector scales and shifts what is between them."""

    def __init__(self, n_in: int, n_out: int, width: int) -> None:
        super().__init__()
        self.norm_in = nn.GroupNorm(N_GROUPS, n_in)
        self.conv_in = nn.Conv2d(n_in, n_out, 3, padding=1)
        self.film = nn.Linear(width, 2 * n_out)
        self.norm_out = nn.GroupNorm(N_GROUPS, n_out)
        self.conv_out = _zeroed(nn.Conv2d(n_out, n_out, 3, padding=1))
        self.skip = nn.Identity() if n_in == n_out else nn.Conv2d(n_in, n_out, 1)

    def forward(self, maps: Tensor, vector: Tensor) -> Tensor:
        """Map (B, n_in, G, G) to (B, n_out, G, G)."""
        inner = self.conv_in(F.silu(self.norm_in(maps)))
        scale, shift = self.film(vector)[:, :, None, None].chunk(2, dim=1)
        inner = torch.addcmul(shift, self.norm_out(inner), 1 + scale)
        result: Tensor = self.skip(maps) + self.conv_out(F.silu(inner))
        return result


class Attention(nn.Module):
    """Every place looks at all others, around the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.n_heads = channels // HEAD_DIM
        self.norm = nn.GroupNorm(N_GROUPS, channels)
        self.query_key_value = nn.Conv2d(channels, 3 * channels, 1)
        self.out = _zeroed(nn.Conv2d(channels, channels, 1))

    def forward(self, maps: Tensor, vector: Tensor) -> Tensor:
        """Map (B, C, G, G); the vector isn't used."""
        n, channels, height, width = maps.shape
        joint = self.query_key_value(self.norm(maps)).flatten(2)
        parts = joint.reshape(n, 3, self.n_heads, HEAD_DIM, height * width).transpose(-1, -2)
        seen = F.scaled_dot_product_attention(*parts.unbind(1))
        result: Tensor = maps + self.out(seen.transpose(-1, -2).reshape(n, channels, height, width))
        return result


class Halve(nn.Module):
    """A grid of half the side."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, maps: Tensor, vector: Tensor) -> Tensor:
        """Map (B, C, G, G) to (B, C, G / 2, G / 2); the vector isn't used."""
        halved: Tensor = self.conv(maps)
        return halved


class Double(nn.Module):
    """A grid of twice the side, each place of it from a channel of its own."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(n_in, 4 * n_out, 1)

    def forward(self, maps: Tensor, vector: Tensor) -> Tensor:
        """Map (B, n_in, G, G) to (B, n_out, 2 G, 2 G); the vector isn't used."""
        return F.pixel_shuffle(self.conv(maps), 2)


def _sines(time: Tensor) -> Tensor:
    """Return sines and cosines of (B,) times at geometric frequencies, (B, 64)."""
    half = _TIME_CHANNELS // 2
    exponents = torch.arange(half, device=time.device) / half
    phases = time[:, None] * _LONGEST_PERIOD ** (1 - exponents)
    return torch.cat([phases.sin(), phases.cos()], dim=1)


def _zeroed(layer: nn.Conv2d) -> nn.Conv2d:
    """Let a layer begin by adding nothing."""
    nn.init.zeros_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer
