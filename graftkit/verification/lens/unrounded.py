"""A result whose values were multiplied, before they were rounded: so the lens judges the rule, and not the rounding."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch

from graftkit.architecture.axis_maps import AxisMaps
from graftkit.architecture.correspondence import Correspondence
from graftkit.running.paging.origin import outside_modes

if TYPE_CHECKING:
    from torch import nn


class _Instead(dict[str, Any]):
    """A module's parameters, some of them made when they are asked for; all else is as in ``held``, which may read from files."""

    def __init__(self, held: dict[str, Any], made: Mapping[str, Callable[[], Any]]) -> None:
        super().__init__(held)
        self.held, self._made = held, made

    def __getitem__(self, key: str) -> Any:
        return self._made[key]() if key in self._made else self.held[key]


@contextlib.contextmanager
def unrounded(source: nn.Module, result: nn.Module, correspondence: Correspondence) -> Iterator[None]:
    """Let ``result`` have inside, in float64, what its scaled parameters are before they are rounded; new slices are as stored."""
    changed = []
    for name, module in result.named_modules():
        made = dict(_made(source, module, name, correspondence))
        if made:
            module._parameters = _Instead(module._parameters, made)  # noqa: SLF001 - where a module looks its parameters up
            changed.append(module)
    try:
        yield
    finally:
        for module in changed:
            module._parameters = module._parameters.held  # noqa: SLF001


def scaled_maps(correspondence: Correspondence, name: str) -> tuple[str, AxisMaps] | None:
    """The source's name of a parameter of the result, with its maps; None where its values are not scaled."""
    origin = correspondence.module_in_source(name)
    maps = None if origin is None else correspondence.widened(origin)
    return (origin, maps) if origin is not None and maps is not None and maps.scale != 1.0 else None


def _made(
    source: nn.Module, module: nn.Module, name: str, correspondence: Correspondence
) -> Iterator[tuple[str, Callable[[], Any]]]:
    for key in module._parameters:  # noqa: SLF001 - without reading them
        found = scaled_maps(correspondence, f"{name}.{key}".lstrip("."))
        if found is not None:
            owner, held = source.get_submodule(found[0].rpartition(".")[0]), module._parameters  # noqa: SLF001

            def make(maps: AxisMaps = found[1], owner: nn.Module = owner, key: str = key, held: Any = held) -> Any:
                with outside_modes(), torch.no_grad():
                    return torch.nn.Parameter(maps.placed(getattr(owner, key), held[key]), requires_grad=False)

            yield key, make
