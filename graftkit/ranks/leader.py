"""What rank 0 adds to `apply`: it lets the others write their files, and takes their ledger over."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from graftkit.checkpoint.staging import Staging
from graftkit.checkpoint.visible import wait_for_files
from graftkit.checkpoint.write import file_sizes
from graftkit.planned import Plan
from graftkit.ranks.assignment import assign
from graftkit.ranks.group import Group
from graftkit.ranks.helper import Part, find_part
from graftkit.ranks.sameness import plan_marks
from graftkit.running.split.crew import Crew
from graftkit.running.split.interrupts import LineBroken
from graftkit.share import Count
from graftkit.verification.structural import LedgerEntry, StructureCheck


class LeaderShare:
    """The share of rank 0, see :class:`~graftkit.share.Share`."""

    def __init__(self, group: Group) -> None:
        self._group = group
        self._directory = Path()
        self._crew: Crew | None = None

    def begin(self, planned: Plan, staging: Staging) -> Collection[str]:
        """Tell the others where to write and what was planned; return the files of rank 0."""
        inode, made = staging.share()
        self._directory = staging.path
        self._group.tell(
            "staged",
            {
                "output": str(staging.output),
                "inode": inode,
                "made": [str(path) for path in made],
                "marks": plan_marks(planned),
            },
        )
        return assign(file_sizes(planned.result), self._group.count)[0]

    def watched(self, count: Count | None) -> Count | None:
        def moved(nbytes: int) -> None:
            self._group.require_running()
            if count is not None:
                count(nbytes)

        return moved

    def finish(self, planned: Plan, check: StructureCheck) -> tuple[LedgerEntry, ...]:
        """Wait until every rank's files are on the disk; what they measured while they made them goes into the plan's notes."""
        parts: list[Part] = self._group.gather(find_part(planned, check, self._directory))
        sizes = {name: size for part in parts for name, size in part.sizes.items()}
        wait_for_files(self._directory, sizes)
        for part in parts:
            for outcome, noted in zip(planned.outcomes, part.noted, strict=True):
                outcome.noted.update(noted)
        return check.finish({name: entry for part in parts for name, entry in part.ledger.items()})

    def crew(self, planned: Plan) -> Crew | None:
        """The other ranks, which run their blocks of models from here on."""
        self._crew = Crew(self._group, wanted=planned.paged)
        return self._crew

    def dismiss(self) -> dict[str, Any] | None:
        """Let the others wait for the end; return what each rank did to run models, None where none was run."""
        if self._crew is None:
            return None
        try:
            figures = self._crew.figures() if self._crew.is_used else None
            self._crew.end()
        except LineBroken as broken:
            raise broken.error from broken
        return figures
