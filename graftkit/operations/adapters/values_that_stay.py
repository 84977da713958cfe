"""Whole values of adapters that are combined (heads, tables, rows of tokens): kept from one of them, since values do not add."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from graftkit.architecture.peft.equal_edits import equal_edits
from graftkit.checkpoint.tensors import LazyTensor
from graftkit.errors import InputRejected, few, printable
from graftkit.operations.adapters.source_adapter import SourceAdapter

#: The fields of LoraConfig that say which values are trained whole.
FIELDS = ("modules_to_save", "trainable_token_indices", "ensure_weight_tying", "bias")


def holder_of_values(sources: Sequence[SourceAdapter]) -> SourceAdapter | None:
    """The source whose whole values the combination keeps; None where none has any.

    That is the only one that has values, with the weight 1, or the first of all where all have equal ones: then they are of what
    all of them lie on, such as tables that grew before the training.

    Raises:
        InputRejected: there are others; what they are, and whose.
    """
    holders = [source for source in sources if source.values]
    if not holders:
        return None
    first, names = holders[0], sorted({edit.weight for source in holders for edit in source.values.values()})
    if holders == list(sources) and all(_equal(first, other) for other in holders[1:]):
        if len(sources) > 1 or first.weight == 1:
            return first
    elif len(holders) > 1:
        raise InputRejected(
            f"{few(names)}: whole values (a head, a table, rows of tokens), which do not add as updates do, in"
            f" {few([source.shown for source in holders])}; merge one adapter into the base first, or combine adapters of which"
            " one has them"
        )
    if first.weight != 1:
        raise InputRejected(
            f"{first.shown}: {few(names)}: whole values (a head, a table, rows of tokens), which cannot be taken {first.weight:g}"
            " times; give this adapter the weight 1"
        )
    for source in sources:
        both = {edit.weight for edit in first.values.values()} & (source.factors.keys() | source.shifts.keys())
        if alone := both - first.factors.keys() - first.shifts.keys():
            raise InputRejected(
                f"{printable(min(alone))}: is replaced by {first.shown} and adapted by {source.shown}; merge one of them into the"
                " base first"
            )
    return first


def values_of(holder: SourceAdapter) -> Mapping[str, LazyTensor]:
    """Its whole values by their names in its file."""
    return {name: edit.values for name, edit in holder.values.items()}


def _equal(one: SourceAdapter, other: SourceAdapter) -> bool:
    mine, theirs = (sorted(source.values.values(), key=lambda edit: edit.weight) for source in (one, other))
    return len(mine) == len(theirs) and all(
        first.weight == second.weight and equal_edits((first,), (second,))
        for first, second in zip(mine, theirs, strict=True)
    )
