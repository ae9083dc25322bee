"""EmbeddingWriter: an embedding folder part by part, resumable, with the same bytes either way."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .artefact import atomic_write, fingerprint, read_manifest, sha256_file, write_manifest
from .errors import ArtefactError, BadRowError, EmbeddingError, PartError
from .layout import (
    FORMAT_VERSION,
    KIND,
    METADATA_FOLDER,
    MODALITIES,
    SPACE_FILE,
    UNFINISHED_FILE,
    PartFiles,
    part_file_names,
)
from .reader import EmbeddingFolder
from .soundness import Flaw, describe_flaw, find_flaws
from .space import EmbeddingSpace
from .storage import LocalStorage
from .vectors import NpyVectors

UNREADABLE_FILE = "unreadable.parquet"
_UNREADABLE_FOLDER = "unreadable"  # The same, part by part, until the folder is finished.
_MODALITY = "img_emb"
_UNFINISHED_KIND = "unfinished embeddings"
# To read one row, its row group is decompressed. Measured on 400,000 URLs and captions, 16 rows
# here and there: 29 ms with 4,096 rows a group, 66 ms with 16,384, and no difference in size.
_ROW_GROUP_ROWS = 4_096


class EmbeddingWriter:
    """Write an embedding folder, one part a call; a run that was interrupted goes on.

    Parameters
    ----------
    folder : path
        Made if need be. It may hold the parts of an interrupted run of the same space, details
        and dtype, which are kept.
    space : EmbeddingSpace
    command : str
        What makes the folder, without paths: ``"voxseek embed"``.
    details : dict
        Whatever else determines the content (model weights, seed, rows a part); JSON-serialisable.
    dtype : {"float16", "float32"}
        What is stored.

    Raises
    ------
    ArtefactError
        If the folder is finished, or holds parts of something else.

    Notes
    -----
    Use it as a context manager::

        with EmbeddingWriter(folder, space, command="voxseek embed", details={}) as writer:
            for embeddings, metadata in batches_from(writer.n_rows_done):
                writer.write(embeddings, metadata)
            writer.finish()
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        space: EmbeddingSpace,
        *,
        command: str,
        details: dict[str, Any],
        dtype: Literal["float16", "float32"] = "float16",
    ) -> None:
        if dtype not in ("float16", "float32"):
            raise ValueError(f"dtype is {dtype!r}, expected 'float16' or 'float32'")
        if "://" in os.fspath(folder):
            raise ValueError(f"{folder} is a URL; expected a local folder to write to")
        self.folder = Path(folder)
        self.space = space
        self.dtype = np.dtype(dtype)
        self._command = command
        self._identity = json.loads(
            json.dumps(
                {"space": space.to_dict(), "dtype": dtype, "details": details}, allow_nan=False
            )
        )
        self._schema: Any = None
        self._part_rows: list[int] = []

    @property
    def n_rows_done(self) -> int:
        """Rows in the parts that stand; an interrupted run goes on with this one."""
        return sum(self._part_rows)

    def last_row(self) -> dict[str, Any] | None:
        """Return the metadata of the last row of the parts that stand, or None without any."""
        if not self._part_rows:
            return None
        table = pq.read_table(self.folder / str(self._files(len(self._part_rows) - 1).metadata))
        row: dict[str, Any] = table.slice(table.num_rows - 1).to_pylist()[0]
        return row

    def __enter__(self) -> Self:
        """Claim the folder, and find the parts that an interrupted run left."""
        if (self.folder / SPACE_FILE).exists():
            self._refuse_finished()
        state = self.folder / UNFINISHED_FILE
        if state.exists():
            self._require_same(
                read_manifest(
                    self.folder,
                    UNFINISHED_FILE,
                    kind=_UNFINISHED_KIND,
                    format_version=FORMAT_VERSION,
                ),
                "begun",
            )
            self._resume()
            return self
        for name in (*MODALITIES, METADATA_FOLDER):
            if (self.folder / name).exists():
                raise ArtefactError(
                    f"{self.folder / name} exists, and {UNFINISHED_FILE} isn't there to say what "
                    f"it is. Write to a new folder."
                )
        with atomic_write(state) as temporary:
            temporary.write_text(
                json.dumps(
                    {
                        "kind": _UNFINISHED_KIND,
                        "format_version": FORMAT_VERSION,
                        "fingerprint": fingerprint(self._identity),
                        **self._identity,
                    },
                    indent=2,
                )
                + "\n"
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave the folder as it is: finished, or to be resumed."""

    def write(
        self, embeddings: np.ndarray, metadata: Any, *, unreadable: Any | None = None
    ) -> None:
        """Write one part: both files, each atomically.

        Parameters
        ----------
        embeddings : ndarray of shape (n, dim) or (n, tokens, dim), floating
            Cast to the writer's dtype.
        metadata : pyarrow.Table of n rows
            The same columns and types in each call.
        unreadable : pyarrow.Table, optional
            What was left out of this part, or since the part before it.

        Raises
        ------
        BadRowError
            If a row is NaN, infinite, zero or, in a space of unit norm, far from it; before or
            after the cast.
        """
        rows = self._cast(np.asarray(embeddings))
        table = metadata.combine_chunks().replace_schema_metadata(None)
        if table.num_rows != len(rows):
            raise ValueError(f"{len(rows)} embeddings came with {table.num_rows} rows of metadata")
        if self._schema is not None and table.schema != self._schema:
            raise ValueError(
                f"metadata has the schema\n{table.schema}\nand the parts before it have\n"
                f"{self._schema}"
            )
        self._set_aside(unreadable)
        files = self._files(len(self._part_rows))
        with atomic_write(self.folder / files.embeddings) as temporary, open(temporary, "wb") as f:
            np.save(f, rows, allow_pickle=False)
        with atomic_write(self.folder / str(files.metadata)) as temporary:
            pq.write_table(
                table, temporary, compression="zstd", row_group_size=_ROW_GROUP_ROWS, version="2.6"
            )
        self._schema = table.schema
        self._part_rows.append(len(rows))

    def finish(self, *, unreadable: Any | None = None) -> EmbeddingFolder:
        """Write ``space.json``, which completes the folder, and open it.

        Whatever was left out is in ``unreadable.parquet`` then.

        Parameters
        ----------
        unreadable : pyarrow.Table, optional
            What was left out after the last part.

        Raises
        ------
        EmbeddingError
            If no part was written.
        """
        if not self._part_rows:
            raise EmbeddingError(f"{self.folder} got no rows, so there is nothing to finish.")
        parts = [self._files(number) for number in range(len(self._part_rows))]
        self._set_aside(unreadable)
        write_manifest(
            self.folder,
            SPACE_FILE,
            kind=KIND,
            format_version=FORMAT_VERSION,
            command=self._command,
            files=[str(name) for part in parts for name in (part.embeddings, part.metadata)],
            body={
                "modality": _MODALITY,
                **self._identity,
                "n_rows": self.n_rows_done,
                **self._gather_unreadable(),
                "parts": [
                    {"embeddings": part.embeddings, "metadata": part.metadata, "n_rows": n_rows}
                    for part, n_rows in zip(parts, self._part_rows, strict=True)
                ],
            },
            packages=("numpy", "pyarrow"),
        )
        self._clear()
        return EmbeddingFolder.open(self.folder)

    def _set_aside(self, unreadable: Any | None) -> None:
        """Keep what was left out up to the end of the next part."""
        if unreadable is not None and unreadable.num_rows:
            piece = self.folder / _UNREADABLE_FOLDER / f"{len(self._part_rows):04d}.parquet"
            with atomic_write(piece) as temporary:
                pq.write_table(unreadable, temporary, compression="zstd", version="2.6")

    def _gather_unreadable(self) -> dict[str, Any]:
        """Write ``unreadable.parquet`` from its pieces, if any; return what the manifest says.

        It is not among the manifest's ``files``, which are those of the rows.
        """
        pieces = sorted((self.folder / _UNREADABLE_FOLDER).glob("*.parquet"), key=_number)
        if not pieces:
            return {}
        n_rows = 0
        schema = pq.read_schema(pieces[0])
        with (
            atomic_write(self.folder / UNREADABLE_FILE) as temporary,
            pq.ParquetWriter(temporary, schema, compression="zstd", version="2.6") as file,
        ):
            for piece in pieces:
                table = pq.read_table(piece)
                file.write_table(table)
                n_rows += table.num_rows
        sha256 = sha256_file(self.folder / UNREADABLE_FILE)
        return {"n_unreadable": n_rows, "unreadable": {"file": UNREADABLE_FILE, "sha256": sha256}}

    def _clear(self) -> None:
        """Remove what only an unfinished folder needs."""
        shutil.rmtree(self.folder / _UNREADABLE_FOLDER, ignore_errors=True)
        (self.folder / UNFINISHED_FILE).unlink(missing_ok=True)

    def _files(self, number: int) -> PartFiles:
        return part_file_names(number, _MODALITY)

    def _cast(self, embeddings: np.ndarray) -> np.ndarray:
        expected = self.space.row_shape
        if not len(embeddings) or embeddings.shape[1:] != expected or embeddings.dtype.kind != "f":
            raise ValueError(
                f"embeddings have shape {embeddings.shape} and dtype {embeddings.dtype}, expected "
                f"floats of shape (n, {', '.join(map(str, expected))}), n at least 1"
            )
        with np.errstate(over="ignore", invalid="ignore"):
            rows = np.ascontiguousarray(embeddings, self.dtype)
        flaws = find_flaws(rows, unit_norm=self.space.unit_norm)
        if flaws.any():
            i = int(np.flatnonzero(flaws)[0])
            part = self._files(len(self._part_rows)).embeddings
            raise BadRowError(f"{part}, row {i} {self._explain(flaws[i], embeddings[i], rows[i])}")
        return rows

    def _explain(self, flaw: int, given: np.ndarray, cast: np.ndarray) -> str:
        """Say what is wrong with a row, and whether the cast did it."""
        if flaw in (Flaw.INFINITE, Flaw.ZERO) and np.isfinite(given).all() and given.any():
            limits = np.finfo(self.dtype)
            return (
                f"has {float(np.abs(given).max()):.4g} as its largest value, and {self.dtype} "
                f"holds {float(limits.smallest_subnormal):.1g} to {float(limits.max):.5g}. "
                f"Normalize it{', or write float32' if self.dtype == np.float16 else ''}."
            )
        if flaw == Flaw.NORM:
            return f"{describe_flaw(flaw, cast)}. Normalize it, or declare unit_norm false."
        return f"{describe_flaw(flaw, cast)}. Leave it out, or mend what computed it."

    def _refuse_finished(self) -> None:
        finished = read_manifest(self.folder, SPACE_FILE, kind=KIND, format_version=FORMAT_VERSION)
        self._require_same(finished, "finished")
        self._clear()
        raise ArtefactError(
            f"{self.folder} is complete already, with the same space and details: "
            f"{finished['n_rows']} rows. Use it, or write to another folder."
        )

    def _require_same(self, found: dict[str, Any], state: str) -> None:
        """Raise if what stands in the folder has another space, dtype or details."""
        there, now = _flatten(found, self._identity), _flatten(self._identity, self._identity)
        differing = [
            f"  {name}: {there.get(name, 'absent')} there, {now.get(name, 'absent')} now"
            for name in sorted(there.keys() | now.keys())
            if there.get(name) != now.get(name)
        ]
        if differing:
            settings = "\n".join(differing)
            raise ArtefactError(
                f"{self.folder} was {state} with other settings:\n{settings}\n"
                f"Give those settings to go on with it, write to another folder, "
                f"or delete this one to start over."
            )

    def _resume(self) -> None:
        """Count the parts of which both files stand, and remove what lies beyond them."""
        while (n_rows := self._standing_rows(self._files(len(self._part_rows)))) is not None:
            self._part_rows.append(n_rows)
        kept = {
            str(name)
            for number in range(len(self._part_rows))
            for name in (self._files(number).embeddings, self._files(number).metadata)
        }
        for folder in (_MODALITY, METADATA_FOLDER):
            for path in sorted((self.folder / folder).glob("*")):
                if f"{folder}/{path.name}" not in kept:
                    path.unlink()
        for path in (self.folder / _UNREADABLE_FOLDER).glob("*.parquet"):
            if _number(path) >= len(self._part_rows):
                path.unlink()

    def _standing_rows(self, files: PartFiles) -> int | None:
        """Return the rows of a part, or None where it is absent or half written."""
        metadata = self.folder / str(files.metadata)
        embeddings = self.folder / files.embeddings
        if not (embeddings.exists() and metadata.exists()):
            return None
        try:
            vectors = NpyVectors(
                LocalStorage(self.folder), files.embeddings, embeddings.stat().st_size
            )
            schema = pq.read_schema(metadata)
            n_rows: int = pq.read_metadata(metadata).num_rows
        except (PartError, pa.ArrowInvalid):
            return None
        if n_rows != vectors.n_rows:
            return None
        self._schema = schema
        return n_rows


def _number(path: Path) -> int:
    return int(path.stem)


def _flatten(manifest: dict[str, Any], identity: dict[str, Any]) -> dict[str, str]:
    """Return the settings of a manifest by dotted name, written as JSON."""
    flat = {}
    for field in identity:
        value = manifest.get(field)
        items = value.items() if isinstance(value, dict) else [("", value)]
        for name, item in items:
            flat[f"{field}.{name}" if name else field] = json.dumps(item)
    return flat
