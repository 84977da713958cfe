"""What every other rank does: plan the same, write and read back its files, hand the ledger over, and wait for the end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from graftkit import engine
from graftkit.blame import blaming_inputs, stamps_before
from graftkit.checkpoint.joined_staging import JoinedStaging
from graftkit.checkpoint.stamps import require_unchanged
from graftkit.checkpoint.visible import VISIBLE
from graftkit.checkpoint.write import file_sizes
from graftkit.planned import Plan
from graftkit.ranks.assignment import assign
from graftkit.ranks.group import Group
from graftkit.ranks.sameness import plan_marks, require_same
from graftkit.recipe import Recipe
from graftkit.running.forward import undisturbed
from graftkit.running.split.owner import own_blocks
from graftkit.verification.structural import LedgerEntry, StructureCheck


@dataclass(frozen=True, slots=True)
class Part:
    """What one rank found: the ledger by tensor, the bytes of each file, and what each operation noted of the tensors made here."""

    ledger: Mapping[str, LedgerEntry]
    sizes: Mapping[str, int]
    noted: tuple[Mapping[str, float], ...]


def find_part(planned: Plan, check: StructureCheck, directory: Path) -> Part:
    """Wait until the files of this rank are read back, and return what was found.

    Raises:
        VerificationFailed, InputRejected: see :func:`~graftkit.verification.structural.check_structure`.
    """
    ledger = check.entries()
    files = {entry.shard for entry in ledger.values()}
    sizes = {file: (directory / file).stat().st_size for file in files}
    return Part(ledger, sizes, tuple(dict(outcome.noted) for outcome in planned.outcomes))


def help_to_apply(recipe: Recipe, group: Group, *, link: bool, allow_pickle: bool) -> int:
    """Write the files of this rank, as soon as rank 0 has planned and made the staging directory; return 0 when it committed.

    Raises:
        EndedElsewhere: another rank ended before this one was done.
        GraftkitError: as by :func:`graftkit.engine.apply`.
    """
    staged = group.told("staged")
    made = [Path(path) for path in staged["made"]]
    with JoinedStaging(Path(staged["output"]), staged["inode"], made, VISIBLE) as staging:
        planned = engine.plan(recipe, allow_pickle=allow_pickle)
        require_same(plan_marks(planned), staged["marks"])
        planned = engine.with_weights(planned, None)
        stamps = stamps_before(planned)
        engine.prepare(planned, lambda *_: group.require_running())
        with blaming_inputs(planned, stamps):
            part = _write(planned, staging, group, link=link)
        require_unchanged(planned.source.directory, stamps)
        staging.settle()
        group.gather(part)
        with undisturbed():
            own_blocks(group)
        group.wait_for_end()
    return 0


def _write(planned: Plan, staging: JoinedStaging, group: Group, *, link: bool) -> Part:
    files, moved = assign(file_sizes(planned.result), group.count)[group.rank], group.require_running
    with engine.written_files(planned, staging, files, documents=False, link=link, write=moved, compare=moved) as check:
        return find_part(planned, check, staging.path)
