"""Tied weights: which names share their values when a checkpoint is loaded, and how a config unties them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from graftkit.architecture.skeleton import Skeleton, build_skeleton, with_values
from graftkit.architecture.vocabulary import Structure, equal_bytes
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.errors import InputRejected, printable

FLAG = "tie_word_embeddings"


def tied_group(name: str, checkpoint: Checkpoint, structure: Structure) -> frozenset[str]:
    """Names in memory that share their values with ``name``, itself included, as the loader would decide it.

    Two weights that are both stored are tied only where their bytes are equal.
    """
    disk = {key: stored for stored, (key, _) in structure.memory.items()}
    group, waiting = {name}, [name]
    while waiting:
        here = waiting.pop()
        for target, source in structure.skeleton.tied.items():
            other = source if target == here else target if source == here else here
            if other in group:
                continue
            both = here in disk and other in disk
            if not both or equal_bytes(checkpoint.tensors[disk[here]], checkpoint.tensors[disk[other]]):
                group.add(other)
                waiting.append(other)
    return frozenset(group)


def untied(config: Mapping[str, Any], members: frozenset[str]) -> tuple[dict[str, Any], Skeleton]:
    """``config`` with the flag off wherever it stands, and its skeleton, in which no two of ``members`` are tied.

    Raises:
        InputRejected: the class ties them whatever the config says.
    """
    paths = [(FLAG,)] + [(key, FLAG) for key, value in config.items() if isinstance(value, dict) and FLAG in value]
    changed = with_values(config, tuple(paths), value=False)
    skeleton = build_skeleton(changed)
    still = [target for target, source in skeleton.tied.items() if target in members and source in members]
    if still:
        raise InputRejected(
            f"{skeleton.architecture}: the adapter changes only one side of tied weights, and the class ties"
            f" {printable(min(still))!r} whatever config.json says"
        )
    return changed, skeleton
