"""Opening an embedding folder: what its headers, footers and manifest say, and whether they agree.

A count that is wrong by one shifts every row after it, so that right ids show wrong images; hence
each part is compared with its header, its metadata, the other parts and the declared space before
a single row is read.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, TypeVar

from .alignment import require_rising_keys
from .artefact import fingerprint, parse_manifest
from .columns import PartColumns, unify_schemas
from .errors import ArtefactError, EmbeddingError, PartError, SpaceMismatchError
from .layout import (
    FORMAT_VERSION,
    KIND,
    SPACE_FILE,
    PartFiles,
    discover_parts,
    require_finished,
)
from .space import EmbeddingSpace
from .storage import Storage
from .vectors import NpyVectors, ParquetVectors, Vectors

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
logger = logging.getLogger("voxseek")


@dataclass(frozen=True)
class Part:
    """One part of an embedding folder: its vectors and, where there is any, its metadata.

    Parameters
    ----------
    row_start : int
        Row of the folder at which the part begins.
    vectors : Vectors
    columns : PartColumns or None
    """

    row_start: int
    vectors: Vectors
    columns: PartColumns | None

    @property
    def file(self) -> str:
        """The file of the vectors, relative to the folder."""
        return self.vectors.file

    @property
    def n_rows(self) -> int:
        """Rows of this part."""
        return self.vectors.n_rows

    @property
    def row_stop(self) -> int:
        """Row of the folder after the last of this part."""
        return self.row_start + self.n_rows


@dataclass(frozen=True)
class Contents:
    """What an embedding folder holds; the fields are those of `EmbeddingFolder`."""

    space: EmbeddingSpace
    parts: tuple[Part, ...]
    schema: Any
    details: dict[str, Any]
    fingerprint: str


def inspect_folder(
    storage: Storage, space: EmbeddingSpace | None, modality: str, n_parts: int | None
) -> Contents:
    """Read and cross-check the headers of a folder; see `EmbeddingFolder.open`."""
    at_root = storage.list_files("")
    if SPACE_FILE in at_root:
        return _inspect_own(storage, at_root[SPACE_FILE], space, modality, n_parts)
    require_finished(storage, at_root)
    return _inspect_foreign(storage, space, modality, n_parts)


def _inspect_own(
    storage: Storage,
    manifest_bytes: int,
    space: EmbeddingSpace | None,
    modality: str,
    n_parts: int | None,
) -> Contents:
    path = storage.path_of(SPACE_FILE)
    manifest = parse_manifest(
        storage.read_range(SPACE_FILE, 0, manifest_bytes),
        path,
        kind=KIND,
        format_version=FORMAT_VERSION,
    )
    try:
        own_space = EmbeddingSpace.from_dict(manifest["space"])
        own_modality, details, recorded = (
            manifest["modality"],
            manifest["details"],
            manifest["files"],
        )
        listed = _first(storage, manifest["parts"], n_parts)
        files = [PartFiles(part["embeddings"], part["metadata"]) for part in listed]
        promised_rows = [part["n_rows"] for part in listed]
        checksums = [
            [name, recorded[name]["sha256"]]
            for part in files
            for name in (part.embeddings, part.metadata)
        ]
    except (KeyError, TypeError) as error:
        raise ArtefactError(
            f"{path} lacks the field {error}, or it is of another kind than expected: it was "
            f"altered. Restore it or make the folder again."
        ) from error
    if own_modality != modality:
        raise EmbeddingError(f"{path} describes {own_modality}, and {modality} was asked for.")
    if space is not None and space != own_space:
        raise SpaceMismatchError(
            f"{path} says {own_space}, and {space} was given. Leave the space out to use the "
            f"recorded one, or embed again in the one that is wanted."
        )
    sizes = _list_sizes(storage, files)
    for name, record in recorded.items():
        if sizes.get(name) != record["bytes"]:
            found = f"has {sizes[name]} bytes" if name in sizes else "is missing"
            raise ArtefactError(
                f"{storage.path_of(name)} {found}, and {SPACE_FILE} says {record['bytes']} bytes: "
                f"it was truncated, replaced or moved. Restore it or make the folder again."
            )
    parts = _inspect_parts(storage, files, sizes, own_space, is_foreign=False)
    for part, n_rows in zip(parts, promised_rows, strict=True):
        if part.n_rows != n_rows:
            raise PartError(
                f"{storage.path_of(part.file)} has {part.n_rows} rows, and {SPACE_FILE} says "
                f"{n_rows}. Make the folder again."
            )
    content = fingerprint({"space": own_space.to_dict(), "files": checksums})
    return Contents(own_space, parts, _common_schema(storage, parts), details, content)


def _inspect_foreign(
    storage: Storage, space: EmbeddingSpace | None, modality: str, n_parts: int | None
) -> Contents:
    files = _first(storage, discover_parts(storage, modality), n_parts)
    sizes = _list_sizes(storage, files)
    if space is None:
        first = _inspect_vectors(storage, files[0], sizes, None)
        tokens, dim = _tokens_and_dim(first)
        raise EmbeddingError(
            f"{storage.path_of('')} has no {SPACE_FILE}, so the space of its embeddings is "
            f"unknown; {first.file} holds {tokens} x {dim} in {first.dtype}. "
            f"Say what they are: --space MODEL:{'final' if tokens == 1 else 'hidden'}:"
            f"{tokens}x{dim}:unit (or :any, if not normalized), with the MODEL that made them; "
            f"in Python space=EmbeddingSpace(...)."
        )
    parts = _inspect_parts(storage, files, sizes, space, is_foreign=True)
    beside = [part.columns for part in parts if part.columns and part.columns.file != part.file]
    require_rising_keys(storage, beside)
    ordered = [
        [file, part.n_rows, sizes[file]]
        for part, pair in zip(parts, files, strict=True)
        for file in (pair.embeddings, pair.metadata)
        if file is not None
    ]
    content = fingerprint({"space": space.to_dict(), "parts": ordered})
    return Contents(space, parts, _common_schema(storage, parts), {}, content)


def _first(storage: Storage, parts: Sequence[_Item], n_parts: int | None) -> Sequence[_Item]:
    if n_parts is not None and not 1 <= n_parts <= len(parts):
        raise EmbeddingError(
            f"{storage.path_of('')} has {len(parts)} parts, and the first {n_parts} were asked for."
        )
    return parts[:n_parts]


def _inspect_parts(
    storage: Storage,
    files: Sequence[PartFiles],
    sizes: dict[str, int],
    space: EmbeddingSpace,
    *,
    is_foreign: bool,
) -> tuple[Part, ...]:
    def inspect(pair: PartFiles) -> tuple[Vectors, PartColumns | None]:
        vectors = _inspect_vectors(storage, pair, sizes, space)
        if pair.metadata is None:
            return vectors, None
        vector_column = vectors.column if isinstance(vectors, ParquetVectors) else None
        columns = PartColumns(
            storage, pair.metadata, is_foreign=is_foreign, leave_out=vector_column
        )
        if columns.n_rows != vectors.n_rows:
            raise PartError(
                f"{storage.path_of(pair.metadata)} has {columns.n_rows} rows, and "
                f"{storage.path_of(vectors.file)} has {vectors.n_rows}: expected one for one. "
                f"One of them was truncated or belongs to another part; copy or make both again."
            )
        return vectors, columns

    inspected = _map_in_threads(inspect, files, storage.n_threads)
    _require_agreement(storage, [vectors for vectors, _ in inspected], space)
    row_stops = list(accumulate(vectors.n_rows for vectors, _ in inspected))
    if not row_stops[-1]:
        raise EmbeddingError(f"{storage.path_of('')} has {len(files)} parts and not a row in them.")
    return tuple(
        Part(row_stop - vectors.n_rows, vectors, columns)
        for row_stop, (vectors, columns) in zip(row_stops, inspected, strict=True)
    )


def _inspect_vectors(
    storage: Storage, pair: PartFiles, sizes: dict[str, int], space: EmbeddingSpace | None
) -> Vectors:
    if pair.embeddings.endswith(".npy"):
        return NpyVectors(storage, pair.embeddings, sizes[pair.embeddings])
    return ParquetVectors(storage, pair.embeddings, space.row_shape if space else None)


def _require_agreement(storage: Storage, vectors: Sequence[Vectors], space: EmbeddingSpace) -> None:
    first = vectors[0]
    for other in vectors:
        if not other.n_rows:
            logger.warning("%s has no rows", storage.path_of(other.file))
        for what, found, expected in (
            ("dtype", other.dtype, first.dtype),
            ("(tokens, dim)", _tokens_and_dim(other), _tokens_and_dim(first)),
        ):
            if found != expected:
                raise PartError(
                    f"{storage.path_of(other.file)} has {what} {found}, and "
                    f"{storage.path_of(first.file)} has {expected}: they are not parts of one set. "
                    f"Separate them, or convert one."
                )
    if _tokens_and_dim(first) != (space.tokens, space.dim):
        tokens, dim = _tokens_and_dim(first)
        raise SpaceMismatchError(
            f"{storage.path_of(first.file)} holds embeddings of {tokens} x {dim}, and the space is "
            f"{space}. Name the model and layer that these embeddings came from."
        )


def _tokens_and_dim(vectors: Vectors) -> tuple[int, int]:
    shape = vectors.row_shape
    return (1, shape[0]) if len(shape) == 1 else (shape[0], shape[1])


def _common_schema(storage: Storage, parts: Sequence[Part]) -> Any:
    return unify_schemas(storage, [part.columns for part in parts if part.columns is not None])


def _list_sizes(storage: Storage, files: Iterable[PartFiles]) -> dict[str, int]:
    folders = {
        file.rpartition("/")[0]
        for pair in files
        for file in (pair.embeddings, pair.metadata)
        if file is not None
    }
    return {
        f"{folder}/{name}" if folder else name: n_bytes
        for folder in folders
        for name, n_bytes in storage.list_files(folder).items()
    }


def _map_in_threads(
    function: Callable[[_Item], _Result], items: Sequence[_Item], n_threads: int
) -> list[_Result]:
    with ThreadPoolExecutor(min(n_threads, len(items))) as pool:
        return list(pool.map(function, items))
