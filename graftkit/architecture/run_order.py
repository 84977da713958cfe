"""The order in which the parameters of a model are used, seen on the meta device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch.utils._pytree import tree_leaves

from graftkit.architecture.meta_run import inputs_on_meta, prepare_for_meta
from graftkit.architecture.skeleton import Skeleton, quiet
from graftkit.architecture.zero_flow import KnownZeros, is_tensor, memory_of

if TYPE_CHECKING:
    from torch import Tensor


class RunOrder(KnownZeros):  # type: ignore[no-untyped-call]  # torch does not type it
    """Notes the order in which parameters are first used."""

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        super().__init__(())
        self._names = {memory_of(value): name for name, value in parameters.items()}
        self.order: dict[str, None] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for value in tree_leaves((args, kwargs)):
            if is_tensor(value) and (name := self._names.get(memory_of(value))):
                self.order.setdefault(name)
        return super().__torch_dispatch__(func, types, args, kwargs)


def run_order(skeleton: Skeleton) -> tuple[str, ...]:
    """Names in memory in the order of their first use in one forward; empty where the class does not run on the meta device."""
    import torch

    model = skeleton.model
    seen = RunOrder(dict(model.named_parameters()))
    try:
        with seen, quiet(), torch.device("meta"), torch.no_grad():
            prepare_for_meta(model)
            model(**inputs_on_meta(model), use_cache=False, return_dict=True)
    except Exception:  # noqa: BLE001 - forwards raise whatever they like without values; then nothing is known
        return ()
    return tuple(seen.order)
