"""A tensor in another floating dtype, made some rows at a time."""

from __future__ import annotations

from graftkit.checkpoint.computed import as_bytes, computed
from graftkit.checkpoint.held import Original, is_original
from graftkit.checkpoint.reading import read_rows, read_tensor
from graftkit.checkpoint.tensors import FLOATING, ITEM_BYTES, LazyTensor, Rows, Streamed

#: Bytes of the new dtype that are made at a time.
BLOCK = 8 << 20


def cast(tensor: LazyTensor, dtype: str) -> LazyTensor:
    """Return a floating tensor of the source in ``dtype``, each value rounded to nearest once; widening changes no value.

    A tensor of that dtype, of integers, or one that was made is returned as it is.
    """
    if not is_original(tensor) or tensor.dtype not in FLOATING or tensor.dtype == dtype:
        return tensor
    if not tensor.shape:
        return computed(dtype, (), lambda: read_tensor(tensor))
    width = tensor.nbytes // ITEM_BYTES[tensor.dtype] // max(tensor.shape[0], 1) * ITEM_BYTES[dtype]
    return Streamed(dtype, tensor.shape, max(BLOCK // max(width, 1), 1), lambda: _rows(tensor, dtype))


def _rows(tensor: Original, dtype: str) -> Rows:
    return lambda start, stop: as_bytes(read_rows(tensor, 0, start, stop), dtype)
