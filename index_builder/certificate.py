"""The certificate: what an index finds of what an exact search finds, measured when it is built.

Recall is measured at each effort (lists probed x candidates ranked exactly) on held-out rows of the
index itself and, where given, on embeddings predicted from brains, which lie elsewhere in the space
and are harder. The smallest effort that reaches the target on the hardest of these sets becomes the
default of every search.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from .cosine import has_direction, unit_rows
from .embeddings.float16 import to_float32
from .embeddings.reader import EmbeddingFolder
from .ground_truth import block_rows, exact_search
from .inverted_file import InvertedFile
from .planning import ROW_BYTES_IN_MEMORY, code_bytes
from .sampling import sample_rows
from .shards import BadRows

TARGET_K = 10
_KS = (1, 10, 100)
_MOST_PROBES = 1024
_CANDIDATES = (25, 50, 100, 200, 400, 800, 1600)


@dataclass(frozen=True)
class _QuerySet:
    """Unit queries (n, width), the row that each must not find or -1, and how many it may find."""

    unit: np.ndarray
    excluded: np.ndarray
    n_others: int


def exact_certificate(target_recall: float) -> dict[str, Any]:
    """Return the certificate of a flat index."""
    return {
        "is_exact": True,
        "target_recall": target_recall,
        "query_sets": {},
        "efforts": [],
        "effort": None,
        "is_reached": True,
        "statement": "Exact: every search compares the query with every row.",
    }


def certify(
    lists: InvertedFile,
    embeddings: EmbeddingFolder,
    *,
    queries: EmbeddingFolder | None,
    n_queries: int,
    target_recall: float,
    seed: int,
    bad_rows: BadRows,
) -> dict[str, Any]:
    """Measure recall at every effort.

    Parameters
    ----------
    lists : InvertedFile
    embeddings : EmbeddingFolder
        What the index was built from.
    queries : EmbeddingFolder or None
        Predicted embeddings of the same space.
    n_queries : int
        At most so many of each set, a seeded sample.
    target_recall : float in (0, 1]
        Recall among the first ten that the default effort must reach.
    seed : int
    bad_rows : {"error", "tombstone"}

    Returns
    -------
    certificate : dict
        ``efforts``: n_probe, n_candidates, read_bytes (a query), and recall by query set and k.
        ``effort``: the chosen one. ``is_reached`` and ``statement`` say whether it does.
    """
    sets = {}
    if lists.n_codes > 1:
        rows, unit = _sample(embeddings, n_queries, seed)
        sets["held_out"] = _QuerySet(unit, rows, lists.n_codes - 1)
    if queries is not None:
        unit = _sample(queries, n_queries, seed)[1]
        sets["queries"] = _QuerySet(unit, np.full(len(unit), -1), lists.n_codes)
    sets = {name: query_set for name, query_set in sets.items() if len(query_set.unit)}
    measured: dict[tuple[int, int], dict[str, dict[str, float]]] = {}
    for name, query_set, truth in _ground_truth(sets, embeddings, bad_rows):
        for effort, recalls in _measure(lists, query_set, truth):
            measured.setdefault(effort, {})[name] = recalls
    efforts = sorted(
        (
            {
                "n_probe": n_probe,
                "n_candidates": n_candidates,
                "read_bytes": _read_bytes(lists, embeddings, n_probe, n_candidates),
                "recall": recall,
            }
            for (n_probe, n_candidates), recall in measured.items()
        ),
        key=lambda effort: (effort["read_bytes"], effort["n_probe"]),
    )
    described: dict[str, dict[str, Any]] = {
        name: {"n_queries": len(query_set.unit)} for name, query_set in sets.items()
    }
    if queries is not None and "queries" in described:
        described["queries"]["fingerprint"] = queries.fingerprint
    return {
        "is_exact": False,
        "target_recall": target_recall,
        "query_sets": described,
        "efforts": efforts,
        **_choose(efforts, lists, target_recall),
    }


def _sample(folder: EmbeddingFolder, n_queries: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return rows and unit vectors of a sample, without those that can't be searched for."""
    part_rows = [part.n_rows for part in folder.parts]
    # Another stream than the training sample's, which has the same parts and the plain seed.
    rows = sample_rows(part_rows, min(n_queries, folder.n_rows), seed + 1)
    return sound_rows(folder, rows)


def sound_rows(folder: EmbeddingFolder, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Read rows, and return numbers and unit vectors (n, width) of those with a direction."""
    vectors = to_float32(folder.take(rows).reshape(len(rows), folder.space.width))
    is_sound = has_direction(vectors)
    return rows[is_sound], unit_rows(vectors[is_sound])


def _ground_truth(
    sets: dict[str, _QuerySet], embeddings: EmbeddingFolder, bad_rows: BadRows
) -> Iterator[tuple[str, _QuerySet, np.ndarray]]:
    """Yield each set with its exact nearest rows; the embeddings are read once for all sets."""
    if not sets:
        return
    unit = np.concatenate([query_set.unit for query_set in sets.values()])
    excluded = np.concatenate([query_set.excluded for query_set in sets.values()])
    batches = embeddings.iter_batches(
        batch_rows=block_rows(len(unit), unit.shape[1]), bad_rows=bad_rows
    )
    truth = exact_search(batches, unit, max(_KS), excluded=excluded)[0]
    start = 0
    for name, query_set in sets.items():
        own = truth[start : start + len(query_set.unit), : query_set.n_others]
        start += len(query_set.unit)
        yield name, query_set, own


def _measure(
    lists: InvertedFile, query_set: _QuerySet, truth: np.ndarray
) -> list[tuple[tuple[int, int], dict[str, float]]]:
    counts = [count for count in _CANDIDATES if count < lists.n_codes]
    if lists.n_codes <= _CANDIDATES[-1]:
        counts.append(lists.n_codes)
    measured = []
    n_probe = 1
    while n_probe <= min(lists.n_lists, _MOST_PROBES):
        # One more than the most, for a query may find the row that it excludes.
        rows = lists.candidates(query_set.unit, n_probe, counts[-1] + 1, n_least=TARGET_K)
        rows = _without(rows, query_set.excluded)
        places = _places(rows, truth)
        for count in counts:
            recalls = {
                str(k): float(np.mean(places[:, :k] < count)) for k in _KS if k <= truth.shape[1]
            }
            measured.append(((n_probe, count), recalls))
        n_probe *= 2
    return measured


def _without(rows: np.ndarray, excluded: np.ndarray) -> np.ndarray:
    """Move the row that each query excludes, where found, behind the others, marked missing."""
    rows = np.where(rows == excluded[:, None], -1, rows)
    order = np.argsort(rows < 0, axis=1, kind="stable")
    return np.take_along_axis(rows, order, axis=1)


def _places(rows: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return where each true row stands among the candidates; beyond their end if it doesn't.

    A true neighbor that is among the candidates is among the first after the exact ranking too,
    for no candidate beats it that isn't a true neighbor itself; so nothing need be ranked here.
    """
    places = np.full(truth.shape, rows.shape[1])
    for i, (found, wanted) in enumerate(zip(rows, truth, strict=True)):
        order = np.argsort(found, kind="stable")
        at = np.minimum(np.searchsorted(found[order], wanted), len(order) - 1)
        is_found = found[order[at]] == wanted
        places[i, is_found] = order[at[is_found]]
    return places


def _read_bytes(
    lists: InvertedFile, embeddings: EmbeddingFolder, n_probe: int, n_candidates: int
) -> int:
    width = embeddings.space.width
    n_codes = lists.n_codes * n_probe // lists.n_lists
    scanned = n_codes * (code_bytes(width) + ROW_BYTES_IN_MEMORY)
    return scanned + n_candidates * width * embeddings.dtype.itemsize


def _choose(
    efforts: list[dict[str, Any]], lists: InvertedFile, target_recall: float
) -> dict[str, Any]:
    full = {"n_probe": lists.n_lists, "n_candidates": lists.n_codes}
    if not efforts:
        return {"effort": full, "is_reached": True, "statement": "Too few rows to measure recall."}

    def hardest(effort: dict[str, Any]) -> float:
        return float(min(_at_target(recall) for recall in effort["recall"].values()))

    reaching = [effort for effort in efforts if hardest(effort) >= target_recall]
    chosen = reaching[0] if reaching else max(efforts, key=hardest)
    name = min(chosen["recall"], key=lambda name: _at_target(chosen["recall"][name]))
    verb = "reaches" if reaching else "DOES NOT reach"
    return {
        "effort": {"n_probe": chosen["n_probe"], "n_candidates": chosen["n_candidates"]},
        "is_reached": bool(reaching),
        "statement": (
            f"Recall@{TARGET_K} {verb} the target of {target_recall:g}: {hardest(chosen):.4f} on "
            f"the hardest set ({name}), probing {chosen['n_probe']} of {lists.n_lists} lists and "
            f"ranking {chosen['n_candidates']} candidates exactly."
        ),
    }


def _at_target(recall: dict[str, float]) -> float:
    return recall[max((k for k in recall if int(k) <= TARGET_K), key=int)]
