"""Learning-rate multipliers for a trainer: one JSON file beside the model, parameter name -> multiplier."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from graftkit.architecture.head import Head
from graftkit.architecture.parameters import is_parameter, layout_of, text_value
from graftkit.architecture.skeleton import Skeleton
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.errors import InputRejected
from graftkit.initializers.fans import Layout
from graftkit.initializers.mup import learning_rate_multiplier
from graftkit.recipe import ReplaceHead
from graftkit.recipe.weight_schemes import Mup

FILE = "lr_multipliers.json"

#: Name in memory, shape, and layout: None for what is no linear map.
Parameter = tuple[str, tuple[int, ...], Layout | None]


def with_multipliers(checkpoint: Checkpoint, multipliers: Mapping[str, float]) -> Checkpoint:
    """Add ``multipliers``, by name as ``model.named_parameters()`` gives it; a parameter that the file leaves out has 1.

    Raises:
        InputRejected: the checkpoint has such a file that is no mapping from names to numbers.
    """
    if not multipliers:
        return checkpoint
    earlier = checkpoint.documents.get(FILE, {})
    if not (isinstance(earlier, dict) and all(isinstance(value, int | float) for value in earlier.values())):
        raise InputRejected(f"{FILE}: is no mapping from parameter names to numbers")
    return checkpoint.with_documents({FILE: {**earlier, **multipliers}})


def mup_multipliers(scheme: object, parameters: Iterable[Parameter], skeleton: Skeleton) -> dict[str, float]:
    """The multiplier of each parameter that ``scheme`` initialises; none unless the scheme is mup.

    Raises:
        InputRejected: the config names no width.
    """
    if not isinstance(scheme, Mup):
        return {}
    width = text_value(skeleton, "hidden_size")
    if not isinstance(width, int):
        raise InputRejected("config.json names no hidden_size, which mup scales by")
    ratio = width / scheme.base_width
    return {
        name: 1.0 if layout is None else learning_rate_multiplier(shape, layout, width_ratio=ratio)
        for name, shape, layout in parameters
    }


def head_multipliers(spec: ReplaceHead, head: Head) -> dict[str, float]:
    """The multipliers of a new head: its projection by ``init``, its other tensors by ``inner_init``."""
    weights = [tensor for tensor in head.tensors if is_parameter(head.skeleton, tensor.name)]
    parameters = {
        inner: [(t.name, t.shape, layout_of(head.skeleton, t.name)) for t in weights if (t.part == "inner") == inner]
        for inner in (True, False)
    }
    inner = mup_multipliers(spec.inner_init, parameters[True], head.skeleton)
    return inner | mup_multipliers(spec.init, parameters[False], head.skeleton)
