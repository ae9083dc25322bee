"""The processes that train one model together, and the device of this one.

One process is the usual case. Under ``accelerate launch`` each of several GPUs or machines has one;
all draw the same batches, each takes every n-th row, and gradients are those of the whole batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .errors import RunError


def resolve_device(name: str) -> torch.device:
    """Return the device of a recipe; ``auto`` is CUDA where there is one.

    Raises
    ------
    RunError
        If CUDA is asked for and absent.
    """
    has_cuda = torch.cuda.is_available()
    if name == "cuda" and not has_cuda:
        raise RunError(
            "recipe field train.device is 'cuda', and PyTorch finds no CUDA device; "
            "set train.device to 'cpu' or 'auto'."
        )
    return torch.device("cuda" if has_cuda and name != "cpu" else "cpu")


class Processes:
    """One process among those that train together.

    Parameters
    ----------
    device : str
        As in a recipe. Several processes have a GPU each, or share the CPU.

    Attributes
    ----------
    rank, count : int
    device : torch.device
    """

    def __init__(self, device: str) -> None:
        from accelerate import PartialState

        self.device = resolve_device(device)
        self._state = PartialState(cpu=self.device.type == "cpu")
        self.rank, self.count = self._state.process_index, self._state.num_processes
        if self.count > 1 and self.device.type == "cuda":
            self.device = self._state.device

    @property
    def is_first(self) -> bool:
        """Whether this process writes what there is to write."""
        return bool(self.rank == 0)

    def wrap(self, module: nn.Module) -> nn.Module:
        """Return a module whose backward pass averages gradients over the processes."""
        if self.count == 1:
            return module
        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(module, device_ids=devices, find_unused_parameters=True)

    @contextmanager
    def apart(self, module: nn.Module, *, until_last: bool) -> Iterator[None]:
        """Within, gradients are added up in this process, and averaged only at the last pass."""
        if isinstance(module, DistributedDataParallel) and not until_last:
            with module.no_sync():
                yield
        else:
            yield

    def rows(self, n: int) -> Tensor:
        """Return which of ``n`` rows this process takes, LongTensor on the CPU."""
        return torch.arange(self.rank, n, self.count)

    def join_rows(self, own: Tensor, n: int) -> Tensor:
        """Return all ``n`` rows, of which each process holds those of `rows`; no gradient."""
        if self.count == 1:
            return own
        from accelerate.utils import gather

        most = -(-n // self.count)
        padded = torch.zeros((most, *own.shape[1:]), dtype=own.dtype, device=own.device)
        padded[: len(own)] = own
        gathered = gather(padded).unflatten(0, (self.count, most))
        rows: Tensor = gathered.transpose(0, 1).flatten(0, 1)[:n]
        return rows

    def add_up(self, own: Tensor) -> Tensor:
        """Return the sum of a tensor over the processes."""
        if self.count == 1:
            return own
        from accelerate.utils import reduce

        total: Tensor = reduce(own, reduction="sum")
        return total

    def wait(self) -> None:
        """Wait until every process is here."""
        self._state.wait_for_everyone()
