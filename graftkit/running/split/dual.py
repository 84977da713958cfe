"""Forward derivatives through a block that another rank runs: values and tangents go there, and those of what it gives come back."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch._C._functorch import TransformType
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.autograd import forward_ad
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from graftkit.running.split.interrupts import CannotSplit
from graftkit.running.split.remote_tensor import replaced

if TYPE_CHECKING:
    from torch import Tensor

#: What may stand beside tensors among what a block is given.
PLAIN = (torch.Tensor, str, int, float, type(None))


#: Where a tensor stands that has a tangent.
MOVED = object()


class Dual(NamedTuple):
    """A tensor with its tangent, or what stands for both."""

    primal: Any
    tangent: Any


def is_dual_level() -> bool:
    """Whether :func:`torch.func.jvp` runs what is run here.

    Raises:
        CannotSplit: another transform does, or several.
    """
    interpreter = torch._C._functorch.peek_interpreter_stack()  # noqa: SLF001 - torch has no other way to ask
    if interpreter is None:
        return False
    if interpreter.key() != TransformType.Jvp or interpreter.level() != 1:
        raise CannotSplit("what runs it asks for more than forward derivatives")
    return True


def sent(value: Any) -> Any:
    """``value`` with every tensor as it is outside of the transform, those with a tangent as a :class:`Dual`.

    Raises:
        CannotSplit: it holds more than plain values.
    """
    if any(not isinstance(leaf, PLAIN) for leaf in tree_leaves(value)):
        raise CannotSplit("a block that is differentiated forward is given state")
    return replaced(value, torch.Tensor, outside)


def outside(tensor: Tensor) -> Any:
    """A tensor as it is outside of the transform, a :class:`Dual` where it has a tangent."""
    if not is_dual_level():
        return tensor
    primal, tangent = forward_ad.unpack_dual(tensor)  # type: ignore[no-untyped-call]
    return _outside(primal) if tangent is None else Dual(_outside(primal), _outside(tangent))


def _outside(tensor: Tensor) -> Tensor:
    functorch = torch._C._functorch  # noqa: SLF001 - as above
    while functorch.is_functorch_wrapped_tensor(tensor):
        tensor = functorch.get_unwrapped(tensor)
    return tensor


def received(value: Any) -> Any:
    """``value`` with every :class:`Dual` as a tensor with its tangent."""
    return replaced(value, Dual, _made)


def _made(dual: Dual) -> Any:
    return forward_ad.make_dual(dual.primal, dual.tangent)  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def outside_transform() -> Iterator[None]:
    """Inside, no transform sees what is done."""
    with temporarily_clear_interpreter_stack():
        yield


def pushed(run: Callable[[Any], Any], value: Any) -> Any:
    """What ``run(value)`` gives, where ``value`` holds duals, with duals for the tensors of it that have tangents."""
    duals = [leaf for leaf in tree_leaves(value, is_leaf=_is_dual) if _is_dual(leaf)]
    kept: list[Any] = []
    form: Any = None

    def of(*moving: Tensor) -> tuple[Tensor, ...]:
        nonlocal form
        left, moved = iter(moving), []
        given, form = tree_flatten(run(replaced(value, Dual, lambda _: next(left))))
        for one in given:
            is_tensor = isinstance(one, torch.Tensor)
            if is_tensor and forward_ad.unpack_dual(one).tangent is not None:  # type: ignore[no-untyped-call]
                moved.append(one)
                kept.append(MOVED)
            else:
                kept.append(_outside(one) if is_tensor else one)
        if not moved:
            raise CannotSplit("a block gives nothing that has a tangent")
        return tuple(moved)

    values = torch.func.jvp(of, tuple(one.primal for one in duals), tuple(one.tangent for one in duals))
    found = map(Dual, values[0], values[1])
    return tree_unflatten([next(found) if one is MOVED else one for one in kept], form)


def _is_dual(value: object) -> bool:
    return isinstance(value, Dual)
