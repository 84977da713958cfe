"""What a file holds that torch.save wrote, by torch's unpickler of weights; tensors are mapped and not read.

That unpickler builds tensors and containers and calls nothing else: a file that asks for more is refused, and nothing of it is run.
"""

from __future__ import annotations

import re
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

from graftkit.checkpoint.reading import TAGS
from graftkit.errors import InputRejected, printable

if TYPE_CHECKING:
    from torch import Tensor

#: What describes the tensors of a file, without their values; one of a million tensors has less.
MAX_PICKLE_BYTES = 64 << 20

#: The entry that names the order of bytes holds one short word.
MAX_BYTE_ORDER = 64

_GLOBAL = re.compile(r"(?:GLOBAL|global|class|function) '?([\w.]+)")


def load_mapped(path: Path, shown: str, inside: str | None = None) -> dict[str, Tensor]:
    """The tensors of a file by name, their values mapped from it; where the file holds more, those under the key ``inside``.

    Raises:
        InputRejected: see :func:`load_archive`; or it holds anything but named tensors.
        OSError: it cannot be read.
    """
    return named_tensors(load_archive(path, shown), shown, inside)


def named_tensors(held: Any, shown: str, inside: str | None) -> dict[str, Tensor]:
    """The tensors by name of what a file holds, or of what it has under the key ``inside``.

    Raises:
        InputRejected: it holds anything but named tensors.
    """
    if inside is not None:
        held = held.get(inside) if isinstance(held, Mapping) else None
    if not isinstance(held, Mapping) or not held:
        raise InputRejected(f"{shown}: holds no tensors by name, as a state dict does")
    for name, value in held.items():
        check_value(name, value, shown)
    return dict(held)


def load_archive(path: Path, shown: str, package: str | None = None) -> Any:
    """What a file holds, the values of its tensors mapped from it.

    What it has of classes of ``package`` becomes objects that hold nothing and do nothing; the package is not imported.

    Raises:
        InputRejected: it is no file of torch.save's present format, or asks to run code.
        OSError: it cannot be read.
    """
    import torch

    check_archive(path, shown)
    try:
        with torch.serialization.safe_globals(_inert_classes(path, package) if package else []):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (MemoryError, OSError, KeyboardInterrupt):
        raise
    except Exception as error:  # the unpickler raises whatever a damaged file makes it run into
        raise InputRejected(f"{shown}: {refusal(str(error))}") from error


class _Inert:
    """What stands for an object of a library."""

    def __new__(cls, *arguments: object) -> Self:
        """Take whatever the object was made of, and keep nothing."""
        del arguments
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        """Keep nothing."""


def _inert_classes(path: Path, package: str) -> list[Any]:
    """A class for each name in ``package`` that the file has, called by that name."""
    from torch.serialization import get_unsafe_globals_in_checkpoint

    names = (name.rpartition(".") for name in get_unsafe_globals_in_checkpoint(path) if name.startswith(f"{package}."))
    return [type(name, (_Inert,), {"__module__": module}) for module, _, name in names]


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


def check_value(name: object, value: object, shown: str) -> None:
    """Refuse what is no tensor by name, or none that safetensors can hold."""
    import torch

    if not isinstance(name, str) or not isinstance(value, torch.Tensor):
        what = f"{printable(name)!r} is of type {type(value).__name__}"
        raise InputRejected(f"{shown}: holds more than tensors by name: {what}; save the model's state dict alone")
    plain = value.layout == torch.strided and not value.is_quantized and value.device.type == "cpu"
    if not plain or str(value.dtype).removeprefix("torch.") not in TAGS:
        raise InputRejected(
            f"{shown}: tensor {printable(name)!r} is {value.dtype}, {value.layout}, which safetensors cannot hold"
        )
