"""State that a block changes in its arguments, such as a cache, brought back from another rank into the objects that are here."""

from __future__ import annotations

import types
from collections import OrderedDict
from itertools import zip_longest
from typing import Any

import torch

#: What is never gone into: values, and what a block does not change.
ATOMS = (torch.Tensor, torch.nn.Module, str, bytes, int, float, complex, type, types.FunctionType, types.ModuleType)


def adopt(old: Any, new: Any, adopted: dict[int, Any]) -> Any:
    """``old`` with the content of its copy ``new``, which came back.

    ``adopted`` gets by the id of each copy the object that stands for it.
    """
    if old is new or new is None or isinstance(new, ATOMS):
        return new
    if id(new) in adopted:
        return adopted[id(new)]
    if type(old) is not type(new):
        return new
    if isinstance(new, tuple):
        items = [adopt(one, other, adopted) for one, other in zip_longest(old, new) if len(old) == len(new)]
        return new if len(old) != len(new) else type(new)._make(items) if hasattr(new, "_make") else tuple(items)
    adopted[id(new)] = old
    if isinstance(new, list):
        old[:] = [adopt(old[place] if place < len(old) else None, item, adopted) for place, item in enumerate(new)]
    elif type(new) in (dict, OrderedDict):
        _adopt_items(old, new, adopted)
    elif hasattr(old, "__dict__"):
        _adopt_items(old.__dict__, new.__dict__, adopted)
    else:
        adopted[id(new)] = new
        return new
    return old


def _adopt_items(old: dict[Any, Any], new: dict[Any, Any], adopted: dict[int, Any]) -> None:
    items = {key: adopt(old.get(key), value, adopted) for key, value in new.items()}
    old.clear()
    old.update(items)


def with_adopted(value: Any, adopted: dict[int, Any]) -> Any:
    """What a block gives, with the objects that are here in the place of their copies."""
    if id(value) in adopted:
        return adopted[id(value)]
    if type(value) in (tuple, list):
        return type(value)(with_adopted(item, adopted) for item in value)
    return value
