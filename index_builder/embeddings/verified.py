"""Files that were verified before and haven't been touched since, so that they aren't read again.

What is remembered of a file is its SHA-256 with its size, the times of its last change (content and
inode) and its inode, in the user's cache folder: ``$XDG_CACHE_HOME/voxseek/verified``, or under
``~/.cache``. Who can set those back as they were has the user's own rights; ``voxseek index
verify`` reads every byte whatever is remembered.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from pathlib import Path

from .artefact import atomic_write

_FRESH_SECONDS = 2  # a file younger than a clock's tick could change again within it
logger = logging.getLogger("voxseek")


class Verified:
    """What is known of the files of one artefact; made by `of`.

    Parameters
    ----------
    path : Path
        Where it is remembered.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, list[object]] = {}
        self._sound: dict[str, list[object]] = {}
        try:
            known = json.loads(path.read_bytes())
        except (OSError, ValueError):
            return
        if isinstance(known, dict):
            self._known = known

    @classmethod
    def of(cls, folder: str | os.PathLike[str]) -> Verified:
        """Return what is known of the files of a folder."""
        root = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
        name = hashlib.sha256(os.path.realpath(folder).encode()).hexdigest()[:32]
        return cls(Path(root) / "voxseek" / "verified" / f"{name}.json")

    def holds(self, file: Path, sha256: str) -> bool:
        """Tell whether a file had this SHA-256, and hasn't been touched since."""
        name, state = os.path.realpath(file), [sha256, *_state(file.stat())]
        if self._known.get(name) != state:
            return False
        self._sound[name] = state
        return True

    def note(self, file: Path, sha256: str, before: os.stat_result) -> None:
        """Remember that a file has this SHA-256.

        Parameters
        ----------
        file : Path
        sha256 : str
        before : os.stat_result
            Of the file, asked before it was read.
        """
        if max(before.st_mtime, before.st_ctime) < time.time() - _FRESH_SECONDS:
            self._sound[os.path.realpath(file)] = [sha256, *_state(before)]

    def save(self) -> None:
        """Write what was found sound; where that can't be, files are read again next time."""
        if self._sound == self._known:
            return
        try:
            with atomic_write(self._path) as temporary:
                temporary.write_text(json.dumps(self._sound))
        except OSError as error:
            logger.debug("can't remember what was verified in %s: %s", self._path, error)


def _state(status: os.stat_result) -> list[object]:
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
