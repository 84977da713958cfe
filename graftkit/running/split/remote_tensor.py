"""A tensor that lies with another rank: its shape and dtype are known here, and whatever is computed of it is computed there."""

from __future__ import annotations

import itertools
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch.utils._pytree import tree_leaves, tree_map

if TYPE_CHECKING:
    from torch import Tensor


class Handle(NamedTuple):
    """What rank 0 is told of a tensor that stays with its rank: the ``number`` that it has there, and what it looks like."""

    number: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype


class SentBefore(NamedTuple):
    """Stands for a value that goes along with many functions and was sent once."""

    number: int


class Ranks(Protocol):
    """Who can be asked for what lies elsewhere."""

    def compute(
        self, rank: int, function: Callable[..., Any] | str, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """What a function, or an operator of torch by its name, gives at that rank; tensors that it gives stay there."""

    def fetch(self, tensor: RemoteTensor) -> Tensor:
        """The tensor itself."""

    def forget(self, rank: int, number: int) -> None:
        """Note that a tensor is not asked for any more."""


class RemoteTensor(torch.Tensor):
    """Stands for a tensor that ``rank`` holds; no copy of its values is here.

    What torch computes of it is computed by that rank, operator by operator, where other tensors that have a part in it go. Each
    operator is one message, so that a function of many is better run at once, see :func:`~graftkit.running.split.together.at_owner`.
    """

    location: tuple[int, int]  # the rank, and the number that it has there
    ranks: Ranks

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]  # noqa: SLF001 - as torch documents it

    @classmethod
    def of(cls, handle: Handle, rank: int, ranks: Ranks) -> RemoteTensor:
        """What stands here for a tensor that ``rank`` told of."""
        here = torch.device("cpu")
        made: RemoteTensor = torch.Tensor._make_wrapper_subclass(  # noqa: SLF001 - as torch documents it
            cls, handle.shape, handle.strides, dtype=handle.dtype, device=here
        )
        made.location, made.ranks = (rank, handle.number), ranks
        weakref.finalize(made, ranks.forget, rank, handle.number).atexit = False
        return made

    def __deepcopy__(self, memo: dict[int, Any]) -> RemoteTensor:
        with torch.no_grad():
            made: RemoteTensor = self.clone()  # type: ignore[assignment]
        made._is_param = getattr(self, "_is_param", False)
        memo[id(self)] = made.requires_grad_(self.requires_grad)
        return made

    def __repr__(self, *, tensor_contents: object = None) -> str:  # type: ignore[override]
        del tensor_contents
        return f"RemoteTensor({list(self.shape)}, {self.dtype}, at rank {self.location[0]})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        del types
        kwargs = kwargs or {}
        first = next(leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, RemoteTensor))
        if not func._schema.is_mutable:  # noqa: SLF001 - torch has no other way to ask
            return first.ranks.compute(first.location[0], func.name(), args, kwargs)
        written = kwargs.get("out", args[0])
        if not isinstance(written, RemoteTensor):
            return func(
                *replaced(args, RemoteTensor, first.ranks.fetch), **replaced(kwargs, RemoteTensor, first.ranks.fetch)
            )
        written.ranks.compute(written.location[0], func.name(), args, kwargs)
        return written


class Gone:
    """Lets a rank know when what it keeps under a number is not asked for any more, which is when this is let go here."""

    def __init__(self, rank: int, number: int, ranks: Ranks) -> None:
        self.number = number
        weakref.finalize(self, ranks.forget, rank, number).atexit = False


def replaced(value: Any, kind: type, by: Callable[[Any], Any]) -> Any:
    """``value`` with every leaf of a ``kind`` in tuples, lists and dicts replaced."""
    return tree_map(
        lambda leaf: by(leaf) if isinstance(leaf, kind) else leaf, value, is_leaf=lambda one: isinstance(one, kind)
    )


class Held:
    """What rank 0 was told of and stays here, each until rank 0 has forgotten it as often as it was told."""

    def __init__(self) -> None:
        self._held: dict[int, Any] = {}
        self._told: Counter[int] = Counter()
        self._numbers: dict[int, int] = {}
        self._next = itertools.count()

    def __getitem__(self, number: int) -> Any:
        return self._held[number]

    def tell(self, tensor: Tensor) -> Handle:
        """Keep a tensor, and return what rank 0 is told of it."""
        return Handle(self.keep(tensor), tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype)

    def keep(self, value: Any) -> int:
        """Keep it, and return its number."""
        number = self._numbers.get(id(value))
        if number is None:
            number = self._numbers[id(value)] = next(self._next)
            self._held[number] = value
        self._told[number] += 1
        return number

    def forget(self, numbers: Iterable[int]) -> None:
        """Let go what rank 0 does not ask for any more."""
        for number in numbers:
            self._told[number] -= 1
            if not self._told[number]:
                del self._told[number], self._numbers[id(self._held.pop(number))]
