"""The audit of a float64 run: every operator that still returns float32 or less, and the module that it runs in.

It looks one level below the mode that widens: at the operators that reach the dispatcher, whoever called them. Kernels
that narrow inside themselves are beyond it; they show in the floor.
"""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from graftkit.running.float64 import WIDER
from graftkit.running.split.together import GOES_ALONG, marked

if TYPE_CHECKING:
    from torch import nn
    from torch.utils.hooks import RemovableHandle

#: Operators that move values and compute none, so that a narrow parameter may pass through them on its way.
MOVES = frozenset((
    "view", "_unsafe_view", "reshape", "expand", "transpose", "permute", "unsqueeze", "squeeze", "t", "detach", "alias",
    "slice", "select", "split", "split_with_sizes", "unbind", "as_strided", "embedding", "index", "index_select", "gather",
    "clone", "lift_fresh", "lift_fresh_copy", "contiguous", "chunk", "narrow", "empty_like", "empty", "_to_copy",
))  # fmt: skip


class Audit(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts narrow operators by ``(operator, module)`` while ``model``, or a block ``path``, runs. Use as a context manager."""

    def __init__(self, model: nn.Module, path: str = "") -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.narrow: Counter[tuple[str, str]] = Counter()
        self._model, self._path, self._where = model, path, [path]
        self._hooks: list[RemovableHandle] = []

    def __enter__(self) -> Self:
        for name, module in self._model.named_modules():
            place = ".".join(filter(None, (self._path, name)))
            enter = lambda *_, place=place: self._where.append(place)  # noqa: E731 - a hook that returns None
            self._hooks += [
                module.register_forward_pre_hook(marked(enter, GOES_ALONG)),
                module.register_forward_hook(marked(lambda *_: self._leave(), GOES_ALONG), always_call=True),
            ]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        for hook in self._hooks:
            hook.remove()

    def elsewhere(self, path: str) -> Callable[[nn.Module], contextlib.AbstractContextManager[Callable[[], Any]]]:
        """What another rank enters around the block ``path`` that it runs."""
        return functools.partial(_audited, path)

    def told(self, found: Mapping[tuple[str, str], int]) -> None:
        """Take up what it has counted there."""
        self.narrow.update(found)

    def _leave(self) -> None:
        self._where.pop()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        del types
        found = func(*args, **(kwargs or {}))
        name = func.__name__.partition(".")[0]
        if any(_narrow(leaf) for leaf in tree_leaves(found)) and (name not in MOVES or _rounds(args)):
            self.narrow[name, self._where[-1]] += 1
        return found


@contextlib.contextmanager
def _audited(path: str, block: nn.Module) -> Iterator[Callable[[], Counter[tuple[str, str]]]]:
    with Audit(block, path) as audit:
        yield lambda: audit.narrow


def _narrow(value: object) -> bool:
    return getattr(value, "dtype", None) in WIDER


def _rounds(args: Sequence[Any]) -> bool:
    """Whether a move that returned something narrow took something wide."""
    tensors = [leaf for leaf in tree_leaves(list(args)) if getattr(leaf, "dtype", None) is not None]
    return any(leaf.dtype in WIDER.values() for leaf in tensors)
