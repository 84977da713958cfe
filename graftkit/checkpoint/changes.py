"""The difference between two checkpoints as values: what a plan prints and what `diff` prints, by one code path."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.held import is_original
from graftkit.checkpoint.tensors import LazyTensor, Patched

Kind = Literal["equal", "patched", "computed", "added", "dropped", "renamed", "moved", "copied"]


@dataclass(frozen=True, slots=True)
class TensorChange:
    """One tensor that is not carried over as it is. ``produced`` counts the bytes that are not the source's.

    ``old_name`` is the source's name of a tensor that is *renamed*, *moved* to a name that another one had or has, or *copied*, whose
    bytes are kept; ``operation`` names whose change it is, in a plan.
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
        if rows and origin:
            yield TensorChange(
                name, "patched", tensor.dtype, old[origin].shape, tensor.shape, len(rows),
                len(rows) * tensor.nbytes // max(tensor.shape[_axis(tensor)], 1), other,
            )  # fmt: skip
        elif other:
            carried: Kind = "moved" if origin in new or before else "renamed"
            kind: Kind = "copied" if origin in taken else carried
            yield TensorChange(name, kind, tensor.dtype, tensor.shape, tensor.shape, 0, 0, other)
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
    """The tensor below all patches, and the rows that they make."""
    if not isinstance(tensor, Patched):
        return tensor, frozenset()
    below, rows = _patches(tensor.base)
    return below, rows.union(tensor.rows)


def _axis(tensor: LazyTensor) -> int:
    return tensor.axis if isinstance(tensor, Patched) else 0


def document_changes(source: Checkpoint, result: Checkpoint) -> tuple[ValueChange, ...]:
    """Every value that differs between the JSON documents of two checkpoints; texts are compared whole."""
    return value_changes(source.documents, result.documents)


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
        for key in dict.fromkeys([*old, *new]):
            yield from _values(old.get(key), new.get(key), f"{place}.{key}" if place else str(key))
    elif isinstance(old, list) and isinstance(new, list) and new[: len(old)] == old:
        for index in range(len(old), len(new)):
            yield f"{place}[{index}]", None, new[index]
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new) and _holds_containers(old):
        for index, (before, after) in enumerate(zip(old, new, strict=True)):
            yield from _values(before, after, f"{place}[{index}]")
    elif old != new or type(old) is not type(new):
        yield place, old, new


def _holds_containers(values: list[Any]) -> bool:
    """Whether a list has parts whose own values can be told apart."""
    return all(isinstance(value, Mapping | list) for value in values)
