"""Rank 0's side of a model that several ranks run: it runs the model's own code, and a block of another rank goes there and back.

Whatever stands outside of blocks (embeddings, masks, norms, head) is computed here, once. So one control flow and one stream of random
numbers decide, a result compares as it does in one process, and every output is here to be compared.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.visible import sizes_of_files
from graftkit.errors import GraftkitError
from graftkit.running.forward import Loaded
from graftkit.running.live.model import LiveModel
from graftkit.running.paging.origin import READ, outside_modes
from graftkit.running.paging.room import is_quantized
from graftkit.running.paging.skeleton import join_tables
from graftkit.running.place import Place, folder_of
from graftkit.running.split.adopting import adopt, with_adopted
from graftkit.running.split.afar import Afar, cannot_differentiate
from graftkit.running.split.distant import Distant
from graftkit.running.split.interrupts import CannotSplit
from graftkit.running.split.owner import END, FIGURES, HOST, LOAD, PARAMETER, RELEASE, RUN
from graftkit.running.split.parts import Refused, load_part
from graftkit.running.split.state import Settings, structure_of
from graftkit.running.split.surroundings import surroundings_at
from graftkit.running.split.watching import replay, watched_in

if TYPE_CHECKING:
    from torch import Tensor, nn

    from graftkit.running.split.line import Line


class Crew(Afar):
    """The ranks that run models together, as rank 0 sees them, which makes one.

    ``wanted`` says whether parameters are read from the files as forwards ask for them; None lets the free memory of each rank decide.
    ``paged`` says whether a rank did so, and ``is_used`` whether a model was to be run.
    """

    def __init__(self, line: Line, *, wanted: bool | None = None) -> None:
        super().__init__(line)
        self.paged = self.is_used = False
        self._blocks: list[int] = [0] * line.count
        self._blocks_of_last = self._blocks
        self._refused: list[str] = []
        self._wanted = wanted
        self._before = READ.nbytes
        self._hosts: list[str] = []
        self._models = itertools.count()
        self._last: tuple[int, Mapping[str, int]] | None = None

    def load(
        self, place: Place, *, dtype: str | None = None, beside: Callable[[str], str | None] | None = None,
        whole_tables: bool = False,
    ) -> Loaded:  # fmt: skip
        """Let each rank load its blocks, all at the same time; the model that comes back runs as one that is whole.

        All models that were loaded before are let go, but with ``beside`` the last. That gives for a block of the last one the block
        here that lies best with the same rank, so that the two are compared there. With ``whole_tables`` large vocabulary tables in
        memory are multiplied at once, and the free memory decides whether parameters are in memory.

        Raises:
            CannotSplit: it can only be run by one process.
            GraftkitError: see :func:`~graftkit.running.forward.load`.
            LineBroken: another rank ended.
        """
        directory = self._folder(place)
        self._hosts = self._hosts or [socket.gethostname(), *(self.ask(rank, HOST) for rank in self._others)]
        files, number = sizes_of_files(directory), next(self._models)
        stays, near = self._beside(beside)
        if not stays:
            self.forget_values()
        options = {"paged": None if whole_tables else self._wanted, "dtype": dtype, "near": near}
        for rank in self._others:
            self.send(rank, (LOAD, number, stays, str(directory), files, self._options(rank, options)))
        self.is_used = True
        try:
            part = load_part(directory, 0, self._line.count, **self._options(0, options))
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
        self._blocks_of_last = [
            sum(owner == rank for owner in part.owners.values()) for rank in range(self._line.count)
        ]
        self._last = number, part.owners
        if whole_tables:
            join_tables(part.loaded.model)
        settings = {rank: Settings() for rank in self._others}
        for path, owner in part.owners.items():
            if owner:
                block = part.loaded.model.get_submodule(path)
                settings[owner].learn(block)
                self._let_read(number, owner, path, block)
                block.forward = self._elsewhere(number, owner, path, block, settings[owner])
        return part.loaded

    def ran(self) -> None:
        """Note that models were run together, and let them go."""
        self._blocks = self._blocks_of_last
        self._release()

    def refuse(self, what: str, reason: str) -> None:
        """Note why the models of a check are run by rank 0 alone, and let those that were loaded go."""
        self.is_used = True
        self._refused.append(f"{what}: {reason}")
        self._release()

    def _release(self) -> None:
        self._last = None
        self.forget_values()
        for rank in self._others:
            self.ask(rank, RELEASE, ())

    def _beside(self, beside: Callable[[str], str | None] | None) -> tuple[tuple[int, ...], dict[str, int]]:
        """The numbers of the models that stay, and the ranks of the blocks of the next by name, where that is given."""
        if beside is None or self._last is None:
            return (), {}
        number, owners = self._last
        near = {there: owner for path, owner in owners.items() if (there := beside(path)) is not None}
        return (number,), near

    def _let_read(self, number: int, rank: int, path: str, block: nn.Module) -> None:
        """Let whoever asks for it have what stands for a parameter of a block of another rank."""
        for name, module in block.named_modules():
            held, inner = module._parameters, f"{path}.{name}".rstrip(".")  # noqa: SLF001 - as for paging
            if isinstance(held, Refused):

                def lying(key: str, inner: str = inner) -> Distant:
                    with outside_modes():
                        found: Distant = self.standing_for(rank, self.ask(rank, PARAMETER, number, inner, key))
                        return found

                held.lying = lying

    def figures(self) -> dict[str, Any]:
        """What each rank read of weights, and what went to it and from it, in bytes."""
        read = [READ.nbytes - self._before, *(self.ask(rank, FIGURES) for rank in self._others)]
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
            "run_by_rank_0_alone": "; ".join(self._refused),
        }

    def end(self) -> None:
        """Let the others go on."""
        for rank in self._others:
            self.send(rank, (END,))

    def _answers(self) -> list[tuple[str, Any]]:
        return [self.receive(rank)[0] for rank in self._others]

    def _folder(self, place: Place) -> Path:
        if isinstance(place, LiveModel) or (isinstance(place, Checkpoint) and not place.loads_from_files):
            raise CannotSplit("its weights are not read from its own safetensors files")
        if is_quantized(folder_of(place)):
            raise CannotSplit("it is quantized: the loader makes its layers itself")
        return folder_of(place)

    def _options(self, rank: int, options: Mapping[str, Any]) -> dict[str, Any]:
        return {**options, "sharers": self._hosts.count(self._hosts[rank])}

    def _elsewhere(self, number: int, rank: int, path: str, block: nn.Module, settings: Settings) -> Callable[..., Any]:
        loaded = structure_of(block)

        @functools.wraps(block.forward)
        def forward(*args: Any, **kwargs: Any) -> Any:
            surroundings, modes = surroundings_at(path)
            with outside_modes():
                if structure_of(block) != loaded:
                    raise CannotSplit(f"the model changes {path} before it runs it")
                watched, state = watched_in(block), torch.default_generator.get_state()
                message = (RUN, number, path, args, kwargs, watched, settings.changes(block), surroundings, state)
                given = self.send(rank, message, graph=surroundings.graph)
                data = self.receive_bytes(rank)
            (what, *about), _ = self.unpacked(rank, data, given)
            if what == "cannot" or (what == "raised" and surroundings.graph):
                raise CannotSplit(about[0] if what == "cannot" else cannot_differentiate(about[0]))
            if what == "raised":
                raise about[0]
            output, changed_args, changed_kwargs, calls, state, changed, found = about
            if surroundings.graph and changed:
                raise CannotSplit("a block that is differentiated writes into what it is given")
            _take_up(given, changed, state, modes, found)
            adopted: dict[int, Any] = {}
            for old, new in zip((*args, *kwargs.values()), (*changed_args, *changed_kwargs.values()), strict=True):
                adopt(old, new, adopted)
            for call in calls:
                replay(block, call._replace(output=self.standing_for(rank, call.output)))
            return with_adopted(output, adopted)

        return forward


def _take_up(
    given: list[Tensor], changed: dict[int, Tensor], state: Tensor | None, modes: list[Any], found: list[Any]
) -> None:
    """Change here what a block changed there: tensors that it was given, the state of the random numbers, and modes."""
    with _seen_by_none():
        for place, value in changed.items():
            given[place].copy_(value)
    if state is not None:
        torch.default_generator.set_state(state)
    for mode, told in zip(modes, found, strict=True):
        mode.told(told)


@contextlib.contextmanager
def _seen_by_none() -> Iterator[None]:
    """Inside, no mode sees what is done, in whichever grad mode the caller is."""
    with _disable_current_modes(), torch._C.DisableTorchFunction():  # noqa: SLF001 - as in torch's own documentation
        yield
