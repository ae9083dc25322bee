"""Mixtures of queries: what a brain saw, a little more like these words, unlike that picture.

A mixture is the direction of a weighted sum of unit vectors. It is one query, searched once; where
its parts lie in different places of the space, the nearest images may resemble none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain, repeat
from typing import TYPE_CHECKING

import numpy as np

from index_builder.cosine import has_direction, unit_rows
from index_builder.embeddings.float16 import to_float32
from index_builder.embeddings.space import EmbeddingSpace

from ..errors import QueryError
from .queries import MixedPart, QuerySet, load_queries, require_same_images

if TYPE_CHECKING:
    from .encoding import QueryEncoder

# Of the sum of the weights' sizes: what float32 leaves of a sum whose parts cancel exactly.
LEAST_NORM = 1e-6
BRAIN = "brain"


def parse_mix(text: str) -> tuple[str, float]:
    """Read one part of a mixture, as the command line takes it.

    Parameters
    ----------
    text : str
        ``SPEC=WEIGHT``, SPEC as in `load_queries` or ``brain``, with a minus in front of what is
        to be unlike: ``"text:a zebra=0.5"``, ``"-text:a drawing=0.3"``.

    Returns
    -------
    spec : str
    weight : float
        Below zero after a minus.

    Raises
    ------
    QueryError
        If there is no weight, or it is not a finite number above zero.
    """
    spec, equals, written = text.rpartition("=")
    sign = -1.0 if spec.startswith("-") else 1.0
    spec = spec.removeprefix("-").strip()
    if not equals or not spec:
        raise QueryError(
            f"--mix {text!r} is not SPEC=WEIGHT, such as 'text:a zebra=0.5' or 'brain=1'."
        )
    try:
        weight = float(written)
    except ValueError:
        weight = np.nan
    if not (np.isfinite(weight) and weight > 0):
        raise QueryError(
            f"the weight in --mix {text!r} is {written!r}, expected a number above zero. For what "
            f"is to be unlike, put the minus in front: '-{spec}=0.5'."
        )
    return spec, sign * weight


def load_mix(
    texts: Sequence[str],
    *,
    brain: QuerySet | None = None,
    space: EmbeddingSpace | None = None,
    get_encoder: Callable[[], QueryEncoder] | None = None,
) -> QuerySet:
    """Open the parts of a mixture, as the command line takes them, and mix them.

    Parameters
    ----------
    texts : sequence of str
        See `parse_mix`.
    brain : QuerySet or None
        What ``brain`` means.
    space, get_encoder
        As in `load_queries`.

    Raises
    ------
    QueryError
        If a part can't be read or opened, ``brain`` is used and not given or given and not used, or
        the parts don't go together.
    """
    parts = []
    is_used = False
    for text in texts:
        spec, weight = parse_mix(text)
        if spec != BRAIN:
            part = load_queries(spec, space=space, get_encoder=get_encoder)
        elif brain is not None:
            part, is_used = brain, True
        else:
            raise QueryError(f"--mix {text!r} needs a brain to ask: --run RUN and --subject DIR.")
        parts.append((weight, part))
    if brain is not None and not is_used:
        raise QueryError(f"{brain.label} is in no part of the mixture: add --mix {BRAIN}=1.")
    return mix_queries(parts)


def mix(parts: Sequence[tuple[float, np.ndarray]]) -> np.ndarray:
    """Return the directions of weighted sums of queries, each taken as a unit vector.

    Parameters
    ----------
    parts : sequence of (weight, ndarray of shape (n, width) or (1, width))
        A part of one query is mixed into each of the others'.

    Returns
    -------
    mixed : ndarray of shape (n, width), float32, unit rows
        ``unit(sum over parts of weight * unit(queries))``.

    Raises
    ------
    QueryError
        If sizes don't go together, a query has no direction, or the sum vanishes: its norm is
        below 1e-6 of the sum of the weights' sizes.
    """
    if not parts:
        raise QueryError("a mixture needs at least one part.")
    n_queries = max(len(rows) for _, rows in parts)
    shapes = {rows.shape for _, rows in parts}
    widths = {shape[1:] for shape in shapes}
    if len(widths) > 1 or any(shape[0] not in (1, n_queries) for shape in shapes):
        raise QueryError(
            f"parts of a mixture have shapes {', '.join(map(str, sorted(shapes)))}; expected one "
            f"width, and {n_queries} queries or one."
        )
    total = np.zeros((n_queries, *widths.pop()))
    for number, (weight, rows) in enumerate(parts):
        vectors = to_float32(rows)
        if not has_direction(vectors).all():
            raise QueryError(
                f"part {number} of a mixture holds a query that is zero, NaN or infinite; each "
                f"needs a direction."
            )
        total += weight * unit_rows(vectors).astype(np.float64)
    norms = np.linalg.norm(total, axis=1, keepdims=True)
    vanishing = np.flatnonzero(norms < LEAST_NORM * sum(abs(weight) for weight, _ in parts))
    if len(vanishing):
        raise QueryError(
            f"query {vanishing[0]} of a mixture vanishes: its parts cancel each other. Give them "
            f"other weights."
        )
    mixed: np.ndarray = (total / norms).astype(np.float32)
    return mixed


def mix_queries(parts: Sequence[tuple[float, QuerySet]]) -> QuerySet:
    """Mix query sets, batch by batch as they are asked for.

    Parameters
    ----------
    parts : sequence of (weight, QuerySet)
        Of one size, or of one query, which is mixed into each of the others'.

    Returns
    -------
    mixture : QuerySet
        With the metadata of the first part of its size that has a weight above zero: what a brain
        saw is known of what it is mixed into.

    Raises
    ------
    QueryError
        If sizes or widths don't go together, or two parts are of different images row for row.
    SpaceMismatchError
        If two parts are of different spaces.
    """
    if not parts:
        raise QueryError("a mixture needs at least one part.")
    n_queries = max(queries.n_queries for _, queries in parts)
    whole = [queries for _, queries in parts if queries.n_queries == n_queries]
    for _, queries in parts:
        if queries.n_queries not in (1, n_queries):
            raise QueryError(
                f"{queries.label} has {queries.n_queries} queries, and {whole[0].label} has "
                f"{n_queries}; expected as many, or one that is mixed into each."
            )
        if queries.width != whole[0].width:
            raise QueryError(
                f"{queries.label} has {queries.width} numbers a query, and {whole[0].label} has "
                f"{whole[0].width}; parts of a mixture are of one space."
            )
    spoken = [queries for _, queries in parts if queries.space is not None]
    for queries in spoken[1:]:
        assert queries.space is not None and spoken[0].space is not None
        spoken[0].space.require_comparable(
            queries.space, mine=spoken[0].label, theirs=queries.label
        )
    for queries in whole[1:]:
        require_same_images(whole[0], queries)
    described = next(
        (q for weight, q in parts if weight > 0 and q.n_queries == n_queries and q.columns), None
    )
    mixed = tuple(MixedPart(queries.name, weight, queries.fingerprint) for weight, queries in parts)
    return QuerySet(
        label=" ".join(f"{weight:+g} {queries.label}" for weight, queries in parts),
        n_queries=n_queries,
        width=whole[0].width,
        space=spoken[0].space if spoken else None,
        columns=described.columns if described else (),
        fingerprint=None,
        source=partial(_mixed_batches, tuple(parts), n_queries),
        described_by=described.described_by if described else None,
        mix=mixed,
    )


def _mixed_batches(
    parts: tuple[tuple[float, QuerySet], ...], n_queries: int, batch_queries: int
) -> Iterator[np.ndarray]:
    streams = []
    for _, queries in parts:
        batches = queries.iter_batches(batch_queries=batch_queries)
        is_single = queries.n_queries == 1 and n_queries > 1
        streams.append(chain.from_iterable(repeat(list(batches))) if is_single else batches)
    weights = [weight for weight, _ in parts]
    for start, *rows in zip(range(0, n_queries, batch_queries), *streams, strict=False):
        try:
            yield mix(list(zip(weights, rows, strict=True)))
        except QueryError as error:
            raise QueryError(f"in the batch from query {start}: {error}") from error
