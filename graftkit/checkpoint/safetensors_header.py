"""The header of a safetensors file, read strictly and bounded, and written as the safetensors library writes it.

A file is eight bytes of header length, a JSON object, and the tensors' bytes without holes: see
https://github.com/huggingface/safetensors#format. Stricter than the library, which lets the last of two tensors of the
same name win, ignores unknown fields, and accepts a header of 1.3 million entries after almost a minute.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from graftkit.checkpoint.files import open_regular
from graftkit.checkpoint.hub.file import HubFile
from graftkit.checkpoint.tensors import ITEM_BYTES, Stored
from graftkit.errors import InputRejected, StorageFault, printable, spelled

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from graftkit.checkpoint.tensors import SourceFile

#: Largest header that is read; the library's bound is 100 MB. The largest mixture-of-experts checkpoints have some
#: 200,000 tensors at 100 to 150 bytes each, over 60 and more shards: all of them could stand in one file of this
#: bound, which takes about 3 s to read. A shard of 300 tensors takes 2 ms.
MAX_HEADER_BYTES = 32 * 2**20
#: Bits per element, the sub-byte dtypes of the format included: those are carried along and never computed with.
ITEM_BITS = {**{dtype: 8 * width for dtype, width in ITEM_BYTES.items()}, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}

_LENGTH_BYTES = 8
_ALIGNMENT = 8
_MAX_RANK = 64
_MAX_SIZE = 2**63 - 1
_LFS_POINTER = b"version https://git-lfs"
_FIELDS = ["data_offsets", "dtype", "shape"]


@dataclass(frozen=True, slots=True)
class Header:
    """What a safetensors file holds. ``tensors`` stand in the order of their data; ``data_start`` is in bytes."""

    tensors: Mapping[str, Stored]
    metadata: Mapping[str, str]
    data_start: int
    file_size: int


def read_header(path: SourceFile, *, shown: str | None = None) -> Header:
    """Return the checked header of the safetensors file ``path``, which must not be a link.

    Of a file on the hub nothing but the header is transferred.

    Args:
        path: the file, with every link resolved, or one on the hub.
        shown: the file's name in errors; the last part of ``path`` by default.

    Raises:
        InputRejected: the file is malformed or truncated, or its header larger than ``MAX_HEADER_BYTES``.
        StorageFault: the file system or the hub failed.
    """
    name = printable(shown or path.name)
    raw, file_size = _read_raw(path, name)
    data_start = _LENGTH_BYTES + len(raw)
    metadata, entries = _parse(raw, name)
    ranges = [(*_entry(name, tensor, entry), tensor) for tensor, entry in entries]
    ranges.sort(key=lambda found: found[:2])
    position = 0
    for begin, end, _, _, tensor in ranges:
        if begin != position:
            what = "overlaps the tensor before it" if begin < position else "leaves a hole before it"
            _reject(name, tensor, f"begins at byte {begin} of the data, not at {position}: it {what}")
        position = end
    data_size = file_size - data_start
    if position != data_size:
        what = "is truncated" if position > data_size else "has bytes that belong to no tensor"
        raise InputRejected(
            f"{name}: {what}: the header describes {position} bytes of data, the file holds {data_size}"
        )
    tensors = {
        tensor: Stored(dtype, shape, path, data_start + begin, end - begin)
        for begin, end, dtype, shape, tensor in ranges
    }
    return Header(tensors, metadata, data_start, file_size)


def _read_raw(path: SourceFile, name: str) -> tuple[bytes, int]:
    if isinstance(path, HubFile):
        return _raw_header(path.read, path.size, name), path.size
    with open_regular(path, name) as file:
        try:
            file_size = os.fstat(file.fileno()).st_size
            raw = _raw_header(lambda offset, nbytes: os.pread(file.fileno(), nbytes, offset), file_size, name)
        except OSError as error:
            raise StorageFault(f"{name}: cannot be read: {error.strerror}") from error
    return raw, file_size


def _raw_header(read: Callable[[int, int], bytes], file_size: int, name: str) -> bytes:
    """The bytes of the JSON object; ``read`` returns those of an offset and a number."""
    start = read(0, min(_LENGTH_BYTES, file_size))
    length = int.from_bytes(start, "little")
    if file_size >= _LENGTH_BYTES and _LFS_POINTER.startswith(start):
        raise InputRejected(f"{name}: is a Git LFS pointer, not the file itself; run `git lfs pull` in its folder")
    if file_size < _LENGTH_BYTES or file_size - _LENGTH_BYTES < length:
        raise InputRejected(f"{name}: is truncated or no safetensors file: it holds {file_size} bytes in all")
    if length > MAX_HEADER_BYTES:
        raise InputRejected(f"{name}: its header has {length} bytes; graftkit reads at most {MAX_HEADER_BYTES}")
    raw = read(_LENGTH_BYTES, length)
    if len(raw) != length:
        raise InputRejected(f"{name}: was cut short while it was read")
    return raw


def _parse(raw: bytes, name: str) -> tuple[dict[str, str], Sequence[tuple[str, object]]]:
    """Return the metadata and the entries; each JSON object becomes a tuple of pairs, so that none hides another."""
    if not raw.startswith(b"{"):
        raise InputRejected(f"{name}: the header is not a JSON object")
    try:
        pairs = json.loads(raw.decode("utf-8"), object_pairs_hook=tuple, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise InputRejected(f"{name}: the header is not JSON: {printable(error)}") from error
    if len(dict(pairs)) != len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        _reject(name, twice, "stands twice in the header")
    metadata: object = next((value for key, value in pairs if key == "__metadata__"), None)
    return _metadata(metadata, name), [pair for pair in pairs if pair[0] != "__metadata__"]


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a JSON value")


def _metadata(found: object, name: str) -> dict[str, str]:
    pairs = found if isinstance(found, tuple) else ()
    metadata = dict(pairs)
    strings = all(isinstance(value, str) and _is_text(key) and _is_text(value) for key, value in pairs)
    if (found is not None and not isinstance(found, tuple)) or not strings or len(metadata) != len(pairs):
        raise InputRejected(f"{name}: __metadata__: is not an object of strings with distinct names")
    return metadata


def _entry(name: str, tensor: str, found: object) -> tuple[int, int, str, tuple[int, ...]]:
    """Return begin and end in the data, dtype and shape of one entry of the header."""
    if not _is_text(tensor):
        _reject(name, tensor, "the name is no valid Unicode text")
    if not isinstance(found, tuple) or sorted(key for key, _ in found) != _FIELDS:
        _reject(name, tensor, "its entry is not an object with exactly dtype, shape and data_offsets")
    fields = dict(found)
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BITS:
        _reject(name, tensor, f"unknown dtype {spelled(dtype)}")
    if not _is_sizes(shape) or len(shape) > _MAX_RANK:
        _reject(name, tensor, f"shape {spelled(shape)} is not a list of sizes")
    if not _is_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        _reject(name, tensor, f"data_offsets {spelled(offsets)} are not a range of bytes")
    # Zeros are left out: [2**62, 4, 0] holds nothing, yet its strides overflow in whoever computes them.
    if math.prod(size for size in shape if size) * ITEM_BITS[dtype] > 8 * _MAX_SIZE:
        _reject(name, tensor, f"shape {shape} is too large")
    bits = math.prod(shape) * ITEM_BITS[dtype]
    begin, end = offsets
    if bits != 8 * (end - begin):
        _reject(name, tensor, f"{dtype} of shape {shape} needs {bits / 8:g} bytes, its data_offsets hold {end - begin}")
    return begin, end, dtype, tuple(shape)


def _is_sizes(found: object) -> bool:
    return isinstance(found, list) and all(type(size) is int and 0 <= size <= _MAX_SIZE for size in found)


def _is_text(text: str) -> bool:
    """Say whether ``text`` can be encoded; JSON can hold half a surrogate pair, UTF-8 cannot."""
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def _reject(name: str, tensor: str, what: str) -> NoReturn:
    raise InputRejected(f"{name}: tensor '{printable(tensor)}': {printable(what)}")


def encode_header(
    entries: Sequence[tuple[str, str, tuple[int, ...], int]], metadata: Mapping[str, str] | None = None
) -> bytes:
    """Return the length prefix and the header of a file that holds ``entries`` one after the other.

    Args:
        entries: name, dtype, shape and bytes of each tensor, in the order of their data.
        metadata: written first, as the library writes it, and left out when empty.

    Returns:
        bytes whose number is a multiple of eight, so that the data behind them is aligned.

    Raises:
        ValueError: a name stands twice or is reserved, or shape, dtype and bytes of an entry disagree.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for name, dtype, shape, nbytes in entries:
        if name in header or name == "__metadata__":
            raise ValueError(f"two tensors, or a reserved name: {name!r}")
        if math.prod(shape) * ITEM_BITS[dtype] != 8 * nbytes:
            raise ValueError(f"tensor {name!r}: {nbytes} bytes do not make {dtype} of shape {shape}")
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, position + nbytes]}
        position += nbytes
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text
