"""Which rows of a table a forward looks up."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from torch import Tensor


class LookedUp(TorchFunctionMode):
    """Notes, while it is entered, the first and the last row of each of ``tables`` that an embedding looks up, by the table's name."""

    def __init__(self, tables: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._names = {id(table): name for name, table in tables.items()}
        self.rows: dict[str, tuple[int, int]] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        del types
        if getattr(func, "__name__", "") == "embedding" and (name := self._names.get(id(args[1]))):
            first, last = (int(end) for end in args[0].aminmax())
            before = self.rows.get(name, (first, last))
            self.rows[name] = min(first, before[0]), max(last, before[1])
        return func(*args, **(kwargs or {}))
