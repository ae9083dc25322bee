"""What the bytes of a training depend on beside its data and seeds."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def reproducible(n_threads: int) -> Iterator[None]:
    """Fix threads and deterministic algorithms, and put them back after."""
    n_before = torch.get_num_threads()
    was_deterministic = torch.are_deterministic_algorithms_enabled()
    was_warning = torch.is_deterministic_algorithms_warn_only_enabled()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
    torch.set_num_threads(n_threads)
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.set_num_threads(n_before)
        torch.use_deterministic_algorithms(was_deterministic, warn_only=was_warning)
