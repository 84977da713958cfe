"""What ``.metadata`` says of a folder of torch.distributed.checkpoint: which tensors there are, and where the pieces of each lie.

The file is a pickle. It is read by an unpickler that knows the names that torch writes there and no others, and that makes of each an
object which holds what it is given and does nothing: torch's own classes are neither called nor changed.
"""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from graftkit.checkpoint.files import is_plain_relative, read_bounded
from graftkit.checkpoint.pickled_file import MAX_PICKLE_BYTES
from graftkit.checkpoint.reading import TAGS
from graftkit.checkpoint.tensors import ITEM_BYTES
from graftkit.errors import InputRejected, plural, printable

METADATA = ".metadata"

#: The classes that torch.distributed.checkpoint writes, by the modules that they lived in.
_CLASSES = {
    "torch.distributed.checkpoint.metadata": (
        *("Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata", "TensorProperties"),
        *("MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING"),
    ),
    "torch.distributed._shard.sharded_tensor.metadata": ("TensorProperties", "MEM_FORMAT_ENCODING"),
    "torch.distributed._shard.metadata": ("ShardMetadata",),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo", "_StoragePrefix"),
    "torch.serialization": ("_get_layout",),
    **dict.fromkeys(("pathlib", "pathlib._local"), ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")),
}


@dataclass(frozen=True, slots=True)
class Chunk:
    """One piece of a tensor: where it begins in the tensor and its shape, and which bytes of which file hold it."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: str
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of the folder: its dtype (a safetensors tag), shape and pieces, in the order of their offsets."""

    dtype: str
    shape: tuple[int, ...]
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True, slots=True)
class Description:
    """The tensors of a folder by the names that it has for them, and the names of what is no tensor."""

    tensors: Mapping[str, Entry]
    others: tuple[str, ...]


def read_description(folder: Path) -> Description:
    """Read ``.metadata``; no tensor is read.

    Raises:
        InputRejected: it is malformed, names what torch.distributed.checkpoint does not write there, or its pieces do not make
            up its tensors.
        StorageFault: the file system failed.
    """
    raw = read_bounded(folder, METADATA, MAX_PICKLE_BYTES)
    try:
        held = _Unpickler(io.BytesIO(raw)).load()
        tensors, others = _entries(held.of("state_dict_metadata"), _places(held.of("storage_data")))
    except (InputRejected, MemoryError, KeyboardInterrupt):
        raise
    except Exception as error:  # a damaged pickle raises whatever it runs into
        raise InputRejected(f"{METADATA}: is damaged, or not what torch.distributed.checkpoint writes") from error
    for name, entry in tensors.items():
        _check_tiles(name, entry)
    return Description(tensors, others)


class _Held:
    """What stands for an object of torch: the arguments and the state that the pickle gives it."""

    arguments: tuple[Any, ...]
    state: Any

    def __new__(cls, *arguments: Any) -> Self:
        held = super().__new__(cls)
        held.arguments, held.state = arguments, {}
        return held

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def of(self, field_name: str) -> Any:
        return self.state[field_name]


@dataclass
class _Unpickler(pickle.Unpickler):
    """Makes fresh classes for each file, so that nothing that a pickle does to one of them outlives it."""

    file: io.BytesIO
    made: dict[tuple[str, str], type[_Held]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__(self.file)

    def find_class(self, module: str, name: str) -> Any:
        """Only what torch writes there; see :data:`_CLASSES`."""
        if (module, name) == ("torch", "Size"):
            return tuple
        if module == "torch" and name in TAGS:
            return TAGS[name]
        if name not in _CLASSES.get(module, ()):
            raise InputRejected(
                f"{METADATA}: names {printable(module)}.{printable(name)}, which torch.distributed.checkpoint does not write"
                " there, and could run code; nothing of it was run"
            )
        return self.made.setdefault((module, name), type(name, (_Held,), {}))


def _places(storage: Mapping[_Held, _Held]) -> dict[tuple[str, tuple[int, ...]], tuple[str, int, int]]:
    """Name and offsets of each piece -> the file, the first byte and the number of bytes that hold it."""
    found = {}
    for index, info in storage.items():
        state = info.state
        file, offset, length = state["relative_path"], state["offset"], state["length"]
        if not is_plain_relative(file) or min(offset, length) < 0:
            raise InputRejected(f"{METADATA}: '{printable(file)}' is not the name of a file beside it")
        if state.get("transform_descriptors"):
            raise InputRejected(f"{METADATA}: its pieces were transformed when they were saved, such as compressed")
        found[index.of("fqn"), tuple(index.state.get("offset") or ())] = (file, offset, length)
    return found


def _entries(
    described: Mapping[str, _Held], places: Mapping[tuple[str, tuple[int, ...]], tuple[str, int, int]]
) -> tuple[dict[str, Entry], tuple[str, ...]]:
    tensors: dict[str, Entry] = {}
    others: list[str] = []
    for name, held in described.items():
        if "chunks" not in held.state:
            others.append(name)
            continue
        chunks = []
        for chunk in held.of("chunks"):
            offsets, sizes = _sizes(chunk.of("offsets")), _sizes(chunk.of("sizes"))
            if (name, offsets) not in places:
                raise InputRejected(f"{METADATA}: a piece of {printable(name)!r} lies in no file")
            chunks.append(Chunk(offsets, sizes, *places[name, offsets]))
        state = held.of("properties").state
        dtype = state[0] if isinstance(state, tuple) else state["dtype"]
        if dtype not in ITEM_BYTES:
            raise InputRejected(f"{METADATA}: {printable(name)!r} has a dtype that safetensors cannot hold")
        ordered = tuple(sorted(chunks, key=lambda chunk: chunk.offsets))
        tensors[name] = Entry(dtype, _sizes(held.of("size")), ordered)
    return tensors, tuple(others)


def _sizes(found: Any) -> tuple[int, ...]:
    sizes = tuple(found)
    if not all(type(size) is int and size >= 0 for size in sizes):
        raise ValueError(found)
    return sizes


def _check_tiles(name: str, entry: Entry) -> None:
    """Refuse a tensor that its pieces do not fill, each place once."""
    inside = all(
        len(chunk.offsets) == len(chunk.sizes) == len(entry.shape)
        and all(
            start + size <= whole for start, size, whole in zip(chunk.offsets, chunk.sizes, entry.shape, strict=True)
        )
        for chunk in entry.chunks
    )
    held = sum(math.prod(chunk.sizes) for chunk in entry.chunks)
    if not inside or held != math.prod(entry.shape) or (not in_rows(entry) and _overlap(entry.chunks)):
        raise InputRejected(
            f"{METADATA}: {printable(name)!r} of shape {list(entry.shape)} is not made up by its"
            f" {plural(len(entry.chunks), 'piece')}; a rank's part was not saved, or is missing"
        )


def in_rows(entry: Entry) -> bool:
    """Whether the pieces are runs of whole rows, one behind the other, so that their bytes in order are those of the tensor."""
    row = 0
    for chunk in entry.chunks:
        if chunk.sizes[1:] != entry.shape[1:] or (chunk.offsets and chunk.offsets[0] != row):
            return False
        row += chunk.sizes[0] if chunk.sizes else 1
    return row == (entry.shape[0] if entry.shape else 1)


def _overlap(chunks: tuple[Chunk, ...]) -> bool:
    for place, one in enumerate(chunks):
        for other in chunks[place + 1 :]:
            pairs = zip(one.offsets, one.sizes, other.offsets, other.sizes, strict=True)
            if all(a < b + m and b < a + n for a, n, b, m in pairs):
                return True
    return False
