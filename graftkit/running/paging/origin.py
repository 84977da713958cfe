"""Where each tensor of a model in memory comes from: one tensor on disk, or several that the loader converts."""

from __future__ import annotations

import contextlib
import copy
import math
import mmap
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from graftkit.architecture.names import Conversion, tensor_names
from graftkit.checkpoint.reading import read_into, torch_dtype
from graftkit.checkpoint.tensors import Stored
from graftkit.errors import InputRejected, printable

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

#: Bytes from which on a tensor gets pages of its own.
PAGES = 1 << 20


class Tally:
    """How many bytes of weight files this process has read tensor by tensor."""

    nbytes = 0


READ = Tally()


@dataclass(frozen=True, slots=True)
class Origin:
    """``read()`` returns tensors in fresh aligned memory by name in memory: the one asked for, and what is made together with it.

    ``stored`` is the tensor on disk whose values these are; None where the loader makes them of several or another shape.
    """

    read: Callable[[], Mapping[str, Tensor]]
    dtype: torch.dtype
    stored: Stored | None

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows of a stored matrix. *Shape:* ``(stop - start, width)``."""
        if self.stored is None:
            raise ValueError("rows of what no single stored tensor holds")
        width = self.stored.nbytes // self.stored.shape[0]
        shape = (stop - start, *self.stored.shape[1:])
        with outside_modes():
            return _read(self.stored, self.stored.offset + start * width, shape).to(self.dtype)


@contextlib.contextmanager
def outside_modes() -> Iterator[None]:
    """Inside, no mode that the forward runs under rewrites, counts or marks what is read."""
    from torch.utils._python_dispatch import _disable_current_modes

    with _disable_current_modes(), torch._C.DisableTorchFunction(), torch.inference_mode(mode=False), torch.no_grad():  # noqa: SLF001
        yield


def origins(model: PreTrainedModel, tensors: Mapping[str, Stored]) -> dict[str, Origin]:
    """Name in memory -> origin, for every tensor that transformers' loader would fill.

    ``model`` is on the meta device, loaded there from tensors of these names.
    """
    state, names = model.state_dict(), tensor_names(model, tensors)
    found: dict[str, Origin] = {}
    for name, disks in names.disk.items():
        first = names[disks[0]]
        if name not in state or first.name != name:
            continue
        dtype = state[name].dtype
        if not first.converted:
            stored = tensors[disks[0]]
            found.setdefault(name, Origin(_plain(name, stored, dtype), dtype, stored))
            continue
        convert = _Conversion(model, name, names.conversions[name], tensors, dtype)
        for target in convert(meta=True):
            found[target] = Origin(convert, dtype, None)
    return found


def _plain(name: str, stored: Stored, dtype: torch.dtype) -> Callable[[], Mapping[str, Tensor]]:
    return lambda: {name: _read(stored, stored.offset, stored.shape).to(dtype)}


@dataclass(frozen=True, slots=True)
class _Conversion:
    model: PreTrainedModel
    name: str
    conversion: Conversion
    tensors: Mapping[str, Stored]
    dtype: torch.dtype

    def __call__(self, *, meta: bool = False) -> dict[str, Tensor]:
        converter = copy.deepcopy(self.conversion.converter)
        for disk, pattern in self.conversion.patterns.items():
            converter.add_tensor(self.name, disk, pattern, self._reader(self.tensors[disk], meta=meta))
        made = converter.convert(self.name, model=self.model, config=self.model.config)
        return dict(_named(made))

    def _reader(self, stored: Stored, *, meta: bool) -> Callable[[], Tensor]:
        if meta:
            return lambda: torch.empty(stored.shape, dtype=self.dtype, device="meta")
        return lambda: _read(stored, stored.offset, stored.shape).to(self.dtype)


def _named(made: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for name, value in made.items():
        tensor = value[0] if isinstance(value, list) else value
        yield name, tensor if tensor.device.type == "meta" else _aligned(tensor)


def _aligned(tensor: Tensor) -> Tensor:
    """In memory of its own: of a view, what it is a view of need not be kept."""
    return tensor if tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def _read(stored: Stored, offset: int, shape: tuple[int, ...]) -> Tensor:
    """Bytes from ``offset`` on in fresh aligned memory. *Shape:* as given."""
    found = _empty(shape, torch_dtype(stored.dtype))
    view = memoryview(found.view(-1).view(torch.uint8).numpy().data) if found.numel() else memoryview(b"")
    fd, done = os.open(stored.path, os.O_RDONLY | os.O_CLOEXEC), 0
    try:
        while done < len(view):
            count = read_into(fd, view[done:], offset + done)
            if count == 0:
                raise InputRejected(f"{printable(stored.path)}: the file became shorter while it was read")
            done += count
            READ.nbytes += count
    finally:
        os.close(fd)
    return found


def _empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A large tensor gets pages of its own, which go back at once when it is let go and leave no holes in the heap."""
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes < PAGES:
        return torch.empty(shape, dtype=dtype)
    pages = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(pages, dtype=dtype).view(shape)
