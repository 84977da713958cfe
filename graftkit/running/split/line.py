"""What carries messages between rank 0 and the ranks that own blocks."""

from __future__ import annotations

from typing import Protocol


class Line(Protocol):
    """Messages of any size, in their order, between two ranks that are both there."""

    @property
    def rank(self) -> int:
        """The number of this rank."""

    @property
    def count(self) -> int:
        """How many ranks there are."""

    def send(self, rank: int, message: bytes) -> None:
        """Hand a message to another rank, as soon as it waits for one.

        Raises:
            GraftkitError: that rank ended, or cannot be reached.
        """

    def wait(self, rank: int) -> None:
        """Wait until :meth:`receive` has something at once; raises as that does. Any thread may do so."""

    def receive(self, rank: int) -> bytes:
        """Wait for the next message of another rank.

        Raises:
            GraftkitError: that rank ended, or cannot be reached.
        """
