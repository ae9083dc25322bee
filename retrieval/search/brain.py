"""Queries from a brain: a run and a subject in, a query set out."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from training.predict import predict
from training.subjects.subject import Subject

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
