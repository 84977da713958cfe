"""What a block is beside its parameters, to see whether code outside of it changes it; its owner is told of plain attributes."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from graftkit.running.split.interrupts import CannotSplit
from graftkit.running.split.parcels import raw_of
from graftkit.running.split.parts import Refused

if TYPE_CHECKING:
    from torch import nn

#: Kinds of attributes that are looked at.
SCALARS = (bool, int, float, str, type(None))


#: Attributes of a module that have to do with transformers' capture of outputs, which it installs once, or with neither.
BESIDE = ("_output_capturing_hooks_installed", "_is_hf_initialized")


#: What the modules of a model hold.
State = tuple[Hashable, ...]


class Setting(NamedTuple):
    """A plain attribute of a module inside of a block by its name there, or of that module's config."""

    module: str
    of_config: bool
    name: str
    value: object


def structure_of(block: nn.Module) -> tuple[Hashable, ...]:
    """The modules of a block, what they hold for parameters that are not to be set here, and digests of their buffers."""
    return tuple(_parts(block))


def _parts(block: nn.Module) -> Iterator[Hashable]:
    for name, module in block.named_modules():
        held = module._parameters  # noqa: SLF001 - what it holds, without reading it
        yield name, type(module), type(held)
        yield from ((key, id(value) if isinstance(held, Refused) else None) for key, value in held.items())
        for key, value in module._buffers.items():  # noqa: SLF001 - also those that are None
            yield key, None if value is None else hashlib.sha256(raw_of(value).numpy().data).digest()


class Itself:
    """Something that equals nothing but itself; held, so that nothing else can be made in its place."""

    def __init__(self, held: object) -> None:
        self._held = held

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Itself) and other._held is self._held

    def __hash__(self) -> int:
        return id(self._held)


def state_beside_blocks(model: nn.Module) -> State:
    """What every module of a model holds beside parameters and modules, to see whether a forward changes it."""
    return tuple(
        (name, key, held if isinstance(held, SCALARS) else Itself(held))
        for name, module in model.named_modules()
        for key, held in (*vars(module).items(), *module._buffers.items())  # noqa: SLF001 - as above
        if key not in BESIDE
    )


class Settings:
    """The plain attributes of the modules of a model, and of their configs, as the owner of blocks of it knows them."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str, bool], dict[str, object]] = {}
        self._of_holder: dict[int, dict[str, object]] = {}

    def learn(self, path: str, block: nn.Module) -> None:
        """Take up those of the block ``path`` that its owner has just loaded; what several blocks share, their owner shares too."""
        for name, of_config, holder in _holders(block):
            self._known[path, name, of_config] = self._of_holder.setdefault(id(holder), _scalars(holder))

    def changes(self, path: str, block: nn.Module) -> list[Setting]:
        """What its owner is to be told of the block ``path``, or of a copy of it; from now on it knows.

        Raises:
            CannotSplit: an attribute is gone, or a module has a config that had none.
        """
        found = []
        for name, of_config, holder in _holders(block):
            known, now = self._known.get((path, name, of_config), {}), _scalars(holder)
            if not known or not known.keys() <= now.keys():
                raise CannotSplit(f"the model takes attributes of {path} away before it runs it, or another config")
            found += [
                Setting(name, of_config, key, value)
                for key, value in now.items()
                if key not in known or known[key] != value or type(known[key]) is not type(value)
            ]
            known.update(now)
        return found


def settle(block: nn.Module, settings: list[Setting]) -> None:
    """Give a block here the plain attributes that it has at rank 0."""
    for setting in settings:
        module = block.get_submodule(setting.module)
        vars(module.config if setting.of_config else module)[setting.name] = setting.value


def _holders(block: nn.Module) -> Iterator[tuple[str, bool, object]]:
    """What has plain attributes: each module by its name, and each config once, by the first module that has it."""
    seen: set[int] = set()
    for name, module in block.named_modules():
        yield name, False, module
        config = getattr(module, "config", None)
        if config is not None and id(config) not in seen:
            seen.add(id(config))
            yield name, True, config


def _scalars(value: object) -> dict[str, object]:
    return {key: held for key, held in vars(value).items() if isinstance(held, SCALARS)}
