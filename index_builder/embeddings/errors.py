"""Errors of the ground floor, and the root of every error that voxseek raises on purpose.

    VoxseekError                    what the command line prints, with exit status 1
    ├── ArtefactError               a folder is missing, incomplete, altered or of another version
    ├── EmbeddingError              an embedding folder can't be read as it stands
    │   ├── PartError               one part (npy or parquet file) is bad; names the file
    │   ├── BadRowError             NaN, infinite or zero rows; names file and first row
    │   └── RowRangeError           rows asked for that the folder doesn't have (an IndexError too)
    ├── SpaceMismatchError          two artefacts of different embedding spaces met
    └── MissingExtraError           an optional package is not installed; names the extra

Messages say what was found, what was expected, where, and what to do, in this order.
"""

from __future__ import annotations


class VoxseekError(Exception):
    """Base class: everything that voxseek refuses to do, with the reason and the mend."""


class ArtefactError(VoxseekError):
    """An artefact folder is missing, incomplete, altered, or of an unknown version."""


class EmbeddingError(VoxseekError):
    """An embedding folder can't be read as it stands."""


class PartError(EmbeddingError):
    """One part of an embedding folder is damaged or contradicts the others."""


class BadRowError(EmbeddingError):
    """Rows that can't be searched: NaN, infinite or of zero length."""


class RowRangeError(EmbeddingError, IndexError):
    """Row numbers below zero or beyond the end of an embedding folder."""


class SpaceMismatchError(VoxseekError):
    """Two artefacts of different embedding spaces can't be compared."""


class MissingExtraError(VoxseekError):
    """An optional dependency is needed and absent.

    Parameters
    ----------
    package : str
        Import name of the package that is missing.
    extra : str
        The extra of the ``voxseek`` distribution that brings it.
    purpose : str
        What it is needed for, as a noun phrase.
    """

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{package} is not installed, and {purpose} needs it. "
            f"Install it with: pip install 'voxseek[{extra}]'"
        )
