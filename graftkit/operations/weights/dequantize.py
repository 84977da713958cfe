"""Quantized weights unpacked, for the operations that may be told to: the one place where they ask for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from graftkit.architecture.dequantized import dequantized, stored_as
from graftkit.architecture.unpacked_weight import Unpacked
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.quantization import quantization_config
from graftkit.checkpoint.reading import DTYPES
from graftkit.checkpoint.tensors import LazyTensor
from graftkit.errors import RecipeError, plural, printable

#: What is promised of them.
PLAIN_WEIGHTS = "each weight that was quantized is what its codes and scales say, rounded once to its new dtype"


@dataclass(frozen=True, slots=True)
class Plain:
    """The checkpoint with plain weights, those that were packed by name on disk, and a sentence for the plan."""

    checkpoint: Checkpoint
    weights: Mapping[str, LazyTensor]
    note: str


def dequantize(checkpoint: Checkpoint, dtype: str) -> Plain:
    """Unpack the weights of ``checkpoint`` to ``dtype`` (a safetensors tag).

    Raises:
        RecipeError: there are none.
        InputRejected: they are not of a format that is unpacked, or not what it says.
    """
    if quantization_config(checkpoint.config) is None:
        raise RecipeError("the base is not quantized; leave it out", field="dequantize")
    plain, weights = dequantized(checkpoint, dtype)
    return Plain(plain, {weight.name: weight.tensor for weight in weights}, _note(checkpoint, weights, dtype))


def _note(checkpoint: Checkpoint, weights: tuple[Unpacked, ...], dtype: str) -> str:
    method = printable(stored_as(checkpoint.config))
    old = sum(checkpoint.tensors[part].nbytes for weight in weights for part in weight.parts)
    new = sum(weight.tensor.nbytes for weight in weights)
    return (
        f"{plural(len(weights), 'weight')} unpacked from {method} to {DTYPES[dtype]}, {old / 1e6:.1f} MB to {new / 1e6:.1f} MB;"
        " config.json loses its quantization_config"
    )
