"""What a decoder is told: the direction of an embedding from the center of all, and how true it is.

Embeddings of an encoder lie in a narrow cone, and a cosine ignores their length, so that what tells
one picture from another is the direction from the center. A brain's predictions point less far
that way than the picture's own embedding: their direction has a cosine with it well below 1. The
decoder is trained with directions turned away to all cosines, and told which.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def find_center(blocks: Iterable[NDArray[np.float32]]) -> Tensor:
    """Return the mean of embeddings divided by their norm.

    Parameters
    ----------
    blocks : iterable of float32 arrays of shape (n, tokens, dim)
        At least one row in all.

    Returns
    -------
    center : float32 Tensor of shape (tokens, dim)
    """
    total, n_rows = 0.0, 0
    for block in blocks:
        norms = np.linalg.norm(block, axis=(1, 2), keepdims=True)
        total = total + (block / norms).sum(axis=0, dtype=np.float64)
        n_rows += len(block)
    return torch.from_numpy(np.asarray(total / n_rows, dtype=np.float32))


def find_directions(embeddings: Tensor, center: Tensor) -> Tensor:
    """Return directions from the center, whose numbers have a mean square of 1.

    Parameters
    ----------
    embeddings : float32 Tensor of shape (B, tokens, dim)
        Any norm but 0: it doesn't matter.
    center : float32 Tensor of shape (tokens, dim)

    Returns
    -------
    directions : float32 Tensor of shape (B, tokens, dim)
    """
    norms = embeddings.flatten(1).norm(dim=1)[:, None, None]
    return _normalized(embeddings / norms - center)


def turn_away(directions: Tensor, cosines: Tensor, weights: Tensor) -> Tensor:
    """Turn directions away at random, each to a given cosine with itself.

    Parameters
    ----------
    directions : Tensor of shape (B, tokens, dim), of `find_directions`
        At least two; those of other pictures are what one is turned towards.
    cosines : Tensor of shape (B,), in [0, 1]
    weights : Tensor of shape (B, B), standard normal

    Returns
    -------
    turned : Tensor of shape (B, tokens, dim), of mean square 1

    Notes
    -----
    The noise is a Gaussian mixture of the other rows, so that it has the covariance of embeddings,
    not that of white noise: it errs along the directions in which pictures differ, as predictions
    do. Its part along a row is taken out, so that the cosine is exact. Noise on a decoder's
    condition, with its strength told, is the conditioning augmentation of Ho et al. 2022
    (arXiv:2106.15282), section 4.
    """
    flat = directions.flatten(1)
    own = torch.eye(len(flat), dtype=torch.bool, device=flat.device)
    noise = weights.masked_fill(own, 0.0) @ flat
    along = (noise * flat).sum(dim=1, keepdim=True) / flat.square().sum(dim=1, keepdim=True)
    noise = _normalized((noise - along * flat).reshape(directions.shape))
    share = cosines[:, None, None]
    return share * directions + (1 - share.square()).clamp_min(0).sqrt() * noise


def _normalized(directions: Tensor) -> Tensor:
    size = directions.square().flatten(1).mean(dim=1).sqrt()
    return directions / size.clamp_min(torch.finfo(size.dtype).tiny)[:, None, None]
