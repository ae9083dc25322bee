"""Confidence: a folder that says how probable it is that a search found the seen image.

    reliability.svg     the curve, cross-validated over validation images
    confidence.json     last: index, space, queries, decoder, effort, random pairs, model, report

It holds for one index, one run and head, and searches of the whole index at the index's own effort:
what changes one of these changes how often a first hit is right.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from index_builder.embeddings.artefact import fingerprint, read_manifest, verify_files
from index_builder.embeddings.errors import ArtefactError

from ..errors import ConfidenceError
from ..searching.engine import SearchEngine
from ..searching.queries import QuerySet
from ..searching.request import SearchRequest
from ..searching.result import SearchResult
from .calibration import LogisticModel
from .observations import decoder_of, observe_features, read_trials
from .random_pairs import RandomPairs

MANIFEST_FILE = "confidence.json"
CURVE_FILE = "reliability.svg"
KIND = "confidence"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Assessment:
    """How sure the answers to queries are.

    Parameters
    ----------
    probabilities : ndarray of shape (n,), float32, above 0 and below 1
        That the first hit is the image that was seen; NaN where there are fewer than two hits,
        where shards didn't answer in time, and where fewer or more trials were averaged than into
        any query of the fit.
    percentiles : ndarray of shape (n, k), float32, from 0 to below 100
        Share of random rows of the gallery that score lower than the hit; NaN where there is none.
    """

    probabilities: np.ndarray
    percentiles: np.ndarray


class Confidence:
    """A fitted confidence beside the index that it is of; made by `open`. Threads may share it.

    Attributes
    ----------
    path : str
    manifest : dict
    model : LogisticModel
    random_pairs : RandomPairs
    n_trials : tuple of int, or None
        The fewest and the most trials averaged into a query of the fit; None: not known.
    """

    def __init__(self, path: Path, manifest: dict[str, Any], random_pairs: RandomPairs) -> None:
        self.path = str(path)
        self.manifest = manifest
        self.model = LogisticModel.from_dict(manifest["model"])
        self.random_pairs = random_pairs
        trials = manifest["queries"]["n_trials"]
        self.n_trials: tuple[int, int] | None = None if trials is None else (trials[0], trials[1])

    @classmethod
    def open(cls, folder: str | os.PathLike[str], engine: SearchEngine) -> Confidence:
        """Open a confidence, and read its random rows from the embeddings behind the index.

        Parameters
        ----------
        folder : path
        engine : SearchEngine
            The opened index.

        Raises
        ------
        ArtefactError
            If the folder is missing, incomplete or altered.
        ConfidenceError
            If it is of another index, or of this one before rows were added or deleted.
        """
        root = Path(folder)
        manifest = read_manifest(root, MANIFEST_FILE, kind=KIND, format_version=FORMAT_VERSION)
        verify_files(root, manifest)
        if manifest.get("fingerprint") != seal(manifest):
            raise ArtefactError(
                f"{root / MANIFEST_FILE} differs from what was written: its fingerprint doesn't "
                f"match its content. Fit the confidence again, or restore the file."
            )
        fitted_on = manifest["index"]["fingerprint"]
        if fitted_on != engine.fingerprint:
            raise ConfidenceError(
                f"{root} was fitted on the index {fitted_on[:12]}, and {engine.path} is "
                f"{engine.fingerprint[:12]}: another gallery, or rows were added or deleted since. "
                f"Fit it again with voxseek confidence fit."
            )
        drawn = manifest["random_pairs"]
        pairs = RandomPairs.draw(engine, n_drawn=drawn["n_drawn"], seed=drawn["seed"])
        return cls(root, manifest, pairs)

    def assess(
        self, queries: np.ndarray, result: SearchResult, n_trials: np.ndarray | None = None
    ) -> Assessment:
        """Say how sure the answers to queries are.

        Parameters
        ----------
        queries : ndarray of shape (n, width) or (n, tokens, dim), any float
            Of any norm but zero.
        result : SearchResult
            What a search found for them, at least two hits a query asked for.
        n_trials : ndarray of shape (n,), int64, or None
            Trials averaged into each query; None: as many as into those of the fit.

        Raises
        ------
        ConfidenceError
            If one hit a query was asked for, or the queries of the fit differed in trials averaged
            and ``n_trials`` is None.
        """
        known = self.n_trials
        if n_trials is None and known is not None and known[0] != known[1]:
            raise ConfidenceError(
                f"{self.path} was fitted on averages of {known[0]} to {known[1]} trials, and it "
                f"isn't known how many these queries are of. Say n_trials, or fit a confidence on "
                f"queries of one kind."
            )
        least, most = known or (1, 1)
        trials = np.full(len(queries), least) if n_trials is None or known is None else n_trials
        comparison = self.random_pairs.compare(queries, result.scores)
        width = int(np.prod(queries.shape[1:]))
        features = observe_features(result, comparison, np.clip(trials, least, most), width)
        probabilities = self.model.probabilities(features)
        probabilities[(trials < least) | (trials > most)] = np.nan
        if result.shards_missing:
            probabilities[:] = np.nan
        return Assessment(probabilities.astype(np.float32), comparison.percentiles)

    def require_applicable(self, request: SearchRequest, queries: QuerySet | None = None) -> None:
        """Raise if the probabilities don't hold for a search.

        Parameters
        ----------
        request : SearchRequest
            Any k of at least 2, and nothing else but the defaults.
        queries : QuerySet or None
            Their run, head and trials averaged, where they are known, must be those of the fit.

        Raises
        ------
        ConfidenceError
            Names what differs.
        """
        usual = SearchRequest(k=request.k)
        changed = [
            field.name
            for field in dataclasses.fields(request)
            if field.compare and getattr(request, field.name) != getattr(usual, field.name)
        ]
        if request.excluded is not None:
            changed.append("excluded")
        if changed:
            raise ConfidenceError(
                f"the search sets {', '.join(changed)}, and {self.path} was fitted on searches "
                f"that leave this as it is by default: its probabilities don't hold. Search "
                f"without, or without confidence."
            )
        if request.k < 2:
            raise ConfidenceError(
                f"k is {request.k}, and confidence rests on the margin of the first hit over the "
                f"second. Search with k of at least 2."
            )
        if queries is not None:
            self._require_same_decoder(queries)
            self._require_same_trials(queries)

    def _require_same_decoder(self, queries: QuerySet) -> None:
        fitted_on, asked = self.manifest["decoder"], decoder_of(queries)
        for name, expected in fitted_on.items():
            if asked.get(name) != expected:
                found = (
                    f"{name} {asked[name][:12]}" if name in asked else f"no {name} that is known"
                )
                raise ConfidenceError(
                    f"{queries.name} was predicted by {found}, and {self.path} was fitted on "
                    f"{name} {expected[:12]}: its probabilities don't hold. Ask with what voxseek "
                    f"predict wrote for this {name}, or fit a confidence of its own."
                )

    def _require_same_trials(self, queries: QuerySet) -> None:
        asked = read_trials(queries)
        if asked is None or self.n_trials is None:
            return
        least, most = self.n_trials
        if asked.min() < least or asked.max() > most:
            raise ConfidenceError(
                f"{queries.name} has averages of {asked.min()} to {asked.max()} trials, and "
                f"{self.path} was fitted on averages of {least} to {most}: its probabilities don't "
                f"hold. Fit one on validation predictions of the same kind."
            )


def seal(manifest: dict[str, Any]) -> str:
    """Return the fingerprint of what a confidence says, all but who made it and the files."""
    own = ("kind", "format_version", "made_by", "files", "fingerprint")
    return fingerprint({name: value for name, value in manifest.items() if name not in own})
