"""A results folder as a gallery page: each hit's picture beside the one that was seen."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from index_builder.embeddings.collection import Collection
from training.subjects.subject import Subject

from ..confidence.observations import images_held
from ..errors import ResultsError
from ..images.decoding import Place
from ..results import Results
from ..searching.engine import SearchEngine
from ..searching.queries import QuerySet
from .page import GalleryHit, GalleryQuery, write_gallery

PAGE_NAME = "gallery.html"
_HIT_COLUMNS = ("image_id", "image_path", "caption")


@dataclass(frozen=True)
class Found:
    """How often the seen image was among the hits.

    Parameters
    ----------
    n_known : int
        Queries whose seen image is known, by ``image_id``.
    n_first : int
        Queries that found it at rank 0.
    n_found : int
        Queries that found it at any rank of the results.
    """

    n_known: int
    n_first: int
    n_found: int


def count_found(results: Results, queries: QuerySet) -> Found:
    """Count the queries whose own image, by ``image_id``, is among their hits."""
    seen = _query_column(queries, "image_id")
    if seen is None or "image_id" not in results.columns:
        return Found(0, 0, 0)
    n_first = n_found = 0
    for query, hits in results.iter_queries(["image_id"]):
        ranks = np.flatnonzero(hits["image_id"].to_numpy() == seen[query])
        n_found += len(ranks) > 0
        n_first += 0 in ranks
    return Found(len(seen), n_first, n_found)


def write_results_gallery(
    results: Results,
    engine: SearchEngine,
    queries: QuerySet,
    *,
    subject: Subject | None = None,
    title: str,
    footer: str = "",
    n_hits: int = 7,
    n_queries: int = 1000,
) -> Path:
    """Write ``gallery.html`` into a results folder.

    Parameters
    ----------
    results : Results
    engine : SearchEngine
        Whose embedding folders know the pictures of the hits (column ``image_path``, relative to
        the folder of the row, and maybe into an archive).
    queries : QuerySet
        What was searched for; a column ``image_id`` says which image was seen.
    subject : Subject or None
        Whose images were seen; without it a seen image is shown where the gallery holds it too.
    title, footer : str
    n_hits : int
        Hits shown a query, at most those in the results.
    n_queries : int
        Queries shown, the first ones.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    ResultsError
        If the gallery's metadata have no column ``image_path``.
    """
    if "image_path" not in results.columns:
        raise ResultsError(
            f"{results.path} has no column image_path, so there are no pictures to show; its "
            f"columns are {', '.join(results.columns)}. Embed pictures with voxseek embed."
        )
    page = Path(results.path) / PAGE_NAME
    shown = min(n_queries, results.n_queries)
    facts = [
        ("queries", f"{queries.label} ({results.n_queries}, {shown} shown)"),
        ("index", f"{engine.path}: {engine.plan.design}, {engine.n_rows} images"),
        ("space", str(engine.space)),
        ("score", "cosine with the stored vector"),
    ]
    write_gallery(
        page,
        _queries(results, engine, queries, subject, n_hits, shown),
        title=title,
        facts=facts,
        footer=footer,
    )
    return page


def _queries(
    results: Results,
    engine: SearchEngine,
    queries: QuerySet,
    subject: Subject | None,
    n_hits: int,
    n_queries: int,
) -> Iterator[GalleryQuery]:
    seen = _query_column(queries, "image_id")
    n_trials = _query_column(queries, "n_trials")
    held = _images_held(engine, seen[:n_queries]) if seen is not None else frozenset()
    captions = subject.captions() if subject is not None else {}
    columns = [name for name in ("score", "row", *_HIT_COLUMNS) if name in results.columns]
    for query, hits in results.iter_queries(columns):
        if query >= n_queries:
            return
        rows = hits.to_pylist()
        image_id = None if seen is None else int(seen[query])
        own = next(
            (hit for hit in rows if image_id is not None and hit.get("image_id") == image_id), None
        )
        if subject is not None and subject.has_images and image_id is not None:
            seen_image: Place | None = subject.image(image_id)
            caption = captions.get(image_id, "")
        else:
            seen_image = _picture(engine.embeddings, own) if own is not None else None
            caption = (own.get("caption") or "") if own is not None else ""
        yield GalleryQuery(
            label=f"query {query}" if image_id is None else f"image {image_id}",
            seen_image=seen_image,
            seen_caption=caption,
            n_trials=None if n_trials is None else int(n_trials[query]),
            is_in_gallery=image_id in held,
            hits=tuple(
                GalleryHit(
                    row=hit["row"],
                    score=hit["score"],
                    image=_picture(engine.embeddings, hit),
                    caption=hit.get("caption") or "",
                    is_seen=image_id is not None and hit.get("image_id") == image_id,
                )
                for hit in rows[:n_hits]
            ),
        )


def _query_column(queries: QuerySet, name: str) -> Any:
    """Return one value a query, or None where the query set has no such column."""
    if name not in queries.columns:
        return None
    return queries.metadata(np.arange(queries.n_queries), [name])[name].to_numpy()


def _images_held(engine: SearchEngine, image_ids: Any) -> frozenset[int]:
    """Return those of ``image_ids`` that the gallery has a row of."""
    if "image_id" not in engine.columns:
        return frozenset()
    asked = np.unique(image_ids)
    return frozenset(asked[images_held(engine, asked)].tolist())


def _picture(embeddings: Collection, hit: dict[str, Any]) -> Path | None:
    """Return the picture of a hit, whose path is relative to the folder that has its row."""
    if not hit.get("image_path"):
        return None
    folder = embeddings.folders[bisect_right(embeddings.row_starts, hit["row"]) - 1]
    return Path(folder.path) / str(hit["image_path"])
