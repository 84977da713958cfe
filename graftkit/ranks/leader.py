"""What rank 0 adds to `apply`: it lets the others write their files, and takes their ledger over."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from graftkit.checkpoint.joined_staging import wait_until
from graftkit.checkpoint.staging import Staging
from graftkit.checkpoint.write import file_sizes
from graftkit.planned import Plan
from graftkit.ranks.assignment import assign
from graftkit.ranks.group import Group
from graftkit.ranks.helper import Part, find_part
from graftkit.ranks.sameness import plan_marks
from graftkit.share import Count
from graftkit.verification.structural import LedgerEntry, StructureCheck

#: Seconds within which a network file system must show what another machine has written and closed.
VISIBLE = 120.0


class LeaderShare:
    """The share of rank 0, see :class:`~graftkit.share.Share`."""

    def __init__(self, group: Group) -> None:
        self._group = group
        self._directory = Path()

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
        wait_until(lambda: _are_visible(self._directory, sizes), VISIBLE, "what other ranks wrote is not there")
        for part in parts:
            for outcome, noted in zip(planned.outcomes, part.noted, strict=True):
                outcome.noted.update(noted)
        return check.finish({name: entry for part in parts for name, entry in part.ledger.items()})


def _are_visible(directory: Path, sizes: Mapping[str, int]) -> bool:
    return all(
        (directory / name).is_file() and (directory / name).stat().st_size == size for name, size in sizes.items()
    )
