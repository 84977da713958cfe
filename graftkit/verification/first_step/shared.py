"""Parameters that a model holds under several names: their gradient is the sum of what each name alone would have."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from graftkit.architecture.correspondence import Correspondence

#: Names that belong together.
Group = frozenset[str]


def shared_names(model: nn.Module) -> tuple[Group, ...]:
    """The names of each parameter that has more than one."""
    names: dict[int, list[str]] = {}
    for name, value in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(value), []).append(name)
    return tuple(frozenset(held) for held in names.values() if len(held) > 1)


def united(source: Iterable[Group], result: Iterable[Group], correspondence: Correspondence) -> tuple[Group, ...]:
    """Names of the source that are one parameter in source or result: over such a group, both gradients have one sum."""
    found: list[Group] = []
    for group in (*source, *(_in_source(group, correspondence) for group in result)):
        touched = [other for other in found if not other.isdisjoint(group)]
        found = [other for other in found if other.isdisjoint(group)] + [group.union(*touched)]
    return tuple(group for group in found if len(group) > 1)


def _in_source(group: Group, correspondence: Correspondence) -> Group:
    names = (correspondence.module_in_source(name) for name in group)
    return frozenset(name for name in names if name is not None)


def grouped(names: Iterable[str], groups: Sequence[Group]) -> Iterable[Group]:
    """Each of ``names`` alone, or in its group; every group once."""
    of_name = {name: group for group in groups for name in group}
    return dict.fromkeys(of_name.get(name, frozenset((name,))) for name in names)
