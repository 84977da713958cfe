"""A tensor in another floating dtype, made some rows at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from graftkit.checkpoint.computed import as_bytes, computed
from graftkit.checkpoint.held import is_original
from graftkit.checkpoint.reading import read_rows, read_tensor, torch_dtype
from graftkit.checkpoint.rounding import round_once
from graftkit.checkpoint.tensors import FLOATING, ITEM_BYTES, LazyTensor, Patched, Rows, Streamed, Zeros, patch_rows

if TYPE_CHECKING:
    from torch import Tensor

#: Bytes of the new dtype that are made at a time.
BLOCK = 8 << 20

#: Looks at values before and after they were rounded.
Look = Callable[["Tensor", "Tensor"], None]


def _see_nothing(_before: Tensor, _after: Tensor) -> None:
    pass


def cast(tensor: LazyTensor, dtype: str, look: Look = _see_nothing) -> LazyTensor:
    """Return a floating tensor in ``dtype``, each value rounded to nearest once; widening changes no value.

    A tensor of that dtype, or of integers, is returned as it is. ``look`` is shown each piece when it is made.
    """
    if tensor.dtype not in FLOATING or tensor.dtype == dtype:
        return tensor
    if isinstance(tensor, Zeros):
        return Zeros(dtype, tensor.shape)
    if isinstance(tensor, Patched):
        return _patched(tensor, dtype, look)
    if not tensor.shape:
        return computed(dtype, (), lambda: _rounded(read_tensor(tensor), dtype, look))
    width = tensor.nbytes // ITEM_BYTES[tensor.dtype] // max(tensor.shape[0], 1) * ITEM_BYTES[dtype]
    return Streamed(dtype, tensor.shape, max(BLOCK // max(width, 1), 1), lambda: _rows(tensor, dtype, look))


def _rows(tensor: LazyTensor, dtype: str, look: Look) -> Rows:
    """What makes rows of it; a tensor that is made itself is made whole and once."""
    if is_original(tensor):
        return lambda start, stop: as_bytes(_rounded(read_rows(tensor, 0, start, stop), dtype, look))
    whole = read_tensor(tensor)
    return lambda start, stop: as_bytes(_rounded(whole[start:stop], dtype, look))


def _patched(tensor: Patched, dtype: str, look: Look) -> LazyTensor:
    """The same rows produced anew, and the tensor below them cast."""

    def produce() -> memoryview:
        import torch

        made = torch.frombuffer(bytearray(tensor.produce()), dtype=torch_dtype(tensor.dtype))
        return as_bytes(_rounded(made, dtype, look))

    below = cast(tensor.base, dtype, look)
    return patch_rows(below, axis=tensor.axis, rows=tensor.rows, size=tensor.size, produce=produce)


def _rounded(values: Tensor, dtype: str, look: Look) -> Tensor:
    """The nearest values; torch takes those of float64 to half precision by way of float32, and so would round them twice."""
    import torch

    wanted = torch_dtype(dtype)
    found = round_once(values, wanted) if values.dtype == torch.float64 else values.to(wanted)
    look(values, found)
    return found
