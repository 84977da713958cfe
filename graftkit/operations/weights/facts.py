"""What a scheme may need of a model, from its class and its config."""

from __future__ import annotations

from graftkit.architecture.parameters import text_value
from graftkit.architecture.skeleton import Skeleton
from graftkit.initializers.make import STD, ModelFacts


def model_facts(skeleton: Skeleton) -> ModelFacts:
    """The standard deviation of new weights, the number of layers and the width of the text model."""
    std = text_value(skeleton, "initializer_range", "init_std")
    layers = text_value(skeleton, "num_hidden_layers", "num_layers")
    width = text_value(skeleton, "hidden_size")
    return ModelFacts(
        std=float(std) if isinstance(std, int | float) and std > 0 else STD,
        layers=layers if isinstance(layers, int) else None,
        width=width if isinstance(width, int) else None,
    )
