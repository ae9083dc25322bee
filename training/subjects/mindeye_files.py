"""What the releases of MindEye and MindEye2 share: tars of samples, and how a subject is known.

Members of a tar whose names agree up to the first dot are one sample, and the rest of the name is
the field (webdataset's rule). The names say nothing else: in these releases they are counters of a
shuffled list, and begin anew in other tars. Tars are read by place, never unpacked.
"""

from __future__ import annotations

import io
import logging
import tarfile
import tokenize
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import SourceError
from .downloads import require_download

TRIALS_A_SESSION = 750  # NSD: Allen et al. 2022, Methods
MAX_TRIALS = 40 * TRIALS_A_SESSION  # of one subject
# Voxels of the mask nsdgeneral at 1.8 mm: Scotti et al. 2024 (arXiv:2403.11207), Fig. 2.
NSDGENERAL_VOXELS = {
    1: 15724, 2: 14278, 3: 15226, 4: 13153, 5: 13039, 6: 17907, 7: 12682, 8: 14386,
}  # fmt: skip
_MAX_BYTES = 64 << 20  # of one member; the largest that is read has half a megabyte
_BLOCK = 512  # bytes; a tar is a sequence of these, and the last ones are zero
# What numpy raises on a damaged header: it is read as a Python expression.
_BAD_NPY = (
    ValueError,
    EOFError,
    MemoryError,
    OverflowError,
    SyntaxError,
    TypeError,
    tokenize.TokenError,
)
logger = logging.getLogger("voxseek")


@dataclass(frozen=True)
class Member:
    """One file within an uncompressed tar: where its bytes are.

    Parameters
    ----------
    tar : Path
    name : str
    start, n_bytes : int
    """

    tar: Path
    name: str
    start: int
    n_bytes: int

    def __str__(self) -> str:
        return f"{self.tar}, {self.name}"

    def read(self) -> bytes:
        """Return the bytes.

        Raises
        ------
        SourceError
            If the tar ends before them, or they are too many to be what is read here.
        """
        if self.n_bytes > _MAX_BYTES:
            raise SourceError(
                f"{self}: it has {self.n_bytes} bytes, expected at most {_MAX_BYTES}. Download "
                f"the tar again."
            )
        with open(self.tar, "rb") as handle:
            handle.seek(self.start)
            content = handle.read(self.n_bytes)
        if len(content) < self.n_bytes:
            raise SourceError(f"{self}: the tar ends within it. Download the tar again.")
        return content

    def read_array(self) -> NDArray[Any]:
        """Return the array of an npy file; nothing is unpickled.

        Raises
        ------
        SourceError
            If it is no npy file of numbers.
        """
        content = io.BytesIO(self.read())
        try:
            array: NDArray[Any] = np.lib.format.read_array(content, allow_pickle=False)
        except _BAD_NPY as error:
            raise SourceError(
                f"{self}: it can't be read as an npy file of numbers ({error}); pickled arrays are "
                f"never loaded. Download the tar again."
            ) from error
        return array

    def read_whole_numbers(self) -> NDArray[np.int64]:
        """Return the numbers of an npy file in one row.

        Raises
        ------
        SourceError
            If it is no npy file, or a number isn't whole.
        """
        numbers = self.read_array().reshape(-1)
        if numbers.dtype.kind in "iuf" and len(numbers):
            with np.errstate(invalid="ignore"):  # what isn't a number differs from its cast
                whole = numbers.astype(np.int64)
            if (whole == numbers).all():
                return whole
        raise SourceError(
            f"{self}: it holds {len(numbers)} values of {numbers.dtype}, expected whole numbers. "
            f"Download the tar again."
        )


def list_samples(tar: Path, fields: Collection[str]) -> dict[str, dict[str, Member]]:
    """Find the samples of a tar and the members of some of their fields; reads headers alone.

    Parameters
    ----------
    tar : Path
        Uncompressed.
    fields : collection of str
        The rest of a name after its first dot, in lower case: ``"trial.npy"``.

    Returns
    -------
    samples : dict of str to dict of str to Member
        By name of the sample, in the order of the tar. A sample may lack fields.

    Raises
    ------
    SourceError
        If the file is missing, no tar, compressed, truncated, or names a member twice.
    """
    require_download(tar, "an uncompressed tar of samples")
    samples: dict[str, dict[str, Member]] = {}
    end = 0
    try:
        with tarfile.open(tar, "r:") as archive:
            for entry in archive:
                end = archive.offset  # of the next header
                folder, slash, base = entry.name.rpartition("/")
                stem, _, field = base.partition(".")
                if not entry.isreg() or entry.issparse() or field.lower() not in fields:
                    continue
                of_sample = samples.setdefault(f"{folder}{slash}{stem}", {})
                if field.lower() in of_sample:
                    raise SourceError(
                        f"{tar} holds {entry.name} twice, expected once. Download it again."
                    )
                of_sample[field.lower()] = Member(tar, entry.name, entry.offset_data, entry.size)
    except (OSError, tarfile.TarError) as error:
        raise SourceError(
            f"{tar} can't be read as an uncompressed tar ({error}): it is truncated, or another "
            f"kind of file. Download it again."
        ) from error
    # A tar that breaks off between two members looks like one that ends there.
    if not _ends_at(tar, end):
        raise SourceError(
            f"{tar} breaks off after {len(samples)} samples, without the zeros that end a tar. "
            f"Download it again."
        )
    if not samples:
        raise SourceError(
            f"{tar} holds no sample with {' or '.join(fields)}. Give the tars of the release."
        )
    return samples


def require_subject_size(n_voxels: int, subject: int, where: str) -> None:
    """Refuse voxels whose number is that of another subject of NSD.

    Other numbers pass: they are those of another mask.

    Raises
    ------
    SourceError
        Names the subject whose voxels these are.
    """
    owner = next((s for s, n in NSDGENERAL_VOXELS.items() if n == n_voxels), subject)
    if owner != subject:
        raise SourceError(
            f"{where}: there are {n_voxels} voxels, which is nsdgeneral of subject {owner}; "
            f"subject {subject} has {NSDGENERAL_VOXELS[subject]}. Give the file of the subject, or "
            f"name the other subject."
        )


def require_subject(subject: int) -> None:
    """Raise ValueError unless NSD has such a subject."""
    if subject not in NSDGENERAL_VOXELS:
        raise ValueError(f"subject is {subject}, expected 1 to {len(NSDGENERAL_VOXELS)}.")


def choose_dtype(found: np.dtype[Any], asked: str | None) -> np.dtype[Any]:
    """Return the type to store voxels in: what is asked for, else float16 or float32 as found."""
    if asked not in (None, "float16", "float32"):
        raise ValueError(f"dtype is {asked!r}, expected 'float16', 'float32' or None.")
    return np.dtype(asked or (found if found == np.float16 else np.float32))


def zero_invalid(rows: NDArray[Any], where: str) -> NDArray[Any]:
    """Set voxels that are NaN throughout a session to 0, and say so.

    Parameters
    ----------
    rows : float array of shape (n_trials, n_voxels)
        One session; changed in place.
    where : str
        For the message.

    Returns
    -------
    rows : the same array
        A single NaN is left, and refused when it is written.
    """
    is_invalid = np.isnan(rows).all(axis=0)
    if is_invalid.any():
        logger.warning(
            "%s: %d voxels are NaN in every trial, stored as 0.", where, int(is_invalid.sum())
        )
        rows[:, is_invalid] = 0
    return rows


def _ends_at(tar: Path, end: int) -> bool:
    with open(tar, "rb") as handle:
        handle.seek(end)
        return handle.read(_BLOCK) == bytes(_BLOCK)
