"""The tensors of a file that torch.save wrote, by torch's unpickler of weights, mapped and not read.

That unpickler builds tensors and containers and calls nothing else: a file that asks for more is refused, and nothing of it is run.
"""

from __future__ import annotations

import os
import re
import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from graftkit.checkpoint.computed import as_bytes
from graftkit.checkpoint.reading import TAGS
from graftkit.checkpoint.tensors import Computed, LazyTensor, Stored
from graftkit.errors import InputRejected, printable

if TYPE_CHECKING:
    from torch import Tensor

#: What describes the tensors of a file, without their values; one of a million tensors has less.
MAX_PICKLE_BYTES = 64 << 20

#: The entry that names the order of bytes holds one short word.
MAX_BYTE_ORDER = 64

#: Length of the fixed part of a file's own header inside a zip archive, and where it holds the lengths of what follows.
_LOCAL_HEADER, _NAME_LENGTH, _EXTRA_LENGTH = 30, slice(26, 28), slice(28, 30)

_GLOBAL = re.compile(r"(?:GLOBAL|global|class|function) '?([\w.]+)")


def load_mapped(path: Path, shown: str, inside: str | None = None) -> dict[str, Tensor]:
    """The tensors of a file by name, their values mapped from it; where the file holds more, those under the key ``inside``.

    Raises:
        InputRejected: it is no file of torch.save's present format, holds anything but named tensors, or asks to run code.
        OSError: it cannot be read.
    """
    import torch

    check_archive(path, shown)
    try:
        held: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (MemoryError, OSError, KeyboardInterrupt):
        raise
    except Exception as error:  # the unpickler raises whatever a damaged file makes it run into
        raise InputRejected(f"{shown}: {refusal(str(error))}") from error
    if inside is not None:
        held = held.get(inside) if isinstance(held, Mapping) else None
    if not isinstance(held, Mapping) or not held:
        raise InputRejected(f"{shown}: holds no tensors by name, as a state dict does")
    for name, value in held.items():
        _check_value(name, value, shown)
    return dict(held)


def check_archive(path: Path | IO[bytes], shown: str) -> None:
    """Look at the directory of the archive before torch does.

    Raises:
        InputRejected: it is none of torch.save's present format, is compressed, or in another byte order.
    """
    if not zipfile.is_zipfile(path):
        raise InputRejected(
            f"{shown}: is not in the format that torch.save has written since 2020, so that its tensors cannot be read one at a time;"
            " load it with torch.load(..., weights_only=True) and save it again"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            order = next((archive.read(entry) for entry in entries if _names_byte_order(entry)), b"")
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise InputRejected(f"{shown}: is a damaged archive: {printable(error)}") from error
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise InputRejected(f"{shown}: is a compressed archive, which torch.save does not write")
    if order.decode(errors="replace") not in ("", sys.byteorder):
        raise InputRejected(
            f"{shown}: its values are in another byte order; load and save it with torch on this machine"
        )
    described = sum(entry.file_size for entry in entries if entry.filename.endswith(".pkl"))
    if described > MAX_PICKLE_BYTES:
        raise InputRejected(f"{shown}: {described:,} bytes describe its tensors, more than {MAX_PICKLE_BYTES:,}")


def _names_byte_order(entry: zipfile.ZipInfo) -> bool:
    return entry.filename.rpartition("/")[2] == "byteorder" and entry.file_size < MAX_BYTE_ORDER


def refusal(message: str) -> str:
    """What torch's unpickler refused, in one line; its own message tells how to let the file run code."""
    if "eights only" in message or "nsupported" in message:
        found = _GLOBAL.search(message.partition("\n")[2]) or _GLOBAL.search(message)
        named = f": it names {printable(found[1])}" if found else ""
        return f"holds more than tensors and could run code{named}; nothing of it was run"
    return f"torch cannot read it: {printable(message.strip().split(chr(10), 1)[0][:200])}"


def _check_value(name: object, value: object, shown: str) -> None:
    import torch

    if not isinstance(name, str) or not isinstance(value, torch.Tensor):
        what = f"{printable(name)!r} is of type {type(value).__name__}"
        raise InputRejected(f"{shown}: holds more than tensors by name: {what}; save the model's state dict alone")
    plain = value.layout == torch.strided and not value.is_quantized and value.device.type == "cpu"
    if not plain or str(value.dtype).removeprefix("torch.") not in TAGS:
        raise InputRejected(
            f"{shown}: tensor {printable(name)!r} is {value.dtype}, {value.layout}, which safetensors cannot hold"
        )


def mapped_tensors(path: Path, shown: str, inside: str | None = None) -> dict[str, LazyTensor]:
    """The lazy tensors of a file by name: ranges of its bytes, but for those whose values do not lie in their order.

    Two names for one tensor have equal ranges. Where the file holds more, the tensors are those under the key ``inside``.

    Raises:
        InputRejected: see :func:`load_mapped`; or the archive's directory does not say where the values lie.
    """
    held = load_mapped(path, shown, inside)
    base = _base(path, held)
    if base is None:
        raise InputRejected(f"{shown}: its tensors do not lie where the directory of the archive says")
    return {name: _lazy(path, tensor, base) for name, tensor in held.items()}


def _lazy(path: Path, tensor: Tensor, base: int) -> LazyTensor:
    dtype, shape = TAGS[str(tensor.dtype).removeprefix("torch.")], tuple(tensor.shape)
    if not tensor.numel() or not tensor.is_contiguous() or tensor.is_neg():
        return Computed(dtype, shape, lambda: as_bytes(tensor.resolve_neg()))
    return Stored(dtype, shape, path, tensor.data_ptr() - base, tensor.numel() * tensor.element_size())


def _base(path: Path, held: Mapping[str, Tensor]) -> int | None:
    """The address at which the file is mapped: the one from which every storage lies where the archive has an entry of its size."""
    storages = {
        storage.data_ptr(): storage.nbytes()
        for tensor in held.values()
        if (storage := tensor.untyped_storage()).nbytes()
    }
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
