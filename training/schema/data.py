"""Sections ``target`` and ``data``: what a model is made for, and what a sample is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from .ranges import LARGE, Within, parse_memory


@dataclass(frozen=True)
class TargetRecipe:
    """The shape of one target embedding that a recipe was made for; optional.

    Parameters
    ----------
    tokens, dim : int
        257 x 768: all tokens of CLIP ViT-L/14; 256 x 1664: of ViT-bigG/14; 4096 x 4: a latent of
        Stable Diffusion's VAE, 64 pixels wide.
    """

    tokens: Annotated[int, Within(1, LARGE)]
    dim: Annotated[int, Within(1, LARGE)]


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
    sessions: Annotated[int, Within(0, LARGE)]
    control: Literal["none", "shuffled_labels"]
    memory: str | int

    @property
    def memory_bytes(self) -> int:
        """The budget as a number of bytes."""
        return parse_memory(self.memory)
