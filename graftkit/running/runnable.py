"""Whether a checkpoint can be loaded and run on this machine."""

from __future__ import annotations

import json

from graftkit.running import memory
from graftkit.running.place import Place, folder_of, open_place


def weight_bytes(base: Place) -> int:
    """Bytes of all tensors, from the headers."""
    return sum(tensor.nbytes for tensor in open_place(base).tensors.values())


def cannot_run(base: Place) -> str:
    """Why the base cannot be loaded and run here; empty where it can."""
    config = json.loads((folder_of(base) / "config.json").read_text(encoding="utf-8"))
    if "quantization_config" in config:
        return "the base is quantized, and the kernels that run it are not part of this environment"
    needed, there = weight_bytes(base), memory.available()
    if needed > there:
        return f"the base has {needed / 1e9:.1f} GB of weights, and {there / 1e9:.1f} GB of memory are available"
    return ""
