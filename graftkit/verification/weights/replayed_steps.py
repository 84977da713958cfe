"""The steps of edit_tensors once more, in plain torch on loaded tensors: what the written tensors are held against.

Nothing here is shared with what plans and writes them: names are matched, shapes cut and values rounded by other code.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from graftkit.checkpoint.reading import DTYPES, chunks
from graftkit.checkpoint.tensors import ITEM_BYTES, LazyTensor
from graftkit.initializers.one_thread import OneThread

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from graftkit.recipe.edit_tensors import Step

#: A tensor as it is stored, or what computes it.
Value = LazyTensor | Callable[[], "Tensor"]
State = dict[str, Value]

#: Opens a checkpoint that a step names; None is the recipe's own.
Open = Callable[[str | None], Mapping[str, LazyTensor]]


def replay(
    steps: Sequence[Step],
    tensors: Mapping[str, LazyTensor],
    sampled: Mapping[tuple[int, str], LazyTensor],
    other: Open,
) -> State:
    """What the steps make of ``tensors``; ``sampled`` gives by step and name what a step sampled from its seed."""
    state: State = dict(tensors)
    for number, step in enumerate(steps):
        body: Any = step.body
        match step.kind:
            case "rename":
                state = {_renamed(name, body, state): value for name, value in state.items()}
            case "delete":
                gone = _fits(body, state)
                state = {name: value for name, value in state.items() if name not in gone}
            case "split":
                state = _split(body, state)
            case "concat":
                state = _concat(body, state)
            case "fill":
                state |= _filled(number, body, state, sampled)
            case "assert":
                pass
            case kind:
                state |= {name: _computed(kind, body, name, state[name], other) for name in _fits(body.tensors, state)}
    return state


def loaded(value: Value) -> Tensor:
    """The torch tensor of a value; dtypes that torch does not have are integers of the same width."""
    import torch

    if callable(value):
        return value()
    word = {1: "uint8", 2: "int16", 4: "int32", 8: "int64"}[ITEM_BYTES[value.dtype]]
    dtype = getattr(torch, DTYPES.get(value.dtype, word))
    raw = bytearray().join(chunks(value))
    return torch.frombuffer(raw, dtype=dtype).view(value.shape) if raw else torch.empty(value.shape, dtype=dtype)


def nearest(exact: Tensor, dtype: torch.dtype) -> Tensor:
    """The value of ``dtype`` that is nearest to each of ``exact`` in float64; of two as near the one whose last bit is 0."""
    import torch

    first = exact.to(dtype)
    if dtype in (torch.float64, torch.float32):
        return first
    ends = [torch.full_like(first, end) for end in (torch.inf, -torch.inf)]
    beyond = (
        2.0 ** math.frexp(torch.finfo(dtype).max)[1]
    )  # where infinity lies for rounding: one step behind the largest value

    def distance(values: Tensor) -> Tensor:
        return (values.double().clamp(-beyond, beyond) - exact).abs()

    best = first
    for candidate in (torch.nextafter(first, end) for end in ends):
        far, here = distance(candidate), distance(best)
        even = (candidate.view(torch.int16) & 1) == 0
        best = torch.where((far < here) | ((far == here) & even), candidate, best)
    return best


def _fits(expressions: Sequence[str], names: Mapping[str, Value]) -> list[str]:
    return [name for name in names if any(_fit(expression, name, names) for expression in expressions)]


def _fit(expression: str, name: str, names: Mapping[str, Value]) -> re.Match[str] | None:
    """A name that is there as it is written is meant alone, unless it has groups."""
    if expression in names and "(" not in expression:
        expression = re.escape(expression)
    return re.fullmatch(expression, name)


def _renamed(name: str, templates: Mapping[str, str], names: Mapping[str, Value]) -> str:
    for expression, template in templates.items():
        if found := _fit(expression, name, names):
            return found.expand(template)
    return name


def _computed(kind: str, body: Any, name: str, value: Value, other: Open) -> Value:
    import torch

    match kind:
        case "cast":
            return lambda: _cast(loaded(value), getattr(torch, body.dtype))
        case "scale":
            return lambda: _same_dtype(loaded(value), lambda values: values * body.factor)
        case "add":
            plus, minus = other(body.fine_tuned)[name], other(body.base)[name]
            return lambda: _same_dtype(
                loaded(value), lambda values: values + body.weight * (loaded(plus).double() - loaded(minus).double())
            )
        case "permute":
            return lambda: torch.permute(loaded(value), tuple(body.dims))
        case "reshape":
            return lambda: torch.reshape(loaded(value), tuple(body.shape))
        case "low_rank":
            return lambda: _low_rank(loaded(value), body.rank)
        case _:
            raise ValueError(f"{kind} is no step that is replayed")


def _cast(values: Tensor, dtype: torch.dtype) -> Tensor:
    return nearest(values.double(), dtype) if values.is_floating_point() else values


def _same_dtype(values: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    return nearest(function(values.double()), values.dtype)


def _low_rank(values: Tensor, rank: int) -> Tensor:
    import torch

    with OneThread():
        left, sizes, right = torch.linalg.svd(values.double(), full_matrices=False)
        return nearest((left[:, :rank] * sizes[:rank]) @ right[:rank], values.dtype)


def _split(body: Any, state: State) -> State:
    import torch

    found: State = {}
    for name, value in state.items():
        match = next((fit for one in body.tensors if (fit := _fit(one, name, state))), None)
        if match is None:
            found[name] = value
            continue
        for place, template in enumerate(body.into):

            def part(value: Value = value, place: int = place) -> Tensor:
                whole = loaded(value)
                sizes = list(body.sizes) or whole.shape[body.axis] // len(body.into)
                return torch.split(whole, sizes, body.axis)[place]

            found[match.expand(template)] = part
    return found


def _concat(body: Any, state: State) -> State:
    import torch

    parts: dict[str, list[tuple[int, list[int | str], str]]] = {}
    for place, expression in enumerate(body.tensors):
        for name in state:
            if found := _fit(expression, name, state):
                numbers = [int(step) if step.isdigit() else step for step in re.split(r"(\d+)", name)]
                parts.setdefault(found.expand(body.into), []).append((place, numbers, name))
    kept = {
        name: value
        for name, value in state.items()
        if not any(name == one[2] for held in parts.values() for one in held)
    }

    def join(members: Sequence[Value]) -> Tensor:
        return torch.cat([loaded(member) for member in members], body.axis)

    for into, members in parts.items():
        values = [state[name] for _, _, name in sorted(members)]
        kept[into] = lambda values=values: join(values)  # type: ignore[misc]
    return kept


def _filled(number: int, body: Any, state: State, sampled: Mapping[tuple[int, str], LazyTensor]) -> State:
    names = list(body.tensors) if body.shape is not None else _fits(body.tensors, state)
    return {name: sampled.get((number, name)) or _constant(body, state.get(name)) for name in names}


def _constant(body: Any, old: Value | None) -> Value:
    import torch

    value = {"zeros": 0.0, "ones": 1.0}.get(body.init.scheme, getattr(body.init, "value", 0.0))

    def full() -> Tensor:
        if old is not None:
            return torch.full_like(loaded(old), value)
        return torch.full(tuple(body.shape), value, dtype=getattr(torch, body.dtype))

    return full
