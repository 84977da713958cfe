"""What an adapter brings whole: which stored tensors of the base are never used, and which values are the base's own."""

from __future__ import annotations

from collections.abc import Iterable

from graftkit.architecture.accounting import Structure
from graftkit.architecture.peft.edits import Edit, Replaced
from graftkit.architecture.skeleton import build_skeleton
from graftkit.architecture.tying import tied_group
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.reading import equal_bytes


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


def without_base_values(edits: Iterable[Edit], checkpoint: Checkpoint) -> tuple[Edit, ...]:
    """The edits less those that replace a weight by the base's own value, as peft saves a table that it adapts."""
    edits = tuple(edits)
    if not any(isinstance(edit, Replaced) for edit in edits):
        return edits
    skeleton = build_skeleton(checkpoint.config)
    names = skeleton.memory_names(checkpoint.tensors)

    def is_base_value(edit: Edit) -> bool:
        if not isinstance(edit, Replaced):
            return False
        stored = names.stored_as(edit.weight) or names.stored_as(skeleton.tied.get(edit.weight, edit.weight))
        return stored is not None and equal_bytes(checkpoint.tensors[stored], edit.values)

    return tuple(edit for edit in edits if not is_base_value(edit))
