"""The manifest of an index: written last, sealed, and the root of a chain of checksums.

``manifest.json`` lists size and SHA-256 of the records of the quantizer and of each shard, and each
record lists those of its own files. The manifest carries the fingerprint of all the rest of itself,
and is refused unless its bytes are exactly those that the builder would write. So one altered byte
in any file is found, and the file named, before anything else parses it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from .embeddings.artefact import (
    describe_software,
    fingerprint,
    read_manifest,
    sha256_file,
    verify_files,
    write_manifest,
)
from .embeddings.errors import ArtefactError, SpaceMismatchError
from .embeddings.reader import EmbeddingFolder
from .embeddings.space import EmbeddingSpace
from .errors import IndexDamagedError, SourceError

MANIFEST_FILE = "manifest.json"
KIND = "index"
FORMAT_VERSION = 1
_PACKAGES = ("numpy", "pyarrow")


def write_index_manifest(
    folder: Path, *, command: str, records: list[str], body: dict[str, Any]
) -> dict[str, Any]:
    """Write the manifest that completes an index.

    Parameters
    ----------
    folder : Path
    command : str
    records : list of str
        The plan and the records of quantizer and shards, relative to ``folder``.
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
            f"Restore the file, or remove it and run voxseek index build again: shards are kept."
        )
    return manifest


def verify_index_files(folder: str | os.PathLike[str], manifest: dict[str, Any]) -> tuple[int, int]:
    """Compare every file of an index with its recorded size and SHA-256.

    Returns
    -------
    n_files, n_bytes : int
        What was read, the manifest not counted.

    Raises
    ------
    ArtefactError
        Names the first file that is missing or altered.
    """
    root = Path(folder)
    verify_files(root, manifest)
    n_files, n_bytes = _count(manifest)
    for name in manifest["files"]:
        record = json.loads((root / name).read_bytes())
        verify_files((root / name).parent, record)
        files, size = _count(record)
        n_files, n_bytes = n_files + files, n_bytes + size
    return n_files, n_bytes


def describe_source(folder: Path, embeddings: EmbeddingFolder) -> dict[str, Any]:
    """Return what a manifest records of the embedding folder, its path relative to the index."""
    path = embeddings.path
    if embeddings.is_local:
        path = Path(os.path.relpath(path, folder)).as_posix()
    return {
        "path": path,
        "fingerprint": embeddings.fingerprint,
        "space": embeddings.space.to_dict(),
        "dtype": str(embeddings.dtype),
        "n_rows": embeddings.n_rows,
        "part_rows": [part.n_rows for part in embeddings.parts],
    }


def open_source(
    folder: str | os.PathLike[str],
    manifest: dict[str, Any],
    embeddings: str | os.PathLike[str] | None = None,
) -> EmbeddingFolder:
    """Open the embedding folder that an index was built from.

    Parameters
    ----------
    folder : path
        The index.
    manifest : dict
    embeddings : path, URL or None
        Where the folder is now. None: where it was, relative to the index.

    Raises
    ------
    SourceError
        If it isn't there, or isn't the same.
    """
    recorded = manifest["embeddings"]
    space = EmbeddingSpace.from_dict(recorded["space"])
    path = os.fspath(embeddings) if embeddings is not None else recorded["path"]
    if embeddings is None and "://" not in path:
        path = os.path.normpath(os.path.join(folder, path))
    try:
        source = EmbeddingFolder.open(path, space=space)
    except SpaceMismatchError as error:
        raise SourceError(
            f"{path} holds other embeddings than those that {folder} was built from: {error}"
        ) from error
    except ArtefactError as error:
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


def _count(record: dict[str, Any]) -> tuple[int, int]:
    return len(record["files"]), sum(file["bytes"] for file in record["files"].values())
