"""The fields of a recipe: every section, what its numbers mean, and the range of each.

A section with ``kind`` is one of several forms, told apart by that field. An optional section that
a recipe does not have is a part that its model does not have.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_type_hints

from .errors import RecipeError

_LARGE = 10**9
_SIZE_UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}


@dataclass(frozen=True)
class Within:
    """The range of a number, both ends included."""

    low: float
    high: float


def check_ranges(section: Any, name: str) -> None:
    """Raise unless every number of a section lies in its range.

    Raises
    ------
    RecipeError
        Names the field, what it is and what it may be.
    """
    for field, hint in get_type_hints(type(section), include_extras=True).items():
        value = getattr(section, field)
        for limit in getattr(hint, "__metadata__", ()):
            if not limit.low <= value <= limit.high:
                raise RecipeError(
                    f"recipe field {name}.{field} is {value}, expected {limit.low} to {limit.high}."
                )


@dataclass(frozen=True)
class TargetRecipe:
    """The shape of one target embedding that a recipe was made for; optional.

    Parameters
    ----------
    tokens, dim : int
        257 x 768: all tokens of CLIP ViT-L/14; 256 x 1664: of ViT-bigG/14; 4096 x 4: a latent of
        Stable Diffusion's VAE, 64 pixels wide.
    """

    tokens: Annotated[int, Within(1, _LARGE)]
    dim: Annotated[int, Within(1, _LARGE)]


@dataclass(frozen=True)
class DataRecipe:
    """What a training sample is.

    Parameters
    ----------
    repeats : {"single", "one", "average", "random"}
        ``single``: each trial is a sample. ``one``: one trial of each image an epoch, drawn anew.
        ``average``: the mean over an image's repeats. ``random``: a random convex combination of
        them, drawn anew each epoch.
    sessions : int
        Train on trials of each subject's first so many sessions; 0 = all. One session of NSD is
        the one-hour setting of MindEye2 (Scotti et al. 2024, arXiv:2403.11207).
    control : {"none", "shuffled_labels"}
        ``shuffled_labels`` permutes the images of the training trials, image by image: the
        control whose scores must be at chance.
    memory : str or int
        Most bytes for voxels and targets together, ``"4GiB"`` or a number; what does not fit is
        read from disk, batch by batch.
    """

    repeats: Literal["single", "one", "average", "random"]
    sessions: Annotated[int, Within(0, _LARGE)]
    control: Literal["none", "shuffled_labels"]
    memory: str | int

    @property
    def memory_bytes(self) -> int:
        """The budget as a number of bytes."""
        return parse_memory(self.memory)


# ----------------------------------------------------------------------------------- [model]


@dataclass(frozen=True)
class DenseHeadRecipe:
    """One matrix from the latent to all tokens."""

    kind: Literal["dense"]


@dataclass(frozen=True)
class FactoredHeadRecipe:
    """Few parameters for many tokens; see `models.head.FactoredHead`."""

    kind: Literal["factored"]
    rank: Annotated[int, Within(1, _LARGE)]
    channels: Annotated[int, Within(1, _LARGE)]


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
    latent_dim: Annotated[int, Within(1, _LARGE)]
    n_blocks: Annotated[int, Within(0, _LARGE)]
    dropout: Annotated[float, Within(0, 0.99)]
    voxel_gain: Annotated[float, Within(1e-6, 1e3)]
    projector_dim: Annotated[int, Within(0, _LARGE)]
    head: DenseHeadRecipe | FactoredHeadRecipe


@dataclass(frozen=True)
class MindEyeRecipe:
    """The network of MindEye; see `MindEyeTrunk` and `MindEyeProjector`."""

    kind: Literal["mindeye"]
    latent_dim: Annotated[int, Within(1, _LARGE)]
    n_blocks: Annotated[int, Within(0, _LARGE)]
    stem_dropout: Annotated[float, Within(0, 0.99)]
    block_dropout: Annotated[float, Within(0, 0.99)]
    projector_dim: Annotated[int, Within(1, _LARGE)]


@dataclass(frozen=True)
class MindEye2Recipe:
    """The network of MindEye2; see `MindEye2Trunk`."""

    kind: Literal["mindeye2"]
    latent_dim: Annotated[int, Within(1, _LARGE)]
    n_blocks: Annotated[int, Within(0, _LARGE)]
    dropout: Annotated[float, Within(0, 0.99)]
    projector_dim: Annotated[int, Within(1, _LARGE)]


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
    latent_dim: Annotated[int, Within(1, _LARGE)]
    n_blocks: Annotated[int, Within(0, _LARGE)]
    stem_dropout: Annotated[float, Within(0, 0.99)]
    block_dropout: Annotated[float, Within(0, 0.99)]
    start_channels: Annotated[int, Within(1, _LARGE)]
    start_side: Annotated[int, Within(1, _LARGE)]
    channels: Annotated[int, Within(1, _LARGE)]
    feature_dim: Annotated[int, Within(1, _LARGE)]


# ----------------------------------------------------------------------------------- [prior]


@dataclass(frozen=True)
class ChainRecipe:
    """The diffusion that every prior is trained and sampled with.

    Parameters
    ----------
    n_steps : int
        Steps of the noise schedule.
    image_embed_scale : float
        Multiplies the embeddings before noising, so that their entries are of order 1:
        ``sqrt(dim)`` for unit tokens (MindEye).
    drop_brain : float
        Probability of training a row without the brain, for classifier-free guidance.
    sampler : {"ddpm", "ddim"}
        What `predict` samples with: the full chain, or ``n_sampling_steps`` deterministic ones.
    n_sampling_steps : int
        Evaluations of ``ddim``.
    guidance : float
        Classifier-free guidance weight; 1 = none.
    """

    n_steps: Annotated[int, Within(1, 10_000)]
    image_embed_scale: Annotated[float, Within(1e-6, 1e6)]
    drop_brain: Annotated[float, Within(0, 0.99)]
    sampler: Literal["ddpm", "ddim"]
    n_sampling_steps: Annotated[int, Within(1, 10_000)]
    guidance: Annotated[float, Within(0, 100)]


@dataclass(frozen=True)
class LinearSkipPriorRecipe(ChainRecipe):
    """A transformer of any width around a linear estimate; see `PriorNetwork`."""

    kind: Literal["linear_skip"]
    depth: Annotated[int, Within(1, _LARGE)]
    n_heads: Annotated[int, Within(1, _LARGE)]
    width: Annotated[int, Within(1, _LARGE)]


@dataclass(frozen=True)
class MindEyePriorRecipe(ChainRecipe):
    """The transformer of MindEye's prior; see `MindEyePrior` in ``models/mindeye_prior.py``.

    Parameters
    ----------
    drop_image : float
        Probability of training a row without its noised embedding.
    checkpoint : bool
        Keep no activations of the layers and compute them again in the backward pass: a third
        more time for most of the memory of a step.
    """

    kind: Literal["mindeye"]
    depth: Annotated[int, Within(1, _LARGE)]
    n_heads: Annotated[int, Within(1, _LARGE)]
    head_dim: Annotated[int, Within(1, _LARGE)]
    drop_image: Annotated[float, Within(0, 0.99)]
    checkpoint: bool


@dataclass(frozen=True)
class MindEyeFinalPriorRecipe(ChainRecipe):
    """The transformer of the prior of one final embedding; see `MindEyeFinalPrior`.

    Parameters
    ----------
    n_text : int
        Learned text tokens before the brain's.
    time_table : bool
        A learned token for each step; otherwise tokens from sines.
    inner_norm : bool
        A norm inside the layers' MLP.
    dropout : float
    drop_image : float
        Probability of training a row without its noised embedding.
    """

    kind: Literal["mindeye_final"]
    depth: Annotated[int, Within(1, _LARGE)]
    n_heads: Annotated[int, Within(1, _LARGE)]
    head_dim: Annotated[int, Within(1, _LARGE)]
    n_text: Annotated[int, Within(0, _LARGE)]
    time_table: bool
    inner_norm: bool
    dropout: Annotated[float, Within(0, 0.99)]
    drop_image: Annotated[float, Within(0, 0.99)]


PriorRecipe = LinearSkipPriorRecipe | MindEyePriorRecipe | MindEyeFinalPriorRecipe


# ------------------------------------------------------------------------------------ [loss]


@dataclass(frozen=True)
class ContrastiveRecipe:
    """Weights, temperatures and phases of retrieval and prior; see `phase_at`.

    Temperatures depend on the encoder: the narrower the cone of its embeddings, the smaller.

    Parameters
    ----------
    extra_negatives : int
        Targets of so many other training images, drawn anew each step, that the brain-to-image
        direction is told apart from beside those of the batch. Targets are frozen, so these are
        never stale, as those of a memory bank are.
    """

    kind: Literal["contrastive"]
    contrastive_weight: Annotated[float, Within(0, 1e6)]
    prior_weight: Annotated[float, Within(0, 1e6)]
    extra_negatives: Annotated[int, Within(0, _LARGE)]
    mixing_fraction: Annotated[float, Within(0, 1)]
    mixing_probability: Annotated[float, Within(0, 1)]
    mixing_concentration: Annotated[float, Within(1e-3, 1e3)]
    mixing_temperature: Annotated[float, Within(1e-4, 1e3)]
    soft_temperature_start: Annotated[float, Within(1e-4, 1e3)]
    soft_temperature_end: Annotated[float, Within(1e-4, 1e3)]


@dataclass(frozen=True)
class LatentLossRecipe:
    """The absolute error of VAE latents, and contrast with a teacher's features.

    Parameters
    ----------
    latent_weight, feature_weight : float
        MindEye: 1 and 0.1. Without a teacher, ``feature_weight`` must be 0.
    latent_unit : float
        The error is told in units of it; MindEye: the VAE's scaling factor, 0.18215.
    feature_temperature : float
        MindEye: 0.075.
    """

    kind: Literal["latent"]
    latent_weight: Annotated[float, Within(0, 1e6)]
    latent_unit: Annotated[float, Within(1e-6, 1e6)]
    feature_weight: Annotated[float, Within(0, 1e6)]
    feature_temperature: Annotated[float, Within(1e-4, 1e3)]


# ----------------------------------------------------------------------------------- [train]


@dataclass(frozen=True)
class RidgeRecipe:
    """Closed form instead of training; see `ridge.fit_ridge`.

    Parameters
    ----------
    smallest_penalty, largest_penalty : float
    n_penalties : int
        Penalties to choose from, evenly spaced in their logarithm.
    n_folds : int
        Parts of the training images for the cross-validation that chooses.
    seed, n_threads : int
    """

    kind: Literal["ridge"]
    smallest_penalty: Annotated[float, Within(1e-9, 1e12)]
    largest_penalty: Annotated[float, Within(1e-9, 1e12)]
    n_penalties: Annotated[int, Within(1, 1000)]
    n_folds: Annotated[int, Within(2, 1000)]
    seed: Annotated[int, Within(0, 2**31 - 1)]
    n_threads: Annotated[int, Within(1, 1024)]


@dataclass(frozen=True)
class AdamWRecipe:
    """Optimization, seed and device.

    Parameters
    ----------
    epochs, batch_size : int
        One epoch shows every training image (``repeats = "single"``: every trial) once. The batch
        is what the contrastive loss sees, over all processes together.
    micro_batch_size : int
        Rows that are in the network at once. Smaller than the batch: the gradient is that of the
        whole batch, by gradient caching (Gao et al. 2021, arXiv:2101.06983), for one more forward
        pass. It bounds memory, and makes room for batches of thousands.
    learning_rate : float
        Peak of the one-cycle schedule.
    warmup_fraction : float
        Share of the steps before the peak.
    weight_decay, voxel_weight_decay : float
        AdamW's; the second for the voxel layers alone. Biases and norms have none.
    clip_norm : float
        Largest norm of the gradient; 0 = no clipping.
    ema_decay : float
        The run's weights are an exponential moving average over steps; 0 = the last ones.
    patience : int
        Stop after so many epochs without a better validation score, and keep the weights of the
        best; 0 = train to the end and keep the last.
    trainable : {"all", "voxel_layers"}
        What learns; ``voxel_layers`` fits new subjects to a backbone that stays as it is.
    seed : int
    device : {"auto", "cpu", "cuda"}
    precision : {"float32", "bfloat16", "float16"}
        Of the forward pass (autocast); losses and weights stay float32.
    compile : bool
        Let ``torch.compile`` fuse the forward and backward pass.
    n_threads : int
        CPU threads; results are the same bytes again only with the same number.
    save_every_epochs : int
        How often the state for resuming is written: what an interruption can cost.
    """

    kind: Literal["adamw"]
    epochs: Annotated[int, Within(1, _LARGE)]
    batch_size: Annotated[int, Within(2, _LARGE)]
    micro_batch_size: Annotated[int, Within(1, _LARGE)]
    learning_rate: Annotated[float, Within(1e-9, 1e3)]
    warmup_fraction: Annotated[float, Within(0.001, 0.99)]
    weight_decay: Annotated[float, Within(0, 1e4)]
    voxel_weight_decay: Annotated[float, Within(0, 1e4)]
    clip_norm: Annotated[float, Within(0, 1e9)]
    ema_decay: Annotated[float, Within(0, 0.999999)]
    patience: Annotated[int, Within(0, _LARGE)]
    trainable: Literal["all", "voxel_layers"]
    seed: Annotated[int, Within(0, 2**31 - 1)]
    device: Literal["auto", "cpu", "cuda"]
    precision: Literal["float32", "bfloat16", "float16"]
    compile: bool
    n_threads: Annotated[int, Within(1, 1024)]
    save_every_epochs: Annotated[int, Within(1, _LARGE)]


def parse_memory(size: str | int) -> int:
    """Return a number of bytes from ``"4GiB"`` or an int.

    Raises
    ------
    RecipeError
    """
    if isinstance(size, int):
        if size < 0:
            raise RecipeError(f"recipe field data.memory is {size}, expected 0 bytes or more.")
        return size
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]iB|B)\s*", size)
    if match is None:
        raise RecipeError(
            f"recipe field data.memory is {size!r}, expected a number of bytes or a size with a "
            f"unit of {', '.join(_SIZE_UNITS)}, for example '4GiB'."
        )
    return int(float(match[1]) * _SIZE_UNITS[match[2]])
