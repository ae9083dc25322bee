"""Verify an index: every checksum, the embeddings behind it, and a sample of searches."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .build import open_lists
from .certificate import sound_rows
from .embeddings.reader import EmbeddingFolder
from .errors import IndexDamagedError
from .ground_truth import block_rows, exact_search
from .manifest import open_source, read_index_manifest, verify_index_files
from .planning import IndexPlan
from .reranking import exact_scores, rank_exactly
from .sampling import sample_rows
from .shards import BadRows


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
        The embedding folder, whose fingerprint was compared.
    """

    fingerprint: str
    n_files: int
    n_bytes: int
    n_searches: int
    embeddings: str


def verify_index(
    folder: str | os.PathLike[str],
    *,
    embeddings: str | os.PathLike[str] | None = None,
    n_searches: int = 16,
    seed: int = 0,
) -> VerifyReport:
    """Check an index from its checksums to its answers.

    Parameters
    ----------
    folder : path
    embeddings : path, URL or None
        Where the embedding folder is, if it moved.
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
    source = open_source(root, manifest, embeddings)
    sizes = manifest["embeddings"]["part_rows"]
    rows, unit = sound_rows(source, sample_rows(sizes, min(n_searches, source.n_rows), seed))
    plan = IndexPlan.from_dict(manifest["plan"])
    found, scores = _search(root, plan, source, unit, manifest["bad_rows"])
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
    root: Path, plan: IndexPlan, source: EmbeddingFolder, unit: np.ndarray, bad_rows: BadRows
) -> tuple[np.ndarray, np.ndarray]:
    """Return the best row and its score for each query."""
    if not plan.n_lists:
        batches = source.iter_batches(
            batch_rows=block_rows(len(unit), unit.shape[1]), bad_rows=bad_rows
        )
        rows, scores = exact_search(batches, unit, 1)
        return rows[:, 0], scores[:, 0]
    lists = open_lists(root, plan)
    nominees = lists.candidates(unit, lists.n_lists, min(100, lists.n_codes), n_least=1)
    rows, scores = rank_exactly(source, unit, nominees, 1)
    return rows[:, 0], scores[:, 0]
