"""Weight files of networks that other people trained: read without unpickling, loaded whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import EncoderError


def read_tensors(file: Path, *, within: str) -> dict[str, Tensor]:
    """Return the tensors of a weight file by name.

    Parameters
    ----------
    file : Path
        A safetensors file, by its suffix, else a PyTorch file.
    within : str
        The entry of a PyTorch file that holds the tensors, where it has other entries too.

    Raises
    ------
    EncoderError
        If the file can't be read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if file.suffix == ".safetensors":
            return dict(load_file(file))
    except (OSError, SafetensorError) as error:
        raise _unreadable(file, "a safetensors file", error) from error
    try:
        saved: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        return dict(saved.get(within, saved))
    except Exception as error:  # torch raises whatever its zip reader and unpickler do
        raise _unreadable(file, "a PyTorch file of tensors alone", error) from error


def fill(network: nn.Module, state: dict[str, Tensor], file: Path) -> None:
    """Give a network its weights, all of them and no others.

    Parameters
    ----------
    network : Module
    state : dict of Tensor
        By the names of ``network.state_dict()``.
    file : Path
        Where they are from, named in the message.

    Raises
    ------
    EncoderError
        If a weight is missing, superfluous or of another shape; names the first of them.
    """
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in state.items()}
    differing = sorted(
        name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)
    )
    if differing:
        name = differing[0]
        raise EncoderError(
            f"{file} holds other weights than {type(network).__name__} has: {name} of shape "
            f"{found.get(name)}, expected {expected.get(name)}, and {len(differing) - 1} more "
            f"differ. Give the weights of this very network and size."
        )
    network.load_state_dict(state)


def _unreadable(file: Path, expected: str, error: Exception) -> EncoderError:
    return EncoderError(
        f"the weights {file} can't be read: {error} Expected {expected}; give another file."
    )
