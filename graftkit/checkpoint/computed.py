"""Tensors whose values a function makes when they are written: one at a time, or several together."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from graftkit.checkpoint.reading import torch_dtype
from graftkit.checkpoint.tensors import Computed
from graftkit.initializers.one_thread import begin_thread

if TYPE_CHECKING:
    from torch import Tensor


def as_bytes(values: Tensor, dtype: str | None = None) -> memoryview:
    """The bytes of a torch tensor, cast to ``dtype`` (a safetensors tag) where one is given."""
    import torch

    cast = values if dtype is None else values.to(torch_dtype(dtype))
    return memoryview(cast.detach().contiguous().view(-1).view(torch.uint8).numpy().data)


def computed(dtype: str, shape: tuple[int, ...], make: Callable[[], Tensor]) -> Computed:
    """A lazy tensor of what ``make`` returns, a torch tensor of that shape, cast to ``dtype``; made anew each time it is read."""
    return Computed(dtype, shape, lambda: as_bytes(make(), dtype))


class TensorGroup:
    """Tensors that one function makes together: it runs once, when the first of them is read, and what it returned is kept.

    ``make`` returns torch tensors by key: a mapping, or a sequence by place. Several threads may read at a time.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make, self._lock = make, threading.Lock()
        self._values: Any = None

    def __call__(self) -> Any:
        """What ``make`` returned."""
        with self._lock:
            if self._values is None:
                begin_thread()
                self._values = self._make()
            return self._values

    def tensor(self, key: Any, dtype: str, shape: tuple[int, ...]) -> Computed:
        """The lazy tensor of one of them, cast to ``dtype``."""
        return computed(dtype, shape, lambda: self()[key])
