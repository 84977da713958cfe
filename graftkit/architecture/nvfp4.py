"""NVFP4 weights as compressed-tensors and modelopt write them: FP4 pairs, an FP8 scale for each 16 of them, one scale for the weight.

Both hold the same; compressed-tensors divides by the scale of the weight, modelopt multiplies by it. modelopt also packs the fused
experts of the classes that multiply from the left (Llama 4, gpt-oss): pairs and groups lie along the inputs in them too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from graftkit.architecture.accounting import Structure
from graftkit.architecture.unpacked_weight import Unpacked
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.tensors import LazyTensor
from graftkit.checkpoint.unpacked import paired
from graftkit.errors import InputRejected, printable

#: Values along the inputs that share one FP8 scale.
GROUP = 16

#: What compressed-tensors adds to the name of a weight for its codes, for the scales of its groups, and for that of the whole.
_PACKED, _DIVIDED = "_packed", ("_scale", "_global_scale")

#: What modelopt adds for the scales of the groups and for that of the whole: to the name of a matrix, and of fused experts.
_MULTIPLIED = (("_scale", "_scale_2"), ("_weight_scale", "_weight_scale_2"))


def nvfp4_weights(checkpoint: Checkpoint, structure: Structure, dtype: str) -> Iterator[Unpacked]:
    """Yield each weight that is stored as pairs of FP4 codes with the scales of its groups and of its matrix beside it.

    Raises:
        InputRejected: a part is missing, or of another shape or dtype than the format says.
    """
    for name in structure.packed.tensors:
        stem = name.removesuffix(_PACKED)
        divided = stem != name
        beside = (
            (_DIVIDED,) if divided else tuple(ends for ends in _MULTIPLIED if f"{name}{ends[1]}" in checkpoint.tensors)
        )
        if checkpoint.tensors[name].dtype != "U8" or not beside:
            continue
        parts = (name, *(f"{stem}{end}" for end in beside[0]))
        where = f"{checkpoint.name}: tensor {printable(name)!r}"
        if missing := [part for part in parts if part not in checkpoint.tensors]:
            raise InputRejected(f"{where} has no {printable(missing[0])}, so that its values are not known")
        codes, scales, whole = (checkpoint.tensors[part] for part in parts)
        _check(codes, scales, whole, where)
        tensor = paired(codes, scales, whole, dtype, divided=divided)
        key, converted = structure.skeleton.memory_names([stem])[stem]
        wanted = structure.skeleton.shapes.get(key)
        if not converted and tensor.shape != wanted:
            raise InputRejected(
                f"{where} of shape {list(codes.shape)} does not unpack to {printable(stem)!r} of the class"
                f" {structure.skeleton.architecture}"
            )
        yield Unpacked(stem, tensor, parts)


def _check(codes: LazyTensor, scales: LazyTensor, whole: LazyTensor, where: str) -> None:
    if len(codes.shape) not in (2, 3):
        raise InputRejected(f"{where} of shape {list(codes.shape)} is neither a matrix nor the matrices of experts")
    first, inputs, *outputs = codes.shape
    wanted = (first, 2 * inputs // GROUP, *outputs)
    if 2 * inputs % GROUP or scales.shape != wanted or scales.dtype != "F8_E4M3":
        raise InputRejected(
            f"{where} has scales of {scales.dtype} and shape {list(scales.shape)}; groups of {GROUP} want F8_E4M3 and"
            f" {list(wanted)}"
        )
    if whole.dtype != "F32" or math.prod(whole.shape) != 1:
        raise InputRejected(f"{where}: the scale of the whole weight is not one value in float32")
