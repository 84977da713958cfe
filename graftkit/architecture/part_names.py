"""What a part's tensors are called on disk: by its own names, or by the whole's with another beginning, as its loader takes them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from graftkit.architecture.accounting import Structure
from graftkit.architecture.names import MemoryName
from graftkit.architecture.skeleton import Skeleton


def disk_names(whole: Structure, names: Mapping[str, str], part: Skeleton) -> dict[str, str]:
    """Name on disk in the whole -> name on disk in the part, for every stored tensor that the part has.

    ``names`` gives the part's name in memory for that of the whole. A tensor that the loader converts keeps the end of its name, so
    that it is converted as before. One that the whole does not load, such as the pooler under another head, is the part's where its
    loader takes it.
    """
    held = {disk: memory for disk, memory in whole.memory.items() if memory.name in names}
    wanted = {disk: MemoryName(names[memory.name], memory.converted) for disk, memory in held.items()}
    plain = {disk: memory.name for disk, memory in wanted.items() if not memory.converted}
    found = _taken(part, plain, wanted)
    beginnings = [pair for pair, _ in Counter(_exchange(disk, ours) for disk, ours in plain.items()).most_common()]
    for old, new in (*beginnings, ("", "")):
        left = [disk for disk in wanted if disk not in found and (not old or disk.startswith(f"{old}."))]
        found |= _taken(part, {disk: _below(new, disk[len(old) :].lstrip(".")) for disk in left}, wanted)
    filled = {wanted[disk].name for disk in found}
    others = part.memory_names(whole.unloaded)
    alone = {
        disk: memory for disk, memory in others.items() if memory.name in part.shapes and memory.name not in filled
    }
    return found | _taken(part, {disk: memory.name for disk, memory in alone.items() if not memory.converted}, alone)


def _taken(part: Skeleton, tried: Mapping[str, str], wanted: Mapping[str, MemoryName]) -> dict[str, str]:
    """Those of the names that the part's loader takes as it should."""
    loaded = part.memory_names(tried.values())
    return {disk: name for disk, name in tried.items() if loaded[name] == wanted[disk]}


def _exchange(old: str, new: str) -> tuple[str, str]:
    """The beginnings of two names that are the same from some component on."""
    ours, theirs = old.split("."), new.split(".")
    while ours and theirs and ours[-1] == theirs[-1]:
        ours.pop()
        theirs.pop()
    return ".".join(ours), ".".join(theirs)


def _below(module: str, name: str) -> str:
    return f"{module}.{name}" if module else name
