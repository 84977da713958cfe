"""True float64: every float32 cast, dtype and constant inside a model's own forward becomes float64.

``model.double()`` is not float64: norms, rotary embeddings and softmaxes of many models cast to float32 inside, which
leaves a floor near 1e-6. Here the model keeps its parameters in their own dtype, and a mode rewrites what it calls:
narrow operands are widened, which is exact, and a dtype that is asked for is widened too. So one loaded model runs
in its own dtype without the mode and in float64 under it, and no wide copy of the whole model is ever held.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import torch
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: A dtype that a forward may ask for -> the dtype that it gets.
WIDER = {
    torch.float32: torch.float64,
    torch.bfloat16: torch.float64,
    torch.float16: torch.float64,
    torch.complex64: torch.complex128,
    torch.complex32: torch.complex128,
}

#: Casts that carry their dtype in their name -> the dtype in its place.
CASTS = {
    "float": torch.float64,
    "half": torch.float64,
    "bfloat16": torch.float64,
    "cfloat": torch.complex128,
    "chalf": torch.complex128,
}

#: Names of functions that move values and compute none: a parameter need not be widened for them, its view will be.
MOVES = frozenset((
    "__get__", "__len__", "size", "dim", "ndimension", "numel", "nelement", "element_size", "stride", "data_ptr", "is_floating_point",
    "is_complex", "is_contiguous", "storage_offset", "untyped_storage", "get_device", "view", "reshape", "expand",
    "transpose", "permute", "unsqueeze", "squeeze", "t", "detach", "contiguous", "split", "chunk", "unbind", "narrow",
))  # fmt: skip

#: Names of functions that gather rows of a table: the rows are widened, not the table.
GATHERS = frozenset(("embedding", "index_select", "__getitem__"))

#: Reads the bits of a tensor as another dtype: never rewritten.
BITS = torch.Tensor.view

#: Where a config keeps how its experts are computed; None where it has none.
EXPERTS = "_experts_implementation_internal"

#: Elements of a weight that are widened at a time in a matrix product: their memory is used again by the next.
PIECE = 1 << 20


class Float64(TorchFunctionMode):
    """A mode under which a model in any floating dtype computes in float64. Use as a context manager, without autograd.

    What a function returns narrow all the same is widened as well, but what it lost is not found again:
    :mod:`graftkit.verification.lens.audit` names it and the floor measures it.
    """

    def __enter__(self) -> Self:
        self._default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        torch.set_default_dtype(self._default)

    def elsewhere(self, path: str) -> Callable[[Any], contextlib.AbstractContextManager[Callable[[], None]]]:
        """What another rank enters around the block ``path`` that it runs."""
        del path
        return _block_in_float64

    def told(self, found: None) -> None:
        """It has found nothing there that is asked for here."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        del types
        name, moves, writes = _known(func)
        kwargs = kwargs or {}
        if moves:
            return func(*args, **kwargs)
        if name in CASTS:
            return args[0].to(CASTS[name])
        if name in GATHERS:
            return widened(func(*args, **kwargs))
        if name == "linear" and len(args) > 1 and _is_large(args[1]):
            return _linear_by_pieces(*(widened(a) for a in args[:1]), *args[1:], **kwargs)
        if (writes or kwargs.get("out") is not None) and args and _is_narrow(args[0]):
            return func(*args, **kwargs)  # into a tensor made outside of the mode, which keeps its dtype
        return widened(func(*map(widened, args), **{key: widened(value) for key, value in kwargs.items()}))


@functools.lru_cache(maxsize=1024)
def _known(func: Callable[..., Any]) -> tuple[str, bool, bool]:
    """The name of a function, whether it moves values and computes none, and whether it writes into its first argument."""
    name = getattr(func, "__name__", "")
    writes = name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))
    return name, func is BITS or name in MOVES, writes


def widened(value: Any) -> Any:
    """``value`` with every narrow floating tensor and dtype in it made wide; tuples, lists and mappings are gone into."""
    if isinstance(value, torch.Tensor):
        dtype = WIDER.get(value.dtype)
        return value if dtype is None else value.to(dtype)
    if isinstance(value, torch.dtype):
        return WIDER.get(value, value)
    if type(value) in (tuple, list):
        return type(value)(widened(item) for item in value)
    if isinstance(value, tuple) and hasattr(value, "_make"):
        return value._make(widened(item) for item in value)
    if type(value) is dict:
        return {key: widened(item) for key, item in value.items()}
    return value


def _is_narrow(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype in WIDER


def _is_large(weight: object) -> bool:
    return isinstance(weight, torch.Tensor) and _is_narrow(weight) and weight.ndim == 2 and weight.numel() > PIECE


def _linear_by_pieces(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``inputs · weightᵀ + bias`` a piece of the weight at a time; pieces begin at the same rows in every table of a width."""
    rows = max(PIECE // weight.shape[1], 1)
    found = inputs.new_empty(*inputs.shape[:-1], len(weight))
    for start in range(0, len(weight), rows):
        part = slice(start, start + rows)
        found[..., part] = torch.nn.functional.linear(
            inputs, weight[part].double(), None if bias is None else bias[part].double()
        )
    return found


@contextlib.contextmanager
def float64(model: PreTrainedModel) -> Iterator[None]:
    """Run ``model`` in float64 inside, without autograd.

    Mixture-of-experts models get the plain loop over experts: grouped matrix products take few dtypes on some devices.
    """
    with torch.no_grad(), plain_experts(model), _wider_parametrizations(), Float64():
        yield


@contextlib.contextmanager
def _block_in_float64(block: PreTrainedModel) -> Iterator[Callable[[], None]]:
    with float64(block):
        yield lambda: None


@contextlib.contextmanager
def _wider_parametrizations() -> Iterator[None]:
    """A parametrization, such as peft's of an expert's weight, may give another dtype than the parameter has."""
    before = parametrize.register_parametrization
    parametrize.register_parametrization = functools.partial(before, unsafe=True)
    try:
        yield
    finally:
        parametrize.register_parametrization = before


@contextlib.contextmanager
def plain_experts(model: PreTrainedModel) -> Iterator[None]:
    """Every expert layer of ``model`` loops over its experts inside; what was set before is set again afterwards."""
    configs = {id(module.config): module.config for module in model.modules() if hasattr(module, "config")}
    before = {key: getattr(config, EXPERTS, None) for key, config in configs.items()}
    chosen = {key: config for key, config in configs.items() if before[key] is not None}
    for config in chosen.values():
        setattr(config, EXPERTS, "eager")
    try:
        yield
    finally:
        for key, config in chosen.items():
            setattr(config, EXPERTS, before[key])
