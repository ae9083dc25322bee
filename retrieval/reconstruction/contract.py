"""What a decoder from embeddings to pictures is, and what is settled for each of them alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from ..errors import ReconstructionError

Precision = Literal["fp32", "fp16", "bf16"]
StartPixels = Literal["vae", "clip"]


class Decoder(Protocol):
    """A frozen network from one embedding space to pictures.

    Attributes
    ----------
    name : str
    tokens, dim : int
        Of the embeddings that it takes.
    side : int
        Of the pictures that it makes, in pixels.
    details : dict
        Everything that fixes its pictures but embeddings, seeds and starts: weights, steps,
        guidance, strength, precision.
    """

    name: str
    tokens: int
    dim: int
    side: int
    details: dict[str, str | int | float]

    def decode(
        self,
        embeddings: NDArray[np.float32],
        *,
        seeds: Sequence[int],
        starts: NDArray[np.uint8] | None = None,
    ) -> NDArray[np.uint8]:
        """Make one picture of each embedding.

        Parameters
        ----------
        embeddings : float32 array of shape (n, tokens, dim)
            In the targets' own units, as the prior gives them.
        seeds : sequence of n int, at least 0
            A picture's noise comes from its seed alone, not from its neighbours.
        starts : uint8 array of shape (n, h, w, 3) or None
            Blurry pictures of the low-level branch to begin with; None: from noise alone.

        Returns
        -------
        pictures : uint8 array of shape (n, side, side, 3)

        Raises
        ------
        ReconstructionError
            If shapes or numbers don't fit together, or an embedding or picture isn't finite.
        """
        ...


@dataclass(frozen=True)
class Sampling:
    """How pictures are drawn from a diffusion model.

    Parameters
    ----------
    guidance : float, at least 1
        Of classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598); 1: none, at half the
        work.
    n_steps : int, at least 1
        Of the whole way from noise; 20 in MindEye.
    strength : float in (0, 1]
        Share of the steps that are run from a start: .85 is the last 17 of 20. At 1 all are run,
        and little of the start remains.
    start_pixels : {"vae", "clip"}
        Scale of the start's pixels for the VAE: its own [-1, 1]; or normalized by CLIP's mean and
        deviation, which is wrong, and what MindEye's published pictures were made with.

    Notes
    -----
    Steps and strength are of Scotti et al. 2023 (arXiv:2305.18274), the start's pixels of its code.
    """

    guidance: float
    n_steps: int = 20
    strength: float = 0.85
    start_pixels: StartPixels = "vae"

    def __post_init__(self) -> None:
        if not 1 <= self.guidance < np.inf:
            raise ValueError(f"guidance is {self.guidance}, expected a number of at least 1.")
        if self.n_steps < 1:
            raise ValueError(f"n_steps is {self.n_steps}, expected at least 1.")
        if not 0 < self.strength <= 1 or not self.n_steps_from_start:
            raise ValueError(
                f"strength is {self.strength}, which runs none of {self.n_steps} steps or more "
                f"than all; expected it in (0, 1], and large enough for one step."
            )
        if self.start_pixels not in get_args(StartPixels):
            raise ValueError(f"start_pixels is {self.start_pixels!r}, expected 'vae' or 'clip'.")

    @property
    def n_steps_from_start(self) -> int:
        """Steps that are run where there is a start: the last of the `n_steps`."""
        return round(self.n_steps * self.strength)


@dataclass(frozen=True)
class Placement:
    """Where and how a decoder computes; of this, only the precision shows in its pictures.

    Parameters
    ----------
    device : str
        A torch device.
    precision : {"fp32", "fp16", "bf16"}
        Of the networks; latents are stepped in fp32 always.
    batch_size : int, at least 1
        Pictures that are denoised at once.
    offload : bool
        Whether each network waits in main memory while another computes.
    """

    device: str = "cpu"
    precision: Precision = "fp32"
    batch_size: int = 4
    offload: bool = False

    def __post_init__(self) -> None:
        if self.precision not in get_args(Precision):
            raise ValueError(
                f"precision is {self.precision!r}, expected one of "
                f"{', '.join(get_args(Precision))}."
            )
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}, expected at least 1.")


def require_decodable(
    decoder: Decoder,
    embeddings: NDArray[np.float32],
    seeds: Sequence[int],
    starts: NDArray[np.uint8] | None,
) -> None:
    """Raise unless a decoder can decode these; see `Decoder.decode`.

    Raises
    ------
    ReconstructionError
    """
    expected = (len(embeddings), decoder.tokens, decoder.dim)
    if embeddings.shape != expected:
        raise ReconstructionError(
            f"embeddings have shape {embeddings.shape}; {decoder.name} takes (n, {decoder.tokens}, "
            f"{decoder.dim}). Predict with a run of that space, or choose the decoder of this one."
        )
    usable = np.isfinite(embeddings).all(axis=(1, 2)) & embeddings.any(axis=(1, 2))
    if not usable.all():
        raise ReconstructionError(
            f"embedding {int(np.argmin(usable))} is zero or not finite; expected numbers that a "
            f"picture can be made of. Verify the folder of predictions."
        )
    if len(seeds) != len(embeddings) or any(seed < 0 for seed in seeds):
        raise ReconstructionError(
            f"{len(seeds)} seeds were given for {len(embeddings)} embeddings, the least is "
            f"{min(seeds, default=0)}; expected one a picture, each at least 0."
        )
    if starts is None:
        return
    if starts.dtype != np.uint8 or starts.ndim != 4 or starts.shape[::3] != (len(embeddings), 3):
        raise ReconstructionError(
            f"starts are {starts.dtype} of shape {starts.shape}, expected uint8 pictures of shape "
            f"({len(embeddings)}, height, width, 3), one an embedding."
        )
