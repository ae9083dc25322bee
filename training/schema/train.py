"""Section ``train``: gradient descent, or a closed form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from .ranges import LARGE, Within


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
    epochs: Annotated[int, Within(1, LARGE)]
    batch_size: Annotated[int, Within(2, LARGE)]
    micro_batch_size: Annotated[int, Within(1, LARGE)]
    learning_rate: Annotated[float, Within(1e-9, 1e3)]
    warmup_fraction: Annotated[float, Within(0.001, 0.99)]
    weight_decay: Annotated[float, Within(0, 1e4)]
    voxel_weight_decay: Annotated[float, Within(0, 1e4)]
    clip_norm: Annotated[float, Within(0, 1e9)]
    ema_decay: Annotated[float, Within(0, 0.999999)]
    patience: Annotated[int, Within(0, LARGE)]
    trainable: Literal["all", "voxel_layers"]
    seed: Annotated[int, Within(0, 2**31 - 1)]
    device: Literal["auto", "cpu", "cuda"]
    precision: Literal["float32", "bfloat16", "float16"]
    compile: bool
    n_threads: Annotated[int, Within(1, 1024)]
    save_every_epochs: Annotated[int, Within(1, LARGE)]
