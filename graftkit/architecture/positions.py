"""How many positions a model has, and the learned tables with a row for each: found by the differential skeleton."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from graftkit.architecture import skeleton as sk
from graftkit.architecture.accounting import Structure
from graftkit.architecture.governing import STEP, effect
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.errors import InputRejected, few, printable

#: What configs call the number of positions of the text; and what some state beside it, of the same value.
NAMES = ("max_position_embeddings", "n_positions")
ALSO = ("n_ctx",)


@dataclass(frozen=True, slots=True)
class PositionTable:
    """A table with a row for each position: its names on disk and in memory.

    The first ``reserved`` of its ``rows`` belong to no position. ``first`` is what a forward that is told positions calls the first.
    Rows that are ``computed`` are never trained: the class makes them, sines for example.
    """

    disk: str
    memory: str
    rows: int
    reserved: int
    first: int
    computed: bool = False


@dataclass(frozen=True, slots=True)
class Positions:
    """The number of positions in the config, every path in it that holds that, and the stored tables, if there are any."""

    count: int
    paths: tuple[sk.Path, ...]
    tables: tuple[PositionTable, ...]

    @property
    def reserved(self) -> int:
        """Rows of the tables that belong to no position."""
        return max((table.reserved for table in self.tables), default=0)

    def tokens(self, count: int) -> int:
        """The longest sequence where the config says ``count``: less where it counts rows that belong to no position."""
        return count - max((table.first for table in self.tables), default=0)


def find_positions(checkpoint: Checkpoint, structure: Structure) -> Positions:
    """Change what config.json says of positions by :data:`STEP`, and see which tensors move.

    Raises:
        InputRejected: the config names no number of positions, or a tensor that depends on it is no stored table of them.
    """
    skeleton, config = structure.skeleton, checkpoint.config
    count, paths = _paths(config, skeleton)
    moved = effect(config, skeleton, paths, count)
    if moved is None:
        raise InputRejected(
            f"{skeleton.architecture}: tensors depend on {'.'.join(paths[0])} in another way than by one row for each position, such as"
            " relative positions"
        )
    tables = [_table(name, axis, count, checkpoint, structure) for name, axis in moved.items()]
    stored = tuple(table for table in tables if table is not None)
    if len({(table.rows, table.reserved) for table in stored}) > 1:
        raise InputRejected(
            f"{skeleton.architecture}: {few([t.disk for t in stored])} have other numbers of rows that belong to no position"
        )
    return Positions(count, paths, stored)


def _paths(config: Mapping[str, Any], skeleton: sk.Skeleton) -> tuple[int, tuple[sk.Path, ...]]:
    """The number of positions of the text model, and where it stands."""
    known = dict(sk.integer_paths(skeleton.model.config.to_dict())) | dict(sk.integer_paths(dict(config)))
    for path in sorted((path for path in known if path[-1] in NAMES), key=len):
        if _moves_text(config, path, known[path]):
            beside = [(*path[:-1], name) for name in (*NAMES, *ALSO) if name != path[-1]]
            return known[path], (path, *(other for other in beside if known.get(other) == known[path]))
    raise InputRejected(
        f"{skeleton.architecture}: config.json names no number of positions ({' or '.join(NAMES)}), so its sequences have no such bound"
    )


def _moves_text(config: Mapping[str, Any], path: sk.Path, value: int) -> bool:
    """Whether a value is the number of positions of the text model, as transformers reads it."""
    try:
        built = sk.build_config(sk.with_values(config, (path,), value + STEP)).get_text_config(decoder=True)
    except (InputRejected, ValueError):
        return False
    return any(getattr(built, name, None) == value + STEP for name in NAMES)


def _table(name: str, axis: int, count: int, checkpoint: Checkpoint, structure: Structure) -> PositionTable | None:
    """The table that moved; None where it is not stored, so that the class makes it by itself."""
    import torch

    skeleton = structure.skeleton
    module = skeleton.model.get_submodule(name.rpartition(".")[0])
    disk = structure.memory.stored_as(name)
    if disk is None and not structure.memory.on_disk(name):
        return None
    shown = f"{skeleton.architecture}: {printable(name)!r} of shape {list(skeleton.shapes[name])} depends on the number of positions"
    if not isinstance(module, torch.nn.Embedding) or axis != 0 or disk is None:
        raise InputRejected(f"{shown}, and is no table with a row for each")
    rows = checkpoint.tensors[disk].shape[0]
    first = 0 if module.padding_idx is None else module.padding_idx + 1
    return PositionTable(disk, name, rows, rows - count + first, first, computed=not module.weight.requires_grad)
