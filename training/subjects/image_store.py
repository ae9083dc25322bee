"""Pictures that stay in an HDF5 file of the user's: NSD's stimuli, and MindEye2's copy of them.

A subject folder refers to such a file instead of copying tens of gigabytes. Row i of its dataset is
the picture of image_id i.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import SourceError
from .downloads import require_download
from .hdf5 import open_hdf5

# Name, and place of the colors among the axes after the first.
_DATASETS = {"imgBrick": -1, "images": 0}


@dataclass(frozen=True)
class ImageStore:
    """A dataset of pictures in an HDF5 file.

    Parameters
    ----------
    path : Path
    dataset : {"imgBrick", "images"}
        ``imgBrick``: (n, side, side, 3) uint8, of ``nsd_stimuli.hdf5``. ``images``:
        (n, 3, side, side) float16 or float32 in [0, 1], of MindEye2's
        ``coco_images_224_float16.hdf5``.
    n_images : int
    """

    path: Path
    dataset: str
    n_images: int

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> ImageStore:
        """Find the pictures in a file and check their form.

        Raises
        ------
        MissingExtraError
            If h5py is absent.
        SourceError
            If the file is missing, no whole HDF5 file, or holds no such dataset.
        """
        file = Path(path).resolve()
        with _open_store(file) as content:
            names = [name for name in _DATASETS if name in content]
            if len(names) != 1:
                raise SourceError(
                    f"{file} holds {sorted(content)}, expected one of the datasets "
                    f"{' or '.join(_DATASETS)}: nsd_stimuli.hdf5 has the first, MindEye2's "
                    f"coco_images_224_float16.hdf5 the second."
                )
            found = _dataset_within(content, names[0], file)
            colors = found.shape[1:][_DATASETS[names[0]]] if found.ndim == 4 else None
            kind = "u" if names[0] == "imgBrick" else "f"
            if colors != 3 or found.dtype.kind != kind or not found.shape[0]:
                expected = "(n, side, side, 3) uint8" if kind == "u" else "(n, 3, side, side) float"
                raise SourceError(
                    f"{file}: {names[0]} is {found.dtype} of shape {found.shape}, expected "
                    f"{expected}. Download the file again."
                )
            return cls(file, names[0], int(found.shape[0]))

    def read(self, image_id: int) -> Image.Image:
        """Return the picture of an image, RGB.

        Raises
        ------
        SourceError
            If the file is gone or damaged, or has no such row.
        """
        if not 0 <= image_id < self.n_images:
            raise SourceError(
                f"{self.path} has {self.n_images} pictures in {self.dataset}, and image "
                f"{image_id} was asked for: ids count from 0. Give the store of this data set."
            )
        with _open_store(self.path) as content:
            try:
                pixels: NDArray[Any] = _dataset_within(content, self.dataset, self.path)[image_id]
            except (KeyError, OSError) as error:
                raise SourceError(
                    f"{self.path}: picture {image_id} can't be read ({error}); download the file "
                    f"again."
                ) from error
        if self.dataset == "images":
            unit = np.clip(np.nan_to_num(pixels.astype(np.float32)), 0, 1)
            pixels = np.rint(255 * unit.transpose(1, 2, 0)).astype(np.uint8)
        return Image.fromarray(pixels)


@dataclass(frozen=True)
class StoredImage:
    """One picture of a store, read when it is asked for."""

    store: ImageStore
    image_id: int

    def open(self) -> Image.Image:
        """Return the picture; see `ImageStore.read`."""
        return self.store.read(self.image_id)

    def __str__(self) -> str:
        return f"{self.store.path}, {self.store.dataset} {self.image_id}"


def _dataset_within(content: Any, name: str, path: Path) -> Any:
    """Return a dataset whose bytes are in this very file.

    HDF5 knows links, external storage and virtual datasets: by any of them a file from a stranger
    could show another file of this machine as a picture.
    """
    link = type(content.get(name, getlink=True)).__name__
    if link != "HardLink" or content[name].external or content[name].is_virtual:
        raise SourceError(
            f"{path}: {name} refers to another place or file instead of holding the pictures. "
            f"Expected a plain dataset; download the file from its source."
        )
    return content[name]


def _open_store(path: Path) -> Any:
    if not path.is_file():
        raise SourceError(
            f"{path}, which holds the pictures, is missing. Restore it there, or link it there "
            f"from where it is now."
        )
    return open_hdf5(require_download(path, "an HDF5 file of pictures"))
