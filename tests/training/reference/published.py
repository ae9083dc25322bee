"""Small runs of MindEye's published code, frozen: weights, inputs, outputs.

``mindeye_tokens.npz`` is a model of all tokens, ``mindeye_final.npz`` one of the final embedding.
They were made outside this repository by MedARC-AI/fMRI-reconstruction-NSD at 6b30ea5
(``src/models.py``) over dalle2-pytorch 1.14.2 and rotary-embedding-torch 0.2.3, with PyTorch 2.14.1
in float32 on a CPU. Two constants of theirs were narrowed, the projector's 2048 to 24 and the
prior's 768 to its own width; norms and biases were drawn away from their start.

``weights/*``: the state dict under its published names. ``run/*``: voxels (3, 40), the backbone's
``tokens`` and ``retrieval``; the prior's estimate ``clean`` of ``noised`` at ``step``; one training
loss of ``target``, ``noise`` and the rows that were dropped, with its estimate ``dropped_clean``;
``sample``, the full chain from the first two rows' tokens, with noise from generators seeded with
``SEEDS``, of which ``first_draw`` is the first of the first token.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from training.reference_weights import ReferenceWeights, load_reference

NAMES = ("mindeye_tokens", "mindeye_final")
SEEDS = (11, 12)
FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Published:
    """One frozen run."""

    weights: dict[str, Tensor]
    run: dict[str, Tensor]

    def save(self, path: Path, **changes: Any) -> Path:
        """Write the checkpoint as ``Train_MindEye.py`` would."""
        saved = {
            "epoch": 239,
            "model_state_dict": self.weights,
            "optimizer_state_dict": {},
            "lr_scheduler": {},
            "train_losses": [1.5],
            "val_losses": [],
            "lrs": [3e-4],
        }
        torch.save({**saved, **changes}, path)
        return path

    def load(self, folder: Path) -> ReferenceWeights:
        """Write the checkpoint and read it by the code under test."""
        return load_reference(self.save(folder / "last.pth"))


def published(name: str) -> Published:
    """Read a frozen run."""
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as arrays:
        tensors = {key: torch.from_numpy(arrays[key]) for key in arrays.files}

    def under(part: str) -> dict[str, Tensor]:
        return {k.removeprefix(part): v for k, v in tensors.items() if k.startswith(part)}

    return Published(under("weights/"), under("run/"))


def relative_difference(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference over the largest value."""
    return float((found - expected).abs().max() / expected.abs().max())
