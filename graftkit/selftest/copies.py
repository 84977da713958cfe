"""Copies of a checkpoint that may be damaged: real copies of every file, edited in place or written again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.reading import torch_dtype
from graftkit.checkpoint.tensors import LazyTensor, Stored
from graftkit.checkpoint.write import INDEX, write_tensors

SINGLE = "model.safetensors"


def copy_checkpoint(source: Checkpoint, target: Path) -> Path:
    """Copy weights, documents and carried files into the new folder ``target``; links are followed, none is made."""
    target.mkdir(parents=True)
    names = [*source.files, *source.documents, *source.carried, *((INDEX,) if source.index is not None else ())]
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source.path_of(name), target / name)
    return target


def stored(directory: Path, name: str) -> Stored:
    """The tensor ``name`` of the checkpoint in ``directory``."""
    tensor = Checkpoint.open(str(directory)).tensors[name]
    if not isinstance(tensor, Stored):
        raise TypeError(f"{name} is not stored")
    return tensor


def edit_tensor(directory: Path, name: str, change: Callable[[Any], None]) -> None:
    """Let ``change`` write into the values of one tensor of a checkpoint."""
    edit_stored(stored(directory, name), change)


def edit_stored(tensor: Stored, change: Callable[[Any], None]) -> None:
    """Let ``change`` write into the values of a tensor, which are mapped from its file."""
    import numpy as np
    import torch

    raw = np.memmap(tensor.path, np.uint8, "r+", tensor.offset, tensor.nbytes)
    change(torch.from_numpy(raw).view(torch_dtype(tensor.dtype)).view(tensor.shape))
    raw.flush()


def edit_json(directory: Path, name: str, change: Callable[[dict[str, Any]], None]) -> None:
    """Let ``change`` edit the JSON document ``name``, empty where there is none."""
    path = directory / name
    value = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    change(value)
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False), encoding="utf-8")


def set_value(directory: Path, name: str, place: str, value: object) -> None:
    """Set the value at a dotted place of a JSON document; missing objects on the way are made."""

    def change(document: dict[str, Any]) -> None:
        *path, last = place.split(".")
        for key in path:
            document = document.setdefault(key, {})
        document[last] = value

    edit_json(directory, name, change)


def write_shards(directory: Path, shards: Sequence[Mapping[str, LazyTensor]], *, pad: int = 0) -> None:
    """Write the weights of ``directory`` anew as these shards, one without an index; ``pad`` bytes make headers longer.

    The metadata is that of the first file. The tensors may lie in the files that are replaced.
    """
    count = len(shards)
    names = [SINGLE] if count == 1 else [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
    old = Checkpoint.open(str(directory))
    first = next(iter(old.shard_metadata.values()))
    metadata = dict(first) | ({"pad": " " * pad} if pad else {})
    fresh = directory / "fresh"
    fresh.mkdir()
    for file, tensors in zip(names, shards, strict=True):
        write_tensors(tensors, fresh / file, metadata)
    for name in (*old.shards, INDEX):
        (directory / name).unlink(missing_ok=True)
    for file in names:
        (fresh / file).rename(directory / file)
    fresh.rmdir()
    if count > 1:
        weight_map = {name: file for file, tensors in zip(names, shards, strict=True) for name in tensors}
        size = sum(tensor.nbytes for tensors in shards for tensor in tensors.values())
        edit_json(directory, INDEX, lambda index: index.update(metadata={"total_size": size}, weight_map=weight_map))


def parts(directory: Path, count: int) -> list[dict[str, LazyTensor]]:
    """The tensors of ``directory`` in at most ``count`` shards of about as many tensors."""
    tensors = list(Checkpoint.open(str(directory)).tensors.items())
    step = -(-len(tensors) // count)
    return [dict(tensors[start : start + step]) for start in range(0, len(tensors), step)]
