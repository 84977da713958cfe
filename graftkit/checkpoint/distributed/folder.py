"""The weights of a folder that torch.distributed.checkpoint wrote, as FSDP and its trainers save them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from graftkit.checkpoint.distributed.chosen import Choose
from graftkit.checkpoint.distributed.description import METADATA, Description, read_description
from graftkit.checkpoint.distributed.parts import in_parts
from graftkit.checkpoint.distributed.sharded import Sharded
from graftkit.checkpoint.files import resolve_member
from graftkit.checkpoint.tensors import LazyTensor
from graftkit.checkpoint.trust import check_sizes
from graftkit.checkpoint.weights import Weights
from graftkit.errors import InputRejected, few, printable

#: What accelerate calls the folder of the optimizer beside that of the model.
_OPTIMIZER = "optimizer"


def find_folder(directory: Path) -> Path | None:
    """The folder with ``.metadata``: ``directory``, or the one folder in it that has it and is not the optimizer's.

    Raises:
        InputRejected: several have it.
    """
    if (directory / METADATA).is_file():
        return directory
    try:
        names = sorted(entry.name for entry in os.scandir(directory) if entry.is_dir())
    except OSError:
        return None
    found = [name for name in names if not name.startswith(_OPTIMIZER) and (directory / name / METADATA).is_file()]
    if len(found) > 1:
        raise InputRejected(
            f"{printable(directory)}: {few(found)} are all folders of torch.distributed.checkpoint; put config and tokenizer"
            " into the one that is meant, and name it"
        )
    return directory / found[0] if found else None


def read_sharded_weights(directory: Path, config: Mapping[str, Any], *, choose: Choose) -> Weights[LazyTensor]:
    """What :func:`~graftkit.checkpoint.weights.read_weights` gives, of a folder of torch.distributed.checkpoint; no value is read.

    ``choose`` says which of its tensors are the model's.

    Raises:
        InputRejected: there are none, or ``.metadata`` is malformed or asks to run code.
        StorageFault: the file system failed.
    """
    folder = find_folder(directory)
    if folder is None:
        raise InputRejected(f"has no {METADATA}, which torch.distributed.checkpoint writes last")
    described = read_description(folder)
    check_sizes(config, len(described.tensors))
    _check_files(folder, described)
    held = {name: Sharded(folder, name, entry) for name, entry in described.tensors.items()}
    chosen = choose(config, held.keys())
    tensors: dict[str, LazyTensor] = {name: held[entry] for entry, name in chosen.weights.items()}
    shards = in_parts(tensors)
    left = _left_behind(folder, directory, described, (*chosen.skipped, *described.others))
    return Weights(tensors, shards, {shard: {} for shard in shards}, None, left)


def _check_files(folder: Path, described: Description) -> None:
    """Refuse a folder in which a file is missing, or shorter than its pieces."""
    ends: dict[str, int] = {}
    for chunk in (chunk for entry in described.tensors.values() for chunk in entry.chunks):
        ends[chunk.file] = max(ends.get(chunk.file, 0), chunk.offset + chunk.nbytes)
    for file, end in sorted(ends.items()):
        size = resolve_member(folder, file).stat().st_size
        if size < end:
            raise InputRejected(f"{printable(file)}: was cut off: it has {size:,} bytes, and its pieces end at {end:,}")


def _left_behind(folder: Path, directory: Path, described: Description, skipped: tuple[str, ...]) -> dict[str, str]:
    """By relative path, what does not come along as it is, and why."""
    beside = f"; {len(skipped):,} other entries stay behind: {few(skipped)}" if skipped else ""
    why = f"its weights are read{beside}"
    if not folder.samefile(directory):
        return {f"{folder.name}/": why}
    files = {chunk.file for entry in described.tensors.values() for chunk in entry.chunks}
    return {METADATA: why, **dict.fromkeys(sorted(files), f"pieces of tensors, read as {METADATA} says")}
