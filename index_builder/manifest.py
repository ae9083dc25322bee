"""The manifest of an index: written last, sealed, and the root of a chain of checksums.

``manifest.json`` lists size and SHA-256 of the records of the quantizer and of each shard, and of
the rows that were taken down; each record lists those of its own files. The manifest carries the
fingerprint of all the rest of itself, and is refused unless its bytes are exactly those that the
builder would write. So one altered byte in any file is found, and the file named, before anything
else parses it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .embeddings.artefact import (
    describe_software,
    fingerprint,
    read_manifest,
    sha256_file,
    verify_files,
    write_manifest,
)
from .embeddings.collection import Collection
from .embeddings.errors import ArtefactError, EmbeddingError, SpaceMismatchError
from .embeddings.reader import EmbeddingFolder
from .embeddings.space import EmbeddingSpace
from .embeddings.verified import Verified
from .errors import IndexDamagedError, SourceError
from .shards import Shard, ShardTask

MANIFEST_FILE = "manifest.json"
KIND = "index"
FORMAT_VERSION = 2
_PACKAGES = ("numpy", "pyarrow")
_WRITTEN_ANEW = ("kind", "format_version", "made_by", "files", "fingerprint")


def write_index_manifest(
    folder: Path, *, command: str, records: list[str], body: dict[str, Any]
) -> dict[str, Any]:
    """Write the manifest that completes an index.

    Parameters
    ----------
    folder : Path
    command : str
    records : list of str
        The plan, the records of quantizer and shards, and the file of deleted rows, relative to
        ``folder``.
    body : dict
        What the index says of itself; JSON-serialisable.

    Returns
    -------
    manifest : dict
        ``manifest["fingerprint"]`` identifies the index.
    """
    files = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": sha256_file(folder / name)}
        for name in sorted(records)
    }
    unsealed = {
        "kind": KIND,
        "format_version": FORMAT_VERSION,
        "made_by": {"command": command, "software": describe_software(*_PACKAGES)},
        **body,
        "files": files,
    }
    return write_manifest(
        folder,
        MANIFEST_FILE,
        kind=KIND,
        format_version=FORMAT_VERSION,
        command=command,
        files=records,
        body={**body, "fingerprint": fingerprint(unsealed)},
        packages=_PACKAGES,
    )


def body_of(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return what a manifest says of the index: all that `write_index_manifest` doesn't add."""
    return {name: value for name, value in manifest.items() if name not in _WRITTEN_ANEW}


def read_index_manifest(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the manifest of an index, and check its seal.

    Raises
    ------
    ArtefactError
        If it is missing, is not JSON, or is of another kind or version.
    IndexDamagedError
        If it isn't byte for byte what was written.
    """
    path = Path(folder) / MANIFEST_FILE
    manifest = read_manifest(folder, MANIFEST_FILE, kind=KIND, format_version=FORMAT_VERSION)
    rest = {name: value for name, value in manifest.items() if name != "fingerprint"}
    is_canonical = path.read_text() == json.dumps(manifest, indent=2) + "\n"
    if not is_canonical or manifest.get("fingerprint") != fingerprint(rest):
        raise IndexDamagedError(
            f"{path} differs from what was written: its fingerprint doesn't match its content. "
            f"Restore the file. Of an index as it was built, remove it and run voxseek index build "
            f"again: shards are kept."
        )
    return manifest


def verify_index_files(
    folder: str | os.PathLike[str], manifest: dict[str, Any], *, verified: Verified | None = None
) -> tuple[int, int]:
    """Compare every file of an index with its recorded size and SHA-256.

    Parameters
    ----------
    folder : path
    manifest : dict
    verified : Verified or None
        Files that it knows are not read again; None: every byte is.

    Returns
    -------
    n_files, n_bytes : int
        What stands there, the manifest not counted.

    Raises
    ------
    ArtefactError
        Names the first file that is missing or altered.
    """
    root = Path(folder)
    verify_files(root, manifest)
    n_files, n_bytes = _count(manifest)
    for name in manifest["files"]:
        if not name.endswith(".json"):
            continue
        record = json.loads((root / name).read_bytes())
        verify_files((root / name).parent, record, verified=verified)
        files, size = _count(record)
        n_files, n_bytes = n_files + files, n_bytes + size
    if verified:
        verified.save()
    return n_files, n_bytes


def describe_sources(folder: Path, embeddings: Collection) -> list[dict[str, Any]]:
    """Return what a manifest records of each embedding folder, its path relative to the index."""
    return [
        {
            "path": Path(os.path.relpath(source.path, folder)).as_posix()
            if source.is_local
            else source.path,
            "fingerprint": source.fingerprint,
            "space": source.space.to_dict(),
            "dtype": str(source.dtype),
            "n_rows": source.n_rows,
            "part_rows": source.part_rows,
        }
        for source in embeddings.folders
    ]


def open_sources(
    folder: str | os.PathLike[str],
    manifest: dict[str, Any],
    embeddings: Sequence[str | os.PathLike[str]] | None = None,
) -> Collection:
    """Open the embedding folders that an index was built from, without parts they got since.

    Parameters
    ----------
    folder : path
        The index.
    manifest : dict
    embeddings : sequence of path or URL, or None
        Where the folders are now, in the order of the index. None: where they were, relative to
        the index.

    Raises
    ------
    SourceError
        If one isn't there, or isn't the same.
    """
    recorded = manifest["sources"]
    if embeddings is not None and len(embeddings) != len(recorded):
        raise SourceError(
            f"{folder} was built from {len(recorded)} embedding folders, and --embeddings was "
            f"given {len(embeddings)} times. Name each, in the order of voxseek index info."
        )
    paths = embeddings if embeddings is not None else [_path_of(folder, each) for each in recorded]
    return Collection(
        [_open_source(folder, each, path) for each, path in zip(recorded, paths, strict=True)]
    )


def _path_of(folder: str | os.PathLike[str], recorded: dict[str, Any]) -> str:
    path: str = recorded["path"]
    return path if "://" in path else os.path.normpath(os.path.join(folder, path))


def _open_source(
    folder: str | os.PathLike[str], recorded: dict[str, Any], path: str | os.PathLike[str]
) -> EmbeddingFolder:
    space = EmbeddingSpace.from_dict(recorded["space"])
    try:
        source = EmbeddingFolder.open(path, space=space, n_parts=len(recorded["part_rows"]))
    except SpaceMismatchError as error:
        raise SourceError(
            f"{path} holds other embeddings than those that {folder} was built from: {error}"
        ) from error
    except (ArtefactError, EmbeddingError) as error:
        raise SourceError(
            f"the embeddings that {folder} was built from can't be opened at {path}: {error} "
            f"If they moved, pass --embeddings with their folder."
        ) from error
    if source.fingerprint != recorded["fingerprint"]:
        raise SourceError(
            f"{path} changed since {folder} was built from it: fingerprint "
            f"{source.fingerprint[:12]}, expected {recorded['fingerprint'][:12]}. "
            f"Pass --embeddings with the folder as it was, or build the index again."
        )
    return source


def describe_shards(shards: Iterable[Shard | ShardTask]) -> list[dict[str, Any]]:
    """Return what a manifest records of shards, their folders relative to the index."""
    return [
        {
            "folder": shard.folder.relative_to(shard.folder.parents[1]).as_posix(),
            "row_start": shard.row_start,
            "row_stop": shard.row_stop,
        }
        for shard in shards
    ]


def shards_of(folder: str | os.PathLike[str], manifest: dict[str, Any]) -> list[Shard]:
    """Return the shards of an index, in row order."""
    return [
        Shard(Path(folder) / each["folder"], each["row_start"], each["row_stop"])
        for each in manifest["shards"]
    ]


def next_shard(manifest: dict[str, Any]) -> int:
    """Return the number of the next shard; those of shards that the manifest lists are taken."""
    return 1 + max(int(each["folder"].rpartition("/")[2]) for each in manifest["shards"])


def remove_unlisted(folder: Path, manifest: dict[str, Any], *patterns: str) -> None:
    """Remove shards and files that the manifest in its place doesn't list.

    They are of what it replaced, or of a command that was interrupted.

    Parameters
    ----------
    folder : Path
    manifest : dict
        As it stands on disk.
    patterns : str
        What to look at, relative to ``folder``: ``"shards/*"``, ``"deleted-*.npy"``.
    """
    listed = {each["folder"] for each in manifest["shards"]} | set(manifest["files"])
    for path in sorted(found for pattern in patterns for found in folder.glob(pattern)):
        if path.relative_to(folder).as_posix() in listed:
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def read_deleted(folder: str | os.PathLike[str], manifest: dict[str, Any]) -> np.ndarray:
    """Return the rows (m,), int64, rising, that were taken down."""
    file = manifest["deleted"]["file"]
    if file is None:
        return np.empty(0, np.int64)
    rows: np.ndarray = np.load(Path(folder) / file, allow_pickle=False)
    return rows


def _count(record: dict[str, Any]) -> tuple[int, int]:
    return len(record["files"]), sum(file["bytes"] for file in record["files"].values())
