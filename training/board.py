"""TensorBoard: the numbers of each epoch as event files."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Any


class Board:
    """Writes the numbers of each epoch; without a folder it writes nothing.

    Parameters
    ----------
    folder : path or None
    n_done : int
        Epochs of an interrupted run that stand; what was written after them is dropped.
    """

    def __init__(self, folder: str | os.PathLike[str] | None, *, n_done: int) -> None:
        self._writer = None
        if folder is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(os.fspath(folder), purge_step=n_done)

    def add(self, line: dict[str, Any]) -> None:
        """Write one line of ``metrics.jsonl``: every number in it, at its epoch."""
        if self._writer is None:
            return
        numbers = {**line, **{f"validation/{k}": v for k, v in (line["validation"] or {}).items()}}
        for name, value in numbers.items():
            if isinstance(value, int | float) and name != "epoch":
                self._writer.add_scalar(name, value, line["epoch"])

    def __enter__(self) -> Board:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._writer is not None:
            self._writer.close()
