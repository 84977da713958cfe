"""Where each tensor of a model in memory comes from: one tensor on disk, or several that the loader converts."""

from __future__ import annotations

import contextlib
import copy
import math
import mmap
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from graftkit.checkpoint.reading import torch_dtype
from graftkit.checkpoint.tensors import Stored
from graftkit.errors import InputRejected, printable

#: Bytes from which on a tensor gets pages of its own.
PAGES = 1 << 20


@dataclass(frozen=True, slots=True)
class Origin:
    """``read()`` returns tensors in fresh aligned memory by name in memory: the one asked for, and what is made together with it.

    ``stored`` is the tensor on disk whose values these are; None where the loader makes them of several or another shape.
    """

    read: Callable[[], Mapping[str, Any]]
    dtype: Any
    stored: Stored | None

    def rows(self, start: int, stop: int) -> Any:
        """Rows of a stored matrix. *Shape:* ``(stop - start, width)``."""
        if self.stored is None:
            raise ValueError("rows of what no single stored tensor holds")
        width = self.stored.nbytes // self.stored.shape[0]
        shape = (stop - start, *self.stored.shape[1:])
        with apart():
            return _read(self.stored, self.stored.offset + start * width, shape).to(self.dtype)


@contextlib.contextmanager
def apart() -> Iterator[None]:
    """Inside, no mode that the forward runs under rewrites, counts or marks what is read."""
    from torch.utils._python_dispatch import _disable_current_modes

    with _disable_current_modes(), torch._C.DisableTorchFunction(), torch.inference_mode(mode=False), torch.no_grad():  # noqa: SLF001
        yield


def origins(model: Any, tensors: Mapping[str, Stored]) -> dict[str, Origin]:
    """Name in memory -> origin, for every tensor that transformers' loader would fill.

    ``model`` is on the meta device, loaded there from tensors of these names. The rules are transformers' own
    (``core_model_loading.convert_and_load_state_dict_in_model``).
    """
    state = model.state_dict()
    found: dict[str, Origin] = {}
    for name, (converter, parts) in _groups(model, tensors, state).items():
        dtype = state[name].dtype
        if converter is None:
            stored = next(iter(parts.values()))[1]
            found.setdefault(name, Origin(_plain(name, stored, dtype), dtype, stored))
            continue
        convert = _Conversion(model, name, converter, parts, dtype)
        for target in convert(meta=True):
            found[target] = Origin(convert, dtype, None)
    return found


Parts = dict[str, tuple[str, Stored]]


def _groups(model: Any, tensors: Mapping[str, Stored], state: Mapping[str, Any]) -> dict[str, tuple[Any, Parts]]:
    """First name in memory -> ``(converter, {name on disk: (pattern, tensor)})``, in the loader's order."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    prefix = model.base_model_prefix
    found: dict[str, tuple[Any, Parts]] = {}
    for disk in sorted(tensors, key=dot_natural_key):
        name, pattern = rename_source_key(disk, renamings, converters, prefix, state)
        if name not in state and disk in state:
            name, pattern = rename_source_key(disk, [], [], base_model_prefix=prefix, meta_state_dict=state)
        if name in state:
            _, parts = found.setdefault(name, (None if pattern is None else by_pattern[pattern], {}))
            parts[disk] = (pattern or disk, tensors[disk])
    return found


def _plain(name: str, stored: Stored, dtype: Any) -> Callable[[], Mapping[str, Any]]:
    return lambda: {name: _read(stored, stored.offset, stored.shape).to(dtype)}


@dataclass(frozen=True, slots=True)
class _Conversion:
    model: Any
    name: str
    converter: Any
    parts: Parts
    dtype: Any

    def __call__(self, *, meta: bool = False) -> dict[str, Any]:
        converter = copy.deepcopy(self.converter)
        for disk, (pattern, stored) in self.parts.items():
            converter.add_tensor(self.name, disk, pattern, self._reader(stored, meta=meta))
        made = converter.convert(self.name, model=self.model, config=self.model.config)
        return dict(_named(made))

    def _reader(self, stored: Stored, *, meta: bool) -> Callable[[], Any]:
        if meta:
            return lambda: torch.empty(stored.shape, dtype=self.dtype, device="meta")
        return lambda: _read(stored, stored.offset, stored.shape).to(self.dtype)


def _named(made: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in made.items():
        tensor = value[0] if isinstance(value, list) else value
        yield name, tensor if tensor.device.type == "meta" else _aligned(tensor)


def _aligned(tensor: Any) -> Any:
    """In memory of its own: of a view, what it is a view of need not be kept."""
    return tensor if tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def _read(stored: Stored, offset: int, shape: tuple[int, ...]) -> Any:
    """Bytes from ``offset`` on in fresh aligned memory. *Shape:* as given."""
    found = _empty(shape, torch_dtype(stored.dtype))
    view = memoryview(found.view(-1).view(torch.uint8).numpy().data) if found.numel() else memoryview(b"")
    fd, done = os.open(stored.path, os.O_RDONLY | os.O_CLOEXEC), 0
    try:
        while done < len(view):
            count = os.preadv(fd, [view[done:]], offset + done)
            if count == 0:
                raise InputRejected(f"{printable(stored.path)}: the file became shorter while it was read")
            done += count
    finally:
        os.close(fd)
    return found


def _empty(shape: tuple[int, ...], dtype: Any) -> Any:
    """A large tensor gets pages of its own, which go back at once when it is let go and leave no holes in the heap."""
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes < PAGES:
        return torch.empty(shape, dtype=dtype)
    pages = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(pages, dtype=dtype).view(shape)
