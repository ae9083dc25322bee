"""Join shards into larger ones, and remove what was taken down.

Shards that stand side by side are joined: rows keep their numbers, and every search finds what it
found before. What deleted rows left in the shards goes: their codes, their vectors (zero bytes in a
copy), their metadata (nulls). They stay in the list of deleted rows.

Lists are joined as they stand, in bounded memory. Graphs can't be: all nodes are linked anew, and
as what is found depends on links, recall is measured again.

The new shards get new numbers, and the manifest is swapped before the old ones are removed: an
interruption leaves one index or the other, and finished shards for the next attempt.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .build import TRUTH_FOLDER, measure, records_of
from .errors import PlanError
from .execution.serial import SerialExecutor
from .joining import Join, write_joined
from .manifest import (
    body_of,
    describe_shards,
    next_shard,
    open_sources,
    read_deleted,
    read_index_manifest,
    remove_unlisted,
    shards_of,
    verify_index_files,
    write_index_manifest,
)
from .plan import IndexPlan
from .planning import MOST_ROWS_PER_SHARD
from .shards import Shard, shard_folder

_MOST_NODES = (1 << 31) - 1  # nodes of a graph are numbered in 31 bits
logger = logging.getLogger("voxseek")


def merge_shards(
    folder: str | os.PathLike[str],
    *,
    rows_per_shard: int | None = None,
    moved: Sequence[str | os.PathLike[str]] | None = None,
) -> dict[str, Any]:
    """Join adjacent shards into larger ones, without what deleted rows left in them.

    Every file of the index is verified first. Memory: a few blocks of 64 MiB; for a graph, that of
    the opened index and what measuring recall takes.

    Parameters
    ----------
    folder : path
        The index.
    rows_per_shard : int or None
        Most rows of a joined shard; None: as many as row or node numbers allow. A shard that has
        more already stays one.
    moved : sequence of path or URL, or None
        Where the embeddings of an index that holds graphs are now, in its order, if they moved.

    Returns
    -------
    manifest : dict
        Unchanged if there is nothing to join, and nothing to remove.

    Raises
    ------
    PlanError
        If ``rows_per_shard`` is out of range.
    ArtefactError
        If a file of the index is missing or altered.
    SourceError
        If the index holds graphs, and the embeddings aren't where they were, or changed.
    """
    root = Path(folder)
    manifest = read_index_manifest(root)
    plan = IndexPlan.from_dict(manifest["plan"])
    most_rows = _check_most(plan, rows_per_shard)
    # Only graphs need the embeddings: looked for before the work, not after it.
    sources = open_sources(root, manifest, moved) if plan.code == "hnsw-sq8" else None
    verify_index_files(root, manifest)
    deleted = read_deleted(root, manifest)
    shards: list[Shard] = []
    number = next_shard(manifest)
    for group in _group(shards_of(root, manifest), most_rows):
        target = Shard(root / shard_folder(number), group[0].row_start, group[-1].row_stop)
        first, stop = np.searchsorted(deleted, [target.row_start, target.row_stop])
        join = Join(tuple(group), target, deleted[first:stop])
        if join.is_needed:
            write_joined(root, plan, join)
            shards.append(target)
            number += 1
        else:
            shards += group
    if number > next_shard(manifest):
        body = _describe(manifest, plan, shards)
        if sources is not None:
            body |= measure(root, body, sources, None, SerialExecutor(), deleted=deleted)
        manifest = write_index_manifest(
            root, command="voxseek index merge", records=records_of(body), body=body
        )
    else:
        logger.info("%s has nothing to join, and nothing to remove", root)
    remove_unlisted(root, manifest, "shards/*", "deleted-*.npy")
    shutil.rmtree(root / TRUTH_FOLDER, ignore_errors=True)
    return manifest


def _check_most(plan: IndexPlan, rows_per_shard: int | None) -> int:
    is_graph = plan.code == "hnsw-sq8"
    most, unit, bits = (_MOST_NODES, "node", 31) if is_graph else (MOST_ROWS_PER_SHARD, "row", 32)
    if rows_per_shard is not None and not 1 <= rows_per_shard <= most:
        raise PlanError(
            f"rows_per_shard is {rows_per_shard}, expected 1 to {most}: {unit} numbers within a "
            f"shard are {bits} bits wide."
        )
    return rows_per_shard or most


def _group(shards: Sequence[Shard], most_rows: int) -> Iterator[list[Shard]]:
    """Yield runs of shards of at most ``most_rows`` rows together, each as long as can be."""
    group: list[Shard] = []
    for shard in shards:
        if group and shard.row_stop - group[0].row_start > most_rows:
            yield group
            group = []
        group.append(shard)
    yield group


def _describe(manifest: dict[str, Any], plan: IndexPlan, shards: Sequence[Shard]) -> dict[str, Any]:
    """Return what the manifest of the merged index says, the certificate as it was."""
    merged = plan.resized(plan.n_rows, len(shards))
    certified_for = manifest["certified_for"]
    if plan.code == "hnsw-sq8":
        if certified_for["queries"] is not None:
            logger.warning(
                "the certificate holds for held-out rows alone: it was measured with queries "
                "before. Certify again with voxseek index tune --queries."
            )
        certified_for = {**certified_for, "queries": None}
    return {
        **body_of(manifest),
        "plan": merged.to_dict(),
        "ram_bytes": merged.ram_bytes,
        "certified_for": certified_for,
        "shards": describe_shards(shards),
    }
