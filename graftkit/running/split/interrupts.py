"""What leaves a forward at once, past every `except Exception` that takes what a forward raises for its answer."""

from __future__ import annotations

from graftkit.errors import GraftkitError


class CannotSplit(BaseException):
    """The model cannot be run block by block on several ranks; the message says why."""


class LineBroken(BaseException):
    """Another rank ended, or cannot be reached; ``error`` is what the command ends with."""

    def __init__(self, error: GraftkitError) -> None:
        super().__init__(str(error))
        self.error = error
