"""Where files lie: a local folder, or any URL that fsspec opens; both give listings and ranges."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np

from .errors import ArtefactError, PartError


class Storage(Protocol):
    """A folder of files, addressed by paths relative to it with ``/`` between their parts."""

    is_local: bool
    n_threads: int

    def path_of(self, file: str) -> str:
        """Return the full path or URL of a file, for messages."""

    def list_files(self, folder: str) -> dict[str, int]:
        """Return name and bytes of each file of a sub-folder (``""``: the root); absent: empty."""

    def read_range(self, file: str, start: int, stop: int) -> bytes:
        """Return bytes ``start`` to ``stop`` (exclusive), fewer where the file ends before."""

    def read_into(self, file: str, start: int, out: np.ndarray) -> None:
        """Fill a contiguous array from byte ``start`` on; `PartError` where the file is shorter."""

    def map_rows(
        self, file: str, start: int, shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> np.ndarray | None:
        """Return an array mapped from byte ``start`` on; None where nothing can be mapped."""

    def open(self, file: str) -> Any:
        """Return a context manager of a seekable binary handle."""


class LocalStorage:
    """A folder of this machine's file system.

    Raises
    ------
    ArtefactError
        If ``root`` is not a folder.
    """

    is_local = True
    n_threads = 8  # reads in flight: a solid-state disk is fast only with several

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = os.fspath(root)
        if not os.path.isdir(self.root):
            raise ArtefactError(f"{self.root} is not a folder; expected a folder of embeddings.")

    def path_of(self, file: str) -> str:
        """Return the path of a file."""
        return os.path.join(self.root, file) if file else self.root

    def list_files(self, folder: str) -> dict[str, int]:
        """Return name and bytes of each file of a sub-folder; absent: empty."""
        if not os.path.isdir(self.path_of(folder)):
            return {}
        with os.scandir(self.path_of(folder)) as entries:
            return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}

    def read_range(self, file: str, start: int, stop: int) -> bytes:
        """Return bytes ``start`` to ``stop``, fewer where the file ends before."""
        with open(self.path_of(file), "rb") as handle:
            handle.seek(start)
            return handle.read(stop - start)

    def read_into(self, file: str, start: int, out: np.ndarray) -> None:
        """Fill a contiguous array from byte ``start`` on."""
        rest = out.reshape(-1).view(np.uint8).data
        with open(self.path_of(file), "rb", buffering=0) as handle:
            handle.seek(start)
            while rest:
                n_read = handle.readinto(rest)
                if not n_read:
                    raise _shrunk(self.path_of(file), start + out.nbytes)
                rest = rest[n_read:]

    def map_rows(
        self, file: str, start: int, shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> np.ndarray | None:
        """Return an array memory-mapped from byte ``start`` on, for reading here and there."""
        with open(self.path_of(file), "rb") as handle:
            mapping = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
        if hasattr(mmap, "MADV_RANDOM"):
            # Otherwise each row that is not in memory brings 128 KiB of neighbours with it.
            mapping.madvise(mmap.MADV_RANDOM)
        return np.ndarray(shape, dtype, buffer=mapping, offset=start)

    def open(self, file: str) -> Any:
        """Return a binary handle."""
        return open(self.path_of(file), "rb")


class RemoteStorage:
    """A folder behind an fsspec URL (``s3://``, ``https://``, ``memory://``, ``file://`` ...).

    Raises
    ------
    ArtefactError
        If no installed package opens such URLs.
    """

    is_local = False
    n_threads = 16  # requests in flight: latency, not a processor, is what they wait for

    def __init__(self, url: str) -> None:
        import fsspec

        self.url = url.rstrip("/")
        try:
            self._file_system, root = fsspec.core.url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            raise ArtefactError(
                f"{url} can't be opened ({error}); install the fsspec package for its protocol, "
                f"or copy the folder to a local disk."
            ) from error
        self._root = root.rstrip("/")
        # A listing that this process cached earlier may lack files written since.
        self._file_system.invalidate_cache()

    def path_of(self, file: str) -> str:
        """Return the URL of a file."""
        return f"{self.url}/{file}" if file else self.url

    def list_files(self, folder: str) -> dict[str, int]:
        """Return name and bytes of each file of a sub-folder; absent: empty."""
        path = self._inner(folder)
        try:
            entries = self._file_system.ls(path, detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except Exception as error:  # each protocol has errors of its own
            raise ArtefactError(
                f"{self.path_of(folder)} can't be listed ({error!r}); check the URL, the "
                f"credentials and the network, or copy the folder to a local disk."
            ) from error
        files = {}
        for entry in entries:
            name = entry["name"].rstrip("/").rsplit("/", 1)[-1]
            if entry["type"] == "file":
                size = entry.get("size")
                files[name] = int(self._file_system.size(entry["name"]) if size is None else size)
        return files

    def read_range(self, file: str, start: int, stop: int) -> bytes:
        """Return bytes ``start`` to ``stop``, fewer where the file ends before."""
        try:
            content: bytes = self._file_system.cat_file(self._inner(file), start=start, end=stop)
        except Exception as error:  # each protocol has errors of its own
            raise PartError(
                f"{self.path_of(file)}: bytes {start} to {stop} can't be read ({error!r}); check "
                f"the network and try again, or copy the folder to a local disk."
            ) from error
        return content

    def read_into(self, file: str, start: int, out: np.ndarray) -> None:
        """Fill a contiguous array from byte ``start`` on."""
        content = self.read_range(file, start, start + out.nbytes)
        if len(content) != out.nbytes:
            raise _shrunk(self.path_of(file), start + out.nbytes)
        out.reshape(-1).view(np.uint8)[:] = np.frombuffer(content, np.uint8)

    def map_rows(
        self, file: str, start: int, shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> np.ndarray | None:
        """Return None: what is behind a URL can't be mapped."""
        return None

    @contextmanager
    def open(self, file: str) -> Iterator[Any]:
        """Yield a binary handle."""
        # No read-ahead: parquet footers and row groups are asked for by their exact ranges.
        with self._file_system.open(self._inner(file), "rb", cache_type="none") as handle:
            yield handle

    def _inner(self, file: str) -> str:
        return f"{self._root}/{file}" if file else self._root


def open_storage(path: str | os.PathLike[str]) -> Storage:
    """Return the storage of a local path or, where it has ``://`` in it, of an fsspec URL."""
    text = os.fspath(path)
    return RemoteStorage(text) if "://" in text else LocalStorage(text)


def _shrunk(path: str, expected_bytes: int) -> PartError:
    return PartError(
        f"{path} ended before byte {expected_bytes}, which it had when the folder was opened: "
        f"something is rewriting it. Open the folder again when the file is whole."
    )
