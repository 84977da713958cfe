"""The weights that DeepSpeed saves whole in ``global_step*/``: those of ZeRO 1 and 2, whose file of the module holds all of it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from graftkit.checkpoint.distributed.chosen import Choose
from graftkit.checkpoint.files import is_plain_name, read_bounded
from graftkit.checkpoint.pickled_file import mapped_tensors
from graftkit.checkpoint.tensors import LazyTensor
from graftkit.checkpoint.trust import check_sizes
from graftkit.checkpoint.weights import Weights
from graftkit.errors import InputRejected, few, printable

#: What DeepSpeed calls the file of a module that one process holds whole, and the key of the module in it.
STATES, MODULE = "mp_rank_00_model_states.pt", "module"

_ENDING, _PARTITIONED, _LAYERS = "model_states.pt", "zero_pp_rank_", "layer_"

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


def states_file(directory: Path) -> str:
    """The relative path of the one file that holds the module whole.

    Raises:
        InputRejected: it is spread over several, so that its weights are not to be had without DeepSpeed.
    """
    step = find_step(directory)
    if step is None:
        raise InputRejected("has no file of a module's states as DeepSpeed writes it")
    names, below = _states(step), "" if step == directory else f"{step.name}/"
    if any(_PARTITIONED in name for name in names):
        raise InputRejected(f"{below}: holds the parts of ZeRO 3, of which no file has a whole weight; {_GATHER}")
    if any(name.startswith(_LAYERS) for name in names):
        raise InputRejected(f"{below}: holds the layers of a pipeline, in the names of DeepSpeed; {_GATHER}")
    if names != [STATES]:
        raise InputRejected(f"{below}: holds {few(names)}: weights cut for tensor parallelism; {_GATHER}")
    return f"{below}{STATES}"


def read_zero_weights(directory: Path, config: Mapping[str, Any], *, choose: Choose) -> Weights[LazyTensor]:
    """What :func:`~graftkit.checkpoint.weights.read_weights` gives, of DeepSpeed's file; its values are mapped and not read.

    ``choose`` says what the class calls the tensors of the module.

    Raises:
        InputRejected: the module is spread over several files, or its file is malformed or asks to run code.
        StorageFault: the file system failed.
    """
    file = states_file(directory)
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
