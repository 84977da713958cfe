"""What every check returns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol


class CheckReport(Protocol):
    """What a check found. ``name`` is its key in the report; ``failures`` is empty when it passed."""

    @property
    def name(self) -> str: ...
    @property
    def failures(self) -> tuple[str, ...]: ...
    def rows(self) -> Iterator[tuple[str, str, str]]:
        """Yield ``(check, result, figure)`` for a table."""
    def to_json(self) -> dict[str, Any]:
        """Return everything that was measured as JSON values."""
