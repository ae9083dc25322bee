"""Subject folders: the responses of one brain, with the images that caused them.

    subject.json     manifest, written last
    voxels.npy       (n_trials, n_voxels) float16 or float32: raw responses, nothing normalized
    trials.parquet   row for row: trial, image_id, session, repeat, split
    rois.npz         named boolean masks of the voxels
    voxels.parquet   column for row: where each voxel lies, and what else its source says of it
    images.parquet   image_id, path within the folder, caption; with images/<image_id>.<extension>

Pictures may also stay in an HDF5 file of the user's, which the manifest names (`image_store`).

What is opened has been checked: an image in two splits, a NaN, a mask of the wrong length or a
lost image file is an error that names the place, never a slightly better score.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from index_builder.embeddings.artefact import (
    atomic_write,
    read_manifest,
    verify_files,
    write_manifest,
)
from index_builder.embeddings.errors import ArtefactError

from ..errors import SubjectError
from .image_store import ImageStore, StoredImage
from .images import load_picture, read_images, require_readable, write_images
from .trials import SPLITS, check_trials
from .voxel_file import VoxelSource, open_voxels, require_finite, row_chunks, write_voxels

KIND = "subject"
FORMAT_VERSION = 1
MANIFEST = "subject.json"
VOXELS, TRIALS, ROIS = "voxels.npy", "trials.parquet", "rois.npz"
VOXEL_TABLE = "voxels.parquet"


class Subject:
    """One subject folder, open for reading; the voxels stay on disk.

    Make one with `Subject.open` or `write_subject`.

    Attributes
    ----------
    path : Path
    name : str
    voxels : memmap of shape (n_trials, n_voxels), float16 or float32, read-only
        Raw responses in the unit of their source.
    trials : pyarrow.Table
        Columns trial, image_id, session, repeat (int64) and split (string), row for row.
    rois : dict of str to bool array of shape (n_voxels,)
    details : dict
        What the command that filled the folder recorded.
    """

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.name: str = manifest["name"]
        self.details: dict[str, Any] = manifest["details"]
        self.manifest = manifest
        self.voxels = open_voxels(path / VOXELS)
        self.trials = _read_trials(path / TRIALS)
        if self.trials.num_rows != self.n_trials:
            raise SubjectError(
                f"{path / VOXELS} has {self.n_trials} rows and {path / TRIALS} has "
                f"{self.trials.num_rows}; there must be one row of voxels a trial."
            )
        self.rois = _read_rois(path / ROIS, self.n_voxels)
        self._images = read_images(path, self.image_ids("all").tolist())
        self._store = _read_store(manifest.get("image_store"), path / MANIFEST)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Subject:
        """Open a subject folder and check it.

        Every voxel is read once, in bounded memory, to rule out NaN; files are compared with the
        manifest by size. Use `verify` to compare their contents too.

        Raises
        ------
        ArtefactError
            If the folder is missing, incomplete, or a file in it is missing or truncated.
        SubjectError
            If its parts contradict each other; see `write_subject`.
        """
        root = Path(path)
        manifest = read_manifest(root, MANIFEST, kind=KIND, format_version=FORMAT_VERSION)
        verify_files(root, manifest, contents=False)
        subject = cls(root, manifest)
        for row_start, chunk in row_chunks(subject.voxels):
            require_finite(chunk, row_start, where=str(root / VOXELS))
        return subject

    def verify(self) -> None:
        """Compare the SHA-256 of every file with the manifest, and decode every image.

        Of pictures that stay in an HDF5 file the first and the last are read: the file isn't ours.

        Raises
        ------
        ArtefactError
            Names the first file that was altered.
        SubjectError
            Names the first image that can't be decoded.
        """
        verify_files(self.path, self.manifest, contents=True)
        for image_id in sorted(self._images):
            require_readable(self.path / self._images[image_id][0], image_id)
        if self._store is not None:
            for image_id in self.image_ids("all")[[0, -1]].tolist():
                self._store.read(image_id)

    @property
    def n_trials(self) -> int:
        """Number of presentations, the rows of `voxels`."""
        return int(self.voxels.shape[0])

    @property
    def n_voxels(self) -> int:
        """Number of voxels, the columns of `voxels`."""
        return int(self.voxels.shape[1])

    @property
    def has_images(self) -> bool:
        """Whether the folder holds the image files, or names a file that does."""
        return bool(self._images) or self._store is not None

    @property
    def is_simulated(self) -> bool:
        """Whether `simulate_subject` made this subject; then the truth is beside it."""
        return "simulation" in self.details

    def image(self, image_id: int) -> Path | StoredImage:
        """Return where an image is: a file of the folder, or a row of an HDF5 file.

        Raises
        ------
        ArtefactError
            If the subject has no such image.
        """
        if self._store is not None and 0 <= image_id < self._store.n_images:
            return StoredImage(self._store, image_id)
        if image_id not in self._images:
            held = f"{len(self._images)} others" if self._images else "no images at all"
            raise ArtefactError(
                f"image {image_id} is not among the images of {self.path}, which holds {held}. "
                f"Import the subject again with its images."
            )
        return self.path / self._images[image_id][0]

    def open_image(self, image_id: int) -> Image.Image:
        """Return the picture of an image, wherever it is.

        Raises
        ------
        ArtefactError
            If the subject has no such image.
        SubjectError
            If it can't be read.
        """
        where = self.image(image_id)
        if isinstance(where, StoredImage):
            return where.open()
        return load_picture(where, image_id)

    def voxel_table(self) -> pa.Table | None:
        """Return what is known of each voxel, one row a column of `voxels`; None if nothing is."""
        if VOXEL_TABLE not in self.manifest["files"]:
            return None
        return _read_voxel_table(self.path / VOXEL_TABLE, self.n_voxels)

    def captions(self) -> dict[int, str]:
        """Return the captions by image id; images without one are left out."""
        return {
            image_id: caption
            for image_id, (_, caption) in sorted(self._images.items())
            if caption is not None
        }

    def trial_rows(self, split: str) -> NDArray[np.int64]:
        """Return the rows of `voxels` that belong to a split, in increasing order.

        Parameters
        ----------
        split : {"train", "validation", "test", "all"}

        Returns
        -------
        rows : int64 array, empty if the subject has no such trial
        """
        if split == "all":
            return np.arange(self.n_trials, dtype=np.int64)
        if split not in SPLITS:
            raise ValueError(f"split is {split!r}, expected one of {SPLITS} or 'all'.")
        return np.flatnonzero(np.asarray(self.trials["split"].to_pylist()) == split)

    def image_ids(self, split: str) -> NDArray[np.int64]:
        """Return the distinct images of a split (or of ``"all"``), in increasing order."""
        shown: NDArray[np.int64] = self.trials["image_id"].to_numpy()
        return np.unique(shown[self.trial_rows(split)])


def write_subject(
    folder: str | os.PathLike[str],
    *,
    name: str,
    voxels: NDArray[Any] | Iterable[NDArray[Any]] | VoxelSource,
    trials: pa.Table,
    rois: Mapping[str, NDArray[np.bool_]],
    images: pa.Table | ImageStore | None,
    voxel_table: pa.Table | None = None,
    command: str,
    details: dict[str, Any],
    extra_files: Iterable[str] = (),
) -> Subject:
    """Write a subject folder, checked, and open it.

    Parameters
    ----------
    folder : path
        Must not hold a complete subject already.
    name : str
        For example ``"subj01"``.
    voxels : array of shape (n_trials, n_voxels), iterable of such arrays by rows, or VoxelSource
        float16 and float32 are kept as they are, other types become float32. An iterable is
        written chunk by chunk, in the memory of one chunk; a source block by block, and goes on
        where an interrupted call stopped.
    trials : pyarrow.Table
        Columns trial, image_id, session, repeat, split; see `check_trials`.
    rois : mapping of str to bool array of shape (n_voxels,)
    images : pyarrow.Table, ImageStore or None
        Columns image_id, path (of an existing file, which is copied) and caption (may be null):
        exactly the images that the trials show. A store is named in the manifest, not copied.
    voxel_table : pyarrow.Table or None
        One row a voxel, any columns: x, y, z in the voxels of the source's volume, ncsnr.
    command : str
        Recorded in the manifest, for example ``"voxseek data simulate"``.
    details : dict
        JSON-serialisable; kept as `Subject.details`.
    extra_files : iterable of str
        Files that already stand in ``folder`` and belong to the subject, relative paths.

    Raises
    ------
    SubjectError
        If there isn't one row of voxels a trial, a voxel isn't finite (names trial and voxel), a
        mask has another length, an image is missing or can't be decoded, or the trial table is
        wrong.
    SplitError
        If an image is in two splits.
    ArtefactError
        If the folder holds a subject already.
    """
    root = Path(folder)
    if (root / MANIFEST).exists():
        raise ArtefactError(
            f"{root} already holds a complete subject; expected a new or unfinished folder. "
            f"Remove it, or write to another folder."
        )
    if not name:
        raise ValueError("the name of a subject is empty.")
    root.mkdir(parents=True, exist_ok=True)
    table = check_trials(trials, where="the trial table")
    files = [VOXELS, TRIALS, ROIS, *extra_files]
    n_voxels = write_voxels(root / VOXELS, voxels, n_trials=table.num_rows)
    with atomic_write(root / TRIALS) as temporary:
        pq.write_table(table, temporary)
    _write_rois(root / ROIS, rois, n_voxels)
    if voxel_table is not None:
        _require_one_row_a_voxel(voxel_table, n_voxels, where="the voxel table")
        with atomic_write(root / VOXEL_TABLE) as temporary:
            pq.write_table(voxel_table, temporary)
        files.append(VOXEL_TABLE)
    if isinstance(images, ImageStore):
        _require_held(images, table["image_id"].to_numpy())
    elif images is not None:
        files += write_images(root, images, set(table["image_id"].to_pylist()))
    write_manifest(
        root,
        MANIFEST,
        kind=KIND,
        format_version=FORMAT_VERSION,
        command=command,
        files=files,
        body={
            "name": name,
            "n_trials": table.num_rows,
            "n_voxels": n_voxels,
            "details": details,
            **({"image_store": _store_body(images)} if isinstance(images, ImageStore) else {}),
        },
        packages=("numpy", "pyarrow", "pillow"),
    )
    return Subject.open(root)


def _read_trials(path: Path) -> pa.Table:
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise SubjectError(f"{path} can't be read ({error}); import the subject again.") from error
    return check_trials(table, where=str(path))


def _write_rois(path: Path, rois: Mapping[str, NDArray[np.bool_]], n_voxels: int) -> None:
    for name, mask in rois.items():
        _check_mask(name, np.asarray(mask), n_voxels, where="rois")
    # Not numpy.savez: its own argument names would be forbidden as names of regions.
    with atomic_write(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name in sorted(rois):
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w") as member:
                np.lib.format.write_array(
                    member, np.ascontiguousarray(rois[name]), allow_pickle=False
                )


def _read_rois(path: Path, n_voxels: int) -> dict[str, NDArray[np.bool_]]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            rois = {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise SubjectError(
            f"{path} can't be read as named masks ({error}); import the subject again."
        ) from error
    for name, mask in rois.items():
        _check_mask(name, mask, n_voxels, where=str(path))
    return rois


def _check_mask(name: str, mask: NDArray[Any], n_voxels: int, *, where: str) -> None:
    if mask.dtype != np.bool_ or mask.shape != (n_voxels,):
        raise SubjectError(
            f"{where}: the mask of {name!r} holds {mask.dtype} of shape {mask.shape}, expected "
            f"bool of shape ({n_voxels},): one flag a voxel, in the order of the voxel columns."
        )


def _read_voxel_table(path: Path, n_voxels: int) -> pa.Table:
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise SubjectError(f"{path} can't be read ({error}); import the subject again.") from error
    _require_one_row_a_voxel(table, n_voxels, where=str(path))
    return table


def _require_one_row_a_voxel(table: pa.Table, n_voxels: int, *, where: str) -> None:
    if table.num_rows != n_voxels:
        raise SubjectError(
            f"{where} has {table.num_rows} rows, expected {n_voxels}: one a voxel, in the order of "
            f"the voxel columns."
        )


def _store_body(store: ImageStore) -> dict[str, Any]:
    return {"path": str(store.path), "dataset": store.dataset, "n_images": store.n_images}


def _read_store(body: dict[str, Any] | None, where: Path) -> ImageStore | None:
    """Return the store that a manifest names; its file is looked for when a picture is."""
    if body is None:
        return None
    try:
        return ImageStore(Path(body["path"]), body["dataset"], int(body["n_images"]))
    except (KeyError, TypeError, ValueError) as error:
        raise SubjectError(
            f"{where}: image_store lacks or mistypes {error}; expected path, dataset and n_images. "
            f"Import the subject again."
        ) from error


def _require_held(store: ImageStore, image_ids: NDArray[np.int64]) -> None:
    if image_ids.max() >= store.n_images:
        raise SubjectError(
            f"{store.path} has {store.n_images} pictures, and trials show image {image_ids.max()}: "
            f"ids count from 0. Give the store of this data set."
        )
