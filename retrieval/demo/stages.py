"""Stages of a demo: timed, kept if they are complete, and pinned to the options they began with."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from index_builder.embeddings.artefact import atomic_write

from ..errors import DemoError

OPTIONS_NAME = "demo.options.json"
_Artefact = TypeVar("_Artefact")
logger = logging.getLogger("voxseek")


class Stages:
    """The work of one demo folder.

    Parameters
    ----------
    out : Path
        Folder of the demo.
    options : dict
        What decides its bytes; JSON-serialisable. A folder begun with others is refused.

    Attributes
    ----------
    seconds : dict of str to float
        Wall time of each stage that ran, in the order they ran.

    Raises
    ------
    DemoError
        If ``out`` was begun with other options.
    """

    def __init__(self, out: Path, options: dict[str, Any]) -> None:
        self.out = out
        self.seconds: dict[str, float] = {}
        record = out / OPTIONS_NAME
        if record.is_file():
            begun = json.loads(record.read_text())
            if begun != options:
                differing = sorted(
                    key
                    for key in begun.keys() | options.keys()
                    if begun.get(key) != options.get(key)
                )
                raise DemoError(
                    f"{out} was begun with other options: {differing[0]} was "
                    f"{begun.get(differing[0])!r} and is now {options.get(differing[0])!r}. "
                    f"Give another folder, or remove this one."
                )
            return
        if out.is_dir() and any(out.iterdir()):
            raise DemoError(f"{out} is not empty and no demo began there. Give another folder.")
        with atomic_write(record) as temporary:
            temporary.write_text(json.dumps(options, indent=2) + "\n")

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Announce a stage, and add its wall time to `seconds`."""
        logger.info("%s ...", name)
        started = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started

    def complete(self, name: str, manifest: Path, make: Callable[[Path], object]) -> None:
        """Make the artefact of ``manifest``, unless an earlier run completed it."""
        if not manifest.is_file():
            with self.timed(name):
                make(manifest.parent)

    def keep(
        self,
        name: str,
        manifest: Path,
        reopen: Callable[[Path], _Artefact],
        make: Callable[[Path], _Artefact],
    ) -> _Artefact:
        """Return the artefact of ``manifest``, made now unless an earlier run completed it."""
        if manifest.is_file():
            return reopen(manifest.parent)
        with self.timed(name):
            return make(manifest.parent)
