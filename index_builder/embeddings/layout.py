"""The layout of embedding folders: which files are parts, in which order, and what pairs up.

    img_emb/img_emb_{N}.npy      (rows, dim) or (rows, tokens, dim), float16 or float32
    metadata/metadata_{N}.parquet                      row for row
    space.json                                         in folders that voxseek wrote

This is what ``clip-retrieval inference`` writes, with the width of N depending on the number of
parts. Also understood: ``text_emb`` instead of ``img_emb``; the metadata of the folder NAME in
``NAME-metadata/``, as LAION-5B was released; npy and parquet files side by side; npy files alone;
parquet files with the vectors in a column. Row order is the order of the integers N, never of the
names: the width of N varies, and "img_emb_10" sorts before "img_emb_2".
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass

from .errors import ArtefactError, EmbeddingError, PartError
from .storage import Storage

SPACE_FILE = "space.json"
UNFINISHED_FILE = "unfinished.json"
KIND = "embeddings"
FORMAT_VERSION = 1
MODALITIES = ("img_emb", "text_emb")
METADATA_FOLDER = "metadata"

_DIGITS = re.compile(r"[0-9]+")
_MOST_NAMES_IN_A_MESSAGE = 5


@dataclass(frozen=True)
class PartFiles:
    """The files of one part, relative to the folder; one file can be both.

    Parameters
    ----------
    embeddings : str
        An npy file, or a parquet file with a column of vectors.
    metadata : str or None
        A parquet file with as many rows.
    """

    embeddings: str
    metadata: str | None


def part_file_names(number: int, modality: str = "img_emb") -> PartFiles:
    """Return the names that voxseek gives to the files of part ``number``."""
    return PartFiles(
        f"{modality}/{modality}_{number:04d}.npy",
        f"{METADATA_FOLDER}/metadata_{number:04d}.parquet",
    )


def order_by_number(names: Iterable[str], where: str) -> dict[tuple[int, ...], str]:
    """Return file names by the integers in them, in increasing order of those.

    Parameters
    ----------
    names : iterable of str
        Names of files of one folder.
    where : str
        The folder, for messages.

    Raises
    ------
    EmbeddingError
        If the order would be a guess: names of several patterns, names without a number, two names
        with the same number, or padding of several widths.
    """
    names = sorted(names)
    patterns: dict[str, str] = {}
    for name in names:
        patterns.setdefault(_DIGITS.sub("{N}", name), name)
    if len(patterns) > 1:
        examples = " and ".join(list(patterns.values())[:2])
        raise EmbeddingError(
            f"{where} holds files named in {len(patterns)} ways (for example {examples}), so their "
            f"order is unknown. Give each set a folder of its own."
        )
    if len(names) > 1 and not _DIGITS.search(names[0]):
        raise EmbeddingError(f"{where} holds {names}, and no number says which comes first.")
    numbered: dict[tuple[int, ...], str] = {}
    for name in names:
        number = tuple(int(digits) for digits in _DIGITS.findall(name))
        if number in numbered:
            raise EmbeddingError(
                f"{where} holds both {numbered[number]} and {name}, which are the same part: two "
                f"downloads seem to have been mixed. Remove one of them."
            )
        numbered[number] = name
    _require_one_padding(names, where)
    return dict(sorted(numbered.items()))


def _require_one_padding(names: list[str], where: str) -> None:
    """Refuse names that no single ``%0{width}d`` can have produced."""
    for column in zip(*(_DIGITS.findall(name) for name in names), strict=True):
        padded = [i for i, digits in enumerate(column) if digits[0] == "0"]
        widest = max(padded, key=lambda i: len(column[i]), default=0)
        width = len(column[widest]) if padded else 1
        for name, digits in zip(names, column, strict=True):
            if digits != str(int(digits)).zfill(width):
                raise EmbeddingError(
                    f"{where} holds {name} and {names[widest]}, whose numbers are padded to "
                    f"different widths: two downloads seem to have been mixed. "
                    f"Separate or rename them."
                )


def discover_parts(storage: Storage, modality: str) -> tuple[PartFiles, ...]:
    """List the parts of a folder without a manifest, in row order.

    Parameters
    ----------
    storage : Storage
    modality : {"img_emb", "text_emb"}
        Which of the two sub-folders to read.

    Raises
    ------
    EmbeddingError
        If no layout fits or the order of the parts is ambiguous.
    PartError
        If an npy file has no metadata file or the reverse.
    """
    for folder in (modality, ""):
        vectors = _files(storage, folder, ".npy")
        if vectors:
            metadata = _find_metadata(storage, folder)
            if not metadata:
                return tuple(PartFiles(file, None) for file in vectors.values())
            return _pair(storage, vectors, metadata)
    for folder in ("", modality, METADATA_FOLDER):
        parquet = _files(storage, folder, ".parquet")
        if parquet:
            return tuple(PartFiles(file, file) for file in parquet.values())
    others = [name for name in MODALITIES if name != modality and storage.list_files(name)]
    hint = f" It has {others[0]}/: pass modality={others[0]!r} to read that." if others else ""
    raise EmbeddingError(
        f"{storage.path_of('')} holds no embeddings: expected {modality}/*.npy with "
        f"{METADATA_FOLDER}/*.parquet, or *.npy, or *.parquet with a column of vectors.{hint}"
    )


def _find_metadata(storage: Storage, vector_folder: str) -> dict[tuple[int, ...], str]:
    """Return the metadata files of npy files in ``vector_folder``, from where there are any."""
    root = storage.path_of("")
    name = os.path.basename(os.path.abspath(root)) if storage.is_local else root.split("/")[-1]
    places = [METADATA_FOLDER, f"{name}-metadata", *([""] if not vector_folder else [])]
    found = {place: files for place in places if (files := _files(storage, place, ".parquet"))}
    if len(found) > 1:
        raise EmbeddingError(
            f"{root} holds parquet files in {' and in '.join(place or '.' for place in found)}; "
            f"expected metadata in one place. Move the others away."
        )
    return next(iter(found.values()), {})


def require_finished(storage: Storage, files_at_root: Iterable[str]) -> None:
    """Raise `ArtefactError` if a writer began this folder and did not finish it."""
    if UNFINISHED_FILE in files_at_root:
        raise ArtefactError(
            f"{storage.path_of('')} is unfinished: {UNFINISHED_FILE} is there and {SPACE_FILE} "
            f"isn't. Run the command that was writing it again; parts that stand are kept."
        )


def _files(storage: Storage, folder: str, suffix: str) -> dict[tuple[int, ...], str]:
    names = [
        name
        for name in storage.list_files(folder)
        if name.endswith(suffix) and not name.startswith((".", "_"))
    ]
    prefix = f"{folder}/" if folder else ""
    ordered = order_by_number(names, storage.path_of(folder)) if names else {}
    return {number: prefix + name for number, name in ordered.items()}


def _pair(
    storage: Storage, vectors: dict[tuple[int, ...], str], metadata: dict[tuple[int, ...], str]
) -> tuple[PartFiles, ...]:
    for here, there, missing in (
        (vectors, metadata, "metadata (parquet)"),
        (metadata, vectors, "embeddings (npy)"),
    ):
        alone = [here[number] for number in here if number not in there]
        if alone:
            names = ", ".join(storage.path_of(file) for file in alone[:_MOST_NAMES_IN_A_MESSAGE])
            more = len(alone) - _MOST_NAMES_IN_A_MESSAGE
            raise PartError(
                f"no file of {missing} has the number of {names}"
                f"{f' and {more} more' if more > 0 else ''}. "
                f"Bring the missing files, or move the lone ones away."
            )
    return tuple(PartFiles(file, metadata[number]) for number, file in vectors.items())
