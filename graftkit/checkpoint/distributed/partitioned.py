"""The weights that DeepSpeed's ZeRO 3 spreads over its ranks, gathered from the files of all of them; no value is read.

Every rank has a share of every weight: a run of its values, as long on each rank, with padding behind the last. The shares of what is
trained lie one behind the other in the groups of the rank's optimizer, in float32, in the order in which the file of the model names
their shapes. Those of frozen weights lie each alone in that file, in the dtype of the training, and buffers lie there whole.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from graftkit.checkpoint.archive import Archive, open_archive
from graftkit.checkpoint.files import resolve_member
from graftkit.checkpoint.rearranged import Joined, narrowed, reshaped
from graftkit.checkpoint.tensors import LazyTensor
from graftkit.errors import InputRejected, few, plural, printable

#: The package whose classes stand in these files beside the tensors; nothing of it is imported.
PACKAGE = "deepspeed"

_FILE = re.compile(r"(?:\w+_)?zero_pp_rank_(\d+)_mp_rank_(\d+)_(model|optim)_states\.pt")


def is_partitioned(names: Sequence[str]) -> bool:
    """Whether files of these ``names`` are the states of ranks that hold parts."""
    return any(_FILE.fullmatch(name) for name in names)


@dataclass(frozen=True, slots=True)
class Rank:
    """What one rank saved: the file of its model, and that of its optimizer."""

    model: Archive
    optimizer: Archive

    @classmethod
    def open(cls, step: Path, files: Mapping[str, str]) -> Self:
        """Map the files of one rank in the folder ``step``, by their kind.

        Raises:
            InputRejected: one is malformed or asks to run code.
        """
        return cls(
            *(open_archive(resolve_member(step, files[kind]), files[kind], PACKAGE) for kind in ("model", "optim"))
        )

    def groups(self, ranks: int) -> list[Any]:
        """The tensors in which the optimizer has its shares, one behind the other.

        Raises:
            InputRejected: it has none, or says that other than ``ranks`` ranks have the weights.
        """
        state = self.optimizer.mapping("optimizer_state_dict")
        groups, count = state.get("fp32_flat_groups"), state.get("partition_count")
        if not isinstance(groups, list | tuple) or not groups:
            raise InputRejected(f"{self.optimizer.shown}: has no fp32_flat_groups, in which ZeRO 3 saves its weights")
        if count != ranks:
            raise InputRejected(
                f"{self.optimizer.shown}: says that its weights are spread over {printable(count)} ranks, and"
                f" {plural(ranks, 'rank')} left files"
            )
        return list(groups)


def open_ranks(step: Path, names: Sequence[str]) -> tuple[Rank, ...]:
    """What each rank saved, in their order.

    Raises:
        InputRejected: files are missing, the weights are cut for tensor parallelism too, or a file is malformed.
    """
    found: dict[int, dict[str, str]] = {}
    for name in names:
        if match := _FILE.fullmatch(name):
            rank, parallel, kind = match.groups()
            if int(parallel):
                raise InputRejected(f"{printable(name)}: its weights are cut for tensor parallelism too")
            found.setdefault(int(rank), {})[kind] = name
    for rank in range(max(found) + 1):
        if missing := {"model", "optim"} - found.get(rank, {}).keys():
            raise InputRejected(f"{printable(step.name)}: rank {rank} has no file of {min(missing)}_states")
    return tuple(Rank.open(step, found[rank]) for rank in sorted(found))


def partitioned_tensors(ranks: Sequence[Rank]) -> dict[str, LazyTensor]:
    """Every weight and buffer by the name that the training had for it.

    Raises:
        InputRejected: the shares of a weight are not there, or are not all of it.
    """
    first = ranks[0].model
    trained = _shapes_in(first, "param_shapes")
    shares = [_trained_shares(rank, trained, len(ranks)) for rank in ranks]
    tensors = {name: _gathered(name, trained[name], [share[name] for share in shares]) for name in trained}
    for name, shape in _shapes_in(first, "frozen_param_shapes").items():
        pieces = [_frozen_share(rank.model, name, _share_of(shape, len(ranks))) for rank in ranks]
        tensors[name] = _gathered(name, shape, pieces)
    module, buffers = first.mapping("module"), first.held.get("buffer_names")
    named = buffers if isinstance(buffers, list | tuple) else ()
    tensors |= {name: first.lazy(name, value) for name, value in module.items() if name in named}
    again = first.mapping("shared_params")
    return tensors | {name: tensor for name, other in again.items() if (tensor := tensors.get(str(other))) is not None}


def _shapes_in(archive: Archive, key: str) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the weights under a ``key``, which holds one mapping or several.

    Raises:
        InputRejected: it does not.
    """
    held = archive.held.get(key) or ()
    parts = [held] if isinstance(held, Mapping) else held
    if not isinstance(parts, list | tuple) or not all(isinstance(part, Mapping) for part in parts):
        raise InputRejected(f"{archive.shown}: {key} names no weights and their shapes")
    found = {name: shape for part in parts for name, shape in part.items()}
    for name, shape in found.items():
        sizes = shape if isinstance(shape, tuple) else (None,)
        if not isinstance(name, str) or not all(type(size) is int and size >= 0 for size in sizes):
            raise InputRejected(f"{archive.shown}: {key}: {printable(name)!r} has no shape")
    return {name: tuple(shape) for name, shape in found.items()}


def _share_of(shape: tuple[int, ...], ranks: int) -> int:
    """How many values of a weight each rank has, padding among them."""
    return -(-math.prod(shape) // ranks)


def _trained_shares(rank: Rank, shapes: Mapping[str, tuple[int, ...]], ranks: int) -> dict[str, LazyTensor]:
    """By name the share that one rank has of each weight."""
    held = [rank.optimizer.lazy("fp32_flat_groups", group) for group in rank.groups(ranks)]
    if any(len(group.shape) != 1 for group in held):
        raise InputRejected(f"{rank.optimizer.shown}: its fp32_flat_groups are not flat")
    groups = _Groups(rank, held)
    found = {name: groups.take(name, _share_of(shape, ranks)) for name, shape in shapes.items()}
    groups.check_end()
    return found


class _Groups:
    """Takes shares out of the groups of a rank, one after the other; none lies in two groups."""

    def __init__(self, rank: Rank, groups: Sequence[LazyTensor]) -> None:
        self._shown, self._groups, self._at = rank.optimizer.shown, list(groups), 0

    def take(self, name: str, count: int) -> LazyTensor:
        while self._groups and self._at == self._groups[0].shape[0]:
            self._groups.pop(0)
            self._at = 0
        if not self._groups or self._at + count > self._groups[0].shape[0]:
            raise InputRejected(
                f"{self._shown}: its groups end within {printable(name)!r}; parts are not those of one training"
            )
        self._at += count
        return narrowed(self._groups[0], 0, self._at - count, self._at)

    def check_end(self) -> None:
        if left := sum(group.shape[0] for group in self._groups) - self._at:
            raise InputRejected(f"{self._shown}: holds {left:,} values of no weight that the file of the model names")


def _frozen_share(archive: Archive, name: str, count: int) -> LazyTensor:
    found = archive.mapping("frozen_param_fragments").get(name)
    share = None if found is None else archive.lazy(name, found)
    if share is None or share.shape != (count,):
        raise InputRejected(f"{archive.shown}: has no share of {count:,} values of the frozen {printable(name)!r}")
    return share


def _gathered(name: str, shape: tuple[int, ...], shares: Sequence[LazyTensor]) -> LazyTensor:
    """The values of the shares in their order, without the padding."""
    if len({share.dtype for share in shares}) > 1:
        raise InputRejected(
            f"{printable(name)}: its shares have several dtypes: {few(sorted({s.dtype for s in shares}))}"
        )
    return reshaped(Joined(tuple(_without_padding(shares, math.prod(shape)))), shape)


def _without_padding(shares: Sequence[LazyTensor], count: int) -> Iterator[LazyTensor]:
    yield shares[0] if shares[0].shape[0] <= count else narrowed(shares[0], 0, 0, count)
    left = count - shares[0].shape[0]
    for share in shares[1:]:
        if left > 0:
            yield share if share.shape[0] <= left else narrowed(share, 0, 0, left)
        left -= share.shape[0]
