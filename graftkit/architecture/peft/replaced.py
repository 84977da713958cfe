"""Which stored tensors of a base an adapter brings whole, so that the base's own values are never used."""

from __future__ import annotations

from collections.abc import Iterable

from graftkit.architecture.accounting import Structure
from graftkit.architecture.peft.edits import Edit, Replaced
from graftkit.architecture.tying import tied_group
from graftkit.checkpoint.checkpoint import Checkpoint


def replaced_tensors(checkpoint: Checkpoint, structure: Structure, edits: Iterable[Edit]) -> frozenset[str]:
    """Names on disk of the tensors that ``edits`` replace under every name that shares them."""
    whole: set[str] = set()
    for edit in edits:
        if isinstance(edit, Replaced):
            whole |= tied_group(edit.weight, checkpoint, structure) if edit.shared else {edit.weight}
    return frozenset(
        stored
        for name in whole
        if tied_group(name, checkpoint, structure) <= whole
        for stored in structure.memory.on_disk(name)
    )
