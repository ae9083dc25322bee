"""The certificate: what an index finds of what an exact search finds, measured when it is built.

Recall is measured at each effort (breadth of the nomination x candidates that are ranked) on
held-out rows of the index itself and, where given, on embeddings predicted from brains, which lie
elsewhere in the space and are harder. The cheapest effort that reaches the target on the hardest of
these sets becomes the default of every search. A sample can flatter, so it is the lower end of a
one-sided interval (`recall.lower_bound`) that must reach the target.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .candidates import Nominator
from .cosine import has_direction, unit_rows
from .embeddings.float16 import to_float32
from .ground_truth import find_truth
from .recall import CONFIDENCE, KS, TARGET_K, QuerySet, Shares, find_shares, lower_bound
from .recall import standard_error as standard_error_of
from .sampling import sample_rows

if TYPE_CHECKING:
    from .embeddings.collection import Collection, EmbeddingRows
    from .execution.contract import Executor
    from .shards import BadRows
    from .vector_copy import Vectors

HELD_OUT = "held_out"
_CANDIDATES = (25, 50, 100, 200, 400, 800, 1600)
_DECIMALS = 5
_PAGE_BYTES = 4096  # that a row, wherever it lies, touches beside its own


@dataclass(frozen=True)
class _Effort:
    """An effort and what it reaches, by query set."""

    breadth: int
    n_candidates: int
    read_bytes: int
    shares: dict[str, Shares]

    def recall(self, name: str) -> float:
        """Recall among the first ten of one set."""
        return float(self.shares[name].at_target.mean())

    def bound(self, name: str) -> float:
        """Lower bound of that recall."""
        return lower_bound(self.shares[name].at_target)

    @property
    def least_recall(self) -> float:
        """Recall on the hardest set."""
        return min(map(self.recall, self.shares))

    @property
    def least_bound(self) -> float:
        """The lowest bound of all sets."""
        return min(map(self.bound, self.shares))

    def to_dict(self, breadth_name: str) -> dict[str, Any]:
        """Return what the manifest says of it."""
        return {
            breadth_name: self.breadth,
            "n_candidates": self.n_candidates,
            "read_bytes": self.read_bytes,
            "recall": {
                name: {str(k): round(float(found.mean()), _DECIMALS) for k, found in by_k.items()}
                for name, by_k in ((name, shares.by_k) for name, shares in self.shares.items())
            },
            "nearest_in_100": {
                name: round(float(shares.nearest.mean()), _DECIMALS)
                for name, shares in self.shares.items()
            },
            "standard_error": {
                name: round(standard_error_of(shares.at_target), _DECIMALS)
                for name, shares in self.shares.items()
            },
        }


def exact_certificate(target_recall: float) -> dict[str, Any]:
    """Return the certificate of a flat index."""
    return {
        "is_exact": True,
        "target_recall": target_recall,
        "confidence": CONFIDENCE,
        "query_sets": {},
        "efforts": [],
        "unmeasured": [],
        "effort": None,
        "is_reached": True,
        "is_sure": True,
        "statement": "Exact: every search compares the query with every row.",
    }


def certify(
    nominator: Nominator,
    vectors: Vectors,
    embeddings: Collection,
    *,
    queries: EmbeddingRows | Sequence[tuple[str, EmbeddingRows]] | None,
    n_queries: int,
    target_recall: float,
    seed: int,
    bad_rows: BadRows,
    deleted: np.ndarray,
    executor: Executor,
    workspace: Path,
) -> dict[str, Any]:
    """Measure recall at every effort.

    Memory: that of an exact search by blocks, and about 64 KiB a query.

    Parameters
    ----------
    nominator : Nominator
    vectors : Vectors
        What candidates are ranked by. What a lossy copy loses is measured too.
    embeddings : Collection
        What the index was built from: the truth is searched there.
    queries : EmbeddingRows, sequence of (name, EmbeddingRows), or None
        Predicted embeddings of the same space, one set or several named ones.
    n_queries : int
        At most so many of each set, a seeded sample.
    target_recall : float in (0, 1]
        Recall among the first ten that the default effort must reach on every set.
    seed : int
    bad_rows : {"error", "tombstone"}
    deleted : ndarray of shape (m,), int64, rising
        Rows taken down: neither queries nor found.
    executor : Executor
        Searches the truth.
    workspace : Path
        Keeps pieces of the truth if this is interrupted; removed at the end.

    Returns
    -------
    certificate : dict
        ``efforts``: the breadth, n_candidates, read_bytes (a query), and by query set the recall by
        k, the share of queries whose nearest row is among the first 100 hits, and the standard
        error of the recall at 10. ``effort``: the chosen one. ``is_reached`` and ``is_sure`` say
        whether its recall reaches the target, and whether its lower bound does; ``statement`` says
        it in words. ``unmeasured``: breadths that were left out, for their codes alone cost more
        than an effort that surely reaches the target.
    """
    sets, described = _draw_sets(embeddings, queries, n_queries, seed, deleted)
    _find_truths(sets, embeddings, bad_rows, deleted, executor, workspace)
    sets = {name: query_set for name, query_set in sets.items() if query_set.truth.size}
    row_bytes = vectors.row_bytes + _PAGE_BYTES
    efforts: list[_Effort] = []
    unmeasured: list[int] = []
    enough_bytes: float = np.inf  # what the cheapest effort that surely reaches the target reads
    for breadth in nominator.breadths() if sets else ():
        code_bytes = nominator.read_bytes(breadth)
        if code_bytes > enough_bytes:
            unmeasured.append(breadth)
            continue
        counts = _counts(nominator, breadth)
        found = {
            name: find_shares(
                nominator,
                vectors,
                query_set,
                breadth,
                counts,
                deleted=deleted,
                n_rows=embeddings.n_rows,
            )
            for name, query_set in sets.items()
        }
        for place, count in enumerate(counts):
            shares = {name: by_count[place] for name, by_count in found.items()}
            effort = _Effort(breadth, count, code_bytes + count * row_bytes, shares)
            if effort.least_bound >= target_recall:
                enough_bytes = min(enough_bytes, effort.read_bytes)
            efforts.append(effort)
    efforts.sort(key=lambda effort: (effort.read_bytes, effort.breadth))
    certificate = {
        "is_exact": False,
        "target_recall": target_recall,
        "confidence": CONFIDENCE,
        "query_sets": {name: described[name] for name in sets},
        "efforts": [effort.to_dict(nominator.breadth_name) for effort in efforts],
        "unmeasured": unmeasured,
        **_choose(efforts, nominator, target_recall, is_exact=vectors.is_exact),
    }
    shutil.rmtree(workspace, ignore_errors=True)
    return certificate


def sound_rows(folder: EmbeddingRows, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Read rows, and return numbers and unit vectors (n, width) of those with a direction."""
    vectors = to_float32(folder.take(rows).reshape(len(rows), folder.space.width))
    is_sound = has_direction(vectors)
    return rows[is_sound], unit_rows(vectors[is_sound])


def _draw_sets(
    embeddings: Collection,
    queries: EmbeddingRows | Sequence[tuple[str, EmbeddingRows]] | None,
    n_queries: int,
    seed: int,
    deleted: np.ndarray,
) -> tuple[dict[str, QuerySet], dict[str, dict[str, Any]]]:
    """Return the sets that have any queries, their truth still empty, and their descriptions."""
    named: list[tuple[str, Any]] = [(HELD_OUT, embeddings)]
    if isinstance(queries, Sequence):
        named += queries
    elif queries is not None:
        named.append(("queries", queries))
    names = [name for name, _ in named]
    if len(set(names)) < len(names):
        raise ValueError(
            f"query sets are named {', '.join(names[1:])}, expected different names, none of them "
            f"{HELD_OUT}"
        )
    sets: dict[str, QuerySet] = {}
    described: dict[str, dict[str, Any]] = {}
    for name, folder in named:
        # Another stream than the training sample's, which has the same parts and the plain seed.
        rows = sample_rows(folder.part_rows, min(n_queries, folder.n_rows), seed + 1)
        if name == HELD_OUT:
            rows = rows[~np.isin(rows, deleted)]
        rows, unit = sound_rows(folder, rows)
        if not len(rows):
            continue
        excluded = rows if name == HELD_OUT else np.full(len(rows), -1)
        sets[name] = QuerySet(unit, excluded, np.empty((len(rows), 0), np.int64))
        described[name] = {"n_queries": len(rows)}
        if name != HELD_OUT:
            described[name]["fingerprint"] = folder.fingerprint
    return sets, described


def _find_truths(
    sets: dict[str, QuerySet],
    embeddings: Collection,
    bad_rows: BadRows,
    deleted: np.ndarray,
    executor: Executor,
    workspace: Path,
) -> None:
    """Fill in the nearest rows of each set; the embeddings are read once for all of them."""
    if not sets:
        return
    truth = find_truth(
        embeddings,
        np.concatenate([query_set.unit for query_set in sets.values()]),
        max(KS),
        excluded=np.concatenate([query_set.excluded for query_set in sets.values()]),
        deleted=deleted,
        bad_rows=bad_rows,
        executor=executor,
        workspace=workspace,
    )
    start = 0
    for query_set in sets.values():
        own = truth[start : start + len(query_set.unit)]
        start += len(query_set.unit)
        query_set.truth = own[:, : int((own >= 0).sum(axis=1).min())]


def _counts(nominator: Nominator, breadth: int) -> list[int]:
    """Return the numbers of candidates that are worth ranking at one breadth, rising."""
    most = min(_CANDIDATES[-1], nominator.n_codes)
    if nominator.breadth_name == "ef_search":  # a graph keeps no more in view than its breadth
        most = min(most, breadth)
    return [*(count for count in _CANDIDATES if count < most), most]


def _choose(
    efforts: Sequence[_Effort], nominator: Nominator, target_recall: float, *, is_exact: bool
) -> dict[str, Any]:
    """Return the effort that becomes the default, of efforts from cheap to dear, and why."""
    if not efforts:
        effort = {nominator.breadth_name: nominator.most_breadth, "n_candidates": nominator.n_codes}
        statement = "Too few rows to measure recall."
        return {"effort": effort, "is_reached": True, "is_sure": False, "statement": statement}
    sure = [effort for effort in efforts if effort.least_bound >= target_recall]
    likely = [effort for effort in efforts if effort.least_recall >= target_recall]
    if sure or likely:
        chosen = (sure or likely)[0]
        verb = "reaches"
    else:
        chosen = max(efforts, key=lambda effort: effort.least_recall)
        verb = "DOES NOT reach"
    hardest = min(chosen.shares, key=chosen.recall)
    ranked = "ranked exactly" if is_exact else "ranked by the copy in the index"
    caveat = "" if sure or not likely else " More queries or a higher effort would make sure."
    return {
        "effort": {
            nominator.breadth_name: chosen.breadth,
            "n_candidates": chosen.n_candidates,
        },
        "is_reached": bool(sure or likely),
        "is_sure": bool(sure),
        "statement": (
            f"Recall@{TARGET_K} {verb} the target of {target_recall:g}: "
            f"{chosen.least_recall:.4f} on the hardest set ({hardest}), with {CONFIDENCE:.0%} "
            f"confidence above {chosen.least_bound:.4f} on each; "
            f"{nominator.breadth_name} {chosen.breadth} of {nominator.most_breadth}, "
            f"{chosen.n_candidates} candidates {ranked}.{caveat}"
        ),
    }
