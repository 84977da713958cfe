"""peft's LoRA on one module of each kind: the others would get the same, and making them takes most of the time.

Which modules are targets is still decided by peft, for each of them.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any


@contextlib.contextmanager
def one_of_each() -> Iterator[Mapping[str, list[str]]]:
    """Within it ``get_peft_model`` makes the LoRA of the first target of each kind; yields its name -> those of the others.

    The others stay as they are. Where a config treats modules by their names, each is a kind of its own.
    """
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
    from peft.tuners.lora import LoraModel
    from peft.utils import PeftType

    first: dict[Any, str] = {}
    others: dict[str, list[str]] = defaultdict(list)

    class OneOfEach(LoraModel):  # type: ignore[misc]  # peft has no types
        def _create_and_replace(
            self, config: Any, name: str, target: Any, leaf: str, parent: Any, current_key: str, **further: Any
        ) -> None:
            kind = current_key if further or _by_name(config) else _kind(target)
            if first.setdefault(kind, current_key) == current_key:
                super()._create_and_replace(config, name, target, leaf, parent, current_key, **further)
            else:
                others[first[kind]].append(current_key)

    registered = PEFT_TYPE_TO_TUNER_MAPPING[PeftType.LORA]
    PEFT_TYPE_TO_TUNER_MAPPING[PeftType.LORA] = OneOfEach
    try:
        yield others
    finally:
        PEFT_TYPE_TO_TUNER_MAPPING[PeftType.LORA] = registered


def _by_name(config: Any) -> bool:
    """Whether the config treats modules by their names, or saves tensors besides the factors."""
    return bool(config.rank_pattern or config.alpha_pattern or config.ensure_weight_tying or config.bias != "none")


def _kind(target: Any) -> tuple[Any, ...]:
    shapes = tuple((name, tuple(value.shape), value.dtype) for name, value in target.named_parameters())
    return type(target), target.extra_repr(), shapes
