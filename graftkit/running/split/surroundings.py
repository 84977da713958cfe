"""What a forward runs under beside its arguments, so that a block runs under the same with another rank."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from graftkit.running.split.interrupts import CannotSplit

if TYPE_CHECKING:
    from torch import nn

#: Enters a mode around a block; what it yields is asked behind the block for what the mode is told here.
Entry = Callable[["nn.Module"], AbstractContextManager[Callable[[], Any]]]


#: Whether each kind of attention kernel is enabled, and what enables it.
KERNELS: tuple[tuple[Callable[[], bool], Callable[[bool], None]], ...] = (
    (torch.backends.cuda.flash_sdp_enabled, torch.backends.cuda.enable_flash_sdp),
    (torch.backends.cuda.mem_efficient_sdp_enabled, torch.backends.cuda.enable_mem_efficient_sdp),
    (torch.backends.cuda.math_sdp_enabled, torch.backends.cuda.enable_math_sdp),
    (torch.backends.cuda.cudnn_sdp_enabled, torch.backends.cuda.enable_cudnn_sdp),
)


class Surroundings(NamedTuple):
    """Whether a forward runs in inference mode, else with or without a graph, and the modes that it runs under, the outermost first.

    ``kernels`` are the kinds of attention kernels that are enabled, of :data:`KERNELS`.
    """

    inference: bool
    graph: bool
    kernels: tuple[bool, ...]
    entries: tuple[Entry, ...]


def surroundings_at(path: str) -> tuple[Surroundings, list[Any]]:
    """What the block ``path`` would run under here, and the modes that wait for what they are told.

    A mode that goes along has ``elsewhere(path)``, which gives its entry there, and ``told(found)``.

    Raises:
        CannotSplit: a mode does not go along.
    """
    modes = [*_get_current_function_mode_stack(), *_get_current_dispatch_mode_stack()]  # type: ignore[no-untyped-call]
    for mode in modes:
        if not hasattr(mode, "elsewhere"):
            raise CannotSplit(f"what runs it asks for more than its outputs ({type(mode).__name__})")
    entries = tuple(mode.elsewhere(path) for mode in modes)
    inference = torch.is_inference_mode_enabled()
    return Surroundings(inference, torch.is_grad_enabled() and not inference, _enabled(), entries), modes


def _enabled() -> tuple[bool, ...]:
    return tuple(is_enabled() for is_enabled, _ in KERNELS)


def _enable(kernels: Sequence[bool]) -> None:
    for (_, enable), wanted in zip(KERNELS, kernels, strict=True):
        enable(wanted)


@contextlib.contextmanager
def surrounded(block: nn.Module, by: Surroundings) -> Iterator[Callable[[], Sequence[Any]]]:
    """Let a block run under the same; what is yielded gives behind it what each mode found."""
    with contextlib.ExitStack() as stack:
        stack.callback(_enable, _enabled())
        _enable(by.kernels)
        stack.enter_context(torch.inference_mode(by.inference))
        stack.enter_context(torch.set_grad_enabled(by.graph))
        asked = [stack.enter_context(entry(block)) for entry in by.entries]
        yield lambda: [ask() for ask in asked]
