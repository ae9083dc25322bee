"""Certify an index again: for other queries, another target, or a larger sample.

Shards and quantizer stay; the manifest is replaced in one step, so that an interruption leaves the
old certificate, and pieces of the truth for the next attempt.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .build import measure
from .execution.serial import SerialExecutor
from .manifest import (
    body_of,
    open_sources,
    read_deleted,
    read_index_manifest,
    verify_index_files,
    write_index_manifest,
)
from .planning import IndexPlan

if TYPE_CHECKING:
    from .embeddings.collection import EmbeddingRows
    from .execution.contract import Executor


def tune_index(
    folder: str | os.PathLike[str],
    *,
    queries: EmbeddingRows | None = None,
    target_recall: float | None = None,
    n_queries: int = 200,
    embeddings: Sequence[str | os.PathLike[str]] | None = None,
    executor: Executor | None = None,
) -> dict[str, Any]:
    """Measure the recall of an index again, and store the effort that suffices as its default.

    Every file of the index is verified first.

    Parameters
    ----------
    folder : path
        The index.
    queries : EmbeddingRows or None
        Embeddings predicted from brains; None: held-out rows of the index alone.
    target_recall : float in (0, 1], or None
        Recall@10 that the default effort must reach on the hardest set; None: as certified last.
    n_queries : int
        Queries of each set, at most.
    embeddings : sequence of path, or None
        Where the embeddings are now, if they moved.
    executor : Executor or None
        Searches the truth; None: this process.

    Returns
    -------
    manifest : dict
        With another certificate and fingerprint than before.

    Raises
    ------
    ArtefactError
        If a file of the index is missing or altered.
    SourceError
        If the embeddings aren't where they were, or changed.
    SpaceMismatchError
        If ``queries`` are of another space.
    """
    if target_recall is not None and not 0 < target_recall <= 1:
        raise ValueError(f"target_recall is {target_recall}, expected above 0 and at most 1")
    if n_queries < 1:
        raise ValueError(f"n_queries is {n_queries}, expected at least 1")
    root = Path(folder)
    manifest = read_index_manifest(root)
    plan = IndexPlan.from_dict(manifest["plan"])
    if queries is not None:
        plan.space.require_comparable(queries.space, mine=str(root), theirs=queries.path)
    verify_index_files(root, manifest)
    if target_recall is None:
        target_recall = float(manifest["certificate"]["target_recall"])
    goal = {
        "target_recall": target_recall,
        "n_queries": n_queries,
        "queries": queries.fingerprint if queries is not None else None,
    }
    measured = measure(
        root,
        {**manifest, "certified_for": goal},
        open_sources(root, manifest, embeddings),
        queries,
        executor or SerialExecutor(),
        deleted=read_deleted(root, manifest),
    )
    return write_index_manifest(
        root,
        command="voxseek index tune",
        records=list(manifest["files"]),
        body={**body_of(manifest), "certified_for": goal, **measured},
    )
