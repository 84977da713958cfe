"""The structural check of a model in memory: every tensor is the source's own, or was produced by a named operation."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from graftkit.checkpoint.adapter import Adapter
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.held import Held
from graftkit.errors import InputRejected, printable
from graftkit.verification.structural import LedgerEntry, check_names, check_tensor, not_finite

if TYPE_CHECKING:
    from graftkit.checkpoint.tensors import LazyTensor

#: Where a tensor of a model in memory lies, in place of a file.
MEMORY = "memory"


def check_in_memory(
    planned: Checkpoint, made: Checkpoint, *, allow_nonfinite: bool = False, progress: Callable[[int], None] | None = None
) -> tuple[LedgerEntry, ...]:  # fmt: skip
    """Compare the tensors of a model that was put together with the planned ones, byte for byte.

    What lies in the very memory of the source is equal by that. Every float is looked at for NaN and infinity.

    Raises:
        VerificationFailed: a name, shape, dtype or byte is not what was planned, or a produced value is not finite.
        InputRejected: the source holds a value that is not finite, and ``allow_nonfinite`` is off.
    """
    check_names(planned.tensors, made.tensors)
    found = []
    for name, tensor in planned.tensors.items():
        if not shares_memory(tensor, made.tensors[name]):
            found.append(check_tensor(name, tensor, made.tensors[name], MEMORY, allow_nonfinite, progress))
            continue
        if not allow_nonfinite and (bad := next(not_finite({name: tensor}), None)):
            raise InputRejected(
                f"tensor {printable(bad)!r} has a value that is not finite; such weights give garbage silently: set"
                " allow_nonfinite: true to keep them"
            )
        found.append(LedgerEntry(name, MEMORY, tensor.dtype, tensor.shape, "", tensor.nbytes, 0))
        if progress is not None:
            progress(tensor.nbytes)
    return tuple(found)


def check_adapter_in_memory(
    planned: Adapter, made: Adapter, *, allow_nonfinite: bool = False, progress: Callable[[int], None] | None = None
) -> tuple[LedgerEntry, ...]:  # fmt: skip
    """Compare the tensors of an adapter in memory with the planned ones, as :func:`check_in_memory` does those of a model.

    Raises:
        VerificationFailed: a name, shape, dtype or byte is not what was planned, or a produced value is not finite.
        InputRejected: a value that was copied is not finite, and ``allow_nonfinite`` is off.
    """
    check_names(planned.tensors, made.tensors)
    return tuple(
        check_tensor(name, tensor, made.tensors[name], MEMORY, allow_nonfinite, progress)
        for name, tensor in planned.tensors.items()
    )


def shares_memory(one: LazyTensor, other: LazyTensor) -> bool:
    """Whether two tensors are the same values in the same memory."""
    if not (isinstance(one, Held) and isinstance(other, Held)):
        return False
    a, b = one.values, other.values
    return a.data_ptr() == b.data_ptr() and (a.dtype, a.shape, a.stride()) == (b.dtype, b.shape, b.stride())
