"""Reading the bytes of lazy tensors in bounded pieces."""

from __future__ import annotations

import itertools
import math
import os
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from graftkit.checkpoint.hub.file import HubFile
from graftkit.checkpoint.tensors import Cutter, FileRange, LazyTensor, Stored
from graftkit.errors import InputRejected, printable

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

#: How much of a tensor is held at a time. Large enough for sequential speed, small enough to stay in the caches' reach.
CHUNK = 8 << 20

#: Tag of the safetensors format -> name of torch's dtype.
DTYPES = {
    "BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
}  # fmt: skip

#: Name of torch's dtype -> tag.
TAGS = {name: tag for tag, name in DTYPES.items()}


def torch_dtype(tag: str) -> torch.dtype:
    """The torch dtype of a safetensors tag; opaque dtypes become uint8, since only their shape is asked for."""
    import torch

    found: torch.dtype = getattr(torch, DTYPES.get(tag, "uint8"))
    return found


def read_range(
    path: os.PathLike[str], offset: int, nbytes: int, into: np.ndarray[Any, Any] | None = None
) -> np.ndarray[Any, Any]:
    """Read a byte range into one fresh, aligned uint8 array, or into one of ``nbytes`` that is given."""
    import numpy as np

    into = np.empty(nbytes, np.uint8) if into is None else into
    if isinstance(path, HubFile) and not path.is_here:
        into[:] = np.frombuffer(path.read(offset, nbytes), np.uint8)
        return into
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return _read_fd(fd, offset, into, path)
    finally:
        os.close(fd)


def _read_fd(fd: int, offset: int, buffer: np.ndarray[Any, Any], path: object) -> np.ndarray[Any, Any]:
    view, done = memoryview(buffer.data), 0
    while done < len(view):
        count = read_into(fd, view[done:], offset + done)
        if count == 0:
            raise InputRejected(f"{printable(path)}: the file became shorter while it was read")
        done += count
    return buffer


def read_into(fd: int, view: memoryview, offset: int) -> int:
    """Fill ``view`` from ``offset`` of a file on, and return how many bytes came; 0 at its end."""
    if hasattr(os, "preadv"):
        return os.preadv(fd, [view], offset)
    found = os.pread(fd, min(len(view), CHUNK), offset)  # macOS before 11
    view[: len(found)] = found
    return len(found)


def chunks(tensor: LazyTensor, size: int = CHUNK) -> Iterator[bytes]:
    """Yield the bytes of a tensor in pieces of ``size`` bytes, whatever its segments are."""
    held = bytearray()
    for piece in _pieces(tensor, size):
        held += piece
        while len(held) >= size:
            yield bytes(held[:size])
            del held[:size]
    if held:
        yield bytes(held)


def _pieces(tensor: LazyTensor, size: int) -> Iterator[memoryview]:
    for segment in tensor.segments():
        if isinstance(segment, FileRange):
            for start in range(0, segment.nbytes, size):
                count = min(size, segment.nbytes - start)
                yield read_range(segment.path, segment.offset + start, count).data
        else:
            yield segment.produce()


class Reader:
    """Reads the bytes of a tensor in order, as many at a time as are asked for."""

    def __init__(self, tensor: LazyTensor) -> None:
        self._cutter, self._done = Cutter(tensor.segments()), 0

    def read(self, nbytes: int) -> np.ndarray[Any, Any]:
        """The next ``nbytes`` bytes; what lies in one piece of memory is not copied."""
        import numpy as np

        start, self._done = self._done, self._done + nbytes
        pieces = [
            read_range(segment.path, segment.offset, segment.nbytes)
            if isinstance(segment, FileRange)
            else np.frombuffer(segment.produce(), np.uint8)
            for segment in self._cutter.take(start, self._done)
        ]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces or [np.empty(0, np.uint8)])


def equal_bytes(left: LazyTensor, right: LazyTensor) -> bool:
    """Whether two tensors hold the same bytes; read in chunks."""
    if (left.dtype, left.shape) != (right.dtype, right.shape):
        return False
    return all(a == b for a, b in zip(chunks(left), chunks(right), strict=True))


def read_tensor(tensor: LazyTensor) -> Tensor:
    """A whole tensor in fresh memory, whatever its segments are: a torch tensor of its shape and dtype."""
    import numpy as np

    return _read_tensor(tensor, np.empty(tensor.nbytes, np.uint8))


def _read_tensor(tensor: LazyTensor, raw: np.ndarray[Any, Any]) -> Tensor:
    import numpy as np
    import torch

    if isinstance(tensor, Stored):
        read_range(tensor.path, tensor.offset, tensor.nbytes, raw)
    else:
        position = 0
        for piece in _pieces(tensor, CHUNK):
            raw[position : position + piece.nbytes] = np.frombuffer(piece, np.uint8)
            position += piece.nbytes
    return torch.from_numpy(raw).view(torch_dtype(tensor.dtype)).view(tensor.shape)


class Scratch(threading.local):
    """Memory that whole tensors are read into one after another, in each thread its own: fresh pages cost more than their bytes."""

    def __init__(self) -> None:
        import numpy as np

        self._memory = np.empty(0, np.uint8)

    def read(self, tensor: LazyTensor) -> Tensor:
        """What :func:`read_tensor` gives, until this thread reads the next."""
        import numpy as np

        if self._memory.nbytes < tensor.nbytes:
            self._memory = np.empty(tensor.nbytes, np.uint8)
        return _read_tensor(tensor, self._memory[: tensor.nbytes])


def read_rows(tensor: LazyTensor, axis: int, start: int, stop: int) -> Tensor:
    """Rows ``start..stop`` of a tensor along ``axis`` (all dimensions before it are 1); no other row of a stored one is read.

    *Shape:* ``(stop - start, product of the dimensions behind axis)``, a torch tensor of its dtype.
    """
    return _rows(tensor, Cutter(tensor.segments()), axis, start, stop)


def _rows(tensor: LazyTensor, cutter: Cutter, axis: int, start: int, stop: int) -> Tensor:
    import numpy as np
    import torch

    width = tensor.nbytes // max(tensor.shape[axis], 1)
    raw, done = np.empty((stop - start) * width, np.uint8), 0
    for segment in cutter.take(start * width, stop * width):
        part = raw[done : done + segment.nbytes]
        if isinstance(segment, FileRange):
            read_range(segment.path, segment.offset, segment.nbytes, part)
        else:
            part[:] = np.frombuffer(segment.produce(), np.uint8)
        done += segment.nbytes
    return torch.from_numpy(raw).view(torch_dtype(tensor.dtype)).view(stop - start, -1)


def row_chunks(tensor: LazyTensor, axis: int, rows: int, nbytes: int = CHUNK // 2) -> Iterator[tuple[int, Tensor]]:
    """Yield ``(first row, rows)`` over the first ``rows`` rows, about ``nbytes`` at a time; what is computed is computed once."""
    width = max(tensor.nbytes // max(tensor.shape[axis], 1), 1)
    step = max(nbytes // width, 1)
    cutter = Cutter(tensor.segments())
    for start in range(0, rows, step):
        yield start, _rows(tensor, cutter, axis, start, min(start + step, rows))


def read_ids(tensor: LazyTensor, ids: Sequence[int], axis: int = 0) -> Tensor:
    """Rows ``ids`` of a table along ``axis``, old or new. *Shape:* ``(len(ids), d)``; no other stored row is read."""
    import torch

    cutter, width = Cutter(tensor.segments()), math.prod(tensor.shape[axis + 1 :])
    found = torch.empty(len(ids), width, dtype=torch_dtype(tensor.dtype))
    ordered = sorted(zip(ids, range(len(ids)), strict=True))
    for index, places in itertools.groupby(ordered, key=lambda pair: pair[0]):
        found[[place for _, place in places]] = _rows(tensor, cutter, axis, index, index + 1)
    return found


def differing_rows(left: LazyTensor, right: LazyTensor) -> int:
    """How many rows of two tensors of one dtype and shape differ in any bit; read in chunks."""
    import torch

    rows = left.shape[0]
    pairs = zip(row_chunks(left, 0, rows), row_chunks(right, 0, rows), strict=True)
    return sum(int((a.view(torch.uint8) != b.view(torch.uint8)).any(-1).sum()) for (_, a), (_, b) in pairs)
