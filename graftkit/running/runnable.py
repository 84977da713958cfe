"""Whether a checkpoint can be loaded and run on this machine."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from graftkit.architecture.quantizer import cannot_load
from graftkit.errors import RecipeError
from graftkit.running import memory
from graftkit.running.place import Place, folder_of, open_place


def weight_bytes(base: Place) -> int:
    """Bytes of all tensors, from the headers."""
    return sum(tensor.nbytes for tensor in open_place(base).tensors.values())


def cannot_run(base: Place) -> str:
    """Why the base cannot be loaded and run here; empty where it can."""
    config = json.loads((folder_of(base) / "config.json").read_text(encoding="utf-8"))
    if why := cannot_load(config):
        return why
    needed, there = weight_bytes(base), memory.available()
    if needed > there:
        return f"the base has {needed / 1e9:.1f} GB of weights, and {there / 1e9:.1f} GB of memory are available"
    return ""


def refuse_looks(config: Mapping[str, Any], wanted: Sequence[str]) -> None:
    """Refuse what is ``wanted`` to be seen of a model beside its outputs, where the model of this config.json cannot be run here.

    Raises:
        RecipeError: it cannot be run, and something is wanted.
    """
    if wanted and (why := cannot_load(config)):
        raise RecipeError(f"verify.{wanted[0]}: {why}; leave it out")
