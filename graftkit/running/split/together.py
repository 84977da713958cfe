"""Run models by all ranks where that can be done, else by rank 0 alone; and compute something of tensors where they are."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from graftkit.running.split.interrupts import CannotSplit, LineBroken

if TYPE_CHECKING:
    from torch import nn

    from graftkit.running.split.crew import Crew
    from graftkit.running.split.state import State

Found = TypeVar("Found")
Hook = TypeVar("Hook", bound=Callable[..., Any])
Given = ParamSpec("Given")


#: On hooks of a mode that goes along with a block, which registers them itself where the block is run.
GOES_ALONG = "goes_along"

#: On hooks for which floating tensors in tuples, lists and dicts may stay with the rank that holds them.
TAKES_REMOTE = "takes_remote"


def marked(hook: Hook, mark: str) -> Hook:
    """``hook`` with one of these marks."""
    setattr(hook, mark, True)
    return hook


def together(crew: Crew | None, what: str, find: Callable[[Crew | None], Found]) -> Found:
    """What ``find`` returns with the crew; where a model cannot be split, the crew notes why, and ``find`` begins again without it.

    ``what`` is found in a word.

    Raises:
        GraftkitError: another rank ended.
    """
    if crew is not None:
        try:
            try:
                found = find(crew)
            except CannotSplit as reason:
                crew.refuse(what, str(reason))
            else:
                crew.ran()
                return found
        except LineBroken as broken:
            raise broken.error from broken
    return find(None)


@contextlib.contextmanager
def forwards(
    crew: Crew | None,
    model: nn.Module,
    runs: Sequence[Callable[[], Found]],
    alone: Sequence[bool],
    before: State | None = None,
) -> Iterator[Iterator[Callable[[], Found]]]:
    """Give for each of ``runs``, in their order, what runs it, or with a crew what gives what it gave; see there."""
    if crew is None:
        yield iter(runs)
        return
    with crew.forwards(model, runs, alone, before) as outcomes:
        yield outcomes


def at_owner(function: Callable[Given, Found], *args: Given.args, **kwargs: Given.kwargs) -> Found:
    """What a function of tensors gives, computed by the rank that holds them, in one message; it has no part in modes there.

    The tensors that it gives stay there. Other values that it is given are not to change, and neither is it one of a function's own.
    """
    for value in args:
        ranks: Any = getattr(value, "ranks", None)
        if ranks is not None:
            found: Found = ranks.compute(value.location[0], function, args, kwargs)  # type: ignore[attr-defined]
            return found
    return function(*args, **kwargs)


def parameter(module: nn.Module, key: str) -> Any:
    """A parameter or buffer of a module, or what stands for it where it lies with another rank; None where there is none."""
    stand_in = getattr(module._parameters, "stand_in", None)  # noqa: SLF001 - where a module looks its parameters up
    if stand_in is not None and key in module._parameters:  # noqa: SLF001
        return stand_in(key)
    return getattr(module, key, None)
