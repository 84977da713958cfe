"""A large vocabulary table: multiplied a piece of its rows at a time, its rows gathered from the file where it lies in one.

Which bits a matrix product gives depends on the pieces that it is made in, so a table in memory is multiplied in the pieces of
one in a file: then both give the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor

#: Elements of a table that are multiplied at a time; a table of no more is no large one.
PIECE = 16 << 20

#: Pieces begin at multiples of these many rows, so that a piece in memory is aligned as a fresh tensor is.
ROWS = 16

#: What is asked of a tensor without its values.
PROPERTIES = frozenset(
    ("shape", "dtype", "device", "ndim", "layout", "requires_grad", "is_leaf", "is_cuda", "is_meta", "is_sparse",
     "is_quantized", "is_nested", "is_mkldnn", "is_mps", "grad", "grad_fn", "_version")
)  # fmt: skip
METHODS = frozenset(
    ("size", "dim", "numel", "nelement", "element_size", "is_floating_point", "is_complex", "__len__", "__hash__", "get_device")
)  # fmt: skip


class Table(torch.Tensor):
    """*Shape:* ``(rows, width)``. ``read(start, stop)`` returns rows of it in fresh memory; None where its values are its own."""

    read: Callable[[int, int], Tensor] | None

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        del types
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        asked = getattr(getattr(func, "__self__", None), "__name__", "") if name == "__get__" else ""
        with torch._C.DisableTorchFunctionSubclass():  # noqa: SLF001 - as in torch's own documentation of subclasses
            if name in METHODS or asked in PROPERTIES:
                return func(*args, **kwargs)
            if name == "linear" and len(args) > 1 and isinstance(args[1], Table):
                return linear(*args, **kwargs)
            if name == "embedding" and isinstance(args[1], Table) and args[1].read and kwargs.get("max_norm") is None:
                return gather(args[1], args[1].read, args[0])
            if name == "__getitem__" and isinstance(args[0], Table) and args[0].read:
                found = _some_rows(args[0], args[0].read, args[1])
                if found is not None:
                    return found
            return func(*(_values(a) for a in args), **{key: _values(value) for key, value in kwargs.items()})


def table_of(values: Tensor, read: Callable[[int, int], Tensor] | None = None) -> Table:
    """``values`` as a table. With ``read``, they only tell shape and dtype."""
    made: Table = torch.Tensor._make_subclass(Table, values.detach(), False)  # noqa: SLF001, FBT003 - how Parameter makes itself
    made.read = read
    made._is_param = True  # noqa: SLF001 - what isinstance(tensor, Parameter) asks for
    return made


def is_large(values: Tensor) -> bool:
    """Whether these are the shape and size of a large table."""
    return bool(values.ndim == 2 and values.numel() > PIECE and values.is_floating_point())


def rows_of_piece(width: int) -> int:
    """How many rows of that width make a piece."""
    return max(PIECE // width // ROWS, 1) * ROWS


def linear(inputs: Tensor, table: Table, bias: Tensor | None = None) -> Tensor:
    """``inputs · tableᵀ + bias``, a piece at a time. *Shapes:* ``(..., width)`` to ``(..., rows)``."""
    rows, width = table.shape
    step = rows_of_piece(width)
    found = inputs.new_empty(*inputs.shape[:-1], rows)
    for start in range(0, rows, step):
        part = slice(start, min(start + step, rows))
        weight = table.read(part.start, part.stop) if table.read else table.as_subclass(torch.Tensor)[part]
        found[..., part] = torch.nn.functional.linear(inputs, weight, None if bias is None else bias[part])
    return found


def gather(table: Table, read: Callable[[int, int], Tensor], ids: Tensor) -> Tensor:
    """The rows of ``ids``, each read once by ``read``. *Shapes:* ``ids`` any, result ``(*ids.shape, width)``.

    Raises:
        IndexError: an id is none of the table.
    """
    wanted, places = torch.unique(ids, return_inverse=True)
    if len(wanted) and not 0 <= int(wanted[0]) <= int(wanted[-1]) < table.shape[0]:
        raise IndexError("index out of range in self")
    numbers = wanted.tolist()
    breaks = [0, *(i for i in range(1, len(numbers)) if numbers[i] != numbers[i - 1] + 1), len(numbers)]
    found = torch.empty(len(numbers), table.shape[1], dtype=table.dtype)
    for first, last in pairwise(breaks):
        if last > first:
            found[first:last] = read(numbers[first], numbers[last - 1] + 1)
    return found[places]


def _some_rows(table: Table, read: Callable[[int, int], Tensor], key: Any) -> Tensor | None:
    """Rows named by a slice or by ids along the first axis; None for any other key."""
    if isinstance(key, slice) and key.step in (None, 1):
        start, stop, _ = key.indices(table.shape[0])
        return read(start, max(stop, start))
    if isinstance(key, list):
        key = torch.tensor(key)
    if isinstance(key, torch.Tensor) and key.dtype == torch.int64 and key.ndim:
        return gather(table, read, torch.where(key < 0, key + table.shape[0], key))
    return None


def _values(value: Any) -> Any:
    """Whatever is no table as it is, and of a table all values."""
    if not isinstance(value, Table):
        return value
    return value.read(0, value.shape[0]) if value.read else value.as_subclass(torch.Tensor)
