"""A miniature before and after a width has grown: with which layouts and zeros the second does what the first does."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from graftkit.architecture.axis_maps import AxisMaps
from graftkit.architecture.correspondence import Correspondence
from graftkit.architecture.embeddings import INPUT, embedding_of
from graftkit.architecture.skeleton import Skeleton, build_config, model_class, one_line
from graftkit.architecture.widths.growth import Growths, kind
from graftkit.architecture.widths.layouts import Layout
from graftkit.errors import GraftkitError, InputRejected
from graftkit.operations.widths.rescaling import Rescaling, is_gain, numbers_of, root_of
from graftkit.running.float64 import Float64, float64, plain_experts
from graftkit.running.forward import outputs_of, run, undisturbed
from graftkit.running.inputs import find_inputs
from graftkit.running.probes import Probe
from graftkit.verification.adapters.liveness import backward
from graftkit.verification.lens.floor import measure_floor
from graftkit.verification.lens.gap import gap

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

#: Rows and tokens of the one batch.
ROWS, TOKENS = 2, 12

#: Standard deviation of what is added to every parameter of a new model, so that no two are equal and none is zero.
NOISE = 0.05

#: Layout of each axis, by kind of parameter.
Layouts = Mapping[str, Mapping[int, Layout]]


class Trial:
    """A small random model, and a wider one that has its weights where layouts say they belong.

    Everything is compared in float64, and what differs by more than the small model's own floor is another function.
    """

    def __init__(
        self, configs: tuple[Mapping[str, Any], Mapping[str, Any]], skeleton: Skeleton, grown: Growths,
        rescaling: Rescaling | None = None,
    ) -> None:  # fmt: skip
        self.rescaling, self._root, self.widens_outputs = rescaling, 1.0, False
        if rescaling is not None:
            self._root = root_of(rescaling, grown)
            configs = configs[0], rescaling.config(configs[1], self._root)
            grown = {name: {} for name in skeleton.shapes if kind(name) in rescaling.kinds} | dict(grown)
        self._tied = skeleton.tied.keys()  # which are others by another name
        self.grown = {name: axes for name, axes in grown.items() if name not in self._tied}
        self.kinds = _of_kinds(self.grown)
        with undisturbed():
            try:
                self._old, self._new = (
                    random_model(config, skeleton.architecture, seed) for seed, config in enumerate(configs)
                )
                self._begin()
            except GraftkitError as error:
                raise InputRejected(
                    f"{skeleton.architecture}: no width can be tried on a small model: {error}"
                ) from error
            except Exception as error:  # model classes and their forwards raise whatever they like
                raise InputRejected(
                    f"{skeleton.architecture}: no width can be tried on a small model: {one_line(error)}"
                ) from error

    def _begin(self) -> None:
        """Run the small model, and give the wider one what did not grow."""
        old = self._old
        self._shorten(old)
        table = embedding_of(old, INPUT)
        rows = 2 if table is None else len(table.weight)
        ids = torch.randint(rows // 8, rows // 2, (ROWS, TOKENS), generator=torch.Generator().manual_seed(2))
        self._probe = Probe("trial", ids, torch.ones_like(ids))
        self._extra, _ = find_inputs(old, lambda tried: run(old, self._probe, tried))
        self._threshold = measure_floor(old, self._probe, self._extra).threshold
        with float64(old):
            self._expected = outputs_of(old, self._probe, self._extra)
        if not all(bool(value.isfinite().all()) for value in self._expected.values()):
            raise InputRejected("its outputs are not finite")
        before, after = old.state_dict(), self._new.state_dict()
        for name, values in after.items():
            if name not in self.grown and name not in self._tied:
                values.copy_(before[name])
        self._before = {name: before[name] for name in self.grown}
        self._after = {name: after[name] for name in self.grown}
        self._fresh = {name: values.clone() for name, values in self._after.items()}

    def distance(self, layouts: Layouts, zero: Collection[str]) -> float:
        """How far the outputs lie apart with these layouts and new slices of the kinds ``zero`` at zero, relative.

        Infinite where a shape is another or the wider model does not run.
        """
        self._fill(layouts, zero)
        with undisturbed():
            try:
                with float64(self._new):
                    found = outputs_of(self._new, self._probe, self._extra)
            except Exception:  # noqa: BLE001 - a layout may be one that the forward refuses
                return math.inf
        if found.keys() != self._expected.keys():
            return math.inf
        widths = Correspondence(widths={name: self.maps(name, layouts) for name in self.grown})
        pairs = [widths.channels(value, found[name]) for name, value in self._expected.items()]
        self.widens_outputs = any(value.shape != found[name].shape for name, value in self._expected.items())
        return max(gap(a, b) if a.shape == b.shape else math.inf for a, b in pairs)

    def keeps(self, layouts: Layouts, zero: Collection[str]) -> bool:
        """Whether the outputs are the same over the real numbers."""
        return self.distance(layouts, zero) <= self._threshold

    def in_order(self) -> tuple[str, ...]:
        """The kinds that grow in the order in which they run; those that do not run come last."""
        return tuple(dict.fromkeys((*self._run_order(), *self.kinds)))

    def _run_order(self) -> tuple[str, ...]:
        """The kinds that grow and run, in that order."""
        recorder = _Order({name: value for name, value in self._new.named_parameters() if name in self.grown})
        with undisturbed(), recorder, plain_experts(self._new), torch.no_grad():
            outputs_of(self._new, self._probe, self._extra)
        return tuple(dict.fromkeys(map(kind, recorder.order)))

    def dead(self, layouts: Layouts, zero: Collection[str]) -> tuple[str, ...] | None:
        """Kinds whose new slices would never learn: those at zero without a gradient, or others without one when none is zero.

        None where the class cannot be differentiated, so that nothing is known. What runs and has no gradient in the small model
        before it grows, as the choice of an indexer, does not learn by this loss at all, and is left out.
        """
        first = self._without_gradient(layouts, zero)
        later = self._without_gradient(layouts, ())
        before = self._gradients(self._old)
        if first is None or later is None or before is None:
            return None
        never = set(self._run_order()) - {kind(name) for name, value in before.items() if bool(value.any())}
        return tuple(name for name in self.kinds if name in (first if name in zero else later) - never)

    def _without_gradient(self, layouts: Layouts, zero: Collection[str]) -> set[str] | None:
        """The kinds of which no new slice of any block has a gradient; None where the class cannot be differentiated."""
        self._fill(layouts, zero)
        found = self._gradients(self._new)
        if found is None:
            return None
        alive = set()
        for name, values in found.items():
            maps = self.maps(name, layouts)
            if not maps.has_new or bool(maps.only_new(values).any()):
                alive.add(kind(name))
        return set(self.kinds) - alive

    def _gradients(self, model: PreTrainedModel) -> dict[str, Tensor] | None:
        """The gradients of what grows; None where the class cannot be differentiated."""
        with undisturbed(), plain_experts(model):
            model.zero_grad(set_to_none=True)
            try:
                backward(model, self._probe, self._extra, 0)
            except Exception:  # noqa: BLE001 - forwards that write in place raise what they like; then nothing is known
                return None
        named = model.named_parameters()
        found = {name: value.grad for name, value in named if name in self.grown and value.grad is not None}
        model.zero_grad(set_to_none=True)
        return found

    def is_gain(self, name: str) -> bool:
        """Whether parameters of this kind are vectors of a module whose class says that it is a norm."""
        full = next(full for full in self._after if kind(full) == name)
        return is_gain(self._new.get_submodule(full.rpartition(".")[0]), full)

    def odd_norms(self, layouts: Layouts) -> tuple[str, ...]:
        """Classes of norms that by themselves do not run, or give something else of what is beside zeros, though they are rescaled."""
        self._fill(layouts, self.kinds)
        found = dict[str, None]()
        for name, axes in self.grown.items():
            owner = name.rpartition(".")[0]
            old, new = (model.get_submodule(owner) for model in (self._old, self._new))
            if not is_gain(old, name) or set(axes) != {0}:
                continue
            width = Correspondence(widths={name: self.maps(name, layouts)})
            given = torch.randn(1, len(self._before[name]), generator=torch.Generator().manual_seed(3)).double()
            wider = torch.zeros(1, len(self._after[name]), dtype=torch.float64)
            width.channels(given, wider)[1].copy_(given)
            try:
                with undisturbed(), torch.no_grad(), Float64():
                    is_odd = gap(*width.channels(old(given), new(wider))) > self._threshold
            except Exception:  # noqa: BLE001 - a norm may want more than what it normalises
                is_odd = True
            if is_odd:
                found.setdefault(type(old).__name__)
        return tuple(found)

    def other_numbers(self) -> tuple[str, ...]:
        """Numbers with a point that modules hold and that depend on the width, as the scale of embeddings does; no epsilon is one."""
        new, mapped = dict(self._new.named_modules()), dict[str, None]()
        for name, module in self._old.named_modules():
            for key, value in numbers_of(module).items():
                if name in new and numbers_of(new[name]).get(key) not in (value, value * self._root**2):
                    mapped.setdefault(f"{name}.{key}".lstrip("."))
        return tuple(mapped)

    def maps(self, name: str, layouts: Layouts) -> AxisMaps:
        """The maps of one parameter with these layouts."""
        return maps_of(name, self.grown[name], layouts, self.rescaling, self._root)

    def _shorten(self, model: PreTrainedModel) -> None:
        """Give what is scaled behind an offset few digits, so that nothing of it is rounded here."""
        offsets = {} if self.rescaling is None else self.rescaling.kinds
        for name, value in model.named_parameters():
            if offsets.get(kind(name)):
                value.data = value.data.bfloat16().to(value.dtype)

    def _fill(self, layouts: Layouts, zero: Collection[str]) -> None:
        with torch.no_grad():
            for name, values in self._after.items():
                new = torch.zeros_like(values) if kind(name) in zero else self._fresh[name]
                values.copy_(self.maps(name, layouts).placed(self._before[name], new))


def maps_of(
    name: str, axes: Mapping[int, Any], layouts: Layouts, rescaling: Rescaling | None = None, root: float = 1.0
) -> AxisMaps:
    """The maps of the axes of one parameter, and what its values are multiplied by.

    Raises:
        ValueError: a layout does not fit the sizes.
    """
    found = []
    for axis, growth in axes.items():
        indices = layouts[kind(name)][axis].index_map(growth)
        if indices is None:
            raise ValueError(f"an axis of {growth.old} cannot grow so to {growth.new}")
        found.append((axis, indices))
    if rescaling is None or kind(name) not in rescaling.kinds:
        return AxisMaps(tuple(found))
    return AxisMaps(tuple(found), root, rescaling.kinds[kind(name)])


def _of_kinds(grown: Growths) -> dict[str, Mapping[int, Any]]:
    """The growth of each kind: that of its first parameter."""
    found: dict[str, Mapping[int, Any]] = {}
    for name, axes in grown.items():
        found.setdefault(kind(name), axes)
    return found


def random_model(config: Mapping[str, Any], architecture: str, seed: int) -> PreTrainedModel:
    """A model of the class on the CPU: what the class gives a new one, and noise."""
    torch.manual_seed(seed)
    model = model_class(architecture)(build_config(config)).float().eval()
    with torch.no_grad():
        for value in (*model.parameters(), *model.buffers()):
            if value.is_floating_point():
                value.data[~value.isfinite() | (value.abs() > 1 / torch.finfo(value.dtype).eps)] = 0.0
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * NOISE)
    return model


class _Order(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch does not type it
    """Notes the order in which parameters are first used."""

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._names = {value.untyped_storage().data_ptr(): name for name, value in parameters.items()}
        self.order: dict[str, None] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for value in _tensors((args, kwargs)):
            if name := self._names.get(value.untyped_storage().data_ptr()):
                self.order.setdefault(name)
        return func(*args, **(kwargs or {}))


def _tensors(values: Any) -> Iterator[Tensor]:
    yield from (value for value in tree_leaves(values) if isinstance(value, torch.Tensor))
