"""Which tensors are written into, among some that lie on the meta device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

if TYPE_CHECKING:
    from torch import Tensor


class Writes(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch does not type it
    """Notes in ``names`` those of ``tensors`` that an operator writes into, also through a view. Use as a context manager."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._names = {_storage(tensor): name for name, tensor in tensors.items() if tensor.is_meta}
        self._found: dict[str, None] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """Those that were written into, in that order."""
        return tuple(self._found)

    def __torch_dispatch__(
        self, function: Any, _types: Any, arguments: tuple[Any, ...] = (), keywords: Mapping[str, Any] | None = None
    ) -> Any:
        """Run the operator, and note what it writes into."""
        for declared, given in zip(function._schema.arguments, arguments, strict=False):  # noqa: SLF001 - torch's own way to tell
            is_written = declared.alias_info is not None and declared.alias_info.is_write
            if is_written and isinstance(given, torch.Tensor) and (name := self._names.get(_storage(given))):
                self._found.setdefault(name)
        return function(*arguments, **(keywords or {}))


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)  # noqa: SLF001 - one number for all views of a tensor
