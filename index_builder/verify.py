"""Verify an index: every checksum, the embeddings behind it, and a sample of searches."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .candidates import nominate, open_nominator
from .certificate import sound_rows
from .embeddings.collection import Collection
from .errors import IndexDamagedError
from .ground_truth import block_rows, exact_search
from .manifest import (
    open_sources,
    read_deleted,
    read_index_manifest,
    shards_of,
    verify_index_files,
)
from .planning import IndexPlan
from .reranking import exact_scores, rank_exactly
from .sampling import sample_rows

_CANDIDATES = 100


@dataclass(frozen=True)
class VerifyReport:
    """What was verified; a failure raises instead.

    Parameters
    ----------
    fingerprint : str
        Of the index.
    n_files, n_bytes : int
        Files and bytes whose SHA-256 was compared.
    n_searches : int
        Rows that were searched for and found themselves first.
    embeddings : str
        The embedding folders, whose fingerprints were compared.
    """

    fingerprint: str
    n_files: int
    n_bytes: int
    n_searches: int
    embeddings: str


def verify_index(
    folder: str | os.PathLike[str],
    *,
    embeddings: Sequence[str | os.PathLike[str]] | None = None,
    n_searches: int = 16,
    seed: int = 0,
) -> VerifyReport:
    """Check an index from its checksums to its answers.

    Parameters
    ----------
    folder : path
    embeddings : sequence of path or URL, or None
        Where the embedding folders are, if they moved.
    n_searches : int
        Rows, a seeded sample, that must find themselves first. Rows of equal score (copies) may
        stand in for each other.
    seed : int

    Raises
    ------
    ArtefactError
        Names the first file that is missing or altered.
    SourceError
        If the embedding folder is missing or changed.
    IndexDamagedError
        If a row doesn't find itself.
    """
    root = Path(folder)
    manifest = read_index_manifest(root)
    n_files, n_bytes = verify_index_files(root, manifest)
    source = open_sources(root, manifest, embeddings)
    deleted = read_deleted(root, manifest)
    rows = sample_rows(source.part_rows, min(n_searches, source.n_rows), seed)
    rows, unit = sound_rows(source, rows[~np.isin(rows, deleted)])
    found, scores = _search(root, manifest, source, unit, deleted)
    own = exact_scores(source, unit, rows[:, None])[:, 0]
    # NaN, where nothing was found, counts as lost.
    is_lost = ~((found == rows) | (scores >= own))
    if is_lost.any():
        lost = rows[is_lost]
        raise IndexDamagedError(
            f"{len(lost)} of {len(rows)} rows that were searched for in {root} don't find "
            f"themselves first, row {lost[0]} among them, though all checksums are right: this "
            f"FAISS reads the codes otherwise than the one that built them. Build the index again."
        )
    return VerifyReport(
        fingerprint=manifest["fingerprint"],
        n_files=n_files,
        n_bytes=n_bytes,
        n_searches=len(rows),
        embeddings=source.path,
    )


def _search(
    root: Path,
    manifest: dict[str, Any],
    source: Collection,
    unit: np.ndarray,
    deleted: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the best row and its score for each query."""
    plan = IndexPlan.from_dict(manifest["plan"])
    shards = shards_of(root, manifest)
    nominator = open_nominator(root, plan, shards, tier="disk")
    if nominator is None:
        batches = source.iter_batches(
            batch_rows=block_rows(len(unit), unit.shape[1]), bad_rows=manifest["bad_rows"]
        )
        rows, scores = exact_search((batch.without(deleted) for batch in batches), unit, 1)
        return rows[:, 0], scores[:, 0]
    n_candidates = min(_CANDIDATES, nominator.n_codes)
    nominees = nominate(
        nominator, unit, nominator.most_breadth, n_candidates, n_least=1, deleted=deleted
    )
    rows, scores = rank_exactly(source, unit, nominees, 1)
    return rows[:, 0], scores[:, 0]
