"""Rank 0's side of a model that several ranks run: it runs the model's own code, and a block of another rank goes there and back.

Whatever stands outside of blocks (embeddings, masks, norms, head) is computed here, once. So one control flow and one stream of random
numbers decide, a result compares as it does in one process, and every output is here to be compared.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.visible import sizes_of_files
from graftkit.errors import GraftkitError
from graftkit.running.forward import Loaded
from graftkit.running.live.model import LiveModel
from graftkit.running.paging.origin import READ, outside_modes
from graftkit.running.paging.room import is_quantized
from graftkit.running.place import Place, folder_of
from graftkit.running.split.elsewhere import Elsewhere
from graftkit.running.split.forwards_at_once import PassingOn, Turns, run_at_once
from graftkit.running.split.interrupts import CannotSplit
from graftkit.running.split.other_ranks import OtherRanks
from graftkit.running.split.owner import END, FIGURES, HOST, LOAD, PARAMETER, PARAMETERS, RELEASE
from graftkit.running.split.parts import Refused, load_part
from graftkit.running.split.remote_tensor import RemoteTensor
from graftkit.running.split.state import Settings, state_beside_blocks

if TYPE_CHECKING:
    from torch import nn

    from graftkit.running.split.line import Line
    from graftkit.running.split.state import State


Found = TypeVar("Found")


class Crew(OtherRanks):
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
        self._since = time.process_time()
        self._models = itertools.count()
        self._last: tuple[int, Mapping[str, int]] | None = None

    def load(
        self, place: Place, *, dtype: str | None = None, beside: Callable[[str], str | None] | None = None,
        stays: bool = True, whole_tables: bool = False, trained: bool = False,
    ) -> Loaded:  # fmt: skip
        """Let each rank load its blocks, all at the same time; the model that comes back runs as one that is whole.

        All models that were loaded before are let go, but with ``beside`` the last, if it ``stays``. That gives for a block of the last
        one the block here that lies best with the same rank, so that the two are compared there. With ``whole_tables`` large vocabulary
        tables in memory are multiplied at once, and the free memory decides whether parameters are in memory. One that is to be
        ``trained`` is so, in float32, and has parameters everywhere, of which those of other ranks stay there.

        Raises:
            CannotSplit: it can only be run by one process.
            GraftkitError: see :func:`~graftkit.running.forward.load`.
            LineBroken: another rank ended.
        """
        directory = self._folder(place)
        self._hosts = self._hosts or [socket.gethostname(), *(self.ask(rank, HOST) for rank in self._others)]
        files, number = sizes_of_files(directory), next(self._models)
        beside_it, near = self._beside(beside, stays=stays)
        if not beside_it:
            self.forget_values()
        options = {"paged": None if whole_tables else self._wanted, "dtype": dtype, "near": near}
        options |= {"whole_tables": whole_tables, "trained": trained}
        for rank in self._others:
            self.send(rank, (LOAD, number, beside_it, str(directory), files, self._options(rank, options)))
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
        if trained:
            self._put_parameters(number, part.loaded.model)
        settings = {rank: Settings() for rank in self._others}
        for path, owner in part.owners.items():
            if owner:
                block = part.loaded.model.get_submodule(path)
                settings[owner].learn(path, block)
                self._let_read(number, owner, path, block)
                block.forward = Elsewhere(self, owner, number, path, block, settings[owner])
            else:
                block = part.loaded.model.get_submodule(path)
                block.forward = PassingOn(block, lambda: self.turns)
        return part.loaded

    def state_of(self, model: nn.Module) -> State:
        """What the modules of a model hold before its first forward; see :meth:`forwards`."""
        return state_beside_blocks(model)

    @contextlib.contextmanager
    def forwards(
        self, model: nn.Module, runs: Sequence[Callable[[], Found]], alone: Sequence[bool], before: State | None
    ) -> Iterator[Iterator[Callable[[], Found]]]:
        """Give for each of ``runs``, forwards of ``model``, what gives what it gave, several of them being under way at the same time.

        The first runs by itself, and if it changes a module, so do all, as do those that are to run ``alone``. Where there was a first
        one already, ``before`` is the state of the model before it.

        Raises:
            CannotSplit: a later one changes a module, and others were under way.
            LineBroken: another rank ended.
        """
        first = int(before is None)
        noted = state_beside_blocks(model) if before is None else before

        def found() -> Iterator[Callable[[], Found]]:
            yield from runs[:first]
            changes = state_beside_blocks(model) != noted
            for is_alone, group in itertools.groupby(
                zip(runs[first:], alone[first:], strict=True), key=lambda pair: pair[1]
            ):
                some = [run for run, _ in group]
                if is_alone or changes or len(some) == 1:
                    yield from some
                    continue
                before_these = state_beside_blocks(model)
                self.turns = Turns(self._others)
                try:
                    with run_at_once(self.turns, some, self._line.count) as outcomes:
                        for number, outcome in enumerate(outcomes, 1):
                            if number == len(some) and state_beside_blocks(model) != before_these:
                                raise CannotSplit("a forward changes the model, and others were under way")
                            yield outcome
                finally:
                    self.turns = None

        outcomes = found()
        try:
            yield outcomes
        finally:
            outcomes.close()  # type: ignore[attr-defined]

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

    def _beside(
        self, beside: Callable[[str], str | None] | None, *, stays: bool
    ) -> tuple[tuple[int, ...], dict[str, int]]:
        """The numbers of the models that stay, and the ranks of the blocks of the next by name, where that is given."""
        if beside is None or self._last is None:
            return (), {}
        number, owners = self._last
        near = {there: owner for path, owner in owners.items() if (there := beside(path)) is not None}
        return (number,) if stays else (), near

    def _put_parameters(self, number: int, model: nn.Module) -> None:
        """Let what stands for them be the parameters of blocks of other ranks."""
        for rank in self._others:
            with outside_modes():
                told = self.standing_for(rank, self.ask(rank, PARAMETERS, number))
            for path, held in told.items():
                for tensor, is_trained in held.values():
                    tensor._is_param = True  # noqa: SLF001 - what isinstance(tensor, Parameter) asks for
                    tensor.requires_grad_(is_trained)
                model.get_submodule(path)._parameters = {  # noqa: SLF001 - as for paging
                    key: held[key][0] if key in held else None
                    for key in model.get_submodule(path)._parameters  # noqa: SLF001
                }

    def _let_read(self, number: int, rank: int, path: str, block: nn.Module) -> None:
        """Let whoever asks for it have what stands for a parameter of a block of another rank."""
        for name, module in block.named_modules():
            held, inner = module._parameters, f"{path}.{name}".rstrip(".")  # noqa: SLF001 - as for paging
            if isinstance(held, Refused):

                def stand_in(key: str, inner: str = inner) -> RemoteTensor:
                    with outside_modes():
                        found: RemoteTensor = self.standing_for(rank, self.ask(rank, PARAMETER, number, inner, key))
                        return found

                held.stand_in = stand_in

    def figures(self) -> dict[str, Any]:
        """What each rank read of weights, what went to it and from it, in bytes, and its seconds of the processor."""
        mine = READ.nbytes - self._before, time.process_time() - self._since
        figures = [mine, *(self.ask(rank, FIGURES) for rank in self._others)]
        moved = [sum(self._moved), *self._moved[1:]]
        return {
            "ranks": [
                {
                    "rank": rank,
                    "blocks": self._blocks[rank],
                    "weight_bytes_read": figures[rank][0],
                    "bytes_moved": moved[rank],
                    "processor_seconds": round(figures[rank][1], 3),
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
