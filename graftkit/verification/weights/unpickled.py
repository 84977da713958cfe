"""What torch itself makes of weights that are not plain yet: of pickles, and of the pieces of a sharded training."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from graftkit.architecture.trained_names import find_weights
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.distributed.description import METADATA, Description, Entry, read_description
from graftkit.checkpoint.distributed.folder import find_folder
from graftkit.checkpoint.distributed.parts import PART
from graftkit.checkpoint.distributed.sharded import Sharded
from graftkit.checkpoint.distributed.zero import MODULE, find_step
from graftkit.checkpoint.pickled_file import load_mapped
from graftkit.checkpoint.reading import torch_dtype
from graftkit.errors import InputRejected, printable
from graftkit.verification.weights.unpickled_ranks import values_of_ranks

if TYPE_CHECKING:
    from torch import Tensor


class Unpickled(NamedTuple):
    """One tensor, and its place: two names for the same memory have one place, in all files."""

    name: str
    value: Tensor
    place: object


def unpickled(before: Checkpoint, shard: str, prefix: str | None) -> Iterator[Unpickled]:
    """Yield each tensor of one of the weight files of ``before``, one after the other.

    ``prefix`` is what the recipe says of what stands before names.
    """
    if shard.endswith(PART):
        held = [(name, before.tensors[name]) for name in before.shards[shard]]
        yield from (Unpickled(name, gathered(tensor), name) for name, tensor in held if isinstance(tensor, Sharded))
        if find_folder(before.directory) is None:
            yield from _of_ranks(before, shard, prefix)
        return
    inside = None if shard.endswith(".bin") else MODULE
    found = load_mapped(before.path_of(shard), printable(shard), inside)
    names = {name: name for name in found} if inside is None else _own_names(before.config, found, prefix)
    yield from (
        Unpickled(names[entry], value, _place(shard, value)) for entry, value in found.items() if entry in names
    )


def _of_ranks(before: Checkpoint, shard: str, prefix: str | None) -> Iterator[Unpickled]:
    """Yield the tensors of one part of what ZeRO 3 left."""
    step = find_step(before.directory)
    made = values_of_ranks(step) if step else {}
    entries = {name: entry for entry, name in _own_names(before.config, made, prefix).items()}
    for name in before.shards[shard]:
        place, value = made[entries[name]]
        yield Unpickled(name, value(), place)


def _place(shard: str, value: Tensor) -> object:
    return shard, value.data_ptr(), tuple(value.shape), tuple(value.stride()), value.is_neg()


def _own_names(config: Mapping[str, Any], found: Mapping[str, Any], prefix: str | None) -> Mapping[str, str]:
    return find_weights(config, found.keys(), prefix=prefix).weights


def gathered(tensor: Sharded) -> Tensor:
    """The whole tensor as torch.distributed.checkpoint loads it.

    Raises:
        InputRejected: it cannot.
    """
    import torch
    from torch.distributed.checkpoint.state_dict_loader import load

    state = {tensor.entry: torch.empty(tensor.shape, dtype=torch_dtype(tensor.dtype))}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that no processes take part, which is meant
        try:
            load(state, storage_reader=reader_of(tensor.folder, _stamp(tensor.folder / METADATA)), no_dist=True)
        except Exception as error:
            raise InputRejected(
                f"{printable(tensor.entry)}: torch.distributed.checkpoint cannot load it: {printable(error)[:200]}"
            ) from error
    return state[tensor.entry]


def _stamp(path: Path) -> tuple[int, ...]:
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


@functools.lru_cache(maxsize=1)
def reader_of(folder: Path, stamp: tuple[int, ...]) -> Any:
    """A reader of torch's for ``folder``, which takes what ``.metadata`` says from graftkit's unpickler instead of pickle's own.

    It is made anew where that file has another ``stamp``.
    """
    del stamp
    from torch.distributed.checkpoint.filesystem import FileSystemReader

    described = _as_torch_describes(read_description(folder))

    class Reader(FileSystemReader):
        def read_metadata(self, *args: Any, **kwargs: Any) -> Any:
            """What the file says, in torch's own classes."""
            del args, kwargs
            return described

    return Reader(folder)


def _as_torch_describes(found: Description) -> Any:
    """The description in the classes of torch."""
    import torch
    from torch.distributed.checkpoint import metadata as dm
    from torch.distributed.checkpoint.filesystem import _StorageInfo

    def described(entry: Entry) -> Any:
        chunks = [dm.ChunkStorageMetadata(torch.Size(one.offsets), torch.Size(one.sizes)) for one in entry.chunks]
        properties = dm.TensorProperties(dtype=torch_dtype(entry.dtype))
        return dm.TensorStorageMetadata(properties, torch.Size(entry.shape), chunks)

    places = {
        dm.MetadataIndex(name, chunk.offsets): _StorageInfo(chunk.file, chunk.offset, chunk.nbytes)
        for name, entry in found.tensors.items()
        for chunk in entry.chunks
    }
    return dm.Metadata(
        {name: described(entry) for name, entry in found.tensors.items()}, None, places, dm.StorageMeta()
    )
