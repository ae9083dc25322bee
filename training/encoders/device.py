"""Which device an encoder runs on."""

from __future__ import annotations


def one_device(spec: str) -> str:
    """Return one torch device: the first of several, and CUDA for ``auto`` where there is one."""
    if spec != "auto":
        return spec.partition(",")[0]
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
