"""Errors of training: subjects, targets, recipes, runs.

    TrainingError                   root of this package's errors
    ├── EncoderError                an image encoder is unknown, or its weights unreadable
    ├── TargetsError                pictures to embed are missing or unreadable
    ├── RecipeError                 a recipe has an unknown, missing or impossible field
    ├── RunError                    a run folder can't be started, resumed or used as asked
    │   ├── DivergedError           the loss is no longer finite; names step and checkpoint
    │   └── ReferenceWeightsError   a published checkpoint is not what this version reads
    └── SubjectError                a subject folder contradicts itself
        ├── SplitError              an image in two splits; names it and both
        └── SourceError             data to import contradict themselves; names file and row
            └── OptionError         more is asked of them than they have (a ValueError too)

Messages say what was found, what was expected, where, and what to do, in this order.
"""

from __future__ import annotations

from index_builder.embeddings.errors import VoxseekError


class TrainingError(VoxseekError):
    """Base class of what training refuses to do."""


class EncoderError(TrainingError):
    """An image encoder is unknown, its weights can't be read, or its output is unusable."""


class TargetsError(TrainingError):
    """Pictures to embed are missing or can't be read."""


class RecipeError(TrainingError):
    """A recipe has an unknown, missing, mistyped or impossible field."""


class RunError(TrainingError):
    """A run can't be started, resumed or used as asked."""


class DivergedError(RunError):
    """The loss of a run is no longer finite."""


class ReferenceWeightsError(RunError):
    """A published checkpoint is damaged, unsafe, or of another form than the published ones."""


class SubjectError(TrainingError):
    """The voxels, trials, regions or images of a subject contradict each other."""


class SplitError(SubjectError):
    """An image belongs to two splits, so that scores would be inflated."""


class SourceError(SubjectError):
    """Data to import into a subject folder are unreadable or contradict each other."""


class OptionError(SourceError, ValueError):
    """What is asked of an import is more than its data have."""
