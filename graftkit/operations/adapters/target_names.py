"""How a config names the modules that it targets."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from graftkit.architecture.skeleton import Skeleton


def target_names(modules: Collection[str], skeleton: Skeleton) -> Iterator[str]:
    """Yield last names where every module of that name is one of ``modules``, else full names."""
    leaves: dict[str, list[str]] = {}
    for name, _ in skeleton.model.named_modules():
        leaves.setdefault(name.rpartition(".")[2], []).append(name)
    for leaf, names in leaves.items():
        found = [name for name in names if name in modules]
        yield from [leaf] if found == names else found
