"""The number format of a forward pass."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def forward_dtype(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Return the context of a forward pass in ``dtype`` by autocast; float32 needs none."""
    if dtype == torch.float32:
        return nullcontext()
    return torch.autocast(device.type, dtype)
