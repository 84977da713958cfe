"""Which weights of a block write to the residual stream: without them, the block gives just what it was given.

Found by trying, not by name. One block of the class itself runs on the meta device with candidates set to zero, and what is zero, and
what is still the block's own input, is followed through its operations. So what is found is certain, and a block of which nothing
is found may still have such weights.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from torch.utils._pytree import tree_leaves

from graftkit.architecture.layers import LayerList
from graftkit.architecture.meta_run import inputs_on_meta, prepare_for_meta
from graftkit.architecture.skeleton import Skeleton, one_line, quiet
from graftkit.architecture.zero_flow import KnownZeros, is_tensor, memory_of
from graftkit.errors import InputRejected

if TYPE_CHECKING:
    from torch import Tensor, nn

#: What keeps the values of its first argument in their order.
COPIES = frozenset(("clone", "_to_copy", "_unsafe_view", "_reshape_copy", "native_dropout"))


def find_writers(skeleton: Skeleton, layers: LayerList, index: int) -> tuple[str, ...]:
    """The fewest matrices and biases, names in memory, that make block ``index`` the identity when they are zero.

    Of those that do, each in turn is given its values back, in the order in which they run, unless the block would no longer be the
    identity: the last to run stay.

    Raises:
        InputRejected: the class does not run on the meta device, or no such weights are found.
    """
    trial = _Trial(skeleton, layers, index)
    zero = dict.fromkeys(trial.candidates)
    if not trial.is_identity(zero):
        raise InputRejected(
            f"{skeleton.architecture}: no zeros make a block the identity: with all matrices and biases of block {index} at zero it"
            " still changes what it is given, as a norm on the residual stream does; use init: copy"
        )
    for name in list(zero):
        without = {other: None for other in zero if other != name}
        if trial.is_identity(without):
            zero = without
    return tuple(f"{layers.prefix(index)}{name}" for name in zero)


class _Trial:
    """One block with what its model gives it, to be run with any of its parameters at zero."""

    def __init__(self, skeleton: Skeleton, layers: LayerList, index: int) -> None:
        self._block: nn.Module = skeleton.model.get_submodule(layers.prefix(index)[:-1])
        self._skeleton, self._parameters = skeleton, dict(self._block.named_parameters())
        self._inputs = self._given()
        self.candidates = tuple(self._in_order())

    def _given(self) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        """What the block is called with in one forward of its model."""
        import torch

        model, calls = self._skeleton.model, []
        hook = self._block.register_forward_pre_hook(
            lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True
        )
        try:
            with KnownZeros(()), quiet(), torch.device("meta"), torch.no_grad():
                prepare_for_meta(model)
                model(**inputs_on_meta(model), use_cache=False, return_dict=True)
        except Exception as error:
            if not calls:
                raise InputRejected(
                    f"{self._skeleton.architecture}: its blocks cannot be tried without weights: {one_line(error)}; use init: copy"
                ) from error
        finally:
            hook.remove()
        if len(calls) != 1:
            raise InputRejected(
                f"{self._skeleton.architecture}: one forward calls a block {len(calls)} times; use init: copy"
            )
        return calls[0]

    def _in_order(self) -> Iterator[str]:
        """Matrices and biases in the order in which they run; those that do not run are no candidates."""
        seen = _Order(self._parameters)
        self._run(seen)
        for name in seen.order:
            if self._parameters[name].ndim > 1 or name.rpartition(".")[2].endswith("bias"):
                yield name

    def is_identity(self, zeros: Collection[str]) -> bool:
        """Whether the block gives its input for sure, whatever that is, with these parameters at zero.

        A reversible block has two streams, and gives both.
        """
        for place, stream in enumerate(self._streams()):
            flow = _Flow((self._parameters[name] for name in zeros), stream)
            given = [value for value in _tensors(self._run(flow)) if value.shape == stream.shape]
            if place < max(len(given), 1) and not (given and flow.is_stream(given[place])):
                return False
        return True

    def _streams(self) -> list[Tensor]:
        """The first tensor that the block is given, the residual stream, and others of its shape, each once."""
        args, kwargs = self._inputs
        found = list(_tensors((args, kwargs.get("hidden_states"), kwargs)))
        if not found:
            raise InputRejected(f"{self._skeleton.architecture}: its blocks are given no tensor; use init: copy")
        alike = {memory_of(value): value for value in found if value.shape == found[0].shape}
        return list(alike.values())

    def _run(self, mode: KnownZeros) -> Any:
        import torch

        args, kwargs = self._inputs
        with mode, quiet(), torch.device("meta"), torch.no_grad():
            try:
                return self._block(*args, **kwargs)
            except Exception as error:
                raise InputRejected(
                    f"{self._skeleton.architecture}: a block cannot be tried without weights: {one_line(error)}; use init: copy"
                ) from error


def _tensors(value: Any) -> Iterator[Tensor]:
    yield from (leaf for leaf in tree_leaves(value) if is_tensor(leaf) and leaf.is_floating_point())


class _Order(KnownZeros):  # type: ignore[no-untyped-call]  # torch does not type it
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


class _Flow(KnownZeros):  # type: ignore[no-untyped-call]  # torch does not type it
    """Knows, beside zeros, which memory holds the values of ``stream``, all of them in their order."""

    def __init__(self, zeros: Iterator[Tensor], stream: Tensor) -> None:
        super().__init__(zeros)
        self._size = stream.numel()
        self._streams: dict[int, Tensor] = {memory_of(stream): stream}

    def is_stream(self, value: Any) -> bool:
        """Whether a tensor holds all values of the stream, in their order."""
        if not (is_tensor(value) and memory_of(value) in self._streams):
            return False
        return bool(value.numel() == self._size and value.storage_offset() == 0 and value.is_contiguous())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kept = self._keeps_stream(func, args, kwargs or {})
        given = {memory_of(value) for value in tree_leaves((args, kwargs)) if is_tensor(value)}
        made = super().__torch_dispatch__(func, types, args, kwargs)
        for value in filter(is_tensor, tree_leaves(made)):
            if kept and value.numel() == self._size:
                self._streams[memory_of(value)] = value
            elif func._schema.is_mutable or memory_of(value) not in given:  # noqa: SLF001 - as in KnownZeros
                self._streams.pop(memory_of(value), None)
        return made

    def _keeps_stream(self, func: Any, args: Any, kwargs: Mapping[str, Any]) -> bool:
        name = func.overloadpacket.__name__.rstrip("_")
        if name in COPIES:
            return self.is_stream(args[0])
        if name == "add":
            left, right = args[0], args[1]
            plain = kwargs.get("alpha", 1) == 1
            return (self.is_stream(left) and self.is_zero(right)) or (
                plain and self.is_zero(left) and self.is_stream(right)
            )
        return name == "sub" and self.is_stream(args[0]) and self.is_zero(args[1])
