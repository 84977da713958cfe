"""Which entries of a training's state are the model's weights: what whoever knows the class says of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Chosen:
    """The entries that are weights, each with its name in the class, and the names of the others."""

    weights: Mapping[str, str]
    skipped: tuple[str, ...]


#: Called with a config.json and the names of the entries.
Choose = Callable[[Mapping[str, Any], Collection[str]], Chosen]
