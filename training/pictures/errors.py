"""What is wrong with one picture."""

from __future__ import annotations

from ..errors import TrainingError


class PictureError(TrainingError):
    """One picture that can't be had.

    Parameters
    ----------
    reason : str
        A few words by which failures are counted, such as ``"not a picture"``.
    message : str
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
