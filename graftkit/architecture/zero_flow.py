"""Parameters that would never learn because of zeros, found without a weight: zeros followed forward and backward.

The class's own forward and backward run on the meta device. A result counts as zero only where its operation makes it so for
whatever values the other inputs have; of an operation that is not listed nothing is known. So what is found is certain,
and what is not found may still be there.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from graftkit.architecture.skeleton import Skeleton, quiet

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

#: Tokens of the one sequence, and how many steps of an optimiser are followed.
TOKENS, STEPS = 4, 3

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
    parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
    with quiet(), torch.enable_grad():
        try:
            model.eval()
            model.set_attn_implementation("eager")
            model.set_experts_implementation("batched_mm")
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

    ids = torch.zeros(1, TOKENS, dtype=torch.long, device="meta")
    inputs = {"input_ids": ids} | ({"decoder_input_ids": ids} if model.config.is_encoder_decoder else {})
    with _Zeros(parameters[name] for name in zeros) as known, torch.device("meta"):
        outputs = model(**inputs, use_cache=False, return_dict=True).to_tuple()
        total = sum((value * torch.randn_like(value)).sum() for value in tree_leaves(outputs) if _differentiable(value))
        found = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
        for name, gradient in zip(parameters, found, strict=True):
            if gradient is not None and not known.holds(gradient):
                yield name


def _differentiable(value: Any) -> bool:
    return hasattr(value, "requires_grad") and value.requires_grad and value.is_floating_point()


class _Zeros(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch does not type it
    """Knows which memory holds nothing but zeros: views share it, and what it knows is kept alive, so that no address returns."""

    def __init__(self, tensors: Iterator[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._known: dict[int, Tensor] = {_memory(tensor): tensor for tensor in tensors}

    def holds(self, tensor: Tensor) -> bool:
        return _memory(tensor) in self._known

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if (
            func.overloadpacket.__name__ == "_local_scalar_dense"
        ):  # a question about values, mostly about a mask: there are none
            return args[0].dtype.is_floating_point and 0.0
        zero = self._makes_zero(func, args)
        made = func(*args, **(kwargs or {}))
        given = {_memory(value) for value in tree_leaves((args, kwargs)) if _is_tensor(value)}
        for value in filter(_is_tensor, tree_leaves(made)):
            if func._schema.is_mutable and not zero:  # noqa: SLF001 - torch has no other name for what writes in place
                self._known.pop(_memory(value), None)
            elif zero and _memory(value) not in given:
                self._known[_memory(value)] = value
        return made

    def _makes_zero(self, func: Any, args: Any) -> bool:
        name = func.overloadpacket.__name__.rstrip("_")
        if name in PRODUCTS:
            return any(self._zero(args[place]) for place in PRODUCTS[name] if place < len(args))
        if name in KEEPING:
            return self._zero(args[0])
        if name in SUMS:
            terms = [args[place] for place in SUMS[name] if place < len(args)]
            return all(self._zero(term) for term in tree_leaves(terms))
        if name in ADDED_PRODUCTS:
            return self._zero(args[0]) and (self._zero(args[1]) or self._zero(args[2]))
        return name in BLANK

    def _zero(self, value: Any) -> bool:
        return _is_tensor(value) and self.holds(value)


def _is_tensor(value: Any) -> bool:
    return hasattr(value, "untyped_storage")


def _memory(tensor: Tensor) -> int:
    address: int = tensor.untyped_storage()._cdata  # noqa: SLF001 - a tensor without data has no other identity
    return address
