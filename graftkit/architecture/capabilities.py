"""What a class of transformers or peft can do, asked of the class itself: the one place where their versions differ.

Nothing here compares version numbers. A name that was renamed stands beside the one that replaced it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: Names under which forwards return what they keep for the next token, and take it back.
CACHES = ("cache", "past_key_values", "cache_params", "state")


def parameters_of(model: PreTrainedModel) -> Mapping[str, inspect.Parameter]:
    """The parameters of the model's forward by name."""
    return inspect.signature(model.forward).parameters


def takes(function: Callable[..., Any], name: str) -> bool:
    """Whether a function has a parameter of this name; what it collects in ``**kwargs`` does not count."""
    return name in inspect.signature(function).parameters


def declares_cache(model: PreTrainedModel) -> bool:
    """Whether the forward has a parameter for a cache."""
    return any(takes(model.forward, name) for name in CACHES)


def returned_cache(output: Mapping[str, Any]) -> str | None:
    """The name under which a forward returned its cache; None where it returned none."""
    return next((name for name in CACHES if output.get(name) is not None), None)
