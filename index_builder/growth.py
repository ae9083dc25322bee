"""Grow an index: embeddings that came later are appended as new shards.

Quantizer and old shards stay as they are, byte for byte, and rows keep their numbers. The manifest
is swapped last, in one step: an interruption leaves the old index, and finished new shards for the
next attempt. Shards that the new manifest doesn't list, of attempts that were given up, go then.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .build import measure, records_of
from .designs import most_lists
from .embeddings.artefact import fingerprint
from .embeddings.collection import Collection
from .embeddings.reader import EmbeddingFolder
from .errors import BuildError, PlanError
from .execution.serial import SerialExecutor
from .manifest import (
    body_of,
    describe_shards,
    describe_sources,
    next_shard,
    open_sources,
    read_deleted,
    read_index_manifest,
    remove_unlisted,
    verify_index_files,
    write_index_manifest,
)
from .plan import IndexPlan
from .shards import ShardTask, build_shard, read_record
from .sizes import format_size

if TYPE_CHECKING:
    from .embeddings.collection import EmbeddingRows
    from .embeddings.space import EmbeddingSpace
    from .execution.contract import Executor

# A plan takes a quarter of the lists that the rows deserve before it takes another tier.
_FEWEST_LISTS = 0.25
logger = logging.getLogger("voxseek")


@dataclass(frozen=True)
class _Sources:
    """What an index is made of before and after.

    ``held`` is what the index was built from. Of ``whole``, ``kept`` folders stay what they were;
    those of ``tail`` are new, or the last one with parts that it got since.
    """

    held: Collection
    kept: tuple[EmbeddingFolder, ...]
    tail: Collection
    whole: Collection

    @property
    def first_row(self) -> int:
        """Row of the index that is row 0 of ``tail``."""
        return self.whole.n_rows - self.tail.n_rows


def add_embeddings(
    folder: str | os.PathLike[str],
    embeddings: Sequence[str | os.PathLike[str]],
    *,
    space: EmbeddingSpace | None = None,
    queries: EmbeddingRows | None = None,
    moved: Sequence[str | os.PathLike[str]] | None = None,
    executor: Executor | None = None,
) -> dict[str, Any]:
    """Append embeddings to an index as new shards.

    Every file of the index is verified first. Recall is measured again, for the target and with as
    many queries as before.

    Parameters
    ----------
    folder : path
        The index.
    embeddings : sequence of path or URL
        New folders, in this order. The last folder of the index may be among them if it has new
        parts at its end: these come first.
    space : EmbeddingSpace or None
        Of the folders that don't say it; None: that of the index.
    queries : EmbeddingRows or None
        Embeddings predicted from brains; None: the certificate holds for held-out rows alone.
    moved : sequence of path or URL, or None
        Where the embeddings that the index holds are now, in its order, if they moved.
    executor : Executor or None
        Builds the shards and searches the truth; None: this process.

    Returns
    -------
    manifest : dict

    Raises
    ------
    ArtefactError
        If a file of the index is missing or altered.
    BuildError
        If a folder has nothing new, has grown where it isn't the last one, or has a column of
        another type than the index.
    PlanError
        If the index no longer fits the budgets it was planned for; nothing is written.
    EmbeddingError
        If a folder is of another dtype, or lacks a metadata column of the index.
    SpaceMismatchError
        If embeddings or queries are of another space.
    SourceError
        If the embeddings of the index aren't where they were, or changed.
    """
    if not embeddings:
        raise ValueError("embeddings is empty, expected at least one folder")
    root = Path(folder)
    manifest = read_index_manifest(root)
    plan = IndexPlan.from_dict(manifest["plan"])
    if queries is not None:
        plan.space.require_comparable(queries.space, mine=str(root), theirs=queries.path)
    held = open_sources(root, manifest, moved)
    sources = _open_all(root, held, embeddings, space or plan.space)
    sources = _with_types(sources, manifest["columns"])
    ranges = [
        (start, min(start + plan.rows_per_shard, sources.whole.n_rows))
        for start in range(plan.n_rows, sources.whole.n_rows, plan.rows_per_shard)
    ]
    grown = plan.resized(sources.whole.n_rows, len(manifest["shards"]) + len(ranges))
    _require_room(root, grown)
    verify_index_files(root, manifest)
    tasks = _plan_shards(root, manifest, grown, sources, ranges)
    executor = executor or SerialExecutor()
    executor.run(build_shard, tasks, label="shards")
    body = body_of(manifest)
    body |= {
        "plan": grown.to_dict(),
        "sources": [
            *manifest["sources"][: len(sources.kept)],
            *describe_sources(root, sources.tail),
        ],
        "shards": [*manifest["shards"], *describe_shards(tasks)],
        "n_tombstones": manifest["n_tombstones"]
        + sum(read_record(task.folder)["n_tombstones"] for task in tasks),
        "certified_for": _goal(manifest, queries),
    }
    deleted = read_deleted(root, manifest)
    body |= measure(root, body, sources.whole, queries, executor, deleted=deleted)
    manifest = write_index_manifest(
        root, command="voxseek index add", records=records_of(body), body=body
    )
    remove_unlisted(root, manifest, "shards/*")
    return manifest


def _open_all(
    root: Path,
    held: Collection,
    paths: Sequence[str | os.PathLike[str]],
    space: EmbeddingSpace,
) -> _Sources:
    """Open the folders to add, and tell what of them the index doesn't hold."""
    places = {_resolve(source.path): place for place, source in enumerate(held.folders)}
    kept, tail = held.folders, []
    for path in paths:
        opened = EmbeddingFolder.open(path, space=space)
        place = places.get(_resolve(opened.path))
        if place is None:
            tail.append(opened)
            continue
        known = held.folders[place]
        if opened.n_rows == known.n_rows:
            raise BuildError(
                f"{root} holds all {known.n_rows} rows of {opened.path} already: nothing to add. "
                f"Name another folder, or add parts to this one first."
            )
        if known is not held.folders[-1]:
            raise BuildError(
                f"{opened.path} has {opened.n_rows - known.n_rows} rows more than {root} took from "
                f"it, and their numbers are taken: the rows of {held.folders[-1].path} follow. "
                f"Only the last folder of an index can grow; move the new parts into a folder of "
                f"their own, and add that."
            )
        kept = held.folders[:-1]
        tail.insert(0, opened)
    return _Sources(held, kept, Collection(tail), Collection([*kept, *tail]))


def _resolve(path: str) -> str:
    return path if "://" in path else os.path.realpath(path)


def _with_types(sources: _Sources, columns: Sequence[str]) -> _Sources:
    """Return sources whose tail gives metadata in the types of the index.

    Narrower ones are widened where all folders are read as one.
    """
    expected = sources.held.schema_of(columns).types
    if sources.tail.schema_of(columns).types == expected:
        return sources
    for name, known, found in zip(
        columns, expected, sources.whole.schema_of(columns).types, strict=True
    ):
        if found != known:
            raise BuildError(
                f"column {name!r} of {sources.tail.path} needs the type {found}, and the index has "
                f"{known}. Write the column as {known}, and add the folder then."
            )
    return _Sources(sources.held, (), sources.whole, sources.whole)


def _require_room(root: Path, grown: IndexPlan) -> None:
    """Refuse to grow beyond the budgets that the index was planned for."""
    for option, needed, limit in (
        ("memory", grown.ram_bytes, grown.memory_bytes),
        ("disk", grown.disk_bytes, grown.disk_limit_bytes),
    ):
        if limit is not None and needed > limit:
            raise PlanError(
                f"{grown.n_rows} rows as {grown.design} in {grown.n_shards} shards need {needed} "
                f"bytes ({format_size(needed)}) of {option}, and {root} was planned for {limit} "
                f"({format_size(limit)}). Build an index of all folders with a larger --{option}, "
                f"or another index of the new ones."
            )
    deserved = most_lists(grown.n_rows)
    if grown.code == "ivf-rabitq" and grown.n_lists < _FEWEST_LISTS * deserved:
        logger.warning(
            "%d lists are few for %d rows, so that searches read much; a new build would take %d",
            grown.n_lists,
            grown.n_rows,
            deserved,
        )


def _plan_shards(
    root: Path,
    manifest: dict[str, Any],
    grown: IndexPlan,
    sources: _Sources,
    ranges: Sequence[tuple[int, int]],
) -> list[ShardTask]:
    """Return the tasks of the new shards; the same ones if this was interrupted."""
    number = next_shard(manifest)
    growth_fingerprint = fingerprint(
        {
            "build": manifest["build_fingerprint"],
            "embeddings": sources.tail.fingerprint,
            "columns": manifest["columns"],
            "first_row": sources.first_row,
            "row_start": ranges[0][0],
            "rows_per_shard": grown.rows_per_shard,
            "number": number,
        }
    )
    return [
        ShardTask(
            index=str(root.absolute()),
            embeddings=sources.tail,
            plan=grown,
            number=number + place,
            row_start=row_start,
            row_stop=row_stop,
            first_row=sources.first_row,
            columns=tuple(manifest["columns"]),
            bad_rows=manifest["bad_rows"],
            build_fingerprint=growth_fingerprint,
        )
        for place, (row_start, row_stop) in enumerate(ranges)
    ]


def _goal(manifest: dict[str, Any], queries: EmbeddingRows | None) -> dict[str, Any]:
    """Return what the grown index is certified for: as before, but for the queries."""
    certified_for: dict[str, Any] = manifest["certified_for"]
    if queries is None and certified_for["queries"] is not None:
        logger.warning(
            "the certificate holds for held-out rows alone: it was measured with queries before, "
            "and none were given. Certify again with voxseek index tune --queries."
        )
    return {**certified_for, "queries": queries.fingerprint if queries is not None else None}
