"""Generic Object Decoding and Deep Image Reconstruction: ImageNet pictures in voxels, as bdata.

    Subject1.h5 ... Subject5.h5                              samples of all kinds, told by DataType
    sub-01_perceptionNaturalImageTraining_original_VC.h5     samples of the training,
    sub-01_perceptionNaturalImageTest_original_VC.h5         and of the test, of another subject

A bdata file is one matrix, samples x columns; rows of its metadata tell which columns are voxels of
a region (``ROI_VC``) and which hold labels (``stimulus_id``). A label is a number, WordNet synset +
image / 1e6: 1518878.010042 is the picture n01518878_10042. (Horikawa and Kamitani 2017,
doi:10.1038/ncomms15037; Shen et al. 2019, doi:10.1371/journal.pcbi.1006633.)
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from index_builder.embeddings.errors import MissingExtraError

from ..errors import SourceError
from .downloads import describe_files, require_download
from .responses import Stretch, build_source, find_valid, require_new_subject
from .stimuli import find_pictures, number_stimuli, stem_of, write_stimuli
from .subject import Subject, write_subject
from .trials import build_trials, split_around_test

TRAINING, TEST, IMAGERY = 1, 2, 3  # values of DataType
IMAGES_A_SYNSET = 1_000_000  # stimulus_id = synset + image / this
_LABELS = ("stimulus_name", "stimulus_id")
_SESSIONS = ("Session", "session", "Run", "run")
_LABEL_TOLERANCE = 0.01  # of an image number, left by the floating point of a label
_NAME = re.compile(r"(n\d{8})_(\d+)")
_FORM = "a bdata file (.h5)"
logger = logging.getLogger("voxseek")


@dataclass(frozen=True)
class Samples:
    """The samples of one bdata file that are imported.

    Parameters
    ----------
    path : Path
    responses : float32 array of shape (n_samples, n_voxels)
    names : list of str
        Stimulus of each sample.
    is_test : bool array of shape (n_samples,)
    sessions : int64 array of shape (n_samples,)
        Numbers of the file; 0 if it has none.
    rois : dict of str to bool array of shape (n_voxels,)
    places : dict of str to float array of shape (n_voxels,)
        x, y, z in voxels and x_mm, y_mm, z_mm, as far as the file has them.
    n_imagery : int
        Samples that were left out.
    """

    path: Path
    responses: NDArray[np.float32]
    names: list[str]
    is_test: NDArray[np.bool_]
    sessions: NDArray[np.int64]
    rois: dict[str, NDArray[np.bool_]]
    places: dict[str, NDArray[np.float64]]
    n_imagery: int

    def stretch(self, sessions: NDArray[np.int64]) -> Stretch:
        """Return all samples as one stretch, with the sessions of the subject."""
        return Stretch(self.path.name, sessions, lambda voxels: self.responses[:, voxels])


def import_object_decoding(
    source: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    subject: str,
    test_source: str | os.PathLike[str] | None = None,
    mask: str = "ROI_VC",
    label: str | None = None,
    images: str | os.PathLike[str] | None = None,
    n_validation: int = 60,
    seed: int = 0,
) -> Subject:
    """Make a subject folder of one brain of Generic Object Decoding or Deep Image Reconstruction.

    Parameters
    ----------
    source : path
        The bdata file of a subject; with ``test_source``, that of the training.
    folder : path
        The subject folder to write.
    subject : str
        Its name: ``"Subject1"``.
    test_source : path or None
        The bdata file of the test, where it has its own. Then DataType only tells imagery.
    mask : str
        Row of the metadata that marks the voxels to import.
    label : str or None
        Column that names the stimulus; None takes stimulus_name or stimulus_id.
    images : path or None
        Folder of the pictures, ``n01518878_10042.JPEG``, anywhere below it.
    n_validation : int
        Pictures drawn for validation from those of the training.
    seed : int

    Returns
    -------
    subject : Subject
        float32 voxels as released; image_id numbers the labels in sorted order, and a caption is
        the synset. A session is one of the file's sessions, or runs if it tells only these, of one
        part (training or test). Imagery (DataType 3) is left out, said and counted.

    Raises
    ------
    MissingExtraError
        If bdpy is absent.
    SourceError
        If a file is no bdata, lacks the mask or the label, a label is no picture, training and test
        share a picture, or the voxels of the two files differ.
    """
    require_new_subject(folder)
    paths = [Path(source)] if test_source is None else [Path(source), Path(test_source)]
    parts = [
        _read_samples(path, mask, label, part=None if test_source is None else number)
        for number, path in enumerate(paths, start=TRAINING)
    ]
    _require_same_voxels(parts)
    if n_imagery := sum(part.n_imagery for part in parts):
        logger.warning(
            "%s: left out %d samples of imagery: no picture was shown", source, n_imagery
        )
    is_test = np.concatenate([part.is_test for part in parts])
    names, image_ids = number_stimuli([n for part in parts for n in part.names], order=_order)
    test_ids = np.unique(image_ids[is_test])
    _require_apart(names, image_ids, is_test, source)
    sessions = _number_sessions(is_test, np.concatenate([part.sessions for part in parts]))
    splits = split_around_test(image_ids, test_ids, n_validation=n_validation, seed=seed)
    captions = {name: name.split("_")[0] for name in names if _NAME.fullmatch(name)}
    pictures = None if images is None else find_pictures(images, names, captions)
    starts = np.cumsum([0, *(len(part.names) for part in parts)])
    stretches = [
        part.stretch(sessions[start : start + len(part.names)])
        for start, part in zip(starts, parts, strict=False)
    ]
    n_candidates = parts[0].responses.shape[1]
    voxels, kept, counts = build_source(
        stretches,
        find_valid(stretches, n_candidates),
        identity={"files": describe_files(paths), "mask": mask},
        where=str(source),
    )
    Path(folder).mkdir(parents=True, exist_ok=True)
    return write_subject(
        folder,
        name=subject,
        voxels=voxels,
        trials=build_trials(image_ids, sessions, splits),
        rois={name: region[kept] for name, region in parts[0].rois.items()},
        images=pictures,
        voxel_table=_tabulate(parts[0].places, kept),
        command="voxseek data import object-decoding",
        details={
            "source": "bdata",
            "files": [path.name for path in paths],
            "mask": mask,
            "seed": seed,
            "n_imagery_left_out": n_imagery,
            **counts,
        },
        extra_files=[write_stimuli(folder, names, captions)],
    )


def name_stimuli(labels: NDArray[np.float64], *, where: str) -> list[str]:
    """Turn numbers of stimuli into the names of ImageNet's pictures.

    Parameters
    ----------
    labels : float64 array of shape (n,)
        Synset + image / `IMAGES_A_SYNSET`.
    where : str
        For the message.

    Raises
    ------
    SourceError
        If a number is no such label; names the sample.
    """
    scaled = labels * IMAGES_A_SYNSET
    with np.errstate(invalid="ignore"):
        numbers = np.rint(scaled)
        is_good = (np.abs(scaled - numbers) <= _LABEL_TOLERANCE) & (labels >= 1)
        is_good &= numbers % IMAGES_A_SYNSET > 0
    if not is_good.all():
        row = int(np.argmin(is_good))
        raise SourceError(
            f"{where}: the stimulus of sample {row} is {float(labels[row])} "
            f"({int((~is_good).sum())} such samples), expected synset + image / 1e6, as "
            f"1518878.010042. Name the column of the stimuli, or download the file again."
        )
    synsets, pictures = np.divmod(numbers.astype(np.int64), IMAGES_A_SYNSET)
    return [f"n{synset:08d}_{picture}" for synset, picture in zip(synsets, pictures, strict=True)]


def _read_samples(path: Path, mask: str, label: str | None, *, part: int | None) -> Samples:
    """Read one file; ``part`` is what all its samples are, unless DataType has to tell."""
    data = _open_bdata(path)
    keys = set(data.metadata.key)
    if mask not in keys:
        regions = sorted(key for key in keys if key.startswith("ROI_"))
        raise SourceError(
            f"{path} has no row {mask!r} in its metadata, expected one of {', '.join(regions)}. "
            f"Name the mask to import."
        )
    is_voxel = data.get_metadata(mask) == 1
    if not is_voxel.any():
        raise SourceError(f"{path}: no column is marked by {mask!r}. Name another mask.")
    kinds = _column(data, ("DataType",))
    if part is None and kinds is None:
        raise SourceError(
            f"{path} has no column DataType, which tells training from test. Give the file of the "
            f"test as well."
        )
    n_samples = len(data.dataset)
    kind = np.full(n_samples, part) if kinds is None else np.rint(kinds[1]).astype(np.int64)
    is_kept = kind != IMAGERY
    is_test = np.full(n_samples, part == TEST) if part is not None else kind == TEST
    known = (TRAINING, TEST, IMAGERY)
    if not np.isin(kind, known).all():
        row = int(np.argmin(np.isin(kind, known)))
        raise SourceError(
            f"{path}: DataType of sample {row} is {kind[row]}, expected 1 (training), 2 (test) or "
            f"3 (imagery). Download the file again."
        )
    session = _column(data, _SESSIONS)
    return Samples(
        path=path,
        responses=data.dataset[is_kept][:, is_voxel].astype(np.float32),
        names=_names(data, path, label, is_kept),
        is_test=is_test[is_kept],
        sessions=(
            np.zeros(int(is_kept.sum()), dtype=np.int64)
            if session is None
            else np.rint(session[1][is_kept]).astype(np.int64)
        ),
        rois={
            key.removeprefix("ROI_"): data.get_metadata(key)[is_voxel] == 1
            for key in sorted(keys)
            if key.startswith("ROI_") and (data.get_metadata(key)[is_voxel] == 1).any()
        },
        places={
            name: data.get_metadata(key)[is_voxel]
            for name, key in (
                *zip("xyz", ("voxel_i", "voxel_j", "voxel_k"), strict=True),
                *((f"{axis}_mm", f"voxel_{axis}") for axis in "xyz"),
            )
            if key in keys
        },
        n_imagery=int((~is_kept).sum()),
    )


def _open_bdata(path: Path) -> Any:
    try:
        from bdpy.bdata import BData
    except ImportError as error:
        raise MissingExtraError("bdpy", "data", "reading bdata files") from error
    file = require_download(path, _FORM)
    if file.suffix != ".h5":
        raise SourceError(
            f"{file} ends in {file.suffix!r}, expected {_FORM}. The same data come as .h5."
        )
    try:
        data = BData(os.fspath(file))
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise SourceError(
            f"{file} can't be read as bdata ({error}): it is truncated, or another kind of file. "
            f"Download it again."
        ) from error
    shape, keys = data.metadata.value.shape, data.metadata.key
    if data.dataset.ndim != 2 or shape != (len(keys), data.dataset.shape[1]):
        raise SourceError(
            f"{file} has a matrix of shape {data.dataset.shape} and metadata of shape {shape} for "
            f"{len(keys)} keys, expected one column of metadata a column. Download it again."
        )
    return data


def _column(data: Any, keys: Sequence[str]) -> tuple[str, NDArray[np.float64]] | None:
    """Return the first of these keys that marks one column, and the column."""
    for key in keys:
        if key in data.metadata.key:
            column = data.dataset[:, data.get_metadata(key) == 1]
            if column.shape[1] == 1:
                return key, column[:, 0]
    return None


def _names(data: Any, path: Path, label: str | None, is_kept: NDArray[np.bool_]) -> list[str]:
    found = _column(data, _LABELS if label is None else (label,))
    if found is None:
        raise SourceError(
            f"{path} has no column {label or ' or '.join(_LABELS)}; its metadata name "
            f"{', '.join(sorted(data.metadata.key))}. Name the column of the stimuli."
        )
    key, values = found
    if key not in data.get_vmap_keys():
        return name_stimuli(values[is_kept], where=str(path))
    names: dict[float, str] = data.get_vmap(key)
    if unknown := sorted(set(values[is_kept].tolist()) - names.keys()):
        raise SourceError(
            f"{path}: {key} is {unknown[0]} in some sample, and its table of names doesn't have "
            f"that. Download the file again."
        )
    return [stem_of(names[value]) for value in values[is_kept].tolist()]


def _order(name: str) -> tuple[str, int]:
    """Sort as the numbers of labels do: by synset, then by number of the image."""
    match = _NAME.fullmatch(name)
    return (match[1], int(match[2])) if match else (name, -1)


def _number_sessions(is_test: NDArray[np.bool_], sessions: NDArray[np.int64]) -> NDArray[np.int64]:
    """Count sessions from 0 over both parts: training and test number theirs apart."""
    pairs = np.stack([is_test.astype(np.int64), sessions], axis=1)
    numbered = np.unique(pairs, axis=0, return_inverse=True)[1]
    return numbered.reshape(-1).astype(np.int64)


def _require_apart(
    names: list[str],
    image_ids: NDArray[np.int64],
    is_test: NDArray[np.bool_],
    source: str | os.PathLike[str],
) -> None:
    both = np.intersect1d(image_ids[is_test], image_ids[~is_test])
    if len(both):
        raise SourceError(
            f"{source}: picture {names[both[0]]} is in training and test ({len(both)} such "
            f"pictures), expected it in one. Give the file of the training and that of the test."
        )
    if not is_test.any() or is_test.all():
        lacking = "training" if is_test.any() else "test"
        raise SourceError(
            f"{source} has no samples of the {lacking}. Give both parts of the subject."
        )


def _require_same_voxels(parts: list[Samples]) -> None:
    first = parts[0]
    for part in parts[1:]:
        counts = [p.responses.shape[1] for p in (first, part)]
        if counts[0] != counts[1] or not all(
            key in part.places and np.array_equal(values, part.places[key], equal_nan=True)
            for key, values in first.places.items()
        ):
            raise SourceError(
                f"{part.path} has other voxels than {first.path} ({counts[1]} and {counts[0]}). "
                f"Give two files of the same subject."
            )


def _tabulate(places: dict[str, NDArray[np.float64]], kept: NDArray[np.int64]) -> pa.Table | None:
    if not places:
        return None
    return pa.table(
        {
            name: values[kept].astype(np.float32)
            if name.endswith("_mm")
            else np.rint(values[kept]).astype(np.int64)
            for name, values in places.items()
        }
    )
