"""A quantized checkpoint as a plain one: packed weights unpacked when they are read, and a config that says nothing of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from graftkit.architecture.accounting import Structure, account
from graftkit.architecture.nvfp4 import nvfp4_weights
from graftkit.architecture.quantizer import SCALES
from graftkit.architecture.unpacked_weight import Unpacked
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.quantization import quantization_config, quantization_method, without_quantization
from graftkit.checkpoint.tensors import LazyTensor
from graftkit.checkpoint.unpacked import microscaled, scaled_blocks
from graftkit.errors import InputRejected, few, printable

#: The dtypes of FP8 codes.
FP8 = ("F8_E4M3", "F8_E5M2")

#: The scales of activations and of the cache, which go with the quantizer.
ACTIVATIONS = tuple(
    f"{mark}{scale}"
    for mark in "._"
    for scale in ("activation_scale", "input_scale", "input_global_scale", "k_scale", "v_scale")
)

#: What modelopt says of the weights once more, in a file of its own.
BESIDE = "hf_quant_config.json"


def dequantized(checkpoint: Checkpoint, dtype: str) -> tuple[Checkpoint, tuple[Unpacked, ...]]:
    """``checkpoint`` with its packed weights as plain ones of ``dtype`` (a safetensors tag), each in the shard of its packed values.

    Raises:
        InputRejected: it is not quantized, in a format that is not unpacked here, or a packed tensor is not what the format says.
    """
    method = stored_as(checkpoint.config)
    if method not in FORMATS:
        what = f"is quantized by {printable(method)}" if method else "is not quantized"
        raise InputRejected(f"{checkpoint.name}: {what}; what is dequantized is: {', '.join(FORMATS)}")
    structure = account(checkpoint)
    unpacked = tuple(FORMATS[method](checkpoint, structure, dtype))
    used = {part for weight in unpacked for part in weight.parts}
    dropped = {name for name in structure.packed.tensors if name.endswith(ACTIVATIONS)}
    if strange := sorted(structure.packed.tensors.keys() - used - dropped):
        raise InputRejected(
            f"{checkpoint.name}: {few(strange)}: not a part of weights that are stored as {method}; dequantizing would lose it"
        )
    shards = {name: shard for shard, names in checkpoint.shards.items() for name in names}
    gone_too = {BESIDE: None} if BESIDE in checkpoint.carried else {}
    result = checkpoint.with_documents({"config.json": without_quantization(checkpoint.config), **gone_too})
    for weight in unpacked:
        gone = dict.fromkeys(part for part in weight.parts if part != weight.name)
        result = result.with_tensors({weight.name: weight.tensor, **gone}, shard=shards[weight.parts[0]])
    return result.with_tensors(dict.fromkeys(dropped)), unpacked


def stored_as(config: Mapping[str, Any]) -> str:
    """The format of the packed weights: the method of the quantization config, and what it says beside where it has several.

    NVFP4 has one name, whoever wrote it.
    """
    said, method = quantization_config(config) or {}, quantization_method(config)
    inner = {"compressed-tensors": "format", "modelopt": "quant_algo"}.get(method)
    if inner is None:
        return method
    name = str(said.get(inner) or "no named format")
    return "nvfp4" if name in ("nvfp4-pack-quantized", "NVFP4") else f"{method} ({name})"


def _fp8_weights(checkpoint: Checkpoint, structure: Structure, dtype: str) -> Iterator[Unpacked]:
    """Yield each weight that is stored as FP8 codes with the scales of its blocks beside it."""
    said = quantization_config(checkpoint.config) or {}
    for name in structure.packed.tensors:
        codes = checkpoint.tensors[name]
        if codes.dtype in FP8 and not name.endswith(SCALES):
            scales = checkpoint.tensors.get(f"{name}{SCALES}")
            where = f"{checkpoint.name}: tensor {printable(name)!r}"
            if scales is None:
                raise InputRejected(
                    f"{where} is {codes.dtype} without a {printable(name)}{SCALES}, so that its values are not known"
                )
            block = _block(codes, scales, said, where)
            yield Unpacked(name, scaled_blocks(codes, scales, block, dtype), (name, f"{name}{SCALES}"))


def _block(codes: LazyTensor, scales: LazyTensor, said: Mapping[str, Any], where: str) -> tuple[int, int]:
    """The rows and columns of a block by the config; with one scale for all, the whole matrix.

    Raises:
        InputRejected: the scales are not those of such blocks, or of a dtype that no scale has.
    """
    exponents = scales.dtype == "F8_E8M0" or (scales.dtype == "U8" and said.get("scale_fmt") == "ue8m0")
    if not exponents and scales.dtype not in ("F32", "BF16", "F16"):
        raise InputRejected(f"{where}: its scales are {scales.dtype}, and config.json does not say how these are read")
    size = said.get("weight_block_size")
    if len(codes.shape) < 2:
        raise InputRejected(f"{where} of shape {list(codes.shape)} is no matrix, so that it has no blocks")
    *leading, rows, columns = codes.shape
    if size is None and math.prod(scales.shape) == 1:
        return rows, columns
    if not (isinstance(size, list) and len(size) == 2 and all(isinstance(step, int) and step > 0 for step in size)):
        raise InputRejected(f"{where}: config.json: weight_block_size: expected two sizes, found {printable(size)!r}")
    wanted = (*leading, -(-rows // size[0]), -(-columns // size[1]))
    if scales.shape != wanted:
        raise InputRejected(
            f"{where} has scales of shape {list(scales.shape)}; blocks of {size[0]} x {size[1]} want {list(wanted)}"
        )
    return size[0], size[1]


def _mxfp4_weights(checkpoint: Checkpoint, structure: Structure, dtype: str) -> Iterator[Unpacked]:
    """Yield the weights of experts that are stored as blocks of FP4 and their exponents."""
    for name in structure.packed.tensors:
        stem = name.removesuffix("_blocks")
        if stem == name:
            continue
        blocks, scales = checkpoint.tensors[name], checkpoint.tensors.get(f"{stem}_scales")
        where = f"{checkpoint.name}: tensor {printable(name)!r}"
        if scales is None or (blocks.dtype, scales.dtype) != ("U8", "U8") or scales.shape != blocks.shape[:-1]:
            raise InputRejected(f"{where} has no {printable(stem)}_scales of bytes, one for each of its blocks")
        tensor = microscaled(blocks, scales, dtype) if len(blocks.shape) == 4 else None
        key = structure.skeleton.memory_names([stem])[stem].name
        if tensor is None or tensor.shape != structure.skeleton.shapes.get(key):
            raise InputRejected(
                f"{where} of shape {list(blocks.shape)} does not unpack to {printable(stem)!r} of the class"
                f" {structure.skeleton.architecture}"
            )
        yield Unpacked(stem, tensor, (name, f"{stem}_scales"))


#: How the weights of each method of a quantization config are found and unpacked.
FORMATS: dict[str, Callable[[Checkpoint, Structure, str], Iterator[Unpacked]]] = {
    "fp8": _fp8_weights,
    "mxfp4": _mxfp4_weights,
    "nvfp4": nvfp4_weights,
}
