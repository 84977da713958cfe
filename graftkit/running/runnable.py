"""Whether a checkpoint can be loaded and run on this machine."""

from __future__ import annotations

from collections.abc import Sequence

from graftkit.architecture.quantizer import cannot_load
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.quantization import quantization_config
from graftkit.errors import RecipeError
from graftkit.running import memory
from graftkit.running.place import Place, open_place

#: How many bytes of bfloat16 come of one of codes, by their dtype.
UNPACKED = {"F8_E4M3": 2, "F8_E5M2": 2, "U8": 4, "I8": 2}


def weight_bytes(base: Place) -> int:
    """Bytes of all tensors, from the headers."""
    return sum(tensor.nbytes for tensor in open_place(base).tensors.values())


def cannot_run(base: Place) -> str:
    """Why the base cannot be loaded and run here; empty where it can."""
    opened = open_place(base)
    return cannot_unpack(opened) or too_large(weight_bytes(base))


def cannot_unpack(checkpoint: Checkpoint) -> str:
    """Why a quantized checkpoint cannot be loaded and run here; empty where it can, and where it is not quantized.

    Its parameters cannot be paged in, so that all of them have to fit into memory, unpacked.
    """
    if quantization_config(checkpoint.config) is None:
        return ""
    unpacked = sum(tensor.nbytes * UNPACKED.get(tensor.dtype, 1) for tensor in checkpoint.tensors.values())
    return cannot_load(checkpoint.config, checkpoint.tensors) or too_large(unpacked)


def too_large(needed: int) -> str:
    """Why weights of so many bytes cannot be loaded here; empty where they can."""
    there = memory.available()
    if needed <= there:
        return ""
    return f"the base has {needed / 1e9:.1f} GB of weights, and {there / 1e9:.1f} GB of memory are available"


def refuse_looks(why: str, wanted: Sequence[str]) -> None:
    """Refuse what is ``wanted`` to be seen of a model beside its outputs, where ``why`` says that it cannot be run here.

    Raises:
        RecipeError: it cannot, and something is wanted.
    """
    if wanted and why:
        raise RecipeError(f"verify.{wanted[0]}: {why}; leave it out")
