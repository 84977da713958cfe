"""What edited tensors mean for the model: whether each weight that its class loads is the one that it was."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from graftkit.architecture.accounting import Structure, account
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.reading import DTYPES
from graftkit.checkpoint.tensors import FLOATING, LazyTensor
from graftkit.errors import InputRejected, plural
from graftkit.verification.promises import EVERY_INPUT, Promise, PromiseClass, Scope

#: What config.json calls the dtype of a model, now and in older versions of transformers.
_FIELDS = ("dtype", "torch_dtype")


class Effect(NamedTuple):
    """The promise, what of the outputs is compared, and sentences for the plan."""

    promise: Promise
    scope: Scope
    notes: tuple[str, ...] = ()


def effect(before: Checkpoint, after: Checkpoint) -> Effect:
    """Bitwise where the class loads the same tensors for the same weights, whatever they are called; else on purpose.

    A checkpoint that its class does not load has no outputs, and nothing is compared with it.
    """
    changed = sum(before.tensors.get(name) is not tensor for name, tensor in after.tensors.items())
    dropped = len(before.tensors.keys() - after.tensors.keys())
    what = f"{plural(changed, 'tensor')} edited, {dropped} dropped"
    intended = Promise(PromiseClass.INTENTIONAL, what, EVERY_INPUT)
    try:
        old = account(before)
    except InputRejected as error:
        note = f"outputs are compared with nothing, since the source does not load as it is: {error}"
        return Effect(intended, Scope.NOTHING, (note,))
    try:
        new = account(after)
    except InputRejected:  # what comes behind may mend it; the planned result is held against its class in any case
        return Effect(intended, Scope.MEASURE)
    if before.config != after.config:
        return Effect(
            intended, Scope.NOTHING, ("outputs are compared with nothing, since the model has another dtype",)
        )
    if _loaded(old, before) == _loaded(new, after):
        return Effect(
            Promise(PromiseClass.BITWISE, "hidden states and logits over every id", EVERY_INPUT), Scope.EVERYTHING
        )
    return Effect(intended, Scope.MEASURE)


def _loaded(structure: Structure, checkpoint: Checkpoint) -> Mapping[str, list[tuple[str, LazyTensor]]]:
    """The tensors behind each name in memory; where a conversion joins several, their names on disk decide how."""
    found: dict[str, list[tuple[str, LazyTensor]]] = {}
    for disk, (name, converted) in structure.memory.items():
        if name in structure.skeleton.shapes or disk in structure.packed.tensors:
            found.setdefault(name, []).append((disk if converted else "", checkpoint.tensors[disk]))
    return found


def with_dtype(before: Checkpoint, after: Checkpoint) -> tuple[Checkpoint, tuple[str, ...]]:
    """Where all floating tensors had the config's dtype and all have another one now, let the config say so."""
    old, new = (
        {tensor.dtype for tensor in checkpoint.tensors.values() if tensor.dtype in FLOATING}
        for checkpoint in (before, after)
    )
    if not (len(old) == len(new) == 1) or old == new:
        return after, ()
    was, now = DTYPES[old.pop()], DTYPES[new.pop()]
    config = _with_word(after.config, was, now)
    if config == after.config:
        return after, ()
    return after.with_documents({"config.json": config}), (f"config.json says {now}, as all floating tensors now are",)


def _with_word(config: Mapping[str, Any], was: str, now: str) -> dict[str, Any]:
    return {
        key: _with_word(value, was, now)
        if isinstance(value, dict)
        else now
        if key in _FIELDS and value == was
        else value
        for key, value in config.items()
    }
