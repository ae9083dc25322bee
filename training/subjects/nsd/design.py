"""Which image NSD showed in which trial; tables that count from 1 are converted here, once.

``nsd_expdesign.mat`` has one order of 10,000 images for all subjects, and each subject's images:
trial t of subject s shows ``subjectim[s - 1, masterordering[0, t] - 1] - 1``. The first 1,000 are
the same for all subjects (Allen et al. 2022, doi:10.1038/s41593-021-00962-x, Methods, "Image
selection and presentation"). Where the tables of behavior and of stimuli are there, they must
agree, trial for trial.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
from numpy.typing import NDArray

from index_builder.embeddings.errors import MissingExtraError

from ...errors import SourceError
from ..downloads import require_download
from .release import N_SUBJECTS, Release

TRIALS_A_SESSION = 750
N_SESSIONS = 40  # planned for every subject; subjects 3, 4, 6 and 8 ended before
N_IMAGES = 73_000
_N_TRIALS = N_SESSIONS * TRIALS_A_SESSION
_IMAGES_A_SUBJECT = 10_000
_N_SHARED = 1000
_SHAPES = {
    "masterordering": ((1, _N_TRIALS), _IMAGES_A_SUBJECT),
    "subjectim": ((N_SUBJECTS, _IMAGES_A_SUBJECT), N_IMAGES),
    "sharedix": ((1, _N_SHARED), N_IMAGES),
}
# Of the published tables, counted from 0: trial -> image of subject 1, and the first shared images.
_PUBLISHED_TRIALS = {
    0: 46002,
    28: 48617,
    35: 44980,
    44: 32625,
    55: 53052,
    56: 4930,
    90: 32625,
    120: 6431,
    126: 70335,
    132: 36576,
}
_PUBLISHED_SHARED = (2950, 2990, 3049, 3077, 3146)


@dataclass(frozen=True)
class Design:
    """What one subject was to see in all 40 sessions.

    Parameters
    ----------
    image_ids : int64 array of shape (30000,)
        The 73k id counted from 0, in the order of the trials.
    shared_ids : int64 array of shape (1000,), increasing
        Images that all subjects were to see.
    departure : str or None
        Where the tables differ from the published ones, as far as those are known here.
    """

    image_ids: NDArray[np.int64]
    shared_ids: NDArray[np.int64]
    departure: str | None


def read_design(release: Release) -> Design:
    """Read ``nsd_expdesign.mat``.

    Raises
    ------
    MissingExtraError
        If scipy is absent.
    SourceError
        If the file is missing, damaged, of another shape, or its shared images contradict each
        other.
    """
    path = release.design_file
    tables = _read_tables(path)
    images = tables["subjectim"][release.subject - 1] - 1
    shared = np.sort(tables["sharedix"][0] - 1)
    if not np.array_equal(np.sort(images[:_N_SHARED]), shared):
        raise SourceError(
            f"{path}: the first {_N_SHARED} images of subject {release.subject} in subjectim "
            f"aren't those of sharedix; expected the same images. Download it again."
        )
    image_ids = images[tables["masterordering"][0] - 1]
    return Design(image_ids, shared, _departure(release.subject, image_ids, shared))


def check_responses(path: Path, image_ids: NDArray[np.int64]) -> int:
    """Compare the table of behavior with the design, and return how many trials it has.

    Parameters
    ----------
    path : Path of ``responses.tsv``
        SESSION and 73KID count from 1. It may end before or after the trials that are kept.
    image_ids : int64 array of shape (n_trials,)
        Counted from 0.

    Raises
    ------
    SourceError
        If it can't be read, a session hasn't 750 trials, or a row shows another image.
    """
    table = _read_csv(path, ["SESSION", "73KID"], delimiter="\t")
    sessions, shown = table["SESSION"] - 1, table["73KID"] - 1
    expected = np.arange(len(sessions)) // TRIALS_A_SESSION
    wrong = np.flatnonzero(sessions != expected)
    if len(wrong) or len(sessions) % TRIALS_A_SESSION:
        row = int(wrong[0]) if len(wrong) else len(sessions) - 1
        raise SourceError(
            f"{path}, row {row}: session {sessions[row] + 1} where {TRIALS_A_SESSION} trials a "
            f"session give session {expected[row] + 1} ({len(sessions)} rows); expected whole "
            f"sessions from 1 on. Download it again."
        )
    n = min(len(shown), len(image_ids))
    _require_same(path, np.arange(n), shown[:n], image_ids[:n])
    return len(shown)


def check_stim_info(path: Path, design: Design, subject: int) -> None:
    """Compare the table of stimuli with the design.

    Parameters
    ----------
    path : Path of ``nsd_stim_info_merged.csv``
        nsdId counts from 0, trials in ``subjectN_repK`` from 1, with 0 for none.
    design : Design
    subject : int

    Raises
    ------
    SourceError
        If it can't be read, its rows aren't the 73,000 images, the shared images are others, or an
        image was to be shown in other trials.
    """
    repeats = [f"subject{subject}_rep{repeat}" for repeat in range(3)]
    table = _read_csv(path, ["nsdId", "shared1000", *repeats], delimiter=",")
    wrong = np.flatnonzero(table["nsdId"] != np.arange(len(table["nsdId"])))
    if len(wrong) or len(table["nsdId"]) != N_IMAGES:
        row = int(wrong[0]) if len(wrong) else len(table["nsdId"])
        raise SourceError(
            f"{path}, row {row}: expected the rows of nsdId 0 to {N_IMAGES - 1} in order "
            f"({len(table['nsdId'])} rows found). Download it again."
        )
    is_shared = np.isin(np.arange(N_IMAGES), design.shared_ids)
    wrong = np.flatnonzero((table["shared1000"] != 0) != is_shared)
    if len(wrong):
        raise SourceError(
            f"{path}, row {wrong[0]}: shared1000 is {bool(table['shared1000'][wrong[0]])}, and "
            f"nsd_expdesign.mat says {bool(is_shared[wrong[0]])} ({len(wrong)} images differ); "
            f"the tables are of different versions. Download both again."
        )
    planned = np.stack([table[name] for name in repeats])
    repeat, image = np.nonzero(planned)
    trials = planned[repeat, image] - 1
    if len(trials) != _N_TRIALS or not np.array_equal(np.sort(trials), np.arange(_N_TRIALS)):
        raise SourceError(
            f"{path}: {repeats[0]} to {repeats[-1]} name {len(np.unique(trials))} trials, expected "
            f"each of 1 to {_N_TRIALS} once. Download it again."
        )
    order = np.argsort(trials)
    _require_same(path, image[order], image[order], design.image_ids)


def _read_tables(path: Path) -> dict[str, NDArray[np.int64]]:
    try:
        from scipy.io import loadmat
        from scipy.io.matlab import MatReadError
    except ImportError as error:
        raise MissingExtraError("scipy", "data", "reading MATLAB files") from error
    require_download(path, "the design of the experiment")
    try:
        content: dict[str, Any] = loadmat(path, variable_names=list(_SHAPES))
    except (OSError, EOFError, ValueError, TypeError, NotImplementedError, MatReadError) as error:
        raise SourceError(
            f"{path} can't be read as a MATLAB 5 file ({error}): it is truncated, or another kind "
            f"of file. Download it again."
        ) from error
    for name, (shape, largest) in _SHAPES.items():
        found = content.get(name)
        if found is None or found.shape != shape:
            what = "is missing" if found is None else f"has shape {found.shape}"
            raise SourceError(
                f"{path}: {name} {what}, expected shape {shape}; this isn't the design of NSD's "
                f"main experiment. Download nsd_expdesign.mat again."
            )
        if found.min() < 1 or found.max() > largest:
            raise SourceError(
                f"{path}: {name} has values from {found.min()} to {found.max()}, expected 1 to "
                f"{largest}. Download it again."
            )
    return {name: content[name].astype(np.int64) for name in _SHAPES}


def _departure(subject: int, image_ids: NDArray[np.int64], shared: NDArray[np.int64]) -> str | None:
    """Say where the design isn't the published one, by the values known of it."""
    first = tuple(shared[: len(_PUBLISHED_SHARED)].tolist())
    if first != _PUBLISHED_SHARED:
        return f"the shared images begin with {first}, published {_PUBLISHED_SHARED}"
    for trial, image_id in _PUBLISHED_TRIALS.items() if subject == 1 else ():
        if image_ids[trial] != image_id:
            return f"trial {trial} shows image {image_ids[trial]}, published {image_id}"
    return None


def _read_csv(path: Path, columns: list[str], *, delimiter: str) -> dict[str, NDArray[np.int64]]:
    """Read columns of whole numbers or truth values."""
    require_download(path, f"a table with {', '.join(columns)}")
    try:
        table = pa_csv.read_csv(
            path,
            parse_options=pa_csv.ParseOptions(delimiter=delimiter),
            convert_options=pa_csv.ConvertOptions(include_columns=columns),
        )
        numbers = {name: table[name].cast(pa.int64()) for name in columns}
    except (pa.ArrowException, KeyError, OSError) as error:
        raise SourceError(
            f"{path} can't be read as a table with whole numbers in {', '.join(columns)} "
            f"({error}). Download it again."
        ) from error
    for name, values in numbers.items():
        if values.null_count:
            row = int(np.argmax(values.is_null().to_numpy()))
            raise SourceError(f"{path}, row {row}: {name} is empty; download the table again.")
    return {name: values.to_numpy() for name, values in numbers.items()}


def _require_same(
    path: Path, rows: NDArray[np.int64], shown: NDArray[np.int64], image_ids: NDArray[np.int64]
) -> None:
    wrong = np.flatnonzero(shown != image_ids)
    if not len(wrong):
        return
    trial = int(wrong[0])
    is_shifted = bool((np.abs(shown - image_ids) == 1).all())
    hint = " All ids differ by 1: the table counts from another number." if is_shifted else ""
    raise SourceError(
        f"{path}, row {rows[trial]}: trial {trial} shows image {shown[trial]}, and "
        f"nsd_expdesign.mat says {image_ids[trial]} ({len(wrong)} of {len(shown)} trials differ, "
        f"both counted from 0).{hint} The tables are of different versions: download both again."
    )
