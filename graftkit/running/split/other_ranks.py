"""What rank 0 has of the others: messages there and back, tensors that stay there, and gradients that come from there."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from graftkit.architecture.skeleton import one_line
from graftkit.errors import GraftkitError
from graftkit.running.paging.origin import outside_modes
from graftkit.running.split.graph import linked
from graftkit.running.split.interrupts import CannotSplit, LineBroken
from graftkit.running.split.owner import COMPUTE, FETCH, PULL
from graftkit.running.split.parcels import Shelf, pack, unpack
from graftkit.running.split.remote_tensor import Gone, Handle, RemoteTensor, SentBefore, replaced

if TYPE_CHECKING:
    from torch import Tensor

    from graftkit.running.split.forwards_at_once import Turns
    from graftkit.running.split.line import Line

#: What is sent as it is: all else that a function is given is sent once and known there from then on.
PLAIN = (torch.Tensor, str, bytes, int, float, type(None), tuple, list, dict)


class OtherRanks:
    """The other ranks, as rank 0 asks them: one after the other or, where there are ``turns``, in several threads."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self.turns: Turns | None = None
        self._others = range(1, line.count)
        self._shelves = {rank: Shelf() for rank in self._others}
        self._moved = [0] * line.count
        self._remote: weakref.WeakValueDictionary[tuple[int, int], RemoteTensor] = weakref.WeakValueDictionary()
        self._forgotten: dict[int, list[int]] = {rank: [] for rank in self._others}
        self._known: dict[int, dict[int, tuple[int, Any]]] = {rank: {} for rank in self._others}

    def compute(
        self, rank: int, function: Callable[..., Any] | str, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """What a function, or an operator of torch by its name, gives at that rank; tensors that it gives stay there."""
        with outside_modes():
            new: dict[int, Any] = {}

            def sent(value: Any) -> Any:
                if isinstance(value, RemoteTensor):
                    return (
                        Handle(value.location[1], (), (), value.dtype)
                        if value.location[0] == rank
                        else self.fetch(value)
                    )
                return (
                    value
                    if isinstance(value, PLAIN) or isinstance(function, str)
                    else self._sent_before(rank, value, new)
                )

            args, kwargs = (
                [sent(v) for v in replaced(list(args), RemoteTensor, sent)],
                {k: sent(v) for k, v in replaced(dict(kwargs), RemoteTensor, sent).items()},
            )
            what, found = self.ask(rank, COMPUTE, function, args, kwargs, new)
            if what == "raised":
                raise found
            return self.standing_for(rank, found)

    def fetch(self, tensor: RemoteTensor) -> Tensor:
        """The tensor itself."""
        rank, number = tensor.location
        with outside_modes():
            found: Tensor = self.ask(rank, FETCH, number)
            return found

    def forget(self, rank: int, number: int) -> None:
        """Note that a tensor is not asked for any more; that rank hears of it with the next message."""
        self._forgotten[rank].append(number)

    def standing_for(self, rank: int, value: Any) -> Any:
        """``value`` with what stands for each tensor that the rank has told of."""
        return replaced(value, Handle, lambda handle: self._stands_for(handle, rank))

    def _stands_for(self, handle: Handle, rank: int) -> RemoteTensor:
        found = self._remote.get((rank, handle.number))
        if found is not None:
            self.forget(rank, handle.number)  # told once more, held once
            return found
        made = RemoteTensor.of(handle, rank, self)
        self._remote[rank, handle.number] = made
        return made

    def forget_values(self) -> None:
        """Let go what was sent once beside tensors; the other ranks do so when they let models go."""
        for known in self._known.values():
            known.clear()

    def _sent_before(self, rank: int, value: Any, new: dict[int, Any]) -> SentBefore:
        known = self._known[rank]
        if id(value) not in known:
            known[id(value)] = len(known), value
            new[known[id(value)][0]] = value
        return SentBefore(known[id(value)][0])

    def ask(self, rank: int, *message: Any) -> Any:
        """Send a message, and return the answer."""
        return self.exchange(rank, message)[0]

    def exchange(
        self, rank: int, message: tuple[Any, ...], *, graph: bool = False, graded: Sequence[Tensor] = ()
    ) -> tuple[Any, list[Tensor]]:
        """Send a message and wait for the answer; return that, and the tensors that were sent.

        Of a ``graph`` tensors may belong to one, and ``graded`` ones that were not sent have a part in it.
        """
        with outside_modes():
            if self.turns is None:
                given = self.send(rank, message, graph=graph)
                found, _ = self.unpacked(rank, self.receive_bytes(rank), [*given, *graded])
            else:
                with self.turns.asking(rank):
                    given = self.send(rank, message, graph=graph)
                    with self.turns.resting():
                        self._wait(rank)
                    found, _ = self.unpacked(rank, self.receive_bytes(rank), [*given, *graded])
        return found, given

    def _wait(self, rank: int) -> None:
        try:
            self._line.wait(rank)
        except GraftkitError as error:
            raise LineBroken(error) from error

    def send(self, rank: int, message: tuple[Any, ...], *, graph: bool = False) -> list[Tensor]:
        """Send a message, of a ``graph`` with tensors that belong to one; return the tensors in it."""
        forgotten = self._forgotten[rank].copy()
        data, tensors = pack((forgotten, *message), self._shelves[rank], graph=() if graph else None)
        del self._forgotten[rank][: len(forgotten)]
        self._moved[rank] += len(data)
        try:
            self._line.send(rank, data)
        except GraftkitError as error:
            raise LineBroken(error) from error
        return tensors

    def receive(self, rank: int) -> tuple[Any, list[Tensor]]:
        """What a rank says, and the tensors in it."""
        return self.unpacked(rank, self.receive_bytes(rank))

    def receive_bytes(self, rank: int) -> bytes:
        """The same before it is read."""
        try:
            data = self._line.receive(rank)
        except GraftkitError as error:
            raise LineBroken(error) from error
        self._moved[rank] += len(data)
        return data

    def unpacked(self, rank: int, data: bytes, given: Sequence[Tensor] = ()) -> tuple[Any, list[Tensor]]:
        """What a rank says; tensors that belong to a graph there belong to one here that asks for gradients there."""

        def link(gave: list[Tensor], graph: tuple[int, list[int]]) -> list[Tensor]:
            number, uses = graph
            gone = Gone(rank, number, self)
            graded = [tensor for tensor in given if tensor.requires_grad]
            used = [tensor for tensor, times in zip(graded, uses, strict=True) for _ in range(times)]
            with torch.enable_grad():
                return linked(gave, used, functools.partial(self._pull, rank, gone))

        with outside_modes():
            found = unpack(data, self._shelves[rank], given, link=link)
            self._shelves[rank].trim()
        return found

    def _pull(self, rank: int, graph: Gone, gradients: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
        """The gradients of what a block of another rank was given, one for each use, from those of what it gave."""
        with outside_modes():
            what, found = self.ask(rank, PULL, graph.number, list(gradients))
        if what == "raised":
            raise CannotSplit(cannot_differentiate(found))
        return self.standing_for(rank, found)  # type: ignore[no-any-return]


def cannot_differentiate(error: Exception) -> str:
    """Why a block is not differentiated by another rank, which ran into this."""
    return f"a block cannot be differentiated by another rank ({one_line(error)})"
