"""Parameters that are read from their files when a forward asks for them, and let go when others need their room."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from graftkit.running.paging.origin import Origin, outside_modes
from graftkit.running.paging.table import is_large, table_of

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


class Pager:
    """Reads parameters by name and keeps the last used within ``room`` bytes.

    ``nbytes`` is what one forward reads at least once, and ``read`` is called with the bytes of each reading.
    """

    def __init__(self, origins: Mapping[str, Origin], room: float) -> None:
        self.read: Callable[[int], None] | None = None
        self.nbytes = 0
        self.is_reading = False
        self._origins, self._room = origins, room
        self._kept: OrderedDict[str, Tensor] = OrderedDict()
        self._held = 0

    def __call__(self, name: str, nbytes: int) -> Tensor:
        """The parameter of that name and size."""
        if name in self._kept:
            self._kept.move_to_end(name)
            return self._kept[name]
        self._make_room(nbytes)
        with outside_modes():
            for other, tensor in self._made(name).items():
                self._keep(other, tensor)
        return self._kept[name]

    def _made(self, name: str) -> Mapping[str, Tensor]:
        self.is_reading = True
        try:
            return self._origins[name].read()
        finally:
            self.is_reading = False

    def keep_all(self) -> None:
        """From here on, keep whatever is read."""
        self._room = math.inf

    def _keep(self, name: str, tensor: Tensor) -> None:
        if name in self._kept:
            return
        self._make_room(tensor.nbytes)
        self._kept[name] = torch.nn.Parameter(tensor, requires_grad=False)
        self._held += tensor.nbytes
        if self.read:
            self.read(tensor.nbytes)

    def _make_room(self, nbytes: int) -> None:
        while self._kept and self._held + nbytes > self._room:
            _, tensor = self._kept.popitem(last=False)
            self._held -= tensor.nbytes


class Paged(dict[str, Any]):
    """A module's parameters: what is asked for by name is read, what is iterated over tells shape and dtype alone.

    Placeholders are one NaN as often as the shape asks for, so that what is computed from one by mistake shows.
    """

    def __init__(self, placeholders: Mapping[str, Tensor], names: Mapping[str, str], pager: Pager) -> None:
        super().__init__(placeholders)
        self._names, self._pager = names, pager

    def __getitem__(self, key: str) -> Any:
        held = super().__getitem__(key)
        if key not in self._names or self._pager.is_reading:  # a conversion on the way asks for shapes alone
            return held
        found = self._pager(self._names[key], held.nbytes)
        if found.dtype != held.dtype:  # a forward that casts its own module, such as a router to float32
            with outside_modes():
                return torch.nn.Parameter(found.to(held.dtype), requires_grad=False)
        return found


def page(model: PreTrainedModel, origins: Mapping[str, Origin], tables: frozenset[int]) -> Pager:
    """Let every parameter of ``model`` that is on the meta device be paged in; ``tables`` are the ids of vocabulary tables.

    Parameters that several modules share are shared afterwards. What lies in memory stays there.
    """
    names: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.is_meta and name in origins:
            names.setdefault(id(parameter), name)
    pager = Pager(origins, _largest_block(model))
    placeholders: dict[int, Tensor] = {}
    read: dict[str, int] = {}
    for module in model.modules():
        held = {key: value for key, value in module._parameters.items() if value is not None and value.is_meta}  # noqa: SLF001
        paged = {}
        for key, value in held.items():
            name = names.get(id(value))
            if id(value) not in placeholders:
                made = _placeholder(value, origins.get(name or ""), table=id(value) in tables)
                made.is_trained = value.requires_grad
                placeholders[id(value)] = made
            module._parameters[key] = placeholders[id(value)]  # noqa: SLF001
            if name is not None and not hasattr(placeholders[id(value)], "read"):
                paged[key] = name
                read[name] = value.nbytes
        if paged:
            module._parameters = Paged(module._parameters, paged, pager)  # noqa: SLF001
    pager.nbytes = sum(read.values())
    return pager


def _placeholder(value: Any, origin: Origin | None, *, table: bool) -> Any:
    empty = torch.full((), torch.nan if value.is_floating_point() else 0, dtype=value.dtype).expand(value.shape)
    if table and origin is not None and origin.stored is not None and is_large(value):
        return table_of(empty, origin.rows)
    return torch.nn.Parameter(empty, requires_grad=False)


def _largest_block(model: PreTrainedModel) -> int:
    """Bytes of the largest entry of any list of modules, or of the largest parameter where there is none."""
    lists = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    inside = {id(inner) for module in lists for block in module for inner in block.modules()}
    outermost = [block for module in lists if id(module) not in inside for block in module]
    blocks = [sum(parameter.nbytes for parameter in block.parameters()) for block in outermost]
    return max(blocks, default=0) or max(parameter.nbytes for parameter in model.parameters())
