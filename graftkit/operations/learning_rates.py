"""Learning-rate multipliers for a trainer: one JSON file beside the model, parameter name -> multiplier."""

from __future__ import annotations

from collections.abc import Mapping

from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.errors import InputRejected

FILE = "lr_multipliers.json"


def with_multipliers(checkpoint: Checkpoint, multipliers: Mapping[str, float]) -> Checkpoint:
    """Add ``multipliers``, by name as ``model.named_parameters()`` gives it; a parameter that the file leaves out has 1.

    Raises:
        InputRejected: the checkpoint has such a file that is no mapping from names to numbers.
    """
    earlier = checkpoint.documents.get(FILE, {})
    if not (isinstance(earlier, dict) and all(isinstance(value, int | float) for value in earlier.values())):
        raise InputRejected(f"{FILE}: is no mapping from parameter names to numbers")
    return checkpoint.with_documents({FILE: {**earlier, **multipliers}})
