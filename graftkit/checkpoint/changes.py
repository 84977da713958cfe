"""The difference between two checkpoints as values: what a plan prints and what `diff` prints, by one code path."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.gathered import Gathered
from graftkit.checkpoint.held import is_original
from graftkit.checkpoint.tensors import LazyTensor, Patched, from_source
from graftkit.errors import plural

#: More changed values of one vocabulary, or a list with more of them, are one change that gives their number.
MOST = 256

Kind = Literal["equal", "patched", "trimmed", "gathered", "computed", "added", "dropped", "renamed", "moved", "copied"]


@dataclass(frozen=True, slots=True)
class TensorChange:
    """One tensor that is not carried over as it is. ``produced`` counts the bytes that are not the source's.

    Of a *patched* tensor ``rows`` counts the rows that are made, of a *trimmed* one those that are gone.
    ``old_name`` is the source's name of a tensor that is *renamed*, *moved* to a name that another one had or has, or *copied*, whose
    bytes are kept; of a *gathered* one ``rows`` are made and the others are the source's in another order; ``operation`` names whose
    change it is, in a plan.
    """

    name: str
    kind: Kind
    dtype: str
    old_shape: tuple[int, ...] | None
    new_shape: tuple[int, ...] | None
    rows: int
    produced: int
    old_name: str = ""
    operation: str = ""


@dataclass(frozen=True, slots=True)
class ValueChange:
    """One value of a JSON document: ``place`` is the dotted path; a missing side is None with its flag unset."""

    document: str
    place: str
    old: object
    new: object


def tensor_changes(source: Checkpoint, result: Checkpoint) -> tuple[TensorChange, ...]:
    """Every tensor that ``result`` does not take over from ``source`` as it is, in the order on disk."""
    return tuple(_tensor_changes(source.all_tensors, result.all_tensors))


def _tensor_changes(old: Mapping[str, LazyTensor], new: Mapping[str, LazyTensor]) -> Iterator[TensorChange]:
    names = {id(tensor): name for name, tensor in old.items()}
    below = {name: _patches(tensor) for name, tensor in new.items()}
    origins = {name: origin for name, (found, _) in below.items() if (origin := names.get(id(found)))}
    kept, taken = set(origins.values()), {origin for name, origin in origins.items() if name == origin}
    for name, tensor in new.items():
        before, origin, rows = old.get(name), origins.get(name, ""), below[name][1]
        if before is tensor or before == tensor:
            continue
        other = "" if origin == name else origin
        if origin and (gone := _rows_gone(tensor)):
            made = sum(segment.nbytes for segment in tensor.segments() if not from_source(segment))
            yield TensorChange(name, "trimmed", tensor.dtype, old[origin].shape, tensor.shape, gone, made, other)
        elif rows and origin:
            yield TensorChange(
                name, "patched", tensor.dtype, old[origin].shape, tensor.shape, len(rows),
                len(rows) * tensor.nbytes // max(tensor.shape[_axis(tensor)], 1), other,
            )  # fmt: skip
        elif other:
            carried: Kind = "moved" if origin in new or before else "renamed"
            kind: Kind = "copied" if origin in taken else carried
            yield TensorChange(name, kind, tensor.dtype, tensor.shape, tensor.shape, 0, 0, other)
        elif isinstance(tensor, Gathered) and before is not None and name not in kept:
            produced = tensor.made * tensor.row_nbytes
            yield TensorChange(name, "gathered", tensor.dtype, before.shape, tensor.shape, tensor.made, produced)
        else:
            replaced = before is not None and name not in kept
            produced = 0 if is_original(tensor) else tensor.nbytes
            old_shape = before.shape if before and replaced else None
            yield TensorChange(
                name, "computed" if replaced else "added", tensor.dtype, old_shape, tensor.shape, 0, produced
            )
        taken.add(origin)
    for name, tensor in old.items():
        if name not in kept and (name not in new or name in origins):
            yield TensorChange(name, "dropped", tensor.dtype, tensor.shape, None, 0, 0)


def _patches(tensor: LazyTensor) -> tuple[LazyTensor, frozenset[int]]:
    """The tensor below all patches and choices of rows, and the rows that they make."""
    if isinstance(tensor, Patched):
        below, rows = _patches(tensor.base)
        return below, rows.union(tensor.rows)
    return _patches(tensor.base) if isinstance(tensor, Gathered) and not tensor.made else (tensor, frozenset())


def _rows_gone(tensor: LazyTensor) -> int:
    """How many rows were left out by choices of rows, one on top of another; 0 where there is none."""
    if isinstance(tensor, Patched):
        return _rows_gone(tensor.base)
    if not isinstance(tensor, Gathered) or tensor.made:
        return 0
    return tensor.base.shape[tensor.axis] - len(tensor.origins) + _rows_gone(tensor.base)


def _axis(tensor: LazyTensor) -> int:
    return tensor.axis if isinstance(tensor, Patched) else 0


def document_changes(source: Checkpoint, result: Checkpoint) -> tuple[ValueChange, ...]:
    """Every value that differs between the JSON documents of two checkpoints; texts are compared whole.

    A file that was brought from another folder is one change, and what changed in it afterwards are others. A file that was no
    document and is edited all the same, such as vocab.txt, is one change too.
    """
    brought = {name: given.value for name, given in result.brought.items() if name in result.documents}
    own = ((name, name in source.documents or name in source.carried) for name in result.brought)
    files = (ValueChange(name, "", "a file" if there else None, "the donor's file") for name, there in own)
    edited = [path for path in source.carried if path in result.documents and path not in brought]
    others = (ValueChange(path, "", "a file", "an edited file") for path in edited)
    after = {name: value for name, value in result.documents.items() if name not in edited}
    return (*files, *others, *value_changes({**source.documents, **brought}, after))


def value_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[ValueChange, ...]:
    """The same of documents by file name."""
    if before is after:
        return ()
    changes: list[ValueChange] = []
    for name in dict.fromkeys([*before, *after]):
        old, new = before.get(name), after.get(name)
        if old is not new:
            changes.extend(ValueChange(name, place, a, b) for place, a, b in _values(old, new, ""))
    return tuple(changes)


def _values(old: Any, new: Any, place: str) -> Iterator[tuple[str, object, object]]:
    if old is new:
        return
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        yield from _keys(old, new, place)
    elif isinstance(old, list) and isinstance(new, list) and old != new:
        yield from _items(old, new, place)
    elif old != new or type(old) is not type(new):
        yield place, old, new


def _keys(old: Mapping[str, Any], new: Mapping[str, Any], place: str) -> Iterator[tuple[str, object, object]]:
    below = [
        change
        for key in dict.fromkeys([*old, *new])
        for change in _values(old.get(key), new.get(key), f"{place}.{key}" if place else str(key))
    ]
    if _is_vocabulary(old) and len(below) > MOST:
        yield place, _size(old), _size(new)
    else:
        yield from below


def _items(old: list[Any], new: list[Any], place: str) -> Iterator[tuple[str, object, object]]:
    if new[: len(old)] == old:
        for index in range(len(old), len(new)):
            yield f"{place}[{index}]", None, new[index]
    elif len(old) == len(new) and _holds_containers(old):
        for index, (before, after) in enumerate(zip(old, new, strict=True)):
            yield from _values(before, after, f"{place}[{index}]")
    elif max(len(old), len(new)) > MOST:
        yield place, _size(old), _size(new)
    else:
        yield place, old, new


def _is_vocabulary(values: Mapping[str, Any]) -> bool:
    """Whether a mapping gives numbers alone, as that of tokens to their ids does."""
    return all(type(value) is int for value in values.values())


def _size(values: Mapping[str, Any] | list[Any]) -> str:
    return plural(len(values), "value")


def _holds_containers(values: list[Any]) -> bool:
    """Whether a list has parts whose own values can be told apart."""
    return all(isinstance(value, Mapping | list) for value in values)
