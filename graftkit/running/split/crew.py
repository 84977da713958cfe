"""Rank 0's side of a model that several ranks run: it runs the model's own code, and a block of another rank goes there and back.

Whatever stands outside of blocks (embeddings, masks, norms, head) is computed here, once. So one control flow and one stream of random
numbers decide, a result compares as it does in one process, and every output is here to be compared.
"""

from __future__ import annotations

import functools
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.visible import sizes_of_files
from graftkit.errors import GraftkitError
from graftkit.running.forward import Loaded
from graftkit.running.live.model import LiveModel
from graftkit.running.paging.origin import READ
from graftkit.running.paging.room import is_quantized
from graftkit.running.place import Place, folder_of
from graftkit.running.split.adopting import adopt, with_adopted
from graftkit.running.split.interrupts import CannotSplit, LineBroken
from graftkit.running.split.owner import END, FIGURES, HOST, LOAD, RUN
from graftkit.running.split.parcels import Shelf, pack, unpack
from graftkit.running.split.parts import load_part
from graftkit.running.split.state import state_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from graftkit.running.split.line import Line


class Crew:
    """The ranks that run models together, as rank 0 sees them, which makes one.

    ``wanted`` says whether parameters are read from the files as forwards ask for them; None lets the free memory of each rank decide.
    ``paged`` says whether a rank did so, and ``is_used`` whether a model was to be run.
    """

    def __init__(self, line: Line, *, wanted: bool | None = None) -> None:
        self.paged = self.is_used = False
        self._blocks: list[int] = [0] * line.count
        self._refused = ""
        self._wanted = wanted
        self._line = line
        self._others = range(1, line.count)
        self._shelves = {rank: Shelf() for rank in self._others}
        self._moved = [0] * line.count
        self._before = READ.nbytes
        self._hosts: list[str] = []

    def load(self, place: Place, *, dtype: str | None = None) -> Loaded:
        """Let each rank load its blocks, all at the same time; the model that comes back runs as one that is whole.

        Raises:
            CannotSplit: it can only be run by one process.
            GraftkitError: see :func:`~graftkit.running.forward.load`.
            LineBroken: another rank ended.
        """
        directory = self._folder(place)
        self._hosts = self._hosts or [socket.gethostname(), *(self._ask(rank, HOST) for rank in self._others)]
        files = sizes_of_files(directory)
        for rank in self._others:
            self._send(rank, (LOAD, str(directory), files, self._options(rank, dtype)))
        self.is_used = True
        try:
            part = load_part(directory, 0, self._line.count, **self._options(0, dtype))
        except (GraftkitError, CannotSplit):
            self._answers()
            raise
        answers = self._answers()
        for what, about in answers:
            if what == "failed":
                raise about
            if what == "cannot":
                raise CannotSplit(about)
        self.paged = self.paged or part.paged or any(about for _, about in answers)
        self._blocks = [sum(owner == rank for owner in part.owners.values()) for rank in range(self._line.count)]
        for path, owner in part.owners.items():
            if owner:
                block = part.loaded.model.get_submodule(path)
                block.forward = self._elsewhere(owner, path, block)
        return part.loaded

    def refuse(self, reason: str) -> None:
        """Note why a model is run by rank 0 alone."""
        self.is_used = True
        self._refused, self._blocks = reason, [0] * self._line.count

    def figures(self) -> dict[str, Any]:
        """What each rank read of weights, and what went to it and from it, in bytes."""
        read = [READ.nbytes - self._before, *(self._ask(rank, FIGURES) for rank in self._others)]
        moved = [sum(self._moved), *self._moved[1:]]
        return {
            "ranks": [
                {
                    "rank": rank,
                    "blocks": self._blocks[rank],
                    "weight_bytes_read": read[rank],
                    "bytes_moved": moved[rank],
                }
                for rank in range(self._line.count)
            ],
            "run_by_rank_0_alone": self._refused,
        }

    def end(self) -> None:
        """Let the others go on."""
        for rank in self._others:
            self._send(rank, (END,))

    def _answers(self) -> list[tuple[str, Any]]:
        return [self._receive(rank)[0] for rank in self._others]

    def _folder(self, place: Place) -> Path:
        if isinstance(place, LiveModel) or (isinstance(place, Checkpoint) and not place.loads_from_files):
            raise CannotSplit("its weights are not read from its own safetensors files")
        if is_quantized(folder_of(place)):
            raise CannotSplit("it is quantized: the loader makes its layers itself")
        return folder_of(place)

    def _options(self, rank: int, dtype: str | None) -> dict[str, Any]:
        return {"paged": self._wanted, "dtype": dtype, "sharers": self._hosts.count(self._hosts[rank])}

    def _elsewhere(self, rank: int, path: str, block: nn.Module) -> Callable[..., Any]:
        loaded = state_of(block)

        @functools.wraps(block.forward)
        def forward(*args: Any, **kwargs: Any) -> Any:
            if state_of(block) != loaded:
                raise CannotSplit(f"the model changes {path} before it runs it")
            return self._run(rank, path, block, args, kwargs)

        return forward

    def _run(self, rank: int, path: str, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What a block gives that another rank owns; what it changes in its arguments is changed here too."""
        modes = [*_get_current_function_mode_stack(), *_get_current_dispatch_mode_stack()]  # type: ignore[no-untyped-call]
        if modes or not torch.is_inference_mode_enabled():
            raise CannotSplit("what runs it asks for more than its outputs")
        given = self._send(rank, (RUN, path, args, kwargs, _hooked(block), torch.default_generator.get_state()))
        (what, *about), _ = self._receive(rank, given)
        if what == "raised":
            raise about[0]
        if what == "cannot":
            raise CannotSplit(about[0])
        output, changed_args, changed_kwargs, calls, state, changed = about
        for number, value in changed.items():
            given[number].copy_(value)
        if state is not None:
            torch.default_generator.set_state(state)
        adopted: dict[int, Any] = {}
        for old, new in zip((*args, *kwargs.values()), (*changed_args, *changed_kwargs.values()), strict=True):
            adopt(old, new, adopted)
        for call in calls:
            _replay(block, *call)
        return with_adopted(output, adopted)

    def _ask(self, rank: int, *message: Any) -> Any:
        self._send(rank, message)
        return self._receive(rank)[0]

    def _send(self, rank: int, message: Any) -> list[Tensor]:
        data, tensors = pack(message, self._shelves[rank])
        self._moved[rank] += len(data)
        try:
            self._line.send(rank, data)
        except GraftkitError as error:
            raise LineBroken(error) from error
        return tensors

    def _receive(self, rank: int, given: list[Tensor] | None = None) -> tuple[Any, list[Tensor]]:
        try:
            data = self._line.receive(rank)
        except GraftkitError as error:
            raise LineBroken(error) from error
        self._moved[rank] += len(data)
        found = unpack(data, self._shelves[rank], given or ())
        self._shelves[rank].trim()
        return found


def _hooked(block: nn.Module) -> list[str]:
    """Names of the modules inside of a block whose calls somebody watches.

    Raises:
        CannotSplit: they are changed on the way.
    """
    names = []
    for name, module in block.named_modules():
        if module is block:
            continue
        if module._forward_pre_hooks:  # noqa: SLF001 - torch has no other way to ask
            raise CannotSplit("what a module inside of a block is given is changed")
        if module._forward_hooks:  # noqa: SLF001
            names.append(name)
    return names


def _replay(block: nn.Module, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    """Show a call that another rank made to the hooks that wait for it here."""
    module = block.get_submodule(name)
    for key, hook in tuple(module._forward_hooks.items()):  # noqa: SLF001
        with_kwargs = key in module._forward_hooks_with_kwargs  # noqa: SLF001
        made = hook(module, args, kwargs, output) if with_kwargs else hook(module, args, output)
        if made is not None:
            raise CannotSplit("what a module inside of a block gives is changed")
