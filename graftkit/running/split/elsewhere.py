"""The forward of a block that another rank runs, as the model here calls it."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from graftkit.running.paging.origin import outside_modes
from graftkit.running.split.adopting import adopt, with_adopted
from graftkit.running.split.dual import is_dual_level, outside, outside_transform, received, sent
from graftkit.running.split.interrupts import CannotSplit
from graftkit.running.split.other_ranks import cannot_differentiate
from graftkit.running.split.owner import PUSH, RUN, Given
from graftkit.running.split.parts import Refused
from graftkit.running.split.remote_tensor import RemoteTensor, replaced
from graftkit.running.split.state import structure_of
from graftkit.running.split.surroundings import surroundings_at
from graftkit.running.split.watching import Call, replay, watched_in

if TYPE_CHECKING:
    from torch import Tensor, nn

    from graftkit.running.split.other_ranks import OtherRanks
    from graftkit.running.split.state import Settings
    from graftkit.running.split.surroundings import Surroundings


class Elsewhere:
    """Stands for the forward of ``block``, which is ``path`` in model ``number``, and which ``rank`` runs.

    A deep copy of the block has a copy of this. Where parameters stand in it for those that are there, these are the ones that it is
    run with, whoever put them there.
    """

    def __init__(
        self, ranks: OtherRanks, rank: int, number: int, path: str, block: nn.Module, settings: Settings
    ) -> None:
        functools.update_wrapper(self, block.forward)
        self._ranks, self._rank, self._number, self._path = ranks, rank, number, path
        self._block, self._settings = block, settings
        self._loaded = structure_of(block)

    def __deepcopy__(self, memo: dict[int, Any]) -> Elsewhere:
        made = copy.copy(self)
        made._block = memo[id(self._block)]  # noqa: SLF001 - its own
        return made

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the block gives there; what it changes in its arguments is changed here too.

        Raises:
            CannotSplit: it cannot be had from there.
            LineBroken: that rank ended.
        """
        if is_dual_level():
            return self._pushed(args, kwargs)
        surroundings, modes = surroundings_at(self._path)
        with outside_modes():
            parameters, graded, _ = self._parameters()
            message = (RUN, *self._about(args, kwargs, surroundings, parameters), watched_in(self._block))
        (what, *about), given = self._ranks.exchange(self._rank, message, graph=surroundings.graph, graded=graded)
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
            replay(self._block, call._replace(output=self._ranks.standing_for(self._rank, call.output)))
        return with_adopted(output, adopted)

    def _pushed(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What the block gives there, with the tangents of that."""
        surroundings, _ = surroundings_at(self._path)
        (dual_args, dual_kwargs), (parameters, *held) = sent((args, kwargs)), self._parameters()
        with outside_transform(), outside_modes():
            about = (*self._about(dual_args, dual_kwargs, surroundings, parameters), watched_in(self._block))
            what, found = self._ranks.ask(self._rank, PUSH, *about)
        if what != "found":
            raise CannotSplit(found if what == "cannot" else cannot_differentiate(found))
        del held
        output, calls = received(found)
        for call in calls:
            replay(self._block, Call(*call))
        return output

    def _about(self, args: Any, kwargs: Any, surroundings: Surroundings, parameters: list[Given]) -> tuple[Any, ...]:
        """What the other rank is told in either case."""
        if structure_of(self._block) != self._loaded:
            raise CannotSplit(f"the model changes {self._path} before it runs it")
        settings, state = self._settings.changes(self._path, self._block), torch.default_generator.get_state()
        return self._number, self._path, args, kwargs, settings, surroundings, state, parameters

    def _parameters(self) -> tuple[list[Given], list[RemoteTensor], list[Any]]:
        """What the block is to be run with there, the tensors here of those that a gradient is asked of, each once, and all of them.

        Those are to be held until there is an answer, since some are of the transform.
        """
        found, graded, all_of_them = list[Given](), dict[int, RemoteTensor](), list[Any]()
        for name, module in self._block.named_modules():
            held = module._parameters  # noqa: SLF001 - what stands there, whoever put it there
            for key, value in () if isinstance(held, Refused) else held.items():
                if value is not None:
                    stands = outside(value)
                    all_of_them.append(stands)
                    found.append(Given(name, key, replaced(stands, RemoteTensor, self._number_of), value.requires_grad))
                    if value.requires_grad and isinstance(stands, RemoteTensor):
                        graded.setdefault(stands.location[1], stands)
        return found, list(graded.values()), all_of_them

    def _number_of(self, tensor: RemoteTensor) -> int:
        if tensor.location[0] != self._rank:
            raise CannotSplit(f"{self._path} is run with a parameter of another block")
        return tensor.location[1]


def _take_up(
    given: Sequence[Tensor],
    changed: dict[int, Tensor],
    state: Tensor | None,
    modes: Sequence[Any],
    found: Sequence[Any],
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
    from torch.utils._python_dispatch import _disable_current_modes

    with _disable_current_modes(), torch._C.DisableTorchFunction():  # noqa: SLF001 - as in torch's own documentation
        yield
