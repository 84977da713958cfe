"""What a block is beside its parameters, to see whether code outside of it changes it, which its owner would not hear of."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterator
from typing import TYPE_CHECKING

from graftkit.running.split.parcels import raw_of

if TYPE_CHECKING:
    from torch import nn

#: Kinds of attributes that are looked at.
SCALARS = (bool, int, float, str, type(None))


def state_of(block: nn.Module) -> tuple[Hashable, ...]:
    """The modules of a block with their plain attributes, those of their configs, and digests of their buffers."""
    return tuple(_parts(block))


def _parts(block: nn.Module) -> Iterator[Hashable]:
    configs: dict[int, object] = {}
    for name, module in block.named_modules():
        yield name, type(module), _scalars(module)
        for key, value in module._buffers.items():  # noqa: SLF001 - also those that are None
            yield key, None if value is None else hashlib.sha256(raw_of(value).numpy().data).digest()
        config = getattr(module, "config", None)
        if config is not None and id(config) not in configs:
            configs[id(config)] = config
            yield type(config), _scalars(config)


def _scalars(value: object) -> tuple[tuple[str, object], ...]:
    return tuple((key, held) for key, held in vars(value).items() if isinstance(held, SCALARS))
