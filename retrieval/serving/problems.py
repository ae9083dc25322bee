"""Problems: what a client is told went wrong, with the right status, and never where files lie.

Every error leaves as ``{"error": {"code": ..., "message": ...}}``. What the client can mend is said
in full; what it can't is said in a sentence, with a number that the log has too.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
from collections.abc import Iterable, Mapping

from index_builder.embeddings.errors import (
    ArtefactError,
    EmbeddingError,
    SpaceMismatchError,
    VoxseekError,
)
from index_builder.errors import SourceError
from training.errors import EncoderError

from ..errors import ClusterError, PictureError, QueryError, RetrievalError, SearchError

logger = logging.getLogger("voxseek")

_UNAVAILABLE = (ArtefactError, ClusterError, EmbeddingError, SourceError, OSError)
_ABSOLUTE_PATH = re.compile(r"(?<![\w:/.])/(?:[\w.+@~-]+/)+[\w.+@~-]*")

_OBJECT = re.compile(r"<[\w.]+ object at 0x[0-9a-f]+>")


class ServingError(RetrievalError):
    """A server can't start as it was told to."""


class Problem(RetrievalError):
    """An answer other than 200.

    Parameters
    ----------
    status : int
        Of HTTP (RFC 9110, section 15).
    code : str
        For programs; never changes its meaning.
    message : str
        For people.
    headers : mapping of str to str
    """

    def __init__(
        self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        self.headers = dict(headers or {})

    def to_dict(self) -> dict[str, dict[str, str]]:
        """Return the body of the answer."""
        return {"error": {"code": self.code, "message": self.message}}


class Secrets:
    """Paths that no answer may hold, and what stands in their place.

    Parameters
    ----------
    names : iterable of (str, str)
        A path, and what to call it.
    """

    def __init__(self, names: Iterable[tuple[str, str]]) -> None:
        known: dict[str, str] = {}
        for path, name in names:
            for form in (path, os.path.abspath(path), os.path.realpath(path)):
                known.setdefault(form.rstrip("/"), name)
        # The longest first: a folder must not be replaced inside the name of one within it.
        self._known = sorted(known.items(), key=lambda item: -len(item[0]))

    def hide(self, text: str) -> str:
        """Return a text without paths and addresses of this machine."""
        for path, name in self._known:
            if len(path) > 1:
                text = re.sub(rf"(?<![\w.-]){re.escape(path)}(?![\w-])", name, text)
        return _OBJECT.sub("it", _ABSOLUTE_PATH.sub("[path]", text))


def problem_of(error: Exception, hidden: Secrets) -> Problem:
    """Return what a client is told of an error, and log what it isn't told."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, SpaceMismatchError):
        return Problem(409, "space_mismatch", hidden.hide(str(error)))
    if isinstance(error, (QueryError, SearchError)):
        return Problem(422, "bad_search", hidden.hide(str(error)))
    if isinstance(error, (PictureError, EncoderError)):
        return Problem(422, "bad_image", hidden.hide(str(error)))
    number = secrets.token_hex(6)
    if isinstance(error, _UNAVAILABLE):
        logger.error("problem %s: files can't be read", number, exc_info=error)
        return Problem(
            503,
            "index_unavailable",
            f"Files behind this can't be read at the moment; problem {number} in the server's log.",
        )
    kind = "refused" if isinstance(error, VoxseekError) else "a flaw in the server"
    logger.error("problem %s: %s", number, kind, exc_info=error)
    return Problem(500, "internal", f"The server failed; problem {number} in its log.")
