"""A sketch of each picture, before anything is trained: ridge regression from its direction.

Few pictures and minutes don't teach a network from noise which of hundreds of numbers says what
about a picture. A linear map from directions to coarse pictures has a closed form; what is left to
the network is what a linear map can't say.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

# Of the pictures that the map is fitted on: its cost grows with the square of the rows, and its
# memory with the numbers of their directions, of 8 bytes each.
_MOST_ROWS, _MOST_NUMBERS = 8192, 1 << 28
_PENALTIES = np.logspace(-4, 4, 33)  # in units of the mean eigenvalue of the kernel


@dataclass(frozen=True)
class LinearMap:
    """What `fit_linear_map` found.

    Parameters
    ----------
    mean : float64 array of shape (P,)
    basis : float64 array of shape (W, rank)
        Orthonormal columns: the main directions.
    coefficients : float64 array of shape (rank, P)
    error, variance : float
        Mean square of the outputs around what the map says of each when it is fitted to all the
        others, and around their mean.
    """

    mean: NDArray[np.float64]
    basis: NDArray[np.float64]
    coefficients: NDArray[np.float64]
    error: float
    variance: float


def fit_linear_map(
    inputs: NDArray[np.floating], outputs: NDArray[np.floating], *, rank: int
) -> LinearMap:
    """Fit ridge regression on the main directions of the inputs.

    Parameters
    ----------
    inputs : array of shape (n, W)
        Of mean near 0: no intercept is taken out of them.
    outputs : array of shape (n, P)
    rank : int
        At most so many main directions.

    Notes
    -----
    The penalty is the one with the least error of leaving out each row in turn, which has a closed
    form (Hastie, Tibshirani & Friedman 2009, The Elements of Statistical Learning, equation 7.64).
    Ridge in the main directions is the ridge of all, where the others are left out: Jolliffe 2002,
    Principal Component Analysis, section 8.
    """
    x, y = np.asarray(inputs, dtype=np.float64), np.asarray(outputs, dtype=np.float64)
    mean = y.mean(axis=0)
    centered = y - mean
    values, vectors = np.linalg.eigh(x @ x.T)
    kept = np.argsort(values)[::-1][: min(rank, len(x) - 1)]
    kept = kept[values[kept] > 1e-10 * max(values.max(), 1e-300)]
    sizes, left = values[kept], vectors[:, kept]
    projected = left.T @ centered
    unit = sizes.mean() if len(kept) else 1.0
    errors = [_left_out_error(left, sizes, projected, centered, unit * p) for p in _PENALTIES]
    best = int(np.argmin(errors))
    shrunk = np.sqrt(sizes) / (sizes + unit * _PENALTIES[best])
    return LinearMap(
        mean=mean,
        basis=x.T @ left / np.sqrt(sizes),
        coefficients=shrunk[:, None] * projected,
        error=errors[best],
        variance=float(centered.var()),
    )


def _left_out_error(
    left: NDArray[np.float64],
    sizes: NDArray[np.float64],
    projected: NDArray[np.float64],
    outputs: NDArray[np.float64],
    penalty: float,
) -> float:
    share = sizes / (sizes + penalty)
    fitted = left @ (share[:, None] * projected)
    leverage = 1 / len(left) + (left**2 * share).sum(axis=1)
    errors = (outputs - fitted) / np.maximum(1 - leverage, 1e-6)[:, None]
    return float((errors**2).mean())


def draw_sketch_rows(n_rows: int, width: int, *, seed: int) -> NDArray[np.int64]:
    """Return the pictures that the map is fitted on: all, or a seeded draw of what memory allows.

    Parameters
    ----------
    n_rows : int
    width : int
        Numbers of a direction.
    seed : int
    """
    n = min(n_rows, _MOST_ROWS, max(2, _MOST_NUMBERS // width))
    return np.sort(np.random.default_rng([seed, 2]).permutation(n_rows)[:n])


class Sketch(nn.Module):
    """Directions and their cosines to coarse pictures.

    Parameters
    ----------
    width : int
        Numbers of a direction, tokens * dim.
    channels, side : int
        Of the pictures.
    coarse_side : int
        Of the sketch, at most ``side``; it is enlarged bilinearly.
    rank : int
        Main directions that it listens to.

    Notes
    -----
    A direction turned away to a cosine of c, by noise of the directions' own covariance, says of
    the true one that it is c times itself on average, and so of the picture what the map says,
    times c. At a cosine of 0 the sketch is the mean of all pictures.
    """

    mean: Tensor
    basis: Tensor
    coefficients: Tensor

    def __init__(
        self, *, width: int, channels: int, side: int, coarse_side: int, rank: int
    ) -> None:
        super().__init__()
        self.side, self.shape = side, (channels, coarse_side, coarse_side)
        n = channels * coarse_side**2
        self.register_buffer("mean", torch.zeros(n))
        self.register_buffer("basis", torch.zeros(width, rank))
        self.register_buffer("coefficients", torch.zeros(rank, n))

    def fit(self, directions: Tensor, pictures: Tensor) -> None:
        """Fit mean and map.

        Parameters
        ----------
        directions : Tensor of shape (n, tokens, dim)
        pictures : Tensor of shape (n, channels, side, side)
        """
        coarse = F.adaptive_avg_pool2d(pictures, self.shape[1:]).flatten(1)
        found = fit_linear_map(
            directions.flatten(1).numpy(), coarse.numpy(), rank=self.basis.shape[1]
        )
        rank = found.basis.shape[1]
        self.mean.copy_(torch.from_numpy(found.mean))
        self.basis[:, :rank].copy_(torch.from_numpy(found.basis))
        self.coefficients[:rank].copy_(torch.from_numpy(found.coefficients))

    def forward(self, directions: Tensor, cosines: Tensor) -> Tensor:
        """Return pictures (B, channels, side, side).

        Parameters
        ----------
        directions : Tensor of shape (B, tokens, dim)
        cosines : Tensor of shape (B,), in [0, 1]
        """
        said = directions.flatten(1) @ self.basis @ self.coefficients
        coarse = (self.mean + cosines[:, None] * said).reshape(-1, *self.shape)
        return F.interpolate(coarse, (self.side, self.side), mode="bilinear")
