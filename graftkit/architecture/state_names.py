"""What a checkpoint's tensors are called in the state dict of its class, which is what a trainer asks a DCP folder for."""

from __future__ import annotations

from graftkit.architecture.accounting import Structure
from graftkit.errors import InputRejected, few


def state_names(structure: Structure) -> dict[str, str]:
    """Name in the state dict -> name on disk, of every tensor; both sides of a tied pair, which may be stored once.

    A tensor that the class does not load keeps its name.

    Raises:
        InputRejected: weights are packed, or the class makes one of several when it loads them, so that none is what it has in memory.
    """
    if structure.packed.tensors:
        raise InputRejected("output_format: dcp: the weights are quantized; dequantize them first, or leave it out")
    if converted := sorted(disk for disk, (_, made) in structure.memory.items() if made):
        raise InputRejected(
            f"output_format: dcp: {structure.skeleton.architecture} makes others of {few(converted)} when it loads them, and a trainer"
            " asks for those; leave it out, and let the trainer save a DCP folder from the loaded model"
        )
    names = {name: disk for disk, (name, _) in structure.memory.items()}
    tied = {name: names[origin] for name, origin in structure.skeleton.tied.items() if origin in names}
    return {**tied, **names}
