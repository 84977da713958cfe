"""merge_adapter: a LoRA adapter, with its head and token rows, folded into the base one matrix at a time."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path

from graftkit.architecture.accounting import Structure, account
from graftkit.architecture.fused import slices
from graftkit.architecture.peft.edits import BiasShift, Edit, Factors, Replaced, TokenRows
from graftkit.architecture.peft.replaced import replaced_tensors
from graftkit.architecture.skeleton import build_skeleton, with_values
from graftkit.architecture.tying import tied_group, untie
from graftkit.checkpoint.adapter import adapter_digests, open_adapter
from graftkit.checkpoint.cast import cast
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.reading import TAGS
from graftkit.checkpoint.tensors import FLOATING, LazyTensor
from graftkit.errors import InputRejected, few, plural, printable
from graftkit.operations.adapters.growth import edits_on
from graftkit.operations.adapters.merge import edited
from graftkit.operations.adapters.pattern_notes import pattern_notes
from graftkit.operations.adapters.same_change import same_change
from graftkit.operations.base import Context, Outcome
from graftkit.recipe import MergeAdapter
from graftkit.verification.adapter_origin import Origin, find_origin
from graftkit.verification.adapter_record import read_record
from graftkit.verification.digests import checkpoint_digests
from graftkit.verification.merged_model import MergeCheck
from graftkit.verification.promises import Promise, PromiseClass, Scope

Edits = dict[str, tuple[Edit, ...]]


def merge_adapter(spec: MergeAdapter, checkpoint: Checkpoint, context: Context) -> Outcome:
    """Return the base with the adapter folded in. A target on one side of a tied pair unties it by copy.

    Whether the adapter was made for this base is looked at twice: by names, config and shapes here, and by the bytes of the weights
    before anything is written.

    Raises:
        InputRejected: base and adapter do not fit, the adapter was made for another base and ``spec.base`` does not accept that, or
            what the adapter does cannot be folded into a weight.
    """
    adapter, shown = open_adapter(spec.adapter), printable(spec.adapter)
    structure = account(checkpoint)
    folder = Path(spec.adapter).resolve()
    found = edits_on(build_skeleton(checkpoint.config), checkpoint, adapter, folder, shown)
    by_weight: Edits = {}
    for edit in sorted(found, key=_order):
        by_weight[edit.weight] = (*by_weight.get(edit.weight, ()), edit)
    unknown = sorted(by_weight.keys() - structure.skeleton.shapes.keys())
    if unknown:
        raise InputRejected(f"{shown}: {structure.skeleton.architecture} has no weight {printable(unknown[0])!r}")
    result, copied = _untie(checkpoint, structure, by_weight)
    result = result if spec.dtype is None else _in_dtype(result, spec.dtype)
    result = result.with_tensors(dict(_merged(result, structure, by_weight, copied)))
    base = None if checkpoint is context.source else checkpoint
    digests = functools.cache(lambda weights: checkpoint_digests(checkpoint, weights=weights))
    replaced = functools.cache(lambda: replaced_tensors(checkpoint, structure, found))
    made_for = functools.partial(
        find_origin, adapter.config, read_record(folder), checkpoint, digests, replaced=replaced
    )
    origin = made_for(weights=False)
    _check_origin(origin, spec)
    return Outcome(
        result,
        _promise(origin, accepted=spec.base == "accept"),
        (*_notes(found, copied), *pattern_notes(adapter.config, found)),
        scope=Scope.NOTHING,
        checks=(MergeCheck(folder, base),),
        prepare=lambda _: _check_origin(made_for(weights=True), spec),
        figures=lambda: {"adapter": spec.adapter, **adapter_digests(folder)},
    )


def _check_origin(origin: Origin, spec: MergeAdapter) -> None:
    if origin.different and spec.base == "check":
        more = f" (and {len(origin.different) - 1} more)" if len(origin.different) > 1 else ""
        raise InputRejected(
            f"{printable(spec.adapter)}: {origin.different[0]}{more}; give the base that it was made for as base_model, or set"
            " base: accept"
        )


def _order(edit: Edit) -> tuple[int, bool]:
    """A weight is replaced first, its own value over a shared one; then what lies on top is folded in, and rows of tokens win."""
    return (Replaced, Factors, BiasShift, TokenRows).index(type(edit)), isinstance(edit, Replaced) and not edit.shared


def _untie(checkpoint: Checkpoint, structure: Structure, by_weight: Edits) -> tuple[Checkpoint, dict[str, str]]:
    """Spread edits over tied weights; where they change one side only, store a copy of its own for each side.

    Returns the checkpoint with those copies, and their names on disk by name in memory. ``by_weight`` is completed.
    """
    copied: dict[str, str] = {}
    for name in list(by_weight):
        group = tied_group(name, checkpoint, structure)
        if len(group) == 1:
            continue
        shared = tuple(e for m in sorted(group) for e in by_weight.get(m, ()) if isinstance(e, Replaced) and e.shared)
        own = {m: tuple(e for e in by_weight.get(m, ()) if e not in shared) for m in group}
        for member in group:
            by_weight[member] = (*shared[:1], *own[member])
        if all(same_change(by_weight[name], by_weight[member]) for member in group):
            by_weight |= dict.fromkeys(group, by_weight[name])
            continue
        checkpoint, names = untie(checkpoint, structure.skeleton.tied, group)
        copied |= {copy: copy for copy in names}
    return checkpoint, copied


def _in_dtype(checkpoint: Checkpoint, dtype: str) -> Checkpoint:
    """The checkpoint with every floating tensor in ``dtype``, which the config names wherever it names one."""
    config = checkpoint.config
    keys = ("dtype", "torch_dtype")
    inside = {key: value for key, value in config.items() if isinstance(value, dict)}
    top: list[tuple[str, ...]] = [(key,) for key in keys if key in config] or [("dtype",)]
    below = [(name, key) for name, value in inside.items() for key in keys if key in value]
    documents = {"config.json": with_values(config, [*top, *below], dtype)}
    tensors = {name: cast(tensor, TAGS[dtype]) for name, tensor in checkpoint.tensors.items()}
    return checkpoint.with_documents(documents).with_tensors(tensors)


def _merged(
    checkpoint: Checkpoint, structure: Structure, by_weight: Edits, copied: Mapping[str, str]
) -> Iterator[tuple[str, LazyTensor]]:
    for name, edits in by_weight.items():
        if not edits:
            continue
        stored = (copied[name],) if name in copied else structure.memory.on_disk(name)
        fused = any(structure.memory[one].converted for one in stored if one in structure.memory)
        if fused and not all(isinstance(edit, Factors) for edit in edits):
            raise InputRejected(
                f"{printable(name)}: is fused on loading, and the adapter replaces it; merge it with peft"
            )
        parts = slices(structure.memory, name, checkpoint.tensors) if fused else {}
        for one in stored:
            base = checkpoint.tensors[one]
            if base.dtype not in FLOATING:
                raise InputRejected(
                    f"tensor {printable(one)!r} is {base.dtype}; only floating point can be merged into"
                )
            yield one, edited(base, edits, parts.get(one))


def _promise(origin: Origin, *, accepted: bool) -> Promise:
    assumptions = ["each merged weight is rounded once to its stored dtype"]
    if accepted:
        found = f": {origin.different[0]}" if origin.different else ""
        assumptions.append(f"the base was accepted without asking whether the adapter was made for it{found}")
    elif not origin.known_by:
        assumptions.append(f"the adapter was made for this base: {origin.unknown}")
    return Promise(
        PromiseClass.ROUNDED,
        "all outputs, compared with the base and the adapter as peft loads them",
        "sequences of token ids",
        tuple(assumptions),
    )


def _notes(edits: tuple[Edit, ...], copied: Mapping[str, str]) -> Iterator[str]:
    factors = [edit for edit in edits if isinstance(edit, Factors)]
    if factors:
        ranks = sorted({edit.rank for edit in factors})
        shown = f"{ranks[0]}" if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
        dora = ", with magnitudes (DoRA)" if any(edit.magnitude is not None for edit in factors) else ""
        yield f"{len(factors)} weights get a product of rank {shown} folded in{dora}"
    whole = {edit.weight for edit in edits if isinstance(edit, Replaced)}
    if whole:
        yield f"{plural(len(whole), 'tensor')} of the adapter replace{'s' * (len(whole) == 1)} the base's: {few(whole)}"
    for edit in edits:
        if isinstance(edit, TokenRows):
            yield f"{len(edit.rows)} rows of {printable(edit.weight)} are the adapter's"
    for name in copied:
        yield f"{printable(name)} was tied and gets a copy of its own: the adapter changes one side only"
