"""Errors of planning, building and verifying an index.

IndexBuilderError               a VoxseekError
├── SizeError                   a size such as "32GiB" that can't be read
├── PlanError                   no design fits the rows and the budget, or a plan is malformed
├── BuildError                  the folder holds pieces of another build
├── IndexDamagedError           a file of the index isn't what was written (an ArtefactError too)
├── SourceError                 the embedding folder that an index refers to moved or changed
├── FaissVersionError           codes that the installed FAISS doesn't read as they were meant
├── TaskError                   a task of a build failed as often as it was tried
└── SchedulerError              the Dask scheduler can't be reached, or no longer
"""

from __future__ import annotations

from .embeddings.errors import ArtefactError, VoxseekError


class IndexBuilderError(VoxseekError):
    """Base class of everything that the index builder refuses."""


class SizeError(IndexBuilderError, ValueError):
    """A size that can't be read as a number of bytes."""


class PlanError(IndexBuilderError):
    """No design fits, or a stored plan is malformed."""


class BuildError(IndexBuilderError):
    """A folder holds pieces of another build, or what is asked contradicts plan or index."""


class IndexDamagedError(IndexBuilderError, ArtefactError):
    """A file of an index differs from what was written."""


class SourceError(IndexBuilderError):
    """The embedding folder behind an index is missing, moved or changed."""


class FaissVersionError(IndexBuilderError):
    """The installed FAISS gives other codes than the one that built the index."""


class TaskError(IndexBuilderError):
    """A task failed as often as it was tried; the message names it."""


class SchedulerError(IndexBuilderError):
    """The Dask scheduler can't be reached, or went away."""
