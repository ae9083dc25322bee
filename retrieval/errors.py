"""Errors of search, benchmarks and results.

RetrievalError          root; a VoxseekError
├── BenchmarkError      two sides can't be compared, or a protocol doesn't fit the pool
├── QueryError          queries of a wrong shape, NaN, infinite or of zero length
├── SearchError         a search parameter out of its range (a ValueError too)
│   └── FilterError     a predicate that is not allowed, or fails
├── ConfidenceError     a confidence can't be fitted, or doesn't hold for what is asked of it
├── ClusterError        no worker of a cluster could search, or none in time
├── DemoError           a demo folder holds something else
├── ReconstructionError a decoder has no weights, or can't decode what it is given
├── ResultsError        a results folder can't be written or read as asked
└── ServingError        a server can't be started as asked (`serving.problems`)

PictureError, a picture that can't be read or fetched, is the `TrainingError` of those who embed.
"""

from __future__ import annotations

from index_builder.embeddings.errors import VoxseekError
from training.pictures.errors import PictureError as PictureError


class RetrievalError(VoxseekError):
    """Root of the errors of this package."""


class BenchmarkError(RetrievalError):
    """Two sides of a benchmark can't be compared, or its protocol doesn't fit the data."""


class QueryError(RetrievalError):
    """Queries that can't be searched for."""


class SearchError(RetrievalError, ValueError):
    """A search parameter out of its range; the message names the range."""


class ResultsError(RetrievalError):
    """A results folder can't be written or read as asked."""


class ReconstructionError(RetrievalError):
    """A decoder's weights can't be had, or it can't decode what it is given."""


class DemoError(RetrievalError):
    """A folder can't take a demo, or its pictures don't suffice for one."""


class FilterError(SearchError):
    """A predicate that isn't allowed, or can't be evaluated; the message says what of it."""


class ConfidenceError(RetrievalError):
    """A confidence can't be fitted on these queries, or doesn't hold for this search."""


class ClusterError(RetrievalError):
    """No worker of a cluster could search a shard, or none did in time."""
