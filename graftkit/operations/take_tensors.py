"""take_tensors: chosen tensors of another checkpoint in place of the base's, or beside them, byte for byte."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from graftkit.architecture.accounting import Structure, account
from graftkit.checkpoint.cast import cast
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.reading import equal_bytes
from graftkit.checkpoint.tensors import FLOATING, LazyTensor
from graftkit.errors import InputRejected, RecipeError, few, plural, printable
from graftkit.operations.base import Context, Outcome, check_plain_weights
from graftkit.operations.parts.places import Places, places_of
from graftkit.operations.weights.patterns import matching
from graftkit.recipe.take_tensors import TakeTensors
from graftkit.verification.promises import EVERY_INPUT, Promise, PromiseClass, Scope
from graftkit.verification.taken import TakenCheck


@dataclass(frozen=True, slots=True)
class Taken:
    """A tensor of the donor, and the name on disk that it gets in the base."""

    donor: str
    name: str
    tensor: LazyTensor


def take_tensors(spec: TakeTensors, checkpoint: Checkpoint, context: Context) -> Outcome:
    """Put the donor's tensors where the base has the same ones, or under their own names.

    Raises:
        RecipeError: the donor is the base, a pattern matches none of its tensors, or a dtype differs without ``cast``.
        InputRejected: the donor cannot be opened, is quantized, or a shape differs.
    """
    donor = Checkpoint.open(spec.donor)
    if donor.directory in (checkpoint.directory, context.source.directory):
        raise RecipeError("is the base itself; give the checkpoint that has other values", field="donor")
    check_plain_weights(donor, spec.op)
    structure = account(checkpoint)
    theirs = _structure(donor)
    places = places_of(theirs, structure) if theirs else Places({})
    names = {
        disk: tuple(dict.fromkeys((disk, *([theirs.memory[disk].name] if theirs else ())))) for disk in donor.tensors
    }
    chosen = matching(spec.tensors, names, "tensors", "tensor of the donor")
    taken = [Taken(disk, _place(disk, places.names, checkpoint), donor.tensors[disk]) for disk in chosen]
    changes = {one.name: _fitted(spec, one, checkpoint) for one in taken}
    _check_twice(taken)
    _check_ties(checkpoint, structure, taken)
    result = checkpoint.with_tensors(changes)
    loaded = _loaded(result, taken)
    return Outcome(
        result,
        _promise(taken, changes, used=bool(loaded)),
        tuple(_notes(taken, checkpoint, donor, loaded)),
        scope=Scope.MEASURE if loaded else Scope.EVERYTHING,
        checks=(TakenCheck(donor.directory, places.modules),) if theirs and places.holds_module(theirs, chosen) else (),
    )


def _structure(donor: Checkpoint) -> Structure | None:
    """The donor's tensors as its class has them; None where it does not hold the whole of its class, such as a block alone."""
    try:
        return account(donor)
    except InputRejected:
        return None


def _place(disk: str, places: Mapping[str, str | None], checkpoint: Checkpoint) -> str:
    place = places.get(disk, disk)
    if place is None:
        raise InputRejected(
            f"{checkpoint.name}: has what {printable(disk)!r} of the donor holds in another form on disk, which its loader converts;"
            " save one of the two from the other's class with transformers first"
        )
    return place


def _fitted(spec: TakeTensors, taken: Taken, checkpoint: Checkpoint) -> LazyTensor:
    """The donor's tensor in the shape and the dtype that the base has there."""
    before, tensor = checkpoint.tensors.get(taken.name), taken.tensor
    if before is None:
        return tensor
    quoted = repr(printable(taken.name))
    if before.shape != tensor.shape:
        raise InputRejected(
            f"tensor {quoted} has shape {list(before.shape)} in the base and {list(tensor.shape)} in the donor; bring both to one"
            " shape first"
        )
    if before.dtype == tensor.dtype:
        return tensor
    both = f"tensor {quoted} is {before.dtype} in the base and {tensor.dtype} in the donor"
    if not {before.dtype, tensor.dtype} <= set(FLOATING):
        raise InputRejected(f"{both}; only floating point values are cast")
    if not spec.cast:
        raise RecipeError(f"{both}; set cast: true to round it to {before.dtype}", field="tensors")
    return cast(tensor, before.dtype)


def _check_twice(taken: list[Taken]) -> None:
    names: dict[str, str] = {}
    for one in taken:
        other = names.setdefault(one.name, one.donor)
        if other != one.donor:
            raise InputRejected(
                f"{printable(other)!r} and {printable(one.donor)!r} of the donor would both become {printable(one.name)!r}"
            )


def _check_ties(checkpoint: Checkpoint, structure: Structure, taken: list[Taken]) -> None:
    """Refuse to change one of two equal stored tensors that the class ties: they would be tied no more."""
    names = {one.name for one in taken}
    for pair in structure.skeleton.tied.items():
        disks = [structure.memory.first_on_disk(name) for name in pair]
        there = [disk for disk in disks if disk is not None]
        if (
            len(there) == 2
            and len(names & set(there)) == 1
            and equal_bytes(*(checkpoint.tensors[disk] for disk in there))
        ):
            here, other = sorted(there, key=lambda disk: disk not in names)
            raise RecipeError(
                f"{printable(here)!r} is tied to {printable(other)!r}, and both are stored; take both", field="tensors"
            )


def _loaded(result: Checkpoint, taken: list[Taken]) -> list[str]:
    """Those of the taken tensors that the base's class loads."""
    structure = account(result)
    return [one.name for one in taken if structure.memory[one.name].name in structure.skeleton.shapes]


def _promise(taken: list[Taken], changes: Mapping[str, LazyTensor], *, used: bool) -> Promise:
    if not used:
        return Promise(
            PromiseClass.BITWISE, "hidden states and logits, which no taken tensor takes part in", EVERY_INPUT
        )
    rounded = sum(changes[one.name] is not one.tensor for one in taken)
    how = f", {plural(rounded, 'tensor')} rounded" if rounded else ""
    many = f"{len(taken)} tensors are" if len(taken) > 1 else "one tensor is"
    return Promise(PromiseClass.INTENTIONAL, f"{many} the donor's{how or ', byte for byte'}", EVERY_INPUT)


def _notes(taken: list[Taken], checkpoint: Checkpoint, donor: Checkpoint, loaded: list[str]) -> Iterator[str]:
    new = [one.name for one in taken if one.name not in checkpoint.tensors]
    renamed = {one.donor: one.name for one in taken if one.donor != one.name}
    where = f"{len(taken) - len(new)} in place of the base's, {len(new)} beside them"
    yield f"{plural(len(taken), 'tensor')} of {printable(donor.name)}: {where}"
    if renamed:
        one, other = next(iter(renamed.items()))
        yield f"{plural(len(renamed), 'tensor')} under the base's names, such as {printable(one)} as {printable(other)}"
    if unused := [one.name for one in taken if one.name not in loaded]:
        yield f"the base's class does not load {few(unused)}"
