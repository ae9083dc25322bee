"""The table of responses of THINGS-fMRI, voxels x trials: pandas wrote it, h5py reads it in parts.

pandas stores columns of one type together, in their order: real numbers apart from whole ones. Its
format "fixed" has a dataset a type, ``block0_values`` (rows x columns), its format "table" one
dataset of records, ``table``, with a field a type, ``values_block_0``. Column names may be pickles;
h5py leaves these alone, and none is loaded here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import SourceError
from .hdf5 import open_hdf5

SLAB_BYTES = 64 << 20  # of the table, read at once


@dataclass(frozen=True)
class _Block:
    """Columns of one type: a dataset, or a field of one."""

    dataset: str
    field: str | None
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


@dataclass(frozen=True)
class ResponseTable:
    """The real numbers of a table, which stay in the HDF5 file.

    Parameters
    ----------
    path : Path
    dataset : str
        Name of the dataset in the file.
    field : str or None
        Field of its rows, in pandas's format "table"; None in its format "fixed".
    n_voxels, n_trials : int
    first_trial : int
        Column of trial 0: 1 where the voxel_id is among the numbers.
    itemsize : int
        Bytes of a number.
    """

    path: Path
    dataset: str
    field: str | None
    n_voxels: int
    n_trials: int
    first_trial: int
    itemsize: int

    @property
    def n_slabs(self) -> int:
        """How many parts a reading of all trials takes, at most."""
        return -(-self.n_voxels // self._rows_a_slab(self.n_trials))

    def slabs(
        self, trials: slice, wanted: NDArray[np.int64]
    ) -> Iterator[tuple[slice, NDArray[Any]]]:
        """Yield wanted voxels of some trials, some rows of the table at a time.

        Parameters
        ----------
        trials : slice
        wanted : int64 array, increasing
            Rows of the table.

        Yields
        ------
        positions : slice
            Among ``wanted``.
        responses : float array of shape (n, n_trials)
        """
        columns = slice(trials.start + self.first_trial, trials.stop + self.first_trial)
        n_rows = self._rows_a_slab(trials.stop - trials.start)
        try:
            with open_hdf5(self.path) as content:
                data = content[self.dataset]
                for start in range(0, self.n_voxels, n_rows):
                    first, last = np.searchsorted(wanted, (start, start + n_rows)).tolist()
                    if first == last:
                        continue
                    rows = slice(int(wanted[first]), int(wanted[last - 1]) + 1)
                    if self.field is None:
                        slab = data[rows, columns]
                    else:
                        slab = data[rows][self.field][:, columns]
                    yield slice(first, last), slab[wanted[first:last] - rows.start]
        except (OSError, ValueError) as error:
            raise SourceError(
                f"{self.path} can't be read to the end ({error}); it is damaged. Download it again."
            ) from error

    def _rows_a_slab(self, n_columns: int) -> int:
        # Records are read whole, whatever columns are wanted.
        return max(1, SLAB_BYTES // (self.itemsize * (self.n_trials if self.field else n_columns)))


def open_table(path: Path, voxel_ids: NDArray[Any], *, n_trials: int) -> ResponseTable:
    """Find the numbers in a file of pandas, and compare their shape and ids with the metadata.

    Parameters
    ----------
    path : Path
    voxel_ids : array of shape (n_voxels,)
        As the table must have them, if it has any.
    n_trials : int

    Raises
    ------
    MissingExtraError
        If h5py is absent.
    SourceError
        If the file is no such table, or of another shape, or its voxels are others.
    """
    n_voxels = len(voxel_ids)
    with open_hdf5(path) as content:
        blocks = _list_blocks(content)
        numbers = [block for block in blocks if block.dtype.kind == "f"]
        if len(numbers) != 1:
            raise SourceError(
                f"{path} holds {len(numbers)} tables of real numbers among {sorted(content)}, "
                f"expected one that pandas wrote, voxels x trials. Download it again."
            )
        found = numbers[0]
        if found.shape not in ((n_voxels, n_trials), (n_voxels, n_trials + 1)):
            raise SourceError(
                f"{path} has {found.shape[0]} voxels x {found.shape[1]} trials, its metadata "
                f"{n_voxels} voxels and {n_trials} trials; expected the same. Give the three files "
                f"of one subject."
            )
        first_trial = found.shape[1] - n_trials
        ids = [block for block in blocks if block.dtype.kind in "iu"]
        for block in [found] if first_trial else ids:
            data = content[block.dataset]
            column = data[:, 0] if block.field is None else data.fields(block.field)[:][:, 0]
            _require_same_ids(path, column, voxel_ids)
    return ResponseTable(
        path,
        found.dataset,
        found.field,
        n_voxels,
        n_trials,
        first_trial,
        found.dtype.itemsize,
    )


def _list_blocks(content: Any) -> list[_Block]:
    blocks: list[_Block] = []

    def note(name: str, item: Any) -> None:
        last = name.rsplit("/", 1)[-1]
        if re.fullmatch(r"block\d+_values", last):
            blocks.append(_Block(name, None, item.shape, item.dtype))
        elif last == "table" and hasattr(item, "dtype"):
            for field in item.dtype.names or ():
                if re.fullmatch(r"values_block_\d+", field):
                    base, shape = item.dtype[field].subdtype or (item.dtype[field], (1,))
                    blocks.append(_Block(name, field, (*item.shape, *shape), base))

    content.visititems(note)
    return blocks


def _require_same_ids(path: Path, found: NDArray[Any], expected: NDArray[Any]) -> None:
    if (found == expected).all():
        return
    row = int(np.argmax(found != expected))
    raise SourceError(
        f"{path}, row {row}: voxel_id is {found[row]}, and VoxelMetadata.csv has {expected[row]} "
        f"there; expected the same voxels in the same order. Give the three files of one subject."
    )
