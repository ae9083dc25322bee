"""Build an index: plan, sample, quantizer, shards, certificate, manifest.

Each stage leaves a finished piece behind. A build that was interrupted goes on from the pieces that
stand and ends with the same bytes, whoever does the work; pieces of another plan, input or seed are
never used.

    plan.json                  first
    quantizer/                 the sample is drawn again rather than stored
    shards/0000/ ...           each built by a `ShardTask`
    .truth/                    pieces of the exact search behind the certificate; removed
    manifest.json              last, with the certificate in it
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .candidates import open_nominator
from .certificate import certify, exact_certificate, sound_rows
from .embeddings.artefact import fingerprint, read_manifest, require_free, write_manifest
from .embeddings.collection import Collection, EmbeddingRows
from .embeddings.errors import ArtefactError
from .errors import BuildError
from .execution.serial import SerialExecutor
from .factory import faiss_version
from .manifest import (
    MANIFEST_FILE,
    describe_shards,
    describe_sources,
    read_index_manifest,
    shards_of,
    verify_index_files,
    write_index_manifest,
)
from .planning import IndexPlan
from .quantizer import (
    QUANTIZER_FOLDER,
    has_quantizer,
    save_quantizer,
    train_quantizer,
)
from .quantizer import RECORD_FILE as QUANTIZER_RECORD
from .sampling import sample_rows
from .shards import RECORD_FILE as SHARD_RECORD
from .shards import BadRows, ShardTask, build_shard, read_record, shard_folder
from .vector_copy import open_vectors

if TYPE_CHECKING:
    from .execution.contract import Executor

PLAN_FILE = "plan.json"
PLAN_KIND = "index plan"
PLAN_FORMAT_VERSION = 2
TRUTH_FOLDER = ".truth"
_SAMPLE_BYTES = 16 << 20  # of rows read together for the sample
logger = logging.getLogger("voxseek")


def build_index(
    embeddings: Collection,
    folder: str | os.PathLike[str],
    plan: IndexPlan,
    *,
    queries: EmbeddingRows | None = None,
    columns: Sequence[str] | None = None,
    seed: int = 0,
    bad_rows: BadRows = "error",
    target_recall: float = 0.95,
    n_queries: int = 200,
    executor: Executor | None = None,
    command: str = "voxseek index build",
) -> dict[str, Any]:
    """Build an index of ``embeddings`` in ``folder``, or finish one that was interrupted.

    Parameters
    ----------
    embeddings : Collection
        Stays where it is: searches rank candidates by its rows, unless the plan makes a copy.
    folder : path
        New, empty, or holding an interrupted build of the same plan, embeddings and seed.
    plan : IndexPlan
    queries : EmbeddingRows or None
        Embeddings predicted from brains; the certificate then holds for such queries too.
    columns : sequence of str or None
        Metadata columns to copy into the index; None: all that every folder has.
    seed : int
    bad_rows : {"error", "tombstone"}
        What to do about NaN, infinite and zero rows: stop, or leave them out of every result.
    target_recall : float in (0, 1]
        Recall@10 that the default search effort must reach on the hardest set of queries.
    n_queries : int
        Queries of each set that the certificate is measured with.
    executor : Executor or None
        Builds the shards and searches the truth; None: this process. The bytes are the same.
    command : str

    Returns
    -------
    manifest : dict

    Raises
    ------
    BuildError
        If the folder holds something else, or the plan is not for these embeddings.
    EmbeddingError
        If a folder lacks one of ``columns``.
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
    sources = describe_sources(root, embeddings)
    inputs: dict[str, Any] = {
        "plan": plan.to_dict(),
        "embeddings": [
            {name: value for name, value in source.items() if name != "path"} for source in sources
        ],
        "columns": list(embeddings.schema_of(columns).names),
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
    finished = _finished_manifest(root, plan, goal)
    if finished is not None and finished["certified_for"] == goal:
        logger.info("%s is complete already", root)
        return finished
    _report_lost_columns(embeddings, columns)
    if plan.code != "flat":
        _build_quantizer(root, embeddings, plan, seed, build_fingerprint)
    executor = executor or SerialExecutor()
    tasks = [
        ShardTask(
            index=str(root.absolute()),
            embeddings=embeddings,
            plan=plan,
            number=number,
            row_start=row_start,
            row_stop=row_stop,
            first_row=0,
            columns=tuple(inputs["columns"]),
            bad_rows=bad_rows,
            build_fingerprint=build_fingerprint,
        )
        for number, (row_start, row_stop) in enumerate(plan.shard_ranges())
    ]
    executor.run(build_shard, tasks, label="shards")
    body = {
        "plan": plan.to_dict(),
        "sources": sources,
        "columns": inputs["columns"],
        "shards": describe_shards(tasks),
        "deleted": {"n_rows": 0, "file": None},
        "seed": seed,
        "bad_rows": bad_rows,
        "build_fingerprint": build_fingerprint,
        "n_tombstones": sum(read_record(task.folder)["n_tombstones"] for task in tasks),
        "faiss_version": None if plan.code == "flat" else faiss_version(),
        "certified_for": goal,
    }
    body |= measure(root, body, embeddings, queries, executor, deleted=np.empty(0, np.int64))
    return write_index_manifest(root, command=command, records=records_of(body), body=body)


def measure(
    root: Path,
    body: dict[str, Any],
    embeddings: Collection,
    queries: EmbeddingRows | None,
    executor: Executor,
    *,
    deleted: np.ndarray,
) -> dict[str, Any]:
    """Return what is measured of an index whose shards stand: memory, and the certificate.

    Parameters
    ----------
    root : Path
    body : dict
        Of the manifest: plan, shards, seed, bad_rows and certified_for.
    embeddings : Collection
    queries : EmbeddingRows or None
    executor : Executor
    deleted : ndarray of shape (m,), int64, rising

    Returns
    -------
    measured : dict
        ``ram_bytes`` and ``certificate``.
    """
    plan = IndexPlan.from_dict(body["plan"])
    goal = body["certified_for"]
    shards = shards_of(root, body)
    # Lists are read from disk here whatever the plan, so that building needs no more than a shard.
    nominator = open_nominator(root, plan, shards, tier="disk")
    if nominator is None:
        certificate = exact_certificate(goal["target_recall"])
    else:
        certificate = certify(
            nominator,
            open_vectors(root, plan, shards, embeddings),
            embeddings,
            queries=queries,
            n_queries=goal["n_queries"],
            target_recall=goal["target_recall"],
            seed=body["seed"],
            bad_rows=body["bad_rows"],
            deleted=deleted,
            executor=executor,
            workspace=root / TRUTH_FOLDER,
        )
    return {"ram_bytes": plan.ram_bytes, "certificate": certificate}


def records_of(body: dict[str, Any]) -> list[str]:
    """Return the files that a manifest lists: all records, and the deleted rows."""
    names = [PLAN_FILE, *(f"{each['folder']}/{SHARD_RECORD}" for each in body["shards"])]
    if body["plan"]["code"] != "flat":
        names.append(f"{QUANTIZER_FOLDER}/{QUANTIZER_RECORD}")
    if body["deleted"]["file"] is not None:
        names.append(body["deleted"]["file"])
    return names


def _require_plan_fits(plan: IndexPlan, embeddings: Collection) -> None:
    found = (embeddings.n_rows, str(embeddings.dtype), embeddings.space)
    expected = (plan.n_rows, plan.dtype, plan.space)
    for name, here, there in zip(("rows", "dtype", "space"), found, expected, strict=True):
        if here != there:
            raise BuildError(
                f"{embeddings.path} has {name} {here}, and the plan is for {name} {there}. "
                f"Plan again for these embeddings."
            )


def _report_lost_columns(embeddings: Collection, columns: Sequence[str] | None) -> None:
    if columns is not None:
        return
    lost = {name for folder in embeddings.folders for name in folder.columns}
    lost -= set(embeddings.columns)
    if lost:
        logger.warning("left out, for not every folder has it: %s", ", ".join(sorted(lost)))


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
    require_free(root, (PLAN_FILE,), "an index is", BuildError)
    write_manifest(
        root,
        PLAN_FILE,
        kind=PLAN_KIND,
        format_version=PLAN_FORMAT_VERSION,
        command=command,
        files=(),
        body={"build_fingerprint": build_fingerprint, "inputs": inputs},
    )


def _finished_manifest(root: Path, plan: IndexPlan, goal: dict[str, Any]) -> dict[str, Any] | None:
    """Return the manifest of a sound index; a damaged one loses it, to be mended by the build.

    Not where rows were added or taken down since: a build would undo that.
    """
    if not (root / MANIFEST_FILE).is_file():
        return None
    flaw = manifest = None
    try:
        manifest = read_index_manifest(root)
        verify_index_files(root, manifest)
    except ArtefactError as error:
        flaw = error
    if _has_changed(root, plan, manifest) and (
        flaw or manifest is None or manifest["certified_for"] != goal
    ):
        raise BuildError(
            f"{root} was changed since it was built: rows were added, merged or taken down, and "
            f"building would undo that. "
            + (
                f"It is damaged: {flaw} Restore it from a backup, or remove it to start over."
                if flaw
                else "Certify it for other queries or another target with voxseek index tune."
            )
        )
    if flaw is not None:
        logger.warning("building again what is damaged: %s", flaw)
        (root / MANIFEST_FILE).unlink()
        return None
    return manifest


def _has_changed(root: Path, plan: IndexPlan, manifest: dict[str, Any] | None) -> bool:
    """Tell whether an index is no longer what was built; without a manifest, by its files."""
    if manifest is None:
        has_more = (root / shard_folder(plan.n_shards)).exists()
        return has_more or any(root.glob("deleted-*.npy"))
    return bool(manifest["plan"] != plan.to_dict() or manifest["deleted"]["n_rows"])


def _build_quantizer(
    root: Path, embeddings: Collection, plan: IndexPlan, seed: int, build_fingerprint: str
) -> None:
    folder = root / QUANTIZER_FOLDER
    if has_quantizer(folder, build_fingerprint):
        return
    rows = sample_rows(embeddings.part_rows, plan.n_train, seed)
    unit = np.empty((len(rows), plan.space.width), np.float32)
    n_sound = 0
    step = max(1, _SAMPLE_BYTES // (4 * plan.space.width))
    for start in range(0, len(rows), step):
        sound = sound_rows(embeddings, rows[start : start + step])[1]
        unit[n_sound : n_sound + len(sound)] = sound
        n_sound += len(sound)
        embeddings.release()
    if n_sound < max(1, plan.n_lists):
        raise BuildError(
            f"{embeddings.path} has {n_sound} sound rows in a sample of {len(rows)}, and "
            f"{plan.n_lists} lists need as many. Mend the embeddings, or plan with fewer lists."
        )
    save_quantizer(train_quantizer(unit[:n_sound], plan.n_lists, seed), folder, build_fingerprint)
