"""merge_adapter: a LoRA adapter, with its head and token rows, folded into the base one matrix at a time."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from graftkit.architecture.accounting import Structure, account
from graftkit.architecture.fused import slices
from graftkit.architecture.peft.edits import BiasShift, Edit, Factors, Replaced, TokenRows
from graftkit.architecture.peft.equal_edits import equal_edits
from graftkit.architecture.peft.replaced import replaced_tensors
from graftkit.architecture.skeleton import build_skeleton
from graftkit.architecture.tying import tied_group, untie
from graftkit.checkpoint.adapter import adapter_digests, open_adapter
from graftkit.checkpoint.cast import cast
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.reading import TAGS
from graftkit.checkpoint.tensors import FLOATING, LazyTensor
from graftkit.errors import InputRejected, few, plural, printable
from graftkit.operations.adapters.growth import edits_on
from graftkit.operations.adapters.merge import edited
from graftkit.operations.adapters.origin import refuse_other_base
from graftkit.operations.adapters.pattern_notes import pattern_notes
from graftkit.operations.adapters.tokenizer_beside import tokenizer_differences
from graftkit.operations.adapters.values_beside import left_beside
from graftkit.operations.base import Context, Outcome
from graftkit.operations.weights.dequantize import PLAIN_WEIGHTS, dequantize
from graftkit.operations.weights.dtype import config_in_dtype
from graftkit.recipe import MergeAdapter
from graftkit.verification.adapters.merged_model import MergeCheck
from graftkit.verification.adapters.origin import Origin, find_origin
from graftkit.verification.adapters.record import read_record
from graftkit.verification.digests import checkpoint_digests
from graftkit.verification.promises import Promise, PromiseClass, Scope
from graftkit.verification.weights.dequantized import DequantizedCheck

Edits = dict[str, tuple[Edit, ...]]


def merge_adapter(spec: MergeAdapter, checkpoint: Checkpoint, context: Context) -> Outcome:
    """Return the base with the adapter folded in. What changes the sides of a tied pair differently unties it by copy.

    A quantized base becomes a plain one first, where ``spec.dequantize`` asks for it: its packed values have no room for an update.

    Whether the adapter was made for this base is looked at twice: by names, config and shapes here, and by the bytes of the weights
    before anything is written.

    Raises:
        InputRejected: base and adapter do not fit, the adapter was made for another base and ``spec.base`` does not accept that, or
            what the adapter does cannot be folded into a weight, or trained values beside it would be lost.
        RecipeError: a name in ``spec.leave`` fits nothing.
    """
    adapter, shown = open_adapter(spec.adapter), printable(spec.adapter)
    folder = Path(spec.adapter).resolve()
    left = tuple(left_beside(folder, shown, spec.leave))
    packed, checkpoint, weights, unpacked = checkpoint, *_unpacked(spec, checkpoint)
    structure = account(checkpoint)
    found = edits_on(build_skeleton(checkpoint.config), checkpoint, adapter, folder, shown)
    by_weight: Edits = {}
    for edit in sorted(found, key=_order):
        by_weight[edit.weight] = (*by_weight.get(edit.weight, ()), edit)
    unknown = sorted(by_weight.keys() - structure.skeleton.shapes.keys())
    if unknown:
        raise InputRejected(f"{shown}: {structure.skeleton.architecture} has no weight {printable(unknown[0])!r}")
    result, copied, kept = _untie(checkpoint, structure, by_weight, shown)
    result = result if spec.dtype is None else _in_dtype(result, spec.dtype)
    merged = dict(_merged(result, structure, by_weight, copied))
    result = result.with_tensors(merged)
    base = None if checkpoint is context.source else checkpoint
    digests = functools.cache(lambda weights: checkpoint_digests(packed, weights=weights))
    replaced = functools.cache(lambda: replaced_tensors(checkpoint, structure, found))
    made_for = functools.partial(find_origin, adapter.config, read_record(folder), packed, digests, replaced=replaced)
    origin = made_for(weights=False)
    _check_origin(origin, spec)
    return Outcome(
        result,
        _promise(origin, accepted=spec.base == "accept", dequantized=spec.dequantize),
        (
            *unpacked,
            *_notes(found, copied, kept),
            *pattern_notes(adapter.config, found),
            *left,
            *tokenizer_differences(folder, checkpoint),
        ),
        scope=Scope.NOTHING,
        checks=(
            *([DequantizedCheck(packed, checkpoint, frozenset(merged))] if spec.dequantize else ()),
            MergeCheck(folder, base),
        ),
        prepare=lambda _: _check_origin(made_for(weights=True), spec),
        figures=lambda: {"adapter": spec.adapter, **adapter_digests(folder)},
        unpacked=weights,
    )


def _unpacked(
    spec: MergeAdapter, checkpoint: Checkpoint
) -> tuple[Checkpoint, Mapping[str, LazyTensor], tuple[str, ...]]:
    """The checkpoint that the adapter is folded into, its weights that were unpacked where ``spec`` asks for it, and a note of them."""
    if not spec.dequantize:
        return checkpoint, {}, ()
    plain = dequantize(checkpoint, TAGS[spec.dtype or "bfloat16"])
    whole = plain.checkpoint if spec.dtype is None else _in_dtype(plain.checkpoint, spec.dtype)
    return whole, plain.weights, (plain.note,)


def _check_origin(origin: Origin, spec: MergeAdapter) -> None:
    if spec.base == "check":
        refuse_other_base(origin, printable(spec.adapter))


def _order(edit: Edit) -> tuple[int, bool]:
    """A weight is replaced first, its own value over a shared one; then what lies on top is folded in, and rows of tokens win."""
    return (Replaced, Factors, BiasShift, TokenRows).index(type(edit)), isinstance(edit, Replaced) and not edit.shared


def _untie(
    checkpoint: Checkpoint, structure: Structure, by_weight: Edits, shown: str
) -> tuple[Checkpoint, dict[str, str], tuple[list[str], ...]]:
    """Spread edits over tied weights; where they change its sides differently, store a copy of its own for each side.

    Returns the checkpoint with those copies, their names on disk by name in memory, and the names of each group that the adapter
    changes and that stays tied. ``by_weight`` is completed.

    Raises:
        InputRejected: some of the copies would be equal, and so lose their tie for nothing.
    """
    copied: dict[str, str] = {}
    kept: list[list[str]] = []
    done: set[str] = set()
    for name in list(by_weight):
        group = tied_group(name, checkpoint, structure)
        if len(group) == 1 or name in done:
            continue
        done |= group
        shared = tuple(e for m in sorted(group) for e in by_weight.get(m, ()) if isinstance(e, Replaced) and e.shared)
        edits = {m: (*shared[:1], *(e for e in by_weight.get(m, ()) if e not in shared)) for m in sorted(group)}
        alike = _alike(edits)
        for members in alike:
            first = next((m for m in members if structure.memory.on_disk(m)), members[0])
            by_weight.update(dict.fromkeys(members, edits[first]))
        if len(alike) == 1:
            kept += alike
            continue
        checkpoint, names = untie(checkpoint, structure.skeleton.tied, group)
        _check_apart(shown, structure.skeleton.architecture, alike)
        copied |= {copy: copy for copy in names}
    return checkpoint, copied, tuple(kept)


def _alike(edits: Mapping[str, tuple[Edit, ...]]) -> list[list[str]]:
    """The names of ``edits``, those together whose edits do the same."""
    found: list[list[str]] = []
    for name, own in edits.items():
        same = next((names for names in found if equal_edits(edits[names[0]], own)), None)
        if same is None:
            found.append([name])
        else:
            same.append(name)
    return found


def _check_apart(shown: str, architecture: str, alike: list[list[str]]) -> None:
    """Refuse where more than two were tied and some of them stay equal: the class ties all of them or none."""
    equal = next((names for names in alike if len(names) > 1), None)
    if equal is not None:
        every = few([name for names in alike for name in names])
        raise InputRejected(
            f"{shown}: does not change {every} alike, and {architecture} ties all of them or none: {few(equal)} would become"
            " equal copies, which training moves apart; keep the adapter unmerged"
        )


def _in_dtype(checkpoint: Checkpoint, dtype: str) -> Checkpoint:
    """The checkpoint with every floating tensor in ``dtype``, which the config names wherever it names one."""
    documents = {"config.json": config_in_dtype(checkpoint.config, dtype)}
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


def _promise(origin: Origin, *, accepted: bool, dequantized: bool) -> Promise:
    assumptions = ["each merged weight is rounded once to its stored dtype"]
    if dequantized:
        assumptions.insert(0, PLAIN_WEIGHTS)
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


def _notes(edits: tuple[Edit, ...], copied: Mapping[str, str], kept: Iterable[list[str]]) -> Iterator[str]:
    factors = [edit for edit in edits if isinstance(edit, Factors)]
    if factors:
        ranks = sorted({edit.rank for edit in factors})
        shown = f"{ranks[0]}" if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
        dora = ", with magnitudes (DoRA)" if any(edit.magnitude is not None for edit in factors) else ""
        yield f"{plural(len(factors), 'weight')} get{'s' * (len(factors) == 1)} a product of rank {shown} folded in{dora}"
    whole = {edit.weight for edit in edits if isinstance(edit, Replaced)}
    if whole:
        yield f"{plural(len(whole), 'tensor')} of the adapter replace{'s' * (len(whole) == 1)} the base's: {few(whole)}"
    for edit in edits:
        if isinstance(edit, TokenRows):
            are = "is" if len(edit.rows) == 1 else "are"
            yield f"{plural(len(edit.rows), 'row')} of {printable(edit.weight)} {are} the adapter's"
    for name in copied:
        yield f"{printable(name)} was tied and gets a copy of its own: the adapter does not change both sides alike"
    for names in kept:
        yield f"{few(names)} stay tied: the adapter changes them alike"
