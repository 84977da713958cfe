"""Steps that compute values: cast, scale, add, low_rank. Each value is computed in float64 and rounded once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.computed import computed
from graftkit.checkpoint.reading import TAGS, read_tensor, torch_dtype
from graftkit.checkpoint.rearranged import elementwise
from graftkit.checkpoint.rounding import round_once
from graftkit.checkpoint.tensors import FLOATING, LazyTensor
from graftkit.errors import RecipeError, few, plural, printable
from graftkit.initializers.one_thread import OneThread
from graftkit.operations.adapters.merge import AT_ONCE
from graftkit.operations.tensor_edits.selection import nearest, require_floating, select
from graftkit.operations.tensor_edits.stepped import Place, Stepped
from graftkit.recipe.tensor_steps import AddDifference, Cast, LowRank, Scale

if TYPE_CHECKING:
    from torch import Tensor

#: Tensors that are no weights, which stay what they are where a model is cast.
_WHOLE_NUMBERS = ("I64", "I32", "I16", "U64", "U32", "U16", "BOOL")


def cast(step: Cast, checkpoint: Checkpoint, _: Place) -> Stepped:
    """Give floating tensors another dtype; those of whole numbers stay as they are.

    Raises:
        RecipeError: an expression fits no tensor, one is of eight bits, or all have the dtype already.
    """
    names = list(select(step.tensors, checkpoint.tensors))
    left = [name for name in names if checkpoint.tensors[name].dtype in _WHOLE_NUMBERS]
    floating = [name for name in names if name not in left]
    require_floating(floating, checkpoint.tensors)
    dtype = TAGS[step.dtype]
    changes: dict[str, LazyTensor | None] = {
        name: elementwise((tensor,), dtype, lambda values: values)
        for name in floating
        if (tensor := checkpoint.tensors[name]).dtype != dtype
    }
    if not changes:
        raise RecipeError(f"every floating tensor of these is {step.dtype} already", field="dtype")
    notes = (f"{plural(len(left), 'tensor')} of whole numbers stay as they are: {few(left)}",) if left else ()
    return Stepped(checkpoint.with_tensors(changes), notes)


def scale(step: Scale, checkpoint: Checkpoint, _: Place) -> Stepped:
    """Multiply each value.

    Raises:
        RecipeError: an expression fits no tensor, one is not floating, or the factor changes nothing.
    """
    if step.factor == 1:
        raise RecipeError("leaves every value as it is", field="factor")
    names = list(select(step.tensors, checkpoint.tensors))
    require_floating(names, checkpoint.tensors)
    changes: dict[str, LazyTensor | None] = {
        name: elementwise((tensor,), tensor.dtype, lambda values: values * step.factor)
        for name in names
        if (tensor := checkpoint.tensors[name]) is not None
    }
    return Stepped(checkpoint.with_tensors(changes))


def add(step: AddDifference, checkpoint: Checkpoint, place: Place) -> Stepped:
    """Add what one checkpoint has more than another, times a weight.

    Raises:
        RecipeError: an expression fits no tensor, one of the others lacks a tensor or has it in another shape, or the two are one.
        InputRejected, StorageFault: one of the others cannot be opened.
    """
    if step.weight == 0:
        raise RecipeError("adds nothing", field="weight")
    tuned = Checkpoint.open(step.fine_tuned)
    base = place.source if step.base is None else Checkpoint.open(step.base)
    if tuned.directory == base.directory:
        raise RecipeError("is the base itself, so that the difference is zero", field="fine_tuned")
    names = list(select(step.tensors, checkpoint.tensors))
    require_floating(names, checkpoint.tensors)
    changes: dict[str, LazyTensor | None] = {}
    for name in names:
        tensor = checkpoint.tensors[name]
        more, less = (_counterpart(name, tensor, *other) for other in ((tuned, "fine_tuned"), (base, "base")))
        changes[name] = elementwise(
            (tensor, more, less), tensor.dtype, lambda values, plus, minus: values + step.weight * (plus - minus)
        )
    return Stepped(checkpoint.with_tensors(changes))


def _counterpart(name: str, tensor: LazyTensor, other: Checkpoint, field: str) -> LazyTensor:
    """The tensor of the same name in another checkpoint.

    Raises:
        RecipeError: there is none, or of another shape or kind.
    """
    found = other.tensors.get(name)
    if found is None:
        raise RecipeError(
            f"{printable(other.name)} has no tensor {printable(name)!r}; {nearest(name, other.tensors)}", field=field
        )
    if found.shape != tensor.shape or found.dtype not in FLOATING:
        raise RecipeError(
            f"{printable(name)!r} is {found.dtype} {list(found.shape)} in {printable(other.name)},"
            f" here {tensor.dtype} {list(tensor.shape)}",
            field=field,
        )
    return found


def low_rank(step: LowRank, checkpoint: Checkpoint, _: Place) -> Stepped:
    """Replace matrices by the nearest ones of a rank.

    Raises:
        RecipeError: an expression fits no tensor, or one is no floating matrix of a larger rank.
    """
    names = list(select(step.tensors, checkpoint.tensors))
    require_floating(names, checkpoint.tensors)
    changes: dict[str, LazyTensor | None] = {}
    for name in names:
        tensor = checkpoint.tensors[name]
        if len(tensor.shape) != 2:
            raise RecipeError(f"{printable(name)!r} has shape {list(tensor.shape)} and is no matrix", field="tensors")
        if step.rank >= min(tensor.shape):
            raise RecipeError(
                f"{printable(name)!r} has shape {list(tensor.shape)}, and so a rank of at most {min(tensor.shape)}",
                field="rank",
            )
        changes[name] = _of_rank(tensor, step.rank)
    return Stepped(checkpoint.with_tensors(changes))


def _of_rank(tensor: LazyTensor, rank: int) -> LazyTensor:
    return computed(tensor.dtype, tensor.shape, lambda: _nearest(tensor, rank))


def _nearest(tensor: LazyTensor, rank: int) -> Tensor:
    import torch

    with AT_ONCE, OneThread():
        u, s, vh = torch.linalg.svd(read_tensor(tensor).double(), full_matrices=False)
        return round_once((u[:, :rank] * s[:rank]) @ vh[:rank], torch_dtype(tensor.dtype))
