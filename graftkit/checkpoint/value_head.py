"""The file of a value head, which trainers of rewards and values read beside the model: one number for each token.

TRL's ``AutoModelForCausalLMWithValueHead`` has a linear layer ``v_head.summary`` on the last hidden state; LLaMA-Factory keeps its two
tensors in ``value_head.safetensors`` and loads them over those that TRL draws.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING

from graftkit.checkpoint.files import is_there
from graftkit.checkpoint.safetensors_header import read_header
from graftkit.checkpoint.tensors import FLOATING, LazyTensor
from graftkit.checkpoint.weights import NONE_ON_HUB, source_file
from graftkit.errors import InputRejected, few, printable

if TYPE_CHECKING:
    from pathlib import Path

    from graftkit.checkpoint.hub.file import HubFile
    from graftkit.checkpoint.safetensors_header import Header

FILE = "value_head.safetensors"
WEIGHT, BIAS = "v_head.summary.weight", "v_head.summary.bias"


def value_head_shapes(width: int) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor of a value head on hidden states of a ``width``."""
    return {WEIGHT: (1, width), BIAS: (1,)}


def read_value_head(
    directory: Path, model: Collection[str], on_hub: Mapping[str, HubFile] = NONE_ON_HUB
) -> Header | None:
    """The header of the value head in a folder; None where there is none, or where the file holds tensors of the ``model``.

    Files ``on_hub`` count as if they lay in the folder.

    Raises:
        InputRejected: the file is malformed or holds nothing.
        StorageFault: the file system failed.
    """
    if FILE not in on_hub and not is_there(directory / FILE):
        return None
    header = read_header(source_file(directory, FILE, on_hub), shown=FILE)
    if not header.tensors:
        raise InputRejected(f"{FILE}: holds no tensors")
    return header if header.tensors.keys().isdisjoint(model) else None


def value_head_faults(tensors: Mapping[str, LazyTensor], width: int | None) -> Iterator[str]:
    """Yield why trainers would not load these tensors as a value head; a ``width`` of None is not known."""
    wanted = value_head_shapes(width or 0)
    if lost := [name for name in wanted if name not in tensors]:
        yield f"has no tensor {few(lost)}: a trainer would keep random values in its place"
    if strange := [name for name in tensors if name not in wanted]:
        yield f"has tensors that no value head has: {few(strange)}"
    for name, shape in wanted.items():
        found = tensors.get(name)
        if found is None:
            continue
        if found.dtype not in FLOATING:
            yield f"tensor {printable(name)!r} has dtype {found.dtype}, which no linear layer has"
        fits = len(found.shape) == len(shape) and found.shape[0] == 1
        if not fits or (width is not None and found.shape != shape):
            whole = list(shape) if width is not None else "[1]" if name == BIAS else "[1, hidden size]"
            yield f"tensor {printable(name)!r} has shape {list(found.shape)}, and {whole} is wanted"
