"""Artefacts: folders that are complete once their JSON manifest stands beside their files.

Every artefact of voxseek (subject, embedding folder, run, index, results) obeys three rules:

1. a file is written under a temporary name in its own folder, synced, and renamed;
2. the manifest is written last and lists size and SHA-256 of each file: its presence means
   that the artefact is complete;
3. nothing in a manifest depends on the clock or the host, so that the same command on the same
   input gives the same bytes, interrupted or not.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import ArtefactError, VoxseekError

if TYPE_CHECKING:
    from .verified import Verified

TEMPORARY_SUFFIX = ".partial"
_HASH_BLOCK_BYTES = 1 << 20


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path in the folder of ``path`` and rename it to ``path`` on success.

    The file is synced before the rename, and the folder after it, so that a crash leaves either
    the old file or the new one. On an exception the temporary file is removed.

    Parameters
    ----------
    path : path
        Final path. Its folder is created.

    Yields
    ------
    Path
        The temporary path to write to.
    """
    final = Path(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.with_name(f".{final.name}{TEMPORARY_SUFFIX}")
    try:
        yield temporary
        with open(temporary, "rb+") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, final)
        _sync_folder(final.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # Windows has no handle of a folder to sync.
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_file(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits, read in bounded memory."""
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while block := handle.read(_HASH_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def fingerprint(value: Any) -> str:
    """Return the SHA-256 of a JSON-serialisable value, independent of the order of its keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def describe_software(*packages: str) -> dict[str, str]:
    """Return the versions of Python, voxseek, and the installed packages among ``packages``."""
    versions = {"python": platform.python_version()}
    for package in ("voxseek", *packages):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def write_manifest(
    folder: str | os.PathLike[str],
    name: str,
    *,
    kind: str,
    format_version: int,
    command: str,
    files: Iterable[str],
    body: dict[str, Any],
    packages: Iterable[str] = ("numpy",),
) -> dict[str, Any]:
    """Write the manifest that completes an artefact, and return it.

    Parameters
    ----------
    folder : path
        The artefact's folder.
    name : str
        File name of the manifest, for example ``"subject.json"``.
    kind : str
        One word for the artefact: ``subject``, ``embeddings``, ``run``, ``index``, ``results``.
    format_version : int
        Version of the layout, checked by `read_manifest`.
    command : str
        The command that made the artefact, without its paths: ``"voxseek data simulate"``.
    files : iterable of str
        Paths relative to ``folder``; size and SHA-256 of each are recorded, in sorted order.
    body : dict
        What else the artefact says of itself; JSON-serialisable, NaN refused.
    packages : iterable of str
        Distributions whose versions are recorded.
    """
    root = Path(folder)
    manifest = {
        "kind": kind,
        "format_version": format_version,
        "made_by": {"command": command, "software": describe_software(*packages)},
        **body,
        "files": {
            relative: {
                "bytes": (root / relative).stat().st_size,
                "sha256": sha256_file(root / relative),
            }
            for relative in sorted(files)
        },
    }
    with atomic_write(root / name) as temporary:
        temporary.write_text(json.dumps(manifest, indent=2, allow_nan=False) + "\n")
    return manifest


def read_manifest(
    folder: str | os.PathLike[str], name: str, *, kind: str, format_version: int
) -> dict[str, Any]:
    """Read an artefact's manifest.

    Raises
    ------
    ArtefactError
        If the folder or the manifest is missing, is not JSON, or is of another kind or version.
    """
    root = Path(folder)
    path = root / name
    if not root.is_dir():
        raise ArtefactError(f"{root} is not a folder; expected a {kind} folder with {name} in it.")
    if not path.is_file():
        raise ArtefactError(
            f"{path} is missing, so the {kind} folder {root} is incomplete or not one at all. "
            f"Run the command that makes it again: finished work is kept."
        )
    return parse_manifest(path.read_bytes(), path, kind=kind, format_version=format_version)


def parse_manifest(
    content: bytes, path: str | os.PathLike[str], *, kind: str, format_version: int
) -> dict[str, Any]:
    """Read a manifest's bytes, wherever they came from; ``path`` is for the messages.

    Raises
    ------
    ArtefactError
        If the content is not JSON, or is of another kind or version.
    """
    try:
        manifest: dict[str, Any] = json.loads(content)
    except (ValueError, UnicodeDecodeError) as error:
        raise ArtefactError(
            f"{path} is not JSON ({error}); restore it or make it again."
        ) from error
    if not isinstance(manifest, dict) or manifest.get("kind") != kind:
        found = manifest.get("kind") if isinstance(manifest, dict) else type(manifest).__name__
        raise ArtefactError(f"{path} describes a {found!r}, expected a {kind!r}.")
    if manifest.get("format_version") != format_version:
        raise ArtefactError(
            f"{path} has format_version {manifest.get('format_version')!r}, and this voxseek reads "
            f"version {format_version}. Make the {kind} again, or use the voxseek that wrote it."
        )
    return manifest


def verify_files(
    folder: str | os.PathLike[str],
    manifest: dict[str, Any],
    *,
    contents: bool = True,
    verified: Verified | None = None,
) -> None:
    """Compare an artefact's files with its manifest.

    Parameters
    ----------
    folder : path
    manifest : dict
        As returned by `read_manifest`.
    contents : bool
        Compare SHA-256 too (reads every byte); otherwise existence and size alone.
    verified : Verified or None
        Files that it knows are not read; it is told of the others.

    Raises
    ------
    ArtefactError
        Names the first file that is missing, or differs in size or content.
    """
    root = Path(folder)
    for relative, recorded in manifest["files"].items():
        path = root / relative
        if not path.is_file():
            raise ArtefactError(
                f"{path} is missing; the manifest lists it. Make the artefact again."
            )
        status = path.stat()
        size = status.st_size
        if size != recorded["bytes"]:
            raise ArtefactError(
                f"{path} has {size} bytes, and the manifest says {recorded['bytes']}: "
                f"it was truncated or replaced. Make the artefact again or restore the file."
            )
        if not contents or (verified and verified.holds(path, recorded["sha256"])):
            continue
        if sha256_file(path) != recorded["sha256"]:
            raise ArtefactError(
                f"{path} differs from its recorded SHA-256 (same size, other bytes): it was "
                f"altered or the disk is failing. Make the artefact again or restore the file."
            )
        if verified:
            verified.note(path, recorded["sha256"], status)


def require_free(
    folder: str | os.PathLike[str], files: Sequence[str], what: str, error: type[VoxseekError]
) -> None:
    """Raise unless an artefact may be written: the folder is new, empty, or holds one of its kind.

    Parameters
    ----------
    folder : path
    files : sequence of str
        Any of them tells that the folder holds one; the first is named in messages.
    what : str
        Begins a sentence that goes on with "a folder": ``"an index is"``.
    error : type
        What is raised.
    """
    root = Path(folder)
    if root.exists() and not root.is_dir():
        raise error(f"{root} is a file; {what} a folder. Choose another path.")
    if any((root / name).is_file() for name in files):
        return
    strangers = sorted(path.name for path in root.glob("*") if not path.name.startswith("."))
    if strangers:
        raise error(
            f"{root} holds {', '.join(strangers[:5])} and no {files[0]}: it isn't what is written "
            f"here. Choose a new or empty folder."
        )


def is_complete(
    folder: str | os.PathLike[str],
    name: str,
    *,
    kind: str,
    format_version: int,
    expected: dict[str, Any],
) -> bool:
    """Tell whether a piece stands, complete and unaltered, and its record says what is expected.

    Parameters
    ----------
    folder : path
    name, kind, format_version
        As for `read_manifest`.
    expected : dict
        Fields of the record, such as the fingerprint of what the piece is made from.
    """
    try:
        record = read_manifest(folder, name, kind=kind, format_version=format_version)
        verify_files(folder, record)
    except ArtefactError:
        return False
    return all(record[field] == value for field, value in expected.items())
