"""Which rank owns which block of a model, and the model with the parameters of one rank alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch

from graftkit.errors import NotAsStored
from graftkit.running import memory
from graftkit.running.forward import Loaded, load
from graftkit.running.paging.skeleton import hold, join_tables
from graftkit.running.probes import KEPT_BYTES, LOGIT_BYTES
from graftkit.running.split.interrupts import CannotSplit

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class Part:
    """A model of which one rank may read its own parameters alone; ``owners`` gives the rank of each block by its name."""

    loaded: Loaded
    owners: Mapping[str, int]
    paged: bool


def load_part(
    directory: Path, rank: int, count: int, *, sharers: int, paged: bool | None = None, dtype: str | None = None,
    near: Mapping[str, int] | None = None, whole_tables: bool = False, trained: bool = False,
) -> Part:  # fmt: skip
    """Load the part of ``rank`` among ``count``: its run of blocks, and for rank 0 also all that stands outside of blocks.

    It is read at once and held in memory, or ``paged`` in; None lets the memory decide that is free for each of the ``sharers``,
    the ranks on this machine. ``near`` are ranks of blocks by name, which a block that is not among them follows.
    See :meth:`~graftkit.running.split.crew.Crew.load` on ``whole_tables``, and on one that is to be ``trained``.

    Raises:
        CannotSplit: the model has no blocks, or is to be trained and does not fit into memory, or not block by block.
        GraftkitError: see :func:`~graftkit.running.forward.load`.
    """
    try:
        loaded = load(directory, paged=True, dtype=dtype)
    except NotAsStored as error:
        raise CannotSplit(str(error)) from error
    blocks = blocks_of(loaded.model)
    owners = assign_near(blocks, near or {}) or assign_blocks(
        blocks,
        max(_nbytes(loaded.model) - sum(blocks.values()), 0),
        count,  # what blocks share counts in each of them
    )
    mine = list(_modules_of(loaded.model, owners, rank))
    if paged is None:
        held = {id(p): p for m in mine for p in _placeholders(m)}.values()
        nbytes = sum(4 * value.numel() if trained else value.nbytes for value in held)
        forwards = count if rank == 0 else 1  # as many as are under way at the same time, each with its outputs
        paged = nbytes + KEPT_BYTES + forwards * LOGIT_BYTES > memory.available() / sharers
    if trained:
        refuse_to_train(loaded.model, owners, paged=paged)
    flags = {(id(m), key): is_trained(value) for m in mine for key, value in m._parameters.items()}  # noqa: SLF001
    _refuse_all_but(loaded.model, mine)
    if not paged:
        hold(mine, loaded.pager)
        loaded = replace(loaded, pager=None)
        if whole_tables or trained:
            join_tables(loaded.model)
    if trained:
        _let_train(loaded.model, mine, flags)
    return Part(loaded, owners, paged)


def blocks_of(model: PreTrainedModel) -> dict[str, int]:
    """The bytes of each block by its name, in the order of the model: the entries of the outermost lists of modules.

    Raises:
        CannotSplit: there is none.
    """
    found: dict[str, int] = {}
    for name, module in model.named_modules():
        if not isinstance(module, torch.nn.ModuleList) or any(name.startswith(f"{block}.") for block in found):
            continue
        blocks = {f"{name}.{key}": block for key, block in module.named_children()}
        if all(_is_called(block) for block in blocks.values()):
            found |= {path: _nbytes(block) for path, block in blocks.items()}
    if not any(found.values()):
        raise CannotSplit(f"{type(model).__name__} has no list of blocks")
    return found


def _is_called(block: nn.Module) -> bool:
    return type(block).forward is not torch.nn.Module.forward


def assign_blocks(blocks: Mapping[str, int], others: int, count: int) -> dict[str, int]:
    """Block -> rank: runs of about equal bytes, rank 0 having ``others`` bytes already.

    Each block belongs to the rank in whose equal share of all bytes its middle lies.
    """
    whole, before = max(others + sum(blocks.values()), 1), others
    found = {}
    for name, nbytes in blocks.items():
        found[name] = min((2 * before + nbytes) * count // (2 * whole), count - 1)
        before += nbytes
    return found


def assign_near(blocks: Iterable[str], near: Mapping[str, int]) -> dict[str, int]:
    """Block -> rank, as ``near`` says; each other goes where the one before it is. Empty where no block is among them."""
    found: dict[str, int] = {}
    known = [near[name] for name in blocks if name in near]
    for name in blocks if known else ():
        found[name] = near.get(name, next(reversed(found.values()), known[0]))
    return found


def _nbytes(module: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in module.parameters())


def _placeholders(module: nn.Module) -> Iterator[Any]:
    yield from (value for value in module._parameters.values() if value is not None)  # noqa: SLF001 - without reading them


def _modules_of(model: PreTrainedModel, owners: Mapping[str, int], rank: int) -> Iterator[nn.Module]:
    """Every module that this rank may read, also those inside of others."""
    inside = {id(inner): owner for name, owner in owners.items() for inner in model.get_submodule(name).modules()}
    yield from (module for module in model.modules() if inside.get(id(module), 0) == rank)


def refuse_to_train(model: nn.Module, owners: Mapping[str, int], *, paged: bool) -> None:
    """Refuse a model of which a rank cannot train its blocks by itself.

    Raises:
        CannotSplit: that is so.
    """
    if paged:
        raise CannotSplit("its parameters do not fit into the memory of the ranks in float32")
    inside = {id(inner): owner for name, owner in owners.items() for inner in model.get_submodule(name).modules()}
    ranks: dict[int, set[int]] = {}
    for module in model.modules():
        for value in _placeholders(module):
            ranks.setdefault(id(value), set()).add(inside.get(id(module), 0))
    if any(len(found) > 1 for found in ranks.values()):
        raise CannotSplit("a parameter belongs to modules of several ranks")


def is_trained(placeholder: Any) -> bool:
    """Whether the class trains a parameter that is not here yet."""
    return bool(getattr(placeholder, "is_trained", getattr(placeholder, "requires_grad", False)))


def _let_train(model: nn.Module, mine: Iterable[nn.Module], flags: Mapping[tuple[int, str], bool]) -> None:
    """Let these modules have parameters in float32 that are trained where the class trains them, and buffers in float32 everywhere."""
    made: dict[int, tuple[Any, torch.nn.Parameter]] = {}
    for module in mine:
        held = dict(module._parameters.items())  # noqa: SLF001 - as for paging
        for key in held:
            value = module._parameters[key]  # noqa: SLF001 - which reads it
            if value is not None:
                wide = value.detach().float() if value.is_floating_point() else value.detach()
                parameter = torch.nn.Parameter(wide, requires_grad=flags[id(module), key])
                held[key] = made.setdefault(id(value), (value, parameter))[1]
        module._parameters = held  # noqa: SLF001
    for module in model.modules():
        for key, buffer in module._buffers.items():  # noqa: SLF001
            if buffer is not None and buffer.is_floating_point():
                module._buffers[key] = buffer.float()  # noqa: SLF001


class Refused(dict[str, Any]):
    """The parameters of a module that another rank runs: they tell shape and dtype where they are iterated over, and are not read.

    Who knows that they are elsewhere asks ``stand_in``, where there is one, for what stands for a parameter by its key.
    """

    stand_in: Callable[[str], Any] | None = None

    def __getitem__(self, key: str) -> Any:
        held = super().__getitem__(key)
        return held if held is None else self._refuse(key)

    def _refuse(self, key: str) -> NoReturn:
        raise CannotSplit(f"{key} of a block is read from outside of the block")


def _refuse_all_but(model: PreTrainedModel, mine: list[nn.Module]) -> None:
    allowed = {id(module) for module in mine}
    for module in model.modules():
        if id(module) not in allowed:
            module._parameters = Refused(module._parameters)  # noqa: SLF001 - as for paging
