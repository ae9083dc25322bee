"""Confidences: how probable it is that the first hit for a trial is the image that was seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..errors import ConfidenceError
from ..searching.request import SearchRequest
from ..searching.result import SearchResult
from .finding import Found
from .questions import Query, TrialQuery
from .served import ServedIndex, ServedRun


def confidences_of(
    served: ServedIndex,
    runs: Mapping[str, ServedRun],
    queries: Sequence[Query],
    vectors: np.ndarray,
    found: Found,
    request: SearchRequest,
) -> list[float | None]:
    """Return a probability a query; None where nothing was fitted that holds for it.

    Parameters
    ----------
    served : ServedIndex
    runs : mapping of str to ServedRun
    queries : sequence of Query
        Trials alone can have a confidence.
    vectors : ndarray of shape (n, width), float32
        What was searched for.
    found : Found
    request : SearchRequest
        A filter changes what is probable, so that nothing holds.
    """
    told: list[float | None] = [None] * len(found.rows)
    places: dict[str, list[int]] = {}
    for place, query in enumerate(queries):
        if isinstance(query, TrialQuery):
            places.setdefault(query.run, []).append(place)
    for name, chosen in places.items():
        run = runs[name]
        n_trials = np.array([run.trials_of(_image(queries[place])) for place in chosen])
        part = SearchResult(
            found.rows[chosen], found.scores[chosen], shards_missing=found.shards_missing
        )
        for confidence in served.confidences:
            if confidence.manifest["decoder"] != run.decoder:
                continue
            try:
                confidence.require_applicable(request)
                sure = confidence.assess(vectors[chosen], part, n_trials).probabilities
            except ConfidenceError:
                continue  # fitted on other searches than this one
            for place, probability in zip(chosen, sure.tolist(), strict=True):
                told[place] = probability if np.isfinite(probability) else None
    return told


def _image(query: Query) -> int:
    assert isinstance(query, TrialQuery)
    return query.image_id
