"""Parameters that would never learn because of zeros, found without a weight: zeros followed forward and backward.

The class's own forward and backward run on the meta device. A result counts as zero only where its operation makes it so for
whatever values the other inputs have; of an operation that is not listed nothing is known. So what is found is certain,
and what is not found may still be there.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from graftkit.architecture.meta_run import answer_of, asks_for_value, inputs_on_meta, prepare_for_meta
from graftkit.architecture.skeleton import Skeleton, quiet

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

#: How many steps of an optimiser are followed.
STEPS = 3

#: Zero where one of these arguments is, by their places.
PRODUCTS: Mapping[str, tuple[int, ...]] = {
    "mm": (0, 1), "bmm": (0, 1), "mv": (0, 1), "dot": (0, 1), "mul": (0, 1), "embedding": (0,), "div": (0,),
    "threshold_backward": (0, 1), "silu_backward": (0,), "gelu_backward": (0,), "tanh_backward": (0,),
    "sigmoid_backward": (0,), "_softmax_backward_data": (0,), "embedding_dense_backward": (0,), "select_backward": (0,),
    "slice_backward": (0,), "native_dropout_backward": (0,), "native_layer_norm_backward": (0,),
}  # fmt: skip

#: Zero where their first argument is.
KEEPING = frozenset((
    "neg", "clone", "_to_copy", "silu", "gelu", "relu", "tanh", "sum", "mean", "abs", "sin", "index", "index_select", "gather",
    "constant_pad_nd", "native_dropout", "_unsafe_view", "_reshape_copy", "tril", "triu", "repeat", "hardtanh", "leaky_relu",
))  # fmt: skip

#: Zero where all of these arguments are, tensors or lists of them.
SUMS: Mapping[str, tuple[int, ...]] = {
    "add": (0, 1), "sub": (0, 1), "cat": (0,), "stack": (0,), "where": (1, 2), "index_put": (0, 2), "scatter": (0, 3),
    "index_add": (0, 3),
}  # fmt: skip

#: A matrix added to a product of two.
ADDED_PRODUCTS = frozenset(("addmm", "baddbmm"))

#: Zero from the start.
BLANK = frozenset(("zeros", "zeros_like", "new_zeros", "zero"))


def never_learning(skeleton: Skeleton, zeros: Collection[str]) -> tuple[str, ...]:
    """Which of the parameters ``zeros`` (names in memory), all zero at the start, have no gradient in three steps.

    Parameters that have none in a model without zeros either are left out, and all are where the class does not run on the
    meta device from token ids alone.
    """
    import torch

    model = skeleton.model
    parameters = {name: value for name, value in model.named_parameters() if value.requires_grad and name in zeros}
    with quiet(), torch.enable_grad():
        try:
            prepare_for_meta(model)
            reached = set(_with_gradient(model, parameters, ()))
            zero = {name for name in zeros if name in parameters and name in reached}
            for _ in range(STEPS):
                moved = zero & set(_with_gradient(model, parameters, zero))
                zero -= moved
                if not moved or not zero:
                    break
        except Exception:  # noqa: BLE001 - forwards raise whatever they like without values; then nothing is known
            return ()
    return tuple(name for name in parameters if name in zero)


def _with_gradient(model: PreTrainedModel, parameters: Mapping[str, Tensor], zeros: Collection[str]) -> Iterator[str]:
    """Yield the names of the parameters whose gradient is not certain to be zero."""
    import torch

    inputs = inputs_on_meta(model)
    with KnownZeros(parameters[name] for name in zeros) as known, torch.device("meta"):
        outputs = model(**inputs, use_cache=False, return_dict=True).to_tuple()
        total = sum((value * torch.randn_like(value)).sum() for value in tree_leaves(outputs) if _differentiable(value))
        found = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
        for name, gradient in zip(parameters, found, strict=True):
            if gradient is not None and not known.holds(gradient):
                yield name


def _differentiable(value: Any) -> bool:
    return hasattr(value, "requires_grad") and value.requires_grad and value.is_floating_point()


class KnownZeros(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch does not type it
    """Knows which memory holds nothing but zeros: views share it, and what it knows is kept alive, so that no address returns."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._known: dict[int, Tensor] = {memory_of(tensor): tensor for tensor in tensors}

    def holds(self, tensor: Tensor) -> bool:
        """Whether a tensor is zero for sure."""
        return memory_of(tensor) in self._known

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if asks_for_value(func):
            return answer_of(args[0])
        zero = self._makes_zero(func, args)
        made = func(*args, **(kwargs or {}))
        given = {memory_of(value) for value in tree_leaves((args, kwargs)) if is_tensor(value)}
        for value in filter(is_tensor, tree_leaves(made)):
            if func._schema.is_mutable and not zero:  # noqa: SLF001 - torch has no other name for what writes in place
                self._known.pop(memory_of(value), None)
            elif zero and memory_of(value) not in given:
                self._known[memory_of(value)] = value
        return made

    def _makes_zero(self, func: Any, args: Any) -> bool:
        name = func.overloadpacket.__name__.rstrip("_")
        if name in PRODUCTS:
            return any(self.is_zero(args[place]) for place in PRODUCTS[name] if place < len(args))
        if name in KEEPING:
            return self.is_zero(args[0])
        if name in SUMS:
            terms = [args[place] for place in SUMS[name] if place < len(args)]
            return all(self.is_zero(term) for term in tree_leaves(terms))
        if name in ADDED_PRODUCTS:
            return self.is_zero(args[0]) and (self.is_zero(args[1]) or self.is_zero(args[2]))
        return name in BLANK

    def is_zero(self, value: Any) -> bool:
        """The same of any argument; what is no tensor is not zero."""
        return is_tensor(value) and self.holds(value)


def is_tensor(value: Any) -> bool:
    """Whether a value has memory of its own kind."""
    return hasattr(value, "untyped_storage")


def memory_of(tensor: Tensor) -> int:
    """What tells the memory of a tensor from any other while both live; views share it."""
    address: int = tensor.untyped_storage()._cdata  # noqa: SLF001 - a tensor without data has no other identity
    return address
