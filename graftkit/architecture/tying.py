"""Tied weights: which names share their values when a checkpoint is loaded, and how they are separated."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from graftkit.architecture.accounting import Structure
from graftkit.architecture.skeleton import Path, Skeleton, build_skeleton, with_values
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.reading import equal_bytes
from graftkit.errors import InputRejected, printable

FLAG = "tie_word_embeddings"


def flag_places(config: Mapping[str, Any]) -> tuple[Path, ...]:
    """The outermost place of the flag in a config.json, and every sub-config that states it."""
    return ((FLAG,), *((key, FLAG) for key, value in config.items() if isinstance(value, dict) and FLAG in value))


def tied_group(name: str, checkpoint: Checkpoint, structure: Structure) -> frozenset[str]:
    """Names in memory that share their values with ``name``, itself included, as the loader would decide it.

    Two weights that are both stored are tied only where their bytes are equal.
    """

    def share(one: str, other: str) -> bool:
        both = [checkpoint.tensors[disk] for name in (one, other) for disk in structure.memory.on_disk(name)[:1]]
        return len(both) < 2 or equal_bytes(*both)

    return connected(name, structure.skeleton.tied, share)


def connected(
    name: str, tied: Mapping[str, str], share: Callable[[str, str], bool] = lambda _one, _other: True
) -> frozenset[str]:
    """``name`` with all that pairs of ``tied`` lead to from it, one after the other; ``share`` may say that a pair does not hold."""
    group, waiting = {name}, [name]
    while waiting:
        here = waiting.pop()
        for target, source in tied.items():
            other = source if target == here else target if source == here else here
            if other not in group and share(here, other):
                group.add(other)
                waiting.append(other)
    return frozenset(group)


def untie(
    checkpoint: Checkpoint, tied: Mapping[str, str], changed: Collection[str]
) -> tuple[Checkpoint, tuple[str, ...]]:
    """Undo the ties of which ``changed`` (names in memory) touches a side: the config's flag becomes false wherever it stands.

    Each side that is not stored gets a copy: the same bytes under its own name, in the shard of the other side. The identical
    checkpoint where there is nothing to undo; also returns the names of the copies, on disk as in memory.

    Raises:
        InputRejected: the class ties them whatever the config says, or a copy would need another name on disk.
    """
    touched = {name for pair in tied.items() if not set(changed).isdisjoint(pair) for name in pair}
    if not touched:
        return checkpoint, ()
    config = with_values(checkpoint.config, flag_places(checkpoint.config), value=False)
    after = build_skeleton(config)
    still = [target for target, source in after.tied.items() if target in touched and source in touched]
    if still:
        raise InputRejected(
            f"{after.architecture}: the adapter changes only one side of tied weights, and the class ties"
            f" {printable(min(still))!r} whatever config.json says"
        )
    return with_copies(checkpoint.with_documents({"config.json": config}), tied, after)


def with_copies(checkpoint: Checkpoint, tied: Mapping[str, str], after: Skeleton) -> tuple[Checkpoint, tuple[str, ...]]:
    """Give each weight that ``after`` ties no longer its own tensor, those that have none a copy; see :func:`untie`.

    Raises:
        InputRejected: a copy would need another name on disk than in memory.
    """
    names = after.memory_names(checkpoint.tensors)
    copied = []
    for members in _separated_groups(tied, after.tied):
        stored = next(disk for member in sorted(members) for disk in names.on_disk(member)[:1])
        shard = next(shard for shard, held in checkpoint.shards.items() if stored in held)
        for member in sorted(members - names.disk.keys()):
            _check_name(after, member)
            checkpoint = checkpoint.with_tensors({member: checkpoint.tensors[stored]}, shard=shard)
            copied.append(member)
    return checkpoint, tuple(copied)


def _separated_groups(before: Mapping[str, str], after: Mapping[str, str]) -> Iterator[set[str]]:
    """Yield the names of each group of ``before`` that is tied no longer in ``after``."""
    groups: dict[str, set[str]] = {}
    for target, source in before.items():
        if target not in after:
            groups.setdefault(source, {source}).add(target)
    yield from groups.values()


def _check_name(skeleton: Skeleton, name: str) -> None:
    if skeleton.memory_names([name])[name].name != name:
        raise InputRejected(
            f"{skeleton.architecture}: weights that were tied become two, and {printable(name)!r} would be stored under another name;"
            " save the base once with a current transformers"
        )
