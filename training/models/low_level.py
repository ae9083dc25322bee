"""Low-level branch: latents of one trial to the latents of Stable Diffusion's VAE.

Decoded by that VAE they are a blurry picture with the colors and the layout of what was seen:
the start of image-to-image in MindEye (Scotti et al. 2023, arXiv:2305.18274, the low-level
pipeline). A linear map lays the latent out as a small feature map; an upsampler of the VAE
decoder's form makes VAE latents of it, and 1 x 1 convolutions make features, which are trained
against the feature map of a pretrained network and thrown away after (`training.losses.low_level`).

In MindEye the branch is a model of its own, `LowLevelTrunk`; in MindEye2 (Scotti et al. 2024,
arXiv:2403.11207, section 2.2) a `LatentDecoder` reads the trunk's refined latents. What the papers
leave open, sizes above all, is from their code.

Shapes: ``B`` trials, ``H`` latent width, ``C`` channels and ``s`` side of the first map, ``S``
side of the VAE latents, ``F`` width of a feature.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from index_builder.embeddings.errors import MissingExtraError

LATENT_CHANNELS = 4  # Of Stable Diffusion's VAE, eight times smaller than the picture.
_NORM_GROUPS = 32  # Of the group norms in that VAE; diffusers' default.


def map_to_tokens(feature_map: Tensor) -> Tensor:
    """Return a map (B, C, S, S) as tokens (B, S * S, C), rows first: an embedding of targets."""
    return feature_map.flatten(2).mT


def tokens_to_map(tokens: Tensor) -> Tensor:
    """Return tokens (B, S * S, C) as the map (B, C, S, S) that `map_to_tokens` made them of."""
    n, n_tokens, channels = tokens.shape
    side = math.isqrt(n_tokens)
    return tokens.mT.reshape(n, channels, side, side)


class LatentDecoder(nn.Module):
    """Latents (B, H) to VAE latents (B, 4, S, S) and to features (B, s * s, F).

    Parameters
    ----------
    latent_dim : int
    dropout : float in [0, 1)
        On the first map; none in MindEye, 0.3 in MindEye2.
    bias : bool
        Of the linear map; without in MindEye, with in MindEye2.
    start_channels, start_side : int
        Shape of the first map; 64 and 16 in MindEye's "4x" model, 64 and 7 in MindEye2.
    channels : sequence of int, multiples of 32
        Widths of the upsampler's levels, from the output inwards; [64, 128, 256] in MindEye,
        [32, 64, 128] in MindEye2. Each but one doubles the side: ``S = 2 ** (levels - 1) * s``.
    feature_dim : int
        Width of the teacher's features; 512.

    Raises
    ------
    MissingExtraError
        If diffusers, whose VAE decoder is the upsampler, is absent.
    """

    def __init__(
        self,
        latent_dim: int,
        *,
        dropout: float,
        bias: bool,
        start_channels: int,
        start_side: int,
        channels: Sequence[int],
        feature_dim: int,
    ) -> None:
        try:
            from diffusers.models.autoencoders.vae import Decoder
        except ImportError as error:
            raise MissingExtraError("diffusers", "train", "the low-level branch") from error
        if not channels or any(width < 1 or width % _NORM_GROUPS for width in channels):
            raise ValueError(
                f"channels is {list(channels)}, expected one or more multiples of {_NORM_GROUPS}, "
                f"the groups of the upsampler's norms."
            )
        super().__init__()
        self.start = nn.Sequential(
            nn.Linear(latent_dim, start_channels * start_side**2, bias=bias),
            nn.Dropout(dropout),
            nn.Unflatten(1, (start_channels, start_side, start_side)),
            nn.GroupNorm(1, start_channels),
        )
        self.upsampler = Decoder(
            in_channels=start_channels,
            out_channels=LATENT_CHANNELS,
            up_block_types=("UpDecoderBlock2D",) * len(channels),
            block_out_channels=tuple(channels),
            layers_per_block=1,
            norm_num_groups=_NORM_GROUPS,
        )
        self.features = nn.Sequential(
            nn.Conv2d(start_channels, feature_dim, 1, bias=False),
            nn.GroupNorm(1, feature_dim),
            nn.ReLU(),
            nn.Conv2d(feature_dim, feature_dim, 1, bias=False),
            nn.GroupNorm(1, feature_dim),
            nn.ReLU(),
            nn.Conv2d(feature_dim, feature_dim, 1),
        )

    def forward(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Decode latents.

        Parameters
        ----------
        latent : Tensor of shape (B, H)

        Returns
        -------
        vae_latents : Tensor of shape (B, 4, S, S)
            Multiplied by the VAE's scaling factor, as targets are.
        features : Tensor of shape (B, s * s, F)
            Rows of the map first; not normalized.
        """
        start = self.start(latent)
        return self.upsampler(start), map_to_tokens(self.features(start))


def _norm_activate(width: int, dropout: float) -> tuple[nn.Module, ...]:
    return nn.LayerNorm(width), nn.SiLU(), nn.Dropout(dropout)


class LowLevelTrunk(nn.Module):
    """MindEye's low-level model behind its voxel layer: latents (B, H) to VAE latents.

    Norm, SiLU and dropout, then residual blocks ``x + Dropout(SiLU(LayerNorm(Linear(x))))``, then
    a `LatentDecoder`. None of its linear layers has a bias, nor has the voxel layer of MindEye's.

    Parameters
    ----------
    latent_dim : int
        4096 in MindEye.
    n_blocks : int
        4 in MindEye.
    stem_dropout, block_dropout : float in [0, 1)
        0.5 and 0.25 in MindEye.
    start_channels, start_side, channels, feature_dim
        Of the `LatentDecoder`; 64, 16, [64, 128, 256] and 512 in MindEye's "4x" model.
    """

    def __init__(
        self,
        *,
        latent_dim: int,
        n_blocks: int,
        stem_dropout: float,
        block_dropout: float,
        start_channels: int,
        start_side: int,
        channels: Sequence[int],
        feature_dim: int,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_norm_activate(latent_dim, stem_dropout))
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Linear(latent_dim, latent_dim, bias=False),
                *_norm_activate(latent_dim, block_dropout),
            )
            for _ in range(n_blocks)
        )
        self.decoder = LatentDecoder(
            latent_dim,
            dropout=0.0,
            bias=False,
            start_channels=start_channels,
            start_side=start_side,
            channels=channels,
            feature_dim=feature_dim,
        )

    def forward(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Return VAE latents (B, 4, S, S) and features (B, s * s, F); see `LatentDecoder`."""
        latent = self.stem(latent)
        for block in self.blocks:
            latent = latent + block(latent)
        decoded: tuple[Tensor, Tensor] = self.decoder(latent)
        return decoded
