"""set_embeddings: a tied input and output embedding becomes two tables, by copy; or two tables become one."""

from __future__ import annotations

from collections.abc import Mapping

from graftkit.architecture.accounting import Structure, account
from graftkit.architecture.embedding_ties import Way, are_tied, find_way, in_output, ties_of_output
from graftkit.architecture.embeddings import INPUT, OUTPUT
from graftkit.architecture.tying import with_copies
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.reading import differing_rows
from graftkit.checkpoint.tensors import LazyTensor
from graftkit.errors import InputRejected, RecipeError, few, plural, printable
from graftkit.operations.base import Context, Outcome
from graftkit.recipe import SetEmbeddings
from graftkit.verification.promises import EVERY_INPUT, Promise, PromiseClass, Scope

#: What nothing changes of, with a copy or without one of two equal tables.
BITWISE = Promise(PromiseClass.BITWISE, "hidden states and logits over every id", EVERY_INPUT)


def set_embeddings(spec: SetEmbeddings, checkpoint: Checkpoint, context: Context) -> Outcome:  # noqa: ARG001 - nothing is drawn
    """Let the output embedding have a table of its own, or the input's.

    To tell whether two tables are one, planning reads them where both are stored.

    Raises:
        InputRejected: the class has no two embeddings, or no way to tie them, or to part them.
        RecipeError: they are as asked already, or two tables differ and that is not allowed.
    """
    structure = account(checkpoint)
    skeleton = structure.skeleton
    for getter, which in ((INPUT, "input"), (OUTPUT, "output")):
        if not skeleton.weight_names(getter):
            raise InputRejected(f"{skeleton.architecture}: has no {which} embedding that could be tied to another")
    now = are_tied(checkpoint, structure)
    try:
        way = find_way(checkpoint.config, skeleton, tied=spec.tied)
    except InputRejected:
        if now != spec.tied:
            raise
        way = Way(checkpoint.config, skeleton)
    if now == spec.tied and way.config == checkpoint.config:
        raise RecipeError(f"input and output embedding are {'tied' if now else 'two tables'} already", field="tied")
    return _joined(spec, checkpoint, structure, way) if spec.tied else _parted(checkpoint, structure, way)


def _parted(checkpoint: Checkpoint, structure: Structure, way: Way) -> Outcome:
    before = structure.skeleton.tied
    parted, copied = with_copies(checkpoint.with_documents({"config.json": dict(way.config)}), before, way.skeleton)
    size = sum(parted.tensors[name].nbytes for name in copied)
    note = f"copied: {few(copied)}, {size:,} bytes more; from here on both train apart"
    if not copied:
        note = "both tables are stored and differ, so that they were two whatever config.json said; now it says so"
    return Outcome(parted, BITWISE, (note,), untied=frozenset(before.items() - way.skeleton.tied.items()))


def _joined(spec: SetEmbeddings, checkpoint: Checkpoint, structure: Structure, way: Way) -> Outcome:
    """Keep one tensor of each pair, under the name that the class ties the other to.

    Of the tables that is the input's; of what else the output embedding has, such as a bias, its own, which it computes with.
    """
    outputs = structure.skeleton.weight_names(OUTPUT)
    changes: dict[str, LazyTensor | None] = {}
    rows = different = 0
    for pair in ties_of_output(way.skeleton):
        target, source = (_stored(structure, name) for name in pair)
        of_output, other = sorted(pair, key=lambda name: not in_output(structure.skeleton, name))
        tables = of_output in outputs
        if tables:
            both = [checkpoint.tensors[_stored(structure, name)] for name in (of_output, other)]
            _check_alike(checkpoint.name, *both)
            rows, different = both[0].shape[0], differing_rows(*both)
        changes |= {target: None, source: checkpoint.tensors[_stored(structure, other if tables else of_output)]}
    if different and not spec.allow_change:
        raise RecipeError(
            f"{different:,} of {plural(rows, 'row')} of the output table differ from the input table's, and would be lost; say"
            " allow_change: true if that is meant",
            field="tied",
        )
    return _outcome(checkpoint, way, changes, different, rows)


def _stored(structure: Structure, name: str) -> str:
    """The name on disk of a weight that is stored as it is loaded.

    Raises:
        InputRejected: it is converted when it is loaded.
    """
    disk = structure.memory.stored_as(name)
    if disk is None:
        raise InputRejected(
            f"{structure.skeleton.architecture}: {printable(name)!r} is not stored as it is loaded; save the checkpoint once with a"
            " current transformers"
        )
    return disk


def _check_alike(where: str, output: LazyTensor, given: LazyTensor) -> None:
    if (output.dtype, output.shape) != (given.dtype, given.shape):
        raise InputRejected(
            f"{where}: the output table is {output.dtype} {list(output.shape)}, the input table {given.dtype} {list(given.shape)}: they"
            " cannot be one"
        )


def _outcome(
    checkpoint: Checkpoint, way: Way, changes: Mapping[str, LazyTensor | None], different: int, rows: int
) -> Outcome:
    dropped = [name for name, tensor in changes.items() if tensor is None]
    result = checkpoint.with_tensors(changes).with_documents({"config.json": dict(way.config)})
    size = sum(checkpoint.tensors[name].nbytes for name in dropped)
    note = f"dropped: {few(dropped)}, {size:,} bytes less; one table does both jobs"
    if not different:
        return Outcome(result, BITWISE, (note,))
    lost = f"the output table is dropped, {different:,} of its {plural(rows, 'row')} not being those of the input table"
    return Outcome(result, Promise(PromiseClass.INTENTIONAL, lost, EVERY_INPUT), (note,), scope=Scope.MEASURE)
