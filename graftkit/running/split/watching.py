"""Modules inside of blocks whose calls somebody watches: what their hooks see where another rank runs the block."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from graftkit.running.split.interrupts import CannotSplit
from graftkit.running.split.together import GOES_ALONG, TAKES_REMOTE

if TYPE_CHECKING:
    from torch import nn


class Watched(NamedTuple):
    """A module inside of a block by its name there; of its calls ``whole`` ones come back, or what they gave stays where it lies."""

    name: str
    whole: bool


class Call(NamedTuple):
    """One call of a watched module; of one that is not whole the output alone is told."""

    name: str
    args: Any
    kwargs: Any
    output: Any


def watched_in(block: nn.Module) -> list[Watched]:
    """The modules inside of a block whose calls somebody watches.

    Raises:
        CannotSplit: they are changed on the way.
    """
    found = []
    for name, module in block.named_modules():
        if module is block:
            continue
        if any(not hasattr(hook, GOES_ALONG) for hook in module._forward_pre_hooks.values()):  # noqa: SLF001 - torch has no other way
            raise CannotSplit("what a module inside of a block is given is changed")
        hooks = list(_hooks_here(module).values())
        if hooks:
            found.append(Watched(name, whole=not all(hasattr(hook, TAKES_REMOTE) for hook in hooks)))
    return found


def _hooks_here(module: nn.Module) -> dict[int, Callable[..., Any]]:
    hooks = module._forward_hooks  # noqa: SLF001 - as above
    return {key: hook for key, hook in hooks.items() if not hasattr(hook, GOES_ALONG)}


def replay(block: nn.Module, call: Call) -> None:
    """Show a call that another rank made to the hooks that wait for it here."""
    module = block.get_submodule(call.name)
    for key, hook in _hooks_here(module).items():
        with_kwargs = key in module._forward_hooks_with_kwargs  # noqa: SLF001 - as above
        more = (call.kwargs,) if with_kwargs else ()
        if hook(module, call.args, *more, call.output) is not None:
            raise CannotSplit("what a module inside of a block gives is changed")


class Kept:
    """The calls of watched modules while a block runs; ``changed`` says whether a tensor in one was written to since."""

    def __init__(self, *, copies: bool) -> None:
        self.calls: list[Call] = []
        self._copies = copies
        self._versions: list[tuple[Tensor, int]] = []

    def note(self, watched: Watched, args: Any, kwargs: Any, output: Any) -> None:
        """Keep a call as it is, or with copies of the tensors in what it gave."""
        with torch._C.DisableTorchFunction(), _disable_current_modes():  # noqa: SLF001 - no mode sees what is copied
            self._note(watched, args, kwargs, output)

    def _note(self, watched: Watched, args: Any, kwargs: Any, output: Any) -> None:
        if watched.whole:
            self.calls.append(Call(watched.name, args, kwargs, self._kept(output, plain=False)))
        else:
            self.calls.append(Call(watched.name, (), {}, self._kept(output, plain=True)))

    @property
    def changed(self) -> bool:
        """Never in inference mode, in which tensors have no versions."""
        return any(tensor._version != version for tensor, version in self._versions)  # noqa: SLF001

    def _kept(self, value: Any, *, plain: bool) -> Any:
        """``value``, of a ``plain`` one the floating tensors in tuples, lists and dicts alone."""
        if isinstance(value, Tensor):
            if plain and not value.is_floating_point():
                return None
            if not value.is_inference():
                value = value.clone() if self._copies else value
                self._versions.append((value, value._version))  # noqa: SLF001
            return value
        if isinstance(value, dict) and (plain or type(value) is dict):
            return {key: self._kept(item, plain=plain) for key, item in value.items()}
        if type(value) in (tuple, list) or (plain and isinstance(value, tuple | list)):
            kept = [self._kept(item, plain=plain) for item in value]
            return kept if isinstance(value, list) else tuple(kept)
        return None if plain else value


@contextlib.contextmanager
def calls_of(block: nn.Module, watched: Sequence[Watched], *, copies: bool) -> Iterator[Kept]:
    """The calls of these modules inside of a block while it runs."""
    kept = Kept(copies=copies)
    with contextlib.ExitStack() as hooks:
        for one in watched:

            def note(_: nn.Module, args: Any, kwargs: Any, output: Any, one: Watched = one) -> None:
                kept.note(one, args, kwargs, output)

            hooks.callback(block.get_submodule(one.name).register_forward_hook(note, with_kwargs=True).remove)
        yield kept
