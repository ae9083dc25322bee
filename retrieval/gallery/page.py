"""The gallery: what a brain saw, and what was found for it, on one page that needs nothing else.

The page is a single HTML file: style, script and images are inside, and its content security policy
forbids the network. It is written query by query in two passes over files, the trials and their
images first, then the summary above them, so memory grows only by the path of each distinct image.
"""

from __future__ import annotations

import base64
import hashlib
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import TextIOWrapper
from tempfile import TemporaryFile
from typing import IO

from jinja2 import Environment, PackageLoader, StrictUndefined

from index_builder.embeddings.artefact import atomic_write

from ..images.decoding import Place
from .thumbnails import N_PIXELS, ThumbnailSheet

_COPY_CHARACTERS = 1 << 20


@dataclass(frozen=True)
class GalleryHit:
    """One image that was found.

    Parameters
    ----------
    row : int >= 0
        Row of the gallery that was searched.
    score : float
        Cosine with the query.
    image : Place or None
        What to show; None where there is none.
    caption : str
    is_seen : bool
        Whether it is the image that was seen.
    """

    row: int
    score: float
    image: Place | None
    caption: str
    is_seen: bool

    def __post_init__(self) -> None:
        if self.row < 0:
            raise ValueError(f"row is {self.row}, expected 0 or more; leave out missing hits.")
        if not math.isfinite(self.score):
            raise ValueError(f"the score of row {self.row} is {self.score}, expected a number.")


@dataclass(frozen=True)
class GalleryQuery:
    """One brain query and its hits.

    Parameters
    ----------
    label : str
        Heading of the trial: ``"subj01, image 1234"``.
    seen_image : Place or None
    seen_caption : str
    n_trials : int or None
        Trials averaged into the query; None if it is not known.
    hits : tuple of GalleryHit
        Best first.
    is_in_gallery : bool
        Whether the seen image is known and among those searched, so that it could be found at
        all.
    """

    label: str
    seen_image: Place | None
    seen_caption: str
    n_trials: int | None
    hits: tuple[GalleryHit, ...]
    is_in_gallery: bool = True

    @property
    def seen_rank(self) -> int | None:
        """Rank of the seen image among the hits, counted from 1; None if it is not there."""
        for rank, hit in enumerate(self.hits, start=1):
            if hit.is_seen:
                return rank
        return None

    @property
    def outcome(self) -> str:
        """``first``, ``found``, ``missed``, or ``open`` where there was nothing to find."""
        if self.seen_rank is not None:
            return "first" if self.seen_rank == 1 else "found"
        return "missed" if self.is_in_gallery else "open"


@dataclass(frozen=True)
class GallerySummary:
    """What a gallery page shows.

    Parameters
    ----------
    n_queries : int
    n_answerable : int
        Queries whose seen image could be found.
    n_hits : int
        Most hits of a query.
    n_at_rank : tuple of int
        Queries whose seen image was found at rank 1, 2, ... n_hits.
    n_unavailable : int
        Image files that could not be read.
    """

    n_queries: int
    n_answerable: int
    n_hits: int
    n_at_rank: tuple[int, ...]
    n_unavailable: int

    @property
    def n_first(self) -> int:
        """Queries whose best hit is the seen image."""
        return self.n_at_rank[0] if self.n_at_rank else 0

    @property
    def n_found(self) -> int:
        """Queries with the seen image among their hits."""
        return sum(self.n_at_rank)

    @property
    def n_missed(self) -> int:
        """Queries whose seen image could have been found and was not."""
        return self.n_answerable - self.n_found


def write_gallery(
    path: str | os.PathLike[str],
    queries: Iterable[GalleryQuery],
    *,
    title: str,
    facts: Sequence[tuple[str, str]] = (),
    footer: str = "",
    image_pixels: int = N_PIXELS,
) -> GallerySummary:
    """Write a gallery page, atomically.

    Parameters
    ----------
    path : path
        The HTML file.
    queries : iterable of GalleryQuery
        Consumed one by one.
    title : str
    facts : sequence of (str, str)
        Name and value, for the table under the summary: subject, model, index, effort.
    footer : str
        Last line of the page: how it was made, and from what.
    image_pixels : int
        Side of an embedded image; each distinct file is embedded once.

    Returns
    -------
    GallerySummary
    """
    environment = Environment(
        loader=PackageLoader("retrieval.gallery", package_path=""),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    script = environment.get_template("filter.js.jinja").render()
    with TemporaryFile() as trials, TemporaryFile() as symbols:
        summary = _write_trials(environment, queries, trials, symbols, image_pixels)
        page = environment.get_template("page.html.jinja").generate(
            title=title,
            facts=facts,
            footer=footer,
            summary=summary,
            script=script,
            script_sha256=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            trials=_pieces(trials),
            symbols=_pieces(symbols),
        )
        with atomic_write(path) as temporary, open(temporary, "w", encoding="utf-8") as sink:
            sink.writelines(page)
    return summary


def _write_trials(
    environment: Environment,
    queries: Iterable[GalleryQuery],
    trials: IO[bytes],
    symbols: IO[bytes],
    image_pixels: int,
) -> GallerySummary:
    """Render each query into ``trials`` and its new images into ``symbols``, and count."""
    sheet = ThumbnailSheet(symbols, n_pixels=image_pixels)
    template = environment.get_template("trial.html.jinja")
    ranks: Counter[int] = Counter()
    n_queries = n_answerable = n_hits = 0
    for query in queries:
        html = template.render(query=query, number=n_queries + 1, symbol=sheet.symbol)
        trials.write(html.encode())
        n_queries += 1
        n_hits = max(n_hits, len(query.hits))
        n_answerable += query.outcome != "open"
        if query.seen_rank is not None:
            ranks[query.seen_rank] += 1
    return GallerySummary(
        n_queries=n_queries,
        n_answerable=n_answerable,
        n_hits=n_hits,
        n_at_rank=tuple(ranks[rank] for rank in range(1, n_hits + 1)),
        n_unavailable=sheet.n_unavailable,
    )


def _pieces(file: IO[bytes]) -> Iterator[str]:
    """Yield a UTF-8 file from its beginning, in pieces of bounded size."""
    file.seek(0)
    text = TextIOWrapper(file, encoding="utf-8", newline="")
    while piece := text.read(_COPY_CHARACTERS):
        yield piece
    text.detach()
