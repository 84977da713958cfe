"""The tensors of a file that torch.save wrote, as lazy ones: ranges of its bytes, found by where torch maps them."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftkit.checkpoint.computed import as_bytes
from graftkit.checkpoint.pickled_file import check_value, load_archive, named_tensors
from graftkit.checkpoint.reading import TAGS
from graftkit.checkpoint.tensors import Computed, LazyTensor, Stored
from graftkit.errors import InputRejected

if TYPE_CHECKING:
    from torch import Tensor

#: Length of the fixed part of a file's own header inside a zip archive, and where it holds the lengths of what follows.
_LOCAL_HEADER, _NAME_LENGTH, _EXTRA_LENGTH = 30, slice(26, 28), slice(28, 30)


@dataclass(frozen=True, slots=True)
class Archive:
    """A file called ``shown``, what it holds, and the address ``base`` at which it is mapped."""

    path: Path
    shown: str
    held: Any
    base: int

    def mapping(self, key: str) -> Mapping[Any, Any]:
        """What it has under ``key``; empty where that is None or missing.

        Raises:
            InputRejected: it is no mapping.
        """
        found = self.held.get(key) or {}
        if not isinstance(found, Mapping):
            raise InputRejected(f"{self.shown}: {key} holds nothing by name")
        return found

    def lazy(self, name: str, value: Any) -> LazyTensor:
        """One of the tensors that it holds: a range of its bytes, unless its values do not lie there in their order.

        Raises:
            InputRejected: it is no tensor that safetensors can hold.
        """
        check_value(name, value, self.shown)
        dtype, shape = TAGS[str(value.dtype).removeprefix("torch.")], tuple(value.shape)
        if not value.numel() or not value.is_contiguous() or value.is_neg():
            return Computed(dtype, shape, lambda: as_bytes(value.resolve_neg()))
        return Stored(dtype, shape, self.path, value.data_ptr() - self.base, value.numel() * value.element_size())


def open_archive(path: Path, shown: str, package: str | None = None) -> Archive:
    """Map a file; see :func:`~graftkit.checkpoint.pickled_file.load_archive`.

    Raises:
        InputRejected: it holds nothing by name, or asks to run code, or its directory does not say where the values lie.
        OSError: it cannot be read.
    """
    held = load_archive(path, shown, package)
    if not isinstance(held, Mapping):
        raise InputRejected(f"{shown}: holds no tensors by name, as a state dict does")
    base = _base(path, _tensors_in(held))
    if base is None:
        raise InputRejected(f"{shown}: its tensors do not lie where the directory of the archive says")
    return Archive(path, shown, held, base)


def mapped_tensors(path: Path, shown: str, inside: str | None = None) -> dict[str, LazyTensor]:
    """The lazy tensors of a file by name. Two names for one tensor have equal ranges.

    Where the file holds more, the tensors are those under the key ``inside``.

    Raises:
        InputRejected: see :func:`open_archive`; or there is anything but named tensors.
    """
    archive = open_archive(path, shown)
    held = named_tensors(archive.held, shown, inside)
    return {name: archive.lazy(name, value) for name, value in held.items()}


def _tensors_in(held: Any) -> Iterator[Tensor]:
    """Yield every tensor of what a file holds, however deep; what it holds at several places, or in itself, is gone into once."""
    import torch

    waiting, seen = [held], set[int]()
    while waiting:
        value = waiting.pop()
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, Mapping | list | tuple | set) and id(value) not in seen:
            seen.add(id(value))
            waiting += value.values() if isinstance(value, Mapping) else value


def _base(path: Path, tensors: Iterator[Tensor]) -> int | None:
    """The address at which the file is mapped: the one from which every storage lies where the archive has an entry of its size.

    All tensors of the file are asked, since those of one part of it may lie as those of another do.
    """
    import torch

    mapped = (tensor.untyped_storage() for tensor in tensors if tensor.layout is torch.strided)
    storages = {storage.data_ptr(): storage.nbytes() for storage in mapped if storage.nbytes()}
    if not storages:
        return 0
    entries, first = dict(_entries(path)), min(storages)
    for offset in sorted(entries):
        base = first - offset
        if all(entries.get(address - base) == nbytes for address, nbytes in storages.items()):
            return base
    return None


def _entries(path: Path) -> Iterator[tuple[int, int]]:
    """Yield where the bytes of each file in the archive begin, and how many they are."""
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        for entry in archive.infolist():
            header = os.pread(file.fileno(), _LOCAL_HEADER, entry.header_offset)
            lengths = (int.from_bytes(header[part], "little") for part in (_NAME_LENGTH, _EXTRA_LENGTH))
            yield entry.header_offset + _LOCAL_HEADER + sum(lengths), entry.file_size
