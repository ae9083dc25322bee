"""Section ``model``: the form and the sizes of the networks before the prior."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from .ranges import LARGE, Within


@dataclass(frozen=True)
class DenseHeadRecipe:
    """One matrix from the latent to all tokens."""

    kind: Literal["dense"]


@dataclass(frozen=True)
class FactoredHeadRecipe:
    """Few parameters for many tokens; see `models.head.FactoredHead`."""

    kind: Literal["factored"]
    rank: Annotated[int, Within(1, LARGE)]
    channels: Annotated[int, Within(1, LARGE)]


@dataclass(frozen=True)
class LinearStartRecipe:
    """Everything non-linear starts at zero; see `LinearStartTrunk` and `Projector`.

    Parameters
    ----------
    voxel_gain : float
        Factor on the default initialization of the voxel layers. With fewer trials than voxels
        the data never reach most directions of voxel space, and what the initialization put there
        stays and is read as noise at test time; a small gain starts from almost nothing, as ridge
        regression does.
    projector_dim : int
        Width of the projector's inner layers; 0 = no projector, the tokens are the retrieval
        embedding.
    """

    kind: Literal["linear_start"]
    latent_dim: Annotated[int, Within(1, LARGE)]
    n_blocks: Annotated[int, Within(0, LARGE)]
    dropout: Annotated[float, Within(0, 0.99)]
    voxel_gain: Annotated[float, Within(1e-6, 1e3)]
    projector_dim: Annotated[int, Within(0, LARGE)]
    head: DenseHeadRecipe | FactoredHeadRecipe


@dataclass(frozen=True)
class MindEyeRecipe:
    """The network of MindEye; see `MindEyeTrunk` and `MindEyeProjector`."""

    kind: Literal["mindeye"]
    latent_dim: Annotated[int, Within(1, LARGE)]
    n_blocks: Annotated[int, Within(0, LARGE)]
    stem_dropout: Annotated[float, Within(0, 0.99)]
    block_dropout: Annotated[float, Within(0, 0.99)]
    projector_dim: Annotated[int, Within(1, LARGE)]


@dataclass(frozen=True)
class MindEye2Recipe:
    """The network of MindEye2; see `MindEye2Trunk`."""

    kind: Literal["mindeye2"]
    latent_dim: Annotated[int, Within(1, LARGE)]
    n_blocks: Annotated[int, Within(0, LARGE)]
    dropout: Annotated[float, Within(0, 0.99)]
    projector_dim: Annotated[int, Within(1, LARGE)]


@dataclass(frozen=True)
class LowLevelRecipe:
    """MindEye's low-level network: latents of Stable Diffusion's VAE; see `LowLevelTrunk`.

    Parameters
    ----------
    start_channels, start_side : int
        Of the map that the decoder grows from; two doublings make the side of the latent.
    channels : int
        Of the decoder's last block; the ones before have twice and four times as many.
    feature_dim : int
        Width of the features that are contrasted with a teacher's.
    """

    kind: Literal["low_level"]
    latent_dim: Annotated[int, Within(1, LARGE)]
    n_blocks: Annotated[int, Within(0, LARGE)]
    stem_dropout: Annotated[float, Within(0, 0.99)]
    block_dropout: Annotated[float, Within(0, 0.99)]
    start_channels: Annotated[int, Within(1, LARGE)]
    start_side: Annotated[int, Within(1, LARGE)]
    channels: Annotated[int, Within(1, LARGE)]
    feature_dim: Annotated[int, Within(1, LARGE)]
