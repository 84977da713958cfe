"""Which module's output another module takes, seen on the meta device."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from torch.utils._pytree import tree_leaves

from graftkit.architecture.meta_run import inputs_on_meta, prepare_for_meta
from graftkit.architecture.skeleton import Skeleton, quiet
from graftkit.architecture.zero_flow import KnownZeros, is_tensor, memory_of

if TYPE_CHECKING:
    from torch import Tensor


def modules_before(skeleton: Skeleton, names: Collection[str]) -> dict[str, str]:
    """For each of the modules ``names`` the module without modules inside whose output, or a view of it, it takes.

    One that takes what was computed between modules is left out, and so are all where the class does not run on the meta device.
    """
    import torch

    model, seen = skeleton.model, _Outputs()
    hooks = []
    for name, module in model.named_modules():
        if not any(True for _ in module.children()):
            hooks.append(module.register_forward_hook(lambda _, __, output, name=name: seen.note(name, output)))
        if name in names:
            hooks.append(module.register_forward_pre_hook(lambda _, args, name=name: seen.look(name, args)))
    try:
        with KnownZeros(()), quiet(), torch.device("meta"), torch.no_grad():
            prepare_for_meta(model)
            model(**inputs_on_meta(model), use_cache=False, return_dict=True)
    except Exception:  # noqa: BLE001 - forwards raise whatever they like without values; then nothing is known
        return {}
    finally:
        for hook in hooks:
            hook.remove()
    return seen.before


class _Outputs:
    """Which memory is the output of which module, and which module took which."""

    def __init__(self) -> None:
        self.before: dict[str, str] = {}
        self._made: dict[int, str] = {}
        self._kept: list[Tensor] = []

    def note(self, name: str, output: Any) -> None:
        """Take up what a module gave."""
        for value in filter(is_tensor, tree_leaves(output)):
            self._kept.append(value)  # so that no other tensor gets its memory
            self._made[memory_of(value)] = name

    def look(self, name: str, args: tuple[Any, ...]) -> None:
        """See what a module is given."""
        for value in filter(is_tensor, args):
            if memory_of(value) in self._made:
                self.before.setdefault(name, self._made[memory_of(value)])
