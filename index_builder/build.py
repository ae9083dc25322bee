"""Build an index: plan, sample, quantizer, shards, certificate, manifest.

Each stage leaves a finished piece behind. A build that was interrupted goes on from the pieces that
stand and ends with the same bytes; pieces of another plan, input or seed are never used.

    plan.json                  first
    quantizer/                 the sample is drawn again rather than stored
    shards/0000/ ...           each built by a `ShardTask`
    manifest.json              last, with the certificate in it
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .certificate import certify, exact_certificate, sound_rows
from .embeddings.artefact import fingerprint, read_manifest, verify_files, write_manifest
from .embeddings.errors import ArtefactError
from .embeddings.reader import EmbeddingFolder
from .errors import BuildError
from .factory import faiss_version
from .inverted_file import InvertedFile
from .manifest import (
    MANIFEST_FILE,
    describe_source,
    read_index_manifest,
    verify_index_files,
    write_index_manifest,
)
from .planning import IndexPlan
from .quantizer import (
    QUANTIZER_FOLDER,
    read_quantizer_record,
    save_quantizer,
    train_quantizer,
)
from .quantizer import RECORD_FILE as QUANTIZER_RECORD
from .sampling import sample_rows
from .shards import RECORD_FILE as SHARD_RECORD
from .shards import BadRows, ShardTask, build_shard, is_finished, read_record, shard_folder

PLAN_FILE = "plan.json"
PLAN_KIND = "index plan"
PLAN_FORMAT_VERSION = 1
_SAMPLE_BYTES = 64 << 20  # of rows read together for the sample
logger = logging.getLogger("voxseek")


def build_index(
    embeddings: EmbeddingFolder,
    folder: str | os.PathLike[str],
    plan: IndexPlan,
    *,
    queries: EmbeddingFolder | None = None,
    seed: int = 0,
    bad_rows: BadRows = "error",
    target_recall: float = 0.95,
    n_queries: int = 200,
    command: str = "voxseek index build",
) -> dict[str, Any]:
    """Build an index of ``embeddings`` in ``folder``, or finish one that was interrupted.

    Parameters
    ----------
    embeddings : EmbeddingFolder
        Stays where it is: searches rank candidates by its rows.
    folder : path
        New, empty, or holding an interrupted build of the same plan, embeddings and seed.
    plan : IndexPlan
    queries : EmbeddingFolder or None
        Embeddings predicted from brains; the certificate then holds for such queries too.
    seed : int
    bad_rows : {"error", "tombstone"}
        What to do about NaN, infinite and zero rows: stop, or leave them out of every result.
    target_recall : float in (0, 1]
        Recall@10 that the default search effort must reach on the hardest set of queries.
    n_queries : int
        Queries of each set that the certificate is measured with.
    command : str

    Returns
    -------
    manifest : dict

    Raises
    ------
    BuildError
        If the folder holds something else, or the plan is not for these embeddings.
    BadRowError
        If ``bad_rows`` is ``"error"`` and there is one.
    SpaceMismatchError
        If ``queries`` are of another space.
    """
    if not 0 < target_recall <= 1:
        raise ValueError(f"target_recall is {target_recall}, expected above 0 and at most 1")
    if n_queries < 1:
        raise ValueError(f"n_queries is {n_queries}, expected at least 1")
    root = Path(folder)
    _require_plan_fits(plan, embeddings)
    if queries is not None:
        plan.space.require_comparable(queries.space, mine=embeddings.path, theirs=queries.path)
    source = describe_source(root, embeddings)
    inputs = {
        "plan": plan.to_dict(),
        "embeddings": {name: value for name, value in source.items() if name != "path"},
        "seed": seed,
        "bad_rows": bad_rows,
    }
    build_fingerprint = fingerprint(inputs)
    goal = {
        "target_recall": target_recall,
        "n_queries": n_queries,
        "queries": queries.fingerprint if queries is not None else None,
    }
    _begin(root, build_fingerprint, inputs, command)
    finished = _finished_manifest(root)
    if finished is not None and finished["certified_for"] == goal:
        logger.info("%s is complete already", root)
        return finished
    if plan.n_lists:
        _build_quantizer(root, embeddings, plan, seed, build_fingerprint)
    records = []
    for task in shard_tasks(root, embeddings, plan, bad_rows, build_fingerprint):
        records.append(read_record(task.folder) if is_finished(task) else build_shard(task))
    body = {
        "plan": plan.to_dict(),
        "embeddings": source,
        "seed": seed,
        "bad_rows": bad_rows,
        "build_fingerprint": build_fingerprint,
        "n_tombstones": sum(record["n_tombstones"] for record in records),
        "faiss_version": faiss_version() if plan.n_lists else None,
        "certified_for": goal,
    }
    if plan.n_lists:
        lists = open_lists(root, plan)
        body["ram_bytes"] = lists.ram_bytes
        body["certificate"] = certify(
            lists,
            embeddings,
            queries=queries,
            n_queries=n_queries,
            target_recall=target_recall,
            seed=seed,
            bad_rows=bad_rows,
        )
    else:
        body["ram_bytes"] = plan.ram_bytes
        body["certificate"] = exact_certificate(target_recall)
    names = [PLAN_FILE, *(f"{shard_folder(i)}/{SHARD_RECORD}" for i in range(plan.n_shards))]
    if plan.n_lists:
        names.append(f"{QUANTIZER_FOLDER}/{QUANTIZER_RECORD}")
    return write_index_manifest(root, command=command, records=names, body=body)


def shard_tasks(
    root: Path,
    embeddings: EmbeddingFolder,
    plan: IndexPlan,
    bad_rows: BadRows,
    build_fingerprint: str,
) -> Iterator[ShardTask]:
    """Yield the task of each shard, in row order."""
    for number, (row_start, row_stop) in enumerate(plan.shard_ranges()):
        yield ShardTask(
            index=str(root),
            embeddings=embeddings.path,
            space=plan.space,
            number=number,
            row_start=row_start,
            row_stop=row_stop,
            n_lists=plan.n_lists,
            bad_rows=bad_rows,
            build_fingerprint=build_fingerprint,
        )


def open_lists(root: Path, plan: IndexPlan) -> InvertedFile:
    """Load the lists of a finished or nearly finished index."""
    shards = [
        (root / shard_folder(number), row_start)
        for number, (row_start, _) in enumerate(plan.shard_ranges())
    ]
    return InvertedFile.open(root, shards)


def _require_plan_fits(plan: IndexPlan, embeddings: EmbeddingFolder) -> None:
    found = (embeddings.n_rows, str(embeddings.dtype), embeddings.space)
    expected = (plan.n_rows, plan.dtype, plan.space)
    for name, here, there in zip(("rows", "dtype", "space"), found, expected, strict=True):
        if here != there:
            raise BuildError(
                f"{embeddings.path} has {name} {here}, and the plan is for {name} {there}. "
                f"Plan again for these embeddings."
            )


def _begin(root: Path, build_fingerprint: str, inputs: dict[str, Any], command: str) -> None:
    """Write the plan into a new folder, or compare it with that of the build found there."""
    if (root / PLAN_FILE).is_file():
        found = read_manifest(root, PLAN_FILE, kind=PLAN_KIND, format_version=PLAN_FORMAT_VERSION)
        if found["build_fingerprint"] == build_fingerprint:
            return
        changed = [name for name in inputs if found["inputs"].get(name) != inputs[name]]
        raise BuildError(
            f"{root} holds an index, finished or not, of another build: {', '.join(changed)} "
            f"changed. Its pieces can't be used; remove the folder to start over, or build into "
            f"another one."
        )
    if root.exists() and not root.is_dir():
        raise BuildError(f"{root} is a file; an index is a folder. Choose another path.")
    strangers = sorted(path.name for path in root.glob("*") if not path.name.startswith("."))
    if strangers:
        raise BuildError(
            f"{root} holds {', '.join(strangers[:5])} and no {PLAN_FILE}: it isn't an index. "
            f"Build into a new or empty folder."
        )
    write_manifest(
        root,
        PLAN_FILE,
        kind=PLAN_KIND,
        format_version=PLAN_FORMAT_VERSION,
        command=command,
        files=(),
        body={"build_fingerprint": build_fingerprint, "inputs": inputs},
    )


def _finished_manifest(root: Path) -> dict[str, Any] | None:
    """Return the manifest of a sound index; a damaged one loses it, to be mended by the build."""
    if not (root / MANIFEST_FILE).is_file():
        return None
    try:
        manifest = read_index_manifest(root)
        verify_index_files(root, manifest)
    except ArtefactError as error:
        logger.warning("building again what is damaged: %s", error)
        (root / MANIFEST_FILE).unlink()
        return None
    return manifest


def _build_quantizer(
    root: Path, embeddings: EmbeddingFolder, plan: IndexPlan, seed: int, build_fingerprint: str
) -> None:
    folder = root / QUANTIZER_FOLDER
    if _has_quantizer(folder, build_fingerprint):
        return
    part_rows = [part.n_rows for part in embeddings.parts]
    rows = sample_rows(part_rows, plan.n_train, seed)
    step = max(1, _SAMPLE_BYTES // (4 * plan.space.width))
    unit = np.concatenate(
        [sound_rows(embeddings, rows[i : i + step])[1] for i in range(0, len(rows), step)]
    )
    if len(unit) < plan.n_lists:
        raise BuildError(
            f"{embeddings.path} has {len(unit)} sound rows in a sample of {len(rows)}, and "
            f"{plan.n_lists} lists need as many. Mend the embeddings, or plan again with less rows."
        )
    save_quantizer(train_quantizer(unit, plan.n_lists, seed), folder, build_fingerprint)


def _has_quantizer(folder: Path, build_fingerprint: str) -> bool:
    try:
        record = read_quantizer_record(folder)
        verify_files(folder, record)
    except ArtefactError:
        return False
    return bool(record["build_fingerprint"] == build_fingerprint)
