"""Whether models fit into the memory that this process may still take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.quantization import quantization_config
from graftkit.checkpoint.tensors import FLOATING, ITEM_BYTES
from graftkit.checkpoint.weights import read_weights
from graftkit.errors import RecipeError
from graftkit.running import memory
from graftkit.running.place import Place

#: Item bytes by the name that a config gives its dtype.
DTYPES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}


def paged(places: tuple[Place, ...], extra_nbytes: int, *, wanted: bool | None) -> bool:
    """Whether models that must be in memory together are to be paged in: as ``wanted``, else where they do not fit.

    ``extra_nbytes`` is what else must fit beside them.

    Raises:
        RecipeError: it is wanted for a model in memory, or for a quantized one, whose layers the loader makes of its tensors itself.
    """
    directories = [place for place in places if isinstance(place, Path)]
    if len(directories) < len(places):
        if wanted:
            raise RecipeError("verify.paged: the model is in memory already; leave the option out")
        return False
    quantized = next((d for d in directories if is_quantized(d)), None)
    if quantized is not None:
        if wanted:
            raise RecipeError(
                f"verify.paged: {quantized.name} is quantized and cannot be paged in; leave the option out"
            )
        return False
    if wanted is not None:
        return wanted
    return sum(map(loaded_nbytes, directories)) + extra_nbytes > memory.available()


def is_quantized(directory: Path) -> bool:
    """Whether the weights of a checkpoint are codes that the loader unpacks."""
    return bool(quantization_config(_config(directory)))


def loaded_nbytes(directory: Path) -> int:
    """Bytes of the weights in the dtype that the config says they are loaded in."""
    config = _config(directory)
    return tensors_nbytes(config, read_weights(directory, config).tensors.values())


def checkpoint_nbytes(checkpoint: Checkpoint) -> int:
    """As :func:`loaded_nbytes`, of a checkpoint that need not be written yet."""
    return tensors_nbytes(checkpoint.config, checkpoint.tensors.values())


def tensors_nbytes(config: dict[str, Any], tensors: Any) -> int:
    """Bytes of floating tensors in the dtype of the config, of others in their own."""
    item = DTYPES.get(str(config.get("dtype", config.get("torch_dtype"))))
    return sum(
        tensor.nbytes
        if item is None or tensor.dtype not in FLOATING
        else tensor.nbytes // ITEM_BYTES[tensor.dtype] * item
        for tensor in tensors
    )


def _config(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    return found
