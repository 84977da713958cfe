"""Tensors of a model in memory, as lazy tensors: their values are looked at where they are."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeGuard

from graftkit.checkpoint.computed import as_bytes
from graftkit.checkpoint.reading import read_tensor
from graftkit.checkpoint.tensors import ITEM_BYTES, LazyTensor, Lent, Segment, Stored

if TYPE_CHECKING:
    from torch import Tensor

#: Bytes that are handed over at a time.
PIECE = 8 << 20


class Held:
    """A tensor of a model in memory, or what is made of some where the model is saved in another form.

    ``parameters`` are the names in the model of what it is made of; ``plain`` says that it is the one that they name. After
    :meth:`release` all but the values is left, so that what remembers it keeps no model in memory.
    """

    __slots__ = ("_values", "dtype", "parameters", "plain", "shape")

    def __init__(
        self, dtype: str, shape: tuple[int, ...], values: Callable[[], Tensor], parameters: tuple[str, ...], *, plain: bool
    ) -> None:  # fmt: skip
        """Hold what ``values`` returns, a tensor of this shape and dtype."""
        self.dtype, self.shape, self.parameters, self.plain = dtype, shape, parameters, plain
        self._values: Callable[[], Tensor] | None = values

    @property
    def nbytes(self) -> int:
        """Bytes of all values."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]

    @property
    def values(self) -> Tensor:
        """The tensor, which is not to be changed.

        Raises:
            ValueError: it was released.
        """
        if self._values is None:
            raise ValueError("the model that held this tensor was given back")
        return self._values().detach()

    def release(self) -> None:
        """Let the model go."""
        self._values = None

    def segments(self) -> Iterator[Segment]:
        """Yield the bytes in pieces; only what is not contiguous is copied."""
        flat, step = self.values.reshape(-1), PIECE // ITEM_BYTES[self.dtype]
        for start in range(0, len(flat), step):
            piece = flat[start : start + step]
            yield Lent(piece.nbytes, functools.partial(as_bytes, piece))


def hold(tensor: LazyTensor) -> Held:
    """A lazy tensor whose values are read or computed once, now, and stay in memory."""
    values = read_tensor(tensor)
    return Held(tensor.dtype, tensor.shape, lambda: values, (), plain=False)


#: A tensor of the source itself.
Original = Stored | Held


def is_original(tensor: LazyTensor) -> TypeGuard[Original]:
    """Whether a tensor is the source's own: one that lies in a file, or one that a model in memory holds."""
    return isinstance(tensor, Stored | Held)
