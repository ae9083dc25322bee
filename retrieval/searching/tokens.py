"""Second stage: candidates' pictures, embedded as tokens, compared with the tokens of a brain.

One vector a picture finds what is semantically near among billions; the tokens of the last layer,
257 x 768 for ViT-L/14, tell which of the candidates it was. Nobody stores the tokens of billions:
they are computed from the pictures of a few candidates. Scotti et al. 2023 (arXiv:2305.18274)
choose among 16 pictures of LAION-5B so.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from dataclasses import replace
from math import ceil
from typing import Any

import numpy as np
from PIL import Image

from index_builder.cosine import has_direction, pair_scores
from index_builder.embeddings.float16 import to_float32
from index_builder.embeddings.reader import EmbeddingFolder

from ..errors import PictureError, QueryError
from ..images.fetching import FetchLimits
from ..images.sources import PictureSources
from ..images.tar_shards import TarShards
from .encoding import QueryEncoder, open_query_encoder
from .engine import SearchEngine
from .queries import QuerySet, require_same_images
from .request import SearchRequest
from .result import SearchResult

# "Link-Rot in Web-Sourced Multimedia Datasets" (MMM 2023, doi:10.1007/978-3-031-27077-2_37): more
# than a fifth of 270 million URLs are dead.
DEAD_SHARE = 0.2
_BATCH_QUERIES = 16  # of 257 x 768 float32: 13 MB


class TokenStage:
    """Searches an index, and ranks the nearest pictures that can be had by their tokens.

    Parameters
    ----------
    engine : SearchEngine
    pictures : PictureSources
    encoder : QueryEncoder
        Of the tokens' space.
    tokens : QuerySet
        What a brain says of each query, row for row, as tokens: predictions of a run that was
        trained on the hidden layer, or on patches.
    n_live : int
        Pictures that are ranked, for each query.
    dead_share : float
        The share of pictures that can't be had, in [0, 1): the first stage looks for
        ``n_live / (1 - dead_share)`` candidates.

    Attributes
    ----------
    n_ranked : int
        Pictures that were ranked so far.
    dead : Counter
        Candidates that were skipped so far, by the reason why their picture can't be had.

    Raises
    ------
    QueryError
        If a number is out of range.
    SpaceMismatchError
        If encoder and tokens are of different spaces.
    PictureError
        If the index has no column by which pictures could be found.
    """

    def __init__(
        self,
        engine: SearchEngine,
        pictures: PictureSources,
        encoder: QueryEncoder,
        tokens: QuerySet,
        *,
        n_live: int,
        dead_share: float = DEAD_SHARE,
    ) -> None:
        if n_live < 1 or not 0 <= dead_share < 1:
            raise QueryError(
                f"n_live is {n_live} and dead_share {dead_share}; expected at least 1, and a "
                f"share from 0 to below 1."
            )
        if tokens.space is None or not isinstance(tokens.source, EmbeddingFolder):
            raise QueryError(
                f"{tokens.label} is no embedding folder; expected one that a run wrote, trained "
                f"on the hidden layer or on patches."
            )
        tokens.space.require_comparable(encoder.space, mine=tokens.label, theirs="the encoder")
        self._engine, self._pictures, self._encoder = engine, pictures, encoder
        self._tokens, self._folder = tokens, tokens.source
        self._n_live, self._dead_share = n_live, dead_share
        self._columns = pictures.columns(engine.columns)
        self.n_ranked = 0
        self.dead: Counter[str] = Counter()

    def widen(self, request: SearchRequest) -> SearchRequest:
        """Return what the first stage is asked: enough candidates for the dead among them."""
        # Rounded first: a share of 0.9 leaves 0.0999..., whose inverse is just above ten.
        return replace(request, k=ceil(round(self._n_live / (1 - self._dead_share), 6)))

    def require_applicable(self, queries: QuerySet, request: SearchRequest) -> None:
        """Raise unless there are tokens of each query, and as many ranked as hits are asked for.

        Raises
        ------
        QueryError
        """
        if queries.n_queries != self._tokens.n_queries:
            raise QueryError(
                f"{queries.label} has {queries.n_queries} queries, and {self._tokens.label} has "
                f"tokens of {self._tokens.n_queries}; expected as many."
            )
        require_same_images(queries, self._tokens)
        if self._n_live < request.k:
            raise QueryError(
                f"{request.k} hits a query are asked for, and {self._n_live} pictures are ranked "
                f"by tokens; rank at least as many."
            )

    def search(
        self, queries: np.ndarray, request: SearchRequest, *, first_query: int = 0
    ) -> SearchResult:
        """Return the hits of a batch of queries; see `SearchEngine.search`.

        Each query's candidates are taken in the order of the first stage until ``n_live`` of them
        have a picture, or they end. Those are ordered by their tokens, and the ``k`` best are its
        hits; candidates without a picture are no hits. ``scores`` stay the cosines of the first
        stage, and ``token_scores`` are those of the second.

        Parameters
        ----------
        queries : ndarray of shape (n, width), any float
        request : SearchRequest
        first_query : int
            Row of the tokens that belongs to the first of ``queries``.

        Raises
        ------
        QueryError
            If tokens are zero or hold NaN or infinite numbers.
        """
        first = self._engine.search(queries, self.widen(request))
        shape = len(queries), request.k
        rows = np.full(shape, -1, np.int64)
        scores = np.full(shape, np.nan, np.float32)
        token_scores = scores.copy()
        counts = None if first.n_duplicates is None else np.zeros(shape, np.int32)
        for start in range(0, len(queries), _BATCH_QUERIES):
            stop = min(start + _BATCH_QUERIES, len(queries))
            facts = self._facts(first.rows[start:stop])
            tokens = self._read_tokens(first_query + start, first_query + stop)
            for query in range(start, stop):
                candidates = first.rows[query]
                places, cosines = self._rank(candidates, facts, tokens[query - start])
                places, cosines = places[: request.k], cosines[: request.k]
                n_hits = len(places)
                rows[query, :n_hits] = candidates[places]
                scores[query, :n_hits] = first.scores[query, places]
                token_scores[query, :n_hits] = cosines
                if counts is not None and first.n_duplicates is not None:
                    counts[query, :n_hits] = first.n_duplicates[query, places]
        return SearchResult(rows, scores, counts, first.shards_missing, token_scores=token_scores)

    def to_dict(self) -> dict[str, Any]:
        """Return what was done so far as a JSON-serialisable dict, the most frequent reason first.

        ``space`` of the tokens, ``tokens`` (name and fingerprint of the predictions), ``n_live``
        asked for a query, ``n_ranked`` pictures, ``n_dead``, ``dead`` by reason.
        """
        assert self._tokens.space is not None  # checked in __init__
        return {
            "space": self._tokens.space.to_dict(),
            "tokens": {"label": self._tokens.name, "fingerprint": self._tokens.fingerprint},
            "n_live": self._n_live,
            "n_ranked": self.n_ranked,
            "n_dead": self.dead.total(),
            "dead": dict(self.dead.most_common()),
        }

    def summary(self) -> str:
        """Return what was done so far as a line for people."""
        line = f"{self.n_ranked} pictures ranked by their tokens"
        if not self.dead:
            return line
        reasons = ", ".join(f"{reason} {n}" for reason, n in self.dead.most_common())
        return f"{line}; {self.dead.total()} candidates without a picture skipped: {reasons}"

    def _read_tokens(self, start: int, stop: int) -> np.ndarray:
        """Return the tokens of some queries, flattened, float32."""
        stored = self._folder.take(np.arange(start, stop))
        tokens = to_float32(stored.reshape(stop - start, -1))
        bad = np.flatnonzero(~has_direction(tokens))
        if len(bad):
            raise QueryError(
                f"row {start + bad[0]} of {self._tokens.label} is zero or holds NaN or infinite "
                f"numbers; tokens need a direction. Predict them again."
            )
        return tokens

    def _rank(
        self, candidates: np.ndarray, facts: dict[int, dict[str, Any]], tokens: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return places of candidates that have a picture, nearest by tokens first, and cosines."""
        places, pictures = self._live(candidates[candidates >= 0], facts)
        if not pictures:
            return places, np.empty(0, np.float32)
        embedded = self._encoder.encode_images(pictures)
        numbers = np.arange(len(embedded))
        cosines = pair_scores(tokens[None], embedded, np.zeros_like(numbers), numbers)
        order = np.lexsort((candidates[places], -cosines))
        return places[order], cosines[order]

    def _facts(self, rows: np.ndarray) -> dict[int, dict[str, Any]]:
        """Return what is known of where the picture of each row is, by row."""
        wanted = np.unique(rows[rows >= 0])
        described = self._engine.metadata(wanted, self._columns).to_pylist()
        return dict(zip(wanted.tolist(), described, strict=True))

    def _live(
        self, candidates: np.ndarray, facts: dict[int, dict[str, Any]]
    ) -> tuple[np.ndarray, list[Image.Image]]:
        """Return places among the candidates, and pictures, of the first that have one."""
        until = time.monotonic() + self._pictures.seconds
        places: list[int] = []
        pictures: list[Image.Image] = []
        start = 0
        while start < len(candidates) and len(pictures) < self._n_live:
            asked = candidates[start : start + self._n_live - len(pictures)].tolist()
            left = max(until - time.monotonic(), 1e-3)
            found = self._pictures.get(asked, [facts[row] for row in asked], seconds=left)
            for place, picture in enumerate(found, start):
                if isinstance(picture, PictureError):
                    self.dead[picture.reason] += 1
                else:
                    places.append(place)
                    pictures.append(picture)
            start += len(asked)
        self.n_ranked += len(pictures)
        return np.array(places, np.int64), pictures


def open_token_stage(
    engine: SearchEngine,
    tokens: QuerySet,
    *,
    n_live: int,
    shards: str | os.PathLike[str] | None = None,
    fetch: bool = False,
    encoder: str | None = None,
    pretrained: str | None = None,
    device: str = "cpu",
) -> TokenStage:
    """Open what the second stage needs: pictures, and the encoder of the tokens' space.

    Parameters
    ----------
    engine, tokens, n_live
        As of `TokenStage`.
    shards : path or None
        A folder of tar shards that holds pictures; see `TarShards`.
    fetch : bool
        Whether URLs are fetched, within the default `FetchLimits`.
    encoder, pretrained, device
        As of `open_query_encoder`.

    Raises
    ------
    QueryError, SpaceMismatchError, PictureError, EncoderError
    """
    if tokens.space is None or tokens.space.layer == "final":
        raise QueryError(
            f"{tokens.label} is in {tokens.space or 'no space that it knows'}; the second stage "
            f"compares tokens: give predictions of a run that was trained on the hidden layer "
            f"or on patches."
        )
    sources = PictureSources(
        engine.embeddings,
        TarShards(shards) if shards is not None else None,
        FetchLimits() if fetch else None,
    )
    opened = open_query_encoder(tokens.space, encoder=encoder, pretrained=pretrained, device=device)
    return TokenStage(engine, sources, opened, tokens, n_live=n_live)
