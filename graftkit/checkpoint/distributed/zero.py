"""The weights that DeepSpeed saves in ``global_step*/``: of ZeRO 1 and 2 in one file of the module, of ZeRO 3 in parts of each rank."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from graftkit.checkpoint.archive import mapped_tensors
from graftkit.checkpoint.distributed.chosen import Choose
from graftkit.checkpoint.distributed.partitioned import is_partitioned, open_ranks, partitioned_tensors
from graftkit.checkpoint.distributed.parts import in_parts
from graftkit.checkpoint.files import is_plain_name, read_bounded
from graftkit.checkpoint.tensors import LazyTensor
from graftkit.checkpoint.trust import check_sizes
from graftkit.checkpoint.weights import Weights
from graftkit.errors import InputRejected, few, printable

#: What DeepSpeed calls the file of a module that one process holds whole, and the key of the module in it.
STATES, MODULE = "mp_rank_00_model_states.pt", "module"

_ENDING, _LAYERS = "model_states.pt", "layer_"

#: The file that names the newest step.
_LATEST, _MAX_LATEST = "latest", 1024

_GATHER = "run DeepSpeed's zero_to_fp32.py, which lies beside it, and give the folder that it writes"


def find_step(directory: Path) -> Path | None:
    """The folder with DeepSpeed's states: ``directory``, or the step in it that ``latest`` names, or its only ``global_step*``.

    Raises:
        InputRejected: ``latest`` names no folder there, or there are several and no ``latest``.
    """
    if _states(directory):
        return directory
    steps = sorted(path for path in directory.glob("global_step*") if path.is_dir() and _states(path))
    if (directory / _LATEST).is_file() and steps:
        name = read_bounded(directory, _LATEST, _MAX_LATEST).decode(errors="replace").strip()
        if not is_plain_name(name) or not _states(directory / name):
            raise InputRejected(f"{_LATEST}: names {printable(name)!r}, which is no folder of DeepSpeed's beside it")
        return directory / name
    if len(steps) > 1:
        raise InputRejected(
            f"{few([path.name for path in steps])}: several steps and no file {_LATEST}; write the name of one into it"
        )
    return steps[0] if steps else None


def _states(folder: Path) -> list[str]:
    try:
        return sorted(name for name in os.listdir(folder) if name.endswith(_ENDING))
    except OSError:
        return []


def _states_file(step: Path, below: str) -> str:
    """The relative path of the one file in the folder ``step`` that holds the module whole.

    Raises:
        InputRejected: it is spread over several in another way than ZeRO 3's.
    """
    names = _states(step)
    if any(name.startswith(_LAYERS) for name in names):
        raise InputRejected(f"{below}: holds the layers of a pipeline, in the names of DeepSpeed; {_GATHER}")
    if names != [STATES]:
        raise InputRejected(f"{below}: holds {few(names)}: weights cut for tensor parallelism; {_GATHER}")
    return f"{below}{STATES}"


def read_zero_weights(directory: Path, config: Mapping[str, Any], *, choose: Choose) -> Weights[LazyTensor]:
    """What :func:`~graftkit.checkpoint.weights.read_weights` gives, of DeepSpeed's files; their values are mapped and not read.

    ``choose`` says what the class calls the tensors of the module.

    Raises:
        InputRejected: the module is cut for tensor parallelism or a pipeline, or a file is missing or malformed or asks to run code.
        StorageFault: the file system failed.
    """
    step = find_step(directory)
    if step is None:
        raise InputRejected("has no file of a module's states as DeepSpeed writes it")
    below = "" if step == directory else f"{step.name}/"
    if is_partitioned(_states(step)):
        return _read_parts(step, below, config, choose)
    file = _states_file(step, below)
    held = mapped_tensors(directory / file, printable(file), inside=MODULE)
    check_sizes(config, len(held))
    if empty := [name for name, tensor in held.items() if 0 in tensor.shape]:
        raise InputRejected(f"{file}: {few(empty)}: of no size, as ZeRO 3 leaves what it spreads; {_GATHER}")
    chosen = choose(config, held)
    tensors = {name: held[entry] for entry, name in chosen.weights.items()}
    folder = file.rpartition("/")[0]
    why = "the weights of the training as it computed with them are read; its master copies in float32 and its optimizer are not"
    skipped = f"; not the model's: {few(chosen.skipped)}" if chosen.skipped else ""
    left = {f"{folder}/" if folder else STATES: why + skipped}
    return Weights(tensors, {file: tuple(tensors)}, {file: {}}, None, left)


def _read_parts(step: Path, below: str, config: Mapping[str, Any], choose: Choose) -> Weights[LazyTensor]:
    """The same of the parts of ZeRO 3."""
    names = sorted(os.listdir(step))
    held = partitioned_tensors(open_ranks(step, names))
    check_sizes(config, len(held))
    chosen = choose(config, held)
    tensors = {name: held[entry] for entry, name in chosen.weights.items()}
    shards = in_parts(tensors)
    why = "the optimizer's own copies of the weights, in float32, are read, and what it keeps beside them is not"
    skipped = f"; not the model's: {few(chosen.skipped)}" if chosen.skipped else ""
    left = dict.fromkeys([below] if below else [name for name in names if name.endswith("_states.pt")], why + skipped)
    return Weights(tensors, shards, {shard: {} for shard in shards}, None, left)
