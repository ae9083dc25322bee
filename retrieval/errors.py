"""Errors of search, benchmarks and results.

RetrievalError          root; a VoxseekError
├── BenchmarkError      two sides can't be compared, or a protocol doesn't fit the pool
├── QueryError          queries of a wrong shape, NaN, infinite or of zero length
├── SearchError         a search parameter out of its range (a ValueError too)
├── DemoError           a demo folder holds something else
└── ResultsError        a results folder can't be written or read as asked
"""

from __future__ import annotations

from index_builder.embeddings.errors import VoxseekError


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


class DemoError(RetrievalError):
    """A folder can't take a demo, or its pictures don't suffice for one."""
