"""Queries: anything that lies in an index's space, read in batches, with what is known of each."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from index_builder.embeddings.layout import MODALITIES, SPACE_FILE, UNFINISHED_FILE
from index_builder.embeddings.reader import EmbeddingFolder
from index_builder.embeddings.space import EmbeddingSpace

from ..errors import QueryError
from ..images.decoding import PICTURE_SUFFIXES, decode_picture

if TYPE_CHECKING:
    from .encoding import QueryEncoder

MAX_PICTURES = 10_000  # their vectors are held in memory; 768 numbers each: 31 MB
_DECODED_AT_ONCE = 16
_PREFIXED = re.compile(r"(text|image|npy|emb):(.*)", re.DOTALL)


@dataclass(frozen=True)
class MixedPart:
    """One part of a mixture of queries.

    Parameters
    ----------
    name : str
    weight : float
        Below zero for what is to be unlike.
    fingerprint : str or None
        Of its embedding folder.
    """

    name: str
    weight: float
    fingerprint: str | None

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-serialisable dict."""
        return {"query": self.name, "weight": self.weight, "fingerprint": self.fingerprint}


@dataclass(frozen=True)
class QuerySet:
    """Vectors to search for, and where they come from; made by `load_queries`.

    Parameters
    ----------
    label : str
        What to call the set in messages and results: its path or words as given.
    n_queries : int
    width : int
        Numbers a query.
    space : EmbeddingSpace or None
        None for an npy file, which doesn't say.
    columns : tuple of str
        Names of the metadata columns; empty for an npy file.
    fingerprint : str or None
        Of the embedding folder.
    source : EmbeddingFolder, ndarray of shape (n_queries, width), or function
        A function from the number of queries a batch to batches: the queries are computed as they
        are asked for.
    described_by : EmbeddingFolder, pyarrow.Table or None
        Whose metadata are the queries', row for row.
    mix : tuple of MixedPart
        What was mixed; empty if nothing was.
    """

    label: str
    n_queries: int
    width: int
    space: EmbeddingSpace | None
    columns: tuple[str, ...]
    fingerprint: str | None
    source: EmbeddingFolder | np.ndarray | Callable[[int], Iterator[np.ndarray]]
    described_by: Any = None
    mix: tuple[MixedPart, ...] = ()

    @property
    def name(self) -> str:
        """The label without the folders of its paths, as results record it."""
        if self.mix:
            return " ".join(f"{part.weight:+g} {part.name}" for part in self.mix)
        return self.label if self.label.startswith("text:") else Path(self.label).name

    def iter_batches(self, *, batch_queries: int) -> Iterator[np.ndarray]:
        """Yield queries in order, as arrays of shape (n, width) in the stored dtype.

        Raises
        ------
        BadRowError
            If an embedding folder holds a NaN, infinite or zero row.
        QueryError
            If the parts of a mixture cancel each other.
        """
        if isinstance(self.source, EmbeddingFolder):
            for batch in self.source.iter_batches(batch_rows=batch_queries):
                yield batch.embeddings.reshape(len(batch.embeddings), -1)
        elif isinstance(self.source, np.ndarray):
            for start in range(0, self.n_queries, batch_queries):
                yield np.array(self.source[start : start + batch_queries])
        else:
            yield from self.source(batch_queries)

    def metadata(self, rows: np.ndarray, columns: Sequence[str] | None = None) -> Any:
        """Return the metadata of queries as a `pyarrow.Table`, or None where there is none."""
        if not self.columns:
            return None
        if isinstance(self.described_by, EmbeddingFolder):
            return self.described_by.metadata(rows, columns)
        return self.described_by.select(list(columns or self.columns)).take(pa.array(rows))


def load_queries(
    spec: str | os.PathLike[str],
    *,
    space: EmbeddingSpace | None = None,
    get_encoder: Callable[[], QueryEncoder] | None = None,
) -> QuerySet:
    """Open queries of any kind.

    Parameters
    ----------
    spec : path, URL or text
        An embedding folder; an ``.npy`` file of shape (n_queries, width) or (width,); a picture, or
        a folder of them; ``text:`` and words. What a path holds is told by its name and content,
        or said in front of it: ``emb:``, ``npy:``, ``image:``.
    space : EmbeddingSpace or None
        For an embedding folder without ``space.json``.
    get_encoder : function or None
        Called if there are pictures or text to embed: `open_query_encoder` with its arguments.

    Raises
    ------
    QueryError
        If there is nothing of that name, an npy file is malformed, pickled, or not of a float type
        and two dimensions, or pictures or text come without an encoder that takes them.
    PictureError
        If a picture can't be decoded.
    ArtefactError, EmbeddingError
        If an embedding folder can't be read.
    """
    given = os.fspath(spec)
    kind, value = parse_query_spec(given)
    if kind == "npy":
        return _npy_queries(value)
    if kind == "emb":
        return _folder_queries(value, space)
    if get_encoder is None:
        raise QueryError(f"{given} has to be embedded, and there is no encoder: give get_encoder.")
    if kind == "text":
        return text_queries([value], get_encoder())
    return picture_queries(_list_pictures(Path(value)), get_encoder(), label=value)


def require_same_images(first: QuerySet, second: QuerySet) -> None:
    """Raise unless two sets of one size are of the same images row for row, where both say so.

    Raises
    ------
    QueryError
        Names the first row that differs.
    """
    if not ("image_id" in first.columns and "image_id" in second.columns):
        return
    rows = np.arange(first.n_queries)
    mine, theirs = (
        each.metadata(rows, ["image_id"])["image_id"].to_numpy() for each in (first, second)
    )
    differing = np.flatnonzero(mine != theirs)
    if len(differing):
        row = int(differing[0])
        raise QueryError(
            f"query {row} is of image {mine[row]} in {first.label}, and of image {theirs[row]} in "
            f"{second.label}; expected the same images in the same order."
        )


def parse_query_spec(spec: str) -> tuple[str, str]:
    """Return what a spec is (``text``, ``image``, ``npy`` or ``emb``) and its path or words.

    Raises
    ------
    QueryError
        If it is a path that is nowhere, or a prefix with nothing after it.
    """
    if match := _PREFIXED.fullmatch(spec):
        kind, value = match.groups()
        if not value.strip():
            raise QueryError(f"{spec!r} ends after its prefix; expected text or a path after it.")
        return kind, value
    path = Path(spec)
    if "://" in spec:
        return ("npy" if spec.endswith(".npy") else "emb"), spec
    if path.is_dir():
        return ("image" if _holds_pictures_alone(path) else "emb"), spec
    if path.suffix == ".npy":
        return "npy", spec
    if not path.exists():
        raise QueryError(
            f"{spec} is neither a file nor a folder. Expected an embedding folder, an .npy file, "
            f"a picture, a folder of pictures, or words with a prefix, such as 'text:a zebra'."
        )
    if path.suffix.lower() in PICTURE_SUFFIXES:
        return "image", spec
    raise QueryError(
        f"{spec} ends in {path.suffix!r}, expected .npy or one of {', '.join(PICTURE_SUFFIXES)}. "
        f"If it is one of them, say which: npy:{spec} or image:{spec}."
    )


def text_queries(texts: Sequence[str], encoder: QueryEncoder) -> QuerySet:
    """Return texts as queries, one each, with the column ``text``.

    Raises
    ------
    QueryError
        If the encoder has no text tower, or a text is blank.
    """
    label = "text:" + "; ".join(texts)
    table = pa.table({"text": pa.array(list(texts), pa.string())})
    return _embedded(label, encoder.encode_texts(texts), encoder.space, table)


def picture_queries(paths: Sequence[Path], encoder: QueryEncoder, *, label: str) -> QuerySet:
    """Return pictures as queries, one each, with the column ``image_path``.

    Raises
    ------
    PictureError
        If one can't be decoded.
    QueryError
        If there are more than `MAX_PICTURES`.
    """
    if len(paths) > MAX_PICTURES:
        raise QueryError(
            f"{label} holds {len(paths)} pictures, and at most {MAX_PICTURES} are embedded in "
            f"memory. Embed them once (voxseek embed {label} OUT), and search with OUT."
        )
    rows = [
        encoder.encode_images([decode_picture(path) for path in paths[start:][:_DECODED_AT_ONCE]])
        for start in range(0, len(paths), _DECODED_AT_ONCE)
    ]
    table = pa.table({"image_path": pa.array([str(path) for path in paths], pa.string())})
    return _embedded(label, np.concatenate(rows), encoder.space, table)


def _embedded(label: str, rows: np.ndarray, space: EmbeddingSpace, table: Any) -> QuerySet:
    columns = tuple(table.column_names)
    return QuerySet(label, len(rows), rows.shape[1], space, columns, None, rows, described_by=table)


def _holds_pictures_alone(folder: Path) -> bool:
    """Tell a folder of pictures from an embedding folder, by what lies at its top."""
    marks = (SPACE_FILE, UNFINISHED_FILE, *MODALITIES)
    if any((folder / name).exists() for name in marks):
        return False
    if any(path.suffix in (".npy", ".parquet") for path in folder.iterdir()):
        return False
    return any(path.suffix.lower() in PICTURE_SUFFIXES for path in folder.rglob("*"))


def _list_pictures(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    paths = sorted(p for p in path.rglob("*") if p.suffix.lower() in PICTURE_SUFFIXES)
    if not paths:
        raise QueryError(
            f"{path} holds no pictures; looked for files ending in {', '.join(PICTURE_SUFFIXES)}."
        )
    return paths


def _folder_queries(label: str, space: EmbeddingSpace | None) -> QuerySet:
    folder = EmbeddingFolder.open(label, space=space)
    return QuerySet(
        label=label,
        n_queries=folder.n_rows,
        width=folder.space.width,
        space=folder.space,
        columns=folder.columns,
        fingerprint=folder.fingerprint,
        source=folder,
        described_by=folder,
    )


def _npy_queries(label: str) -> QuerySet:
    try:
        array = np.load(label, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise QueryError(f"{label} can't be read as an npy file: {error}") from error
    if array.ndim == 1:
        array = array[None]
    if array.ndim != 2 or array.dtype.kind != "f" or not len(array):
        raise QueryError(
            f"{label} has shape {array.shape} and dtype {array.dtype}; expected "
            f"(n_queries, width), float, at least one query."
        )
    return QuerySet(
        label=label,
        n_queries=array.shape[0],
        width=array.shape[1],
        space=None,
        columns=(),
        fingerprint=None,
        source=array,
    )
