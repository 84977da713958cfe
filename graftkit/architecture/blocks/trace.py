"""What each block of a skeleton computes: its operations in their order, seen on the meta device without a weight."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from graftkit.architecture.layers import LayerList
from graftkit.architecture.meta_run import answer_of, asks_for_value, inputs_on_meta, prepare_for_meta
from graftkit.architecture.skeleton import Skeleton, one_line, quiet


def trace_blocks(skeleton: Skeleton, layers: LayerList) -> tuple[tuple[str, ...], ...]:
    """The operations of each block of ``layers``, with their numbers; empty where the class does not run on the meta device.

    Two blocks that compute otherwise with equal weights, since a scale or a branch depends on a block's number, have other ones.
    """
    import torch

    model = skeleton.model
    stack: Any = model.get_submodule(layers.path)
    found: list[list[str]] = []
    recorder = _Recorder()

    def begin(*_: Any) -> None:
        found.append([])
        recorder.operations = found[-1]

    def end(*_: Any) -> None:
        recorder.operations = None

    hooks = [block.register_forward_pre_hook(begin) for block in stack.children()]
    hooks += [block.register_forward_hook(end) for block in stack.children()]
    try:
        with recorder, quiet(), torch.device("meta"), torch.no_grad():
            prepare_for_meta(model)
            model(**inputs_on_meta(model), use_cache=False, return_dict=True)
    except Exception:  # noqa: BLE001 - forwards raise whatever they like without values; then nothing is known
        return ()
    finally:
        for hook in hooks:
            hook.remove()
    traces = tuple(tuple(operations) for operations in found)
    return traces if len(traces) == len(stack) else ()


def trace_model(skeleton: Skeleton) -> tuple[str, ...]:
    """The operations of one whole forward, with their numbers; empty where the class does not run on the meta device."""
    import torch

    model, recorder = skeleton.model, _Recorder()
    recorder.operations = []
    try:
        with recorder, quiet(), torch.device("meta"), torch.no_grad():
            prepare_for_meta(model)
            model(**inputs_on_meta(model), use_cache=False, return_dict=True)
    except Exception:  # noqa: BLE001 - as above
        return ()
    return tuple(recorder.operations)


def why_it_does_not_run(skeleton: Skeleton) -> str:
    """What one forward says on the meta device, with a cache where the class keeps one; empty where it runs."""
    import torch

    model = skeleton.model
    try:
        with _Recorder(), quiet(), torch.device("meta"), torch.no_grad():
            prepare_for_meta(model)
            model(**inputs_on_meta(model), return_dict=True)
    except Exception as error:  # noqa: BLE001 - as above
        return one_line(error)
    return ""


def why_it_does_not_begin(skeleton: Skeleton) -> str:
    """What the class says when it gives a new model its values, as each load lets it do; empty where it does so."""
    import torch

    try:
        with _Recorder(), quiet(), torch.device("meta"), torch.no_grad():
            copy.deepcopy(skeleton.model).initialize_weights()  # which marks what it went over
    except Exception as error:  # noqa: BLE001 - as above
        return one_line(error)
    return ""


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch does not type it
    """Notes each operation with its numbers while ``operations`` is a list."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: list[str] | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if asks_for_value(func):
            return answer_of(args[0])
        if self.operations is not None:
            self.operations.append(_description(func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))


def _description(func: Any, args: Any, kwargs: Mapping[str, Any]) -> str:
    numbers = [str(value) for value in tree_leaves((args, dict(kwargs))) if isinstance(value, int | float | str)]
    return f"{func.overloadpacket.__name__}({', '.join(numbers)})"
