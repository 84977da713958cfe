"""What of a result this process writes and reads back: all of it, unless ranks write it together."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from graftkit.checkpoint.staging import Staging
from graftkit.planned import Plan
from graftkit.verification.structural import LedgerEntry, StructureCheck

if TYPE_CHECKING:
    from graftkit.running.split.crew import Crew

#: Is called with the bytes that were just moved.
Count = Callable[[int], None]


class Share(Protocol):
    """The part in a write of the process that verifies the result and commits it."""

    def begin(self, planned: Plan, staging: Staging) -> Collection[str]:
        """Let others take part, and return the weight files of the result that this process writes."""

    def watched(self, count: Count | None) -> Count | None:
        """``count`` itself, or what also stops the thread that moves bytes, once another process has failed."""

    def finish(self, planned: Plan, check: StructureCheck) -> tuple[LedgerEntry, ...]:
        """Wait for what the others write, and return the ledger of everything; ``check`` reads back what was written here."""

    def crew(self, planned: Plan) -> Crew | None:
        """The processes that run models together with this one, once :meth:`finish` has returned; None where it is alone."""

    def dismiss(self) -> Mapping[str, Any] | None:
        """Let them go; return what each did to run models, for the report. None where none was run, or this process is alone."""


class Whole:
    """One process writes everything."""

    def begin(self, planned: Plan, staging: Staging) -> Collection[str]:  # noqa: ARG002 - nobody else takes part
        return planned.result.files

    def watched(self, count: Count | None) -> Count | None:
        return count

    def finish(self, planned: Plan, check: StructureCheck) -> tuple[LedgerEntry, ...]:  # noqa: ARG002 - as above
        return check.finish()

    def crew(self, planned: Plan) -> None:  # noqa: ARG002 - as above
        return None

    def dismiss(self) -> None:
        return None


WHOLE = Whole()
