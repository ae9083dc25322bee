from __future__ import annotations

import zlib
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn


@pytest.fixture
def fill_by_name() -> Callable[[nn.Module], nn.Module]:
    """Give every parameter the numbers that its name stands for, as the frozen runs had them."""

    def fill(module: nn.Module) -> nn.Module:
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                seed = zlib.crc32(name.encode())
                draw = np.random.default_rng(seed).random(tuple(parameter.shape)) - 0.5
                if parameter.ndim > 1:
                    values = draw * (12 / parameter[0].numel()) ** 0.5
                else:
                    values = 0.5 * draw + name.endswith("weight")
                parameter.copy_(torch.from_numpy(values))
        return module.eval()

    return fill


@pytest.fixture
def relative_error() -> Callable[[torch.Tensor, np.ndarray], float]:
    """Return the largest difference, over the largest number expected."""

    def compare(actual: torch.Tensor, expected: np.ndarray) -> float:
        difference = (actual - torch.from_numpy(expected)).abs().max()
        return float(difference / np.abs(expected).max())

    return compare
