"""Queries from a brain: a run and a subject in, a query set out."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory

from training.checkpoint import MANIFEST as RUN_FILE
from training.predict import predict
from training.subjects.subject import Subject

from ..errors import QueryError
from .queries import QuerySet, load_queries


@contextmanager
def brain_queries(run: Path, subject: Path, *, split: str = "test") -> Iterator[QuerySet]:
    """Yield what a subject's brain says it saw, as queries; gone with the context.

    Parameters
    ----------
    run : Path
        A run trained on this subject; its contrastive head answers.
    subject : Path
    split : {"train", "validation", "test", "all"}
        One query an image of the split, its trials averaged.
    """
    with TemporaryDirectory(prefix="voxseek-") as folder:
        predict(run, Subject.open(subject), Path(folder) / "predictions", split=split)
        queries = load_queries(Path(folder) / "predictions")
        yield dataclasses.replace(queries, label=f"{run} on {subject}, {split} images")


def brain_or_predictions(
    source: Path, subject: Path | None, *, split: str = "test"
) -> AbstractContextManager[QuerySet]:
    """Return a context with predictions: those of a folder, or what a run predicts now.

    Parameters
    ----------
    source : Path
        An embedding folder that `voxseek predict` wrote, or a run.
    subject : Path or None
        Needed by a run.
    split : {"train", "validation", "test", "all"}

    Raises
    ------
    QueryError
        If a run comes without a subject.
    """
    if not (source / RUN_FILE).is_file():
        return nullcontext(load_queries(source))
    if subject is None:
        raise QueryError(f"{source} is a run, which has to be asked: give --subject DIR too.")
    return brain_queries(source, subject, split=split)
