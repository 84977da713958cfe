"""Old gradients beside the source's own noise: the source's gradients again, in ways that change nothing over the real numbers.

Another table behind the hidden states has its logits summed in another order, and from there on back every rounding is
another. How much that changes a gradient, only the model tells: a bias that softmax cancels (that of the keys) has a
gradient of zero, and what is left of it is rounding alone. So each parameter is judged by its own noise, and by the
unit roundoff of its module's gradients.
"""

from __future__ import annotations

import contextlib
import functools
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from graftkit.architecture.correspondence import IDENTITY, Correspondence
from graftkit.architecture.embeddings import OUTPUT, embedding_of
from graftkit.running.inputs import feed
from graftkit.running.loss import loss_of, loss_on
from graftkit.running.probes import Probe
from graftkit.running.split.together import at_owner
from graftkit.verification.first_step.shared import Group, grouped
from graftkit.verification.first_step.task import gradients

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from graftkit.architecture.index_map import IndexMap
    from graftkit.running.loss import Columns

#: A difference counts from this many times the noise on, as in the lens.
MARGIN = 100

#: Half the distance from 1 to the next number in float32.
UNIT_ROUNDOFF = 2.0**-24

#: A factor that is no power of two, so that everything behind it is rounded anew.
FACTOR = 3

Gradients = Mapping[str, "Tensor"]


@dataclass(frozen=True, slots=True)
class GradientGap:
    """The old parameter whose gradient stands farthest above its noise.

    ``error`` and ``floor`` are what it differs by and what counts as noise there, both relative to ``scale``, the largest
    norm of a gradient in its module. ``noise`` gives for each null run the largest relative difference that it made anywhere.
    """

    parameter: str = ""
    error: float = 0.0
    floor: float = 0.0
    scale: float = 0.0
    noise: Mapping[str, float] | None = None

    @property
    def differs(self) -> bool:
        """Whether it is more than noise; what is not finite is."""
        return not self.error <= MARGIN * self.floor


def null_gradients(
    model: PreTrainedModel, texts: Probe, extra_inputs: frozenset[str], ids: Columns, correspondence: Correspondence
) -> Iterator[tuple[str, Gradients]]:
    """``(what was varied, the gradients)``; the ``correspondence`` says which rows the result's table has."""
    loss = FACTOR * loss_of(model, texts, extra_inputs, ids)
    yield "loss times 3", {name: value / FACTOR for name, value in gradients(model, loss).items()}
    if len(texts.ids) > 1:
        rows = replace(texts, ids=texts.ids.flip(0), mask=texts.mask.flip(0))
        outputs = model(**feed(model, rows, extra_inputs))
        back = {name: _rows_back(value, len(rows.ids)) for name, value in outputs.items()}
        yield "rows reversed", gradients(model, loss_on(back, texts, generates=model.can_generate(), ids=ids))
    tables = {"logits summed in reverse": None, "logits of the result's rows": correspondence.ids}
    for name, rows_of in tables.items() if correspondence.reordered else list(tables.items())[:1]:
        with other_logits(model, rows_of) as varied:
            if varied:
                yield name, gradients(model, loss_of(model, texts, extra_inputs, ids))


def _rows_back(value: Any, rows: int) -> Any:
    if isinstance(value, tuple | list):
        return type(value)(_rows_back(item, rows) for item in value)
    return value.flip(0) if getattr(value, "ndim", 0) and len(value) == rows else value


@contextlib.contextmanager
def other_logits(model: nn.Module, rows: IndexMap | None) -> Iterator[bool]:
    """The logits from a table with a result's ``rows``, without them summed in reverse; False where the model has no plain table."""
    import torch

    head = embedding_of(model, OUTPUT)

    def again(module: Any, args: tuple[Any, ...], output: Any) -> Any:
        weight, bias = module.weight, module.bias
        if rows is None:
            return torch.nn.functional.linear(args[0].flip(-1), weight.flip(-1), bias)
        origins = torch.zeros(
            rows.result, dtype=torch.int64
        )  # a new row may be any, since no column of it is looked at
        origins[list(rows.places)] = kept = torch.tensor(rows.kept)
        made = torch.nn.functional.linear(args[0], weight[origins], None if bias is None else bias[origins])
        return output.index_copy(-1, kept, made[..., list(rows.places)])

    hook = head.register_forward_hook(again) if type(head) is torch.nn.Linear else None
    try:
        yield hook is not None
    finally:
        if hook is not None:
            hook.remove()


class OldGradients:
    """The source's gradients of the loss over the old ids, and the noise of each."""

    def __init__(self, found: Gradients, nulls: Iterator[tuple[str, Gradients]]) -> None:
        self._found = found
        self._scales = _scales(found)
        self._floors = {name: UNIT_ROUNDOFF * self._scales[name] for name in found}
        self.noise: dict[str, float] = {}
        for what, again in nulls:
            for name, old in found.items():
                apart = at_owner(_apart, again[name], old)
                self._floors[name] = max(self._floors[name], apart)
                self.noise[what] = max(self.noise.get(what, 0.0), apart / (self._scales[name] or 1.0))

    def broken(self) -> list[str]:
        """Names of parameters whose gradient is not finite in the source itself."""
        return [name for name, value in self._found.items() if not at_owner(_is_finite, value)]

    def compare(
        self, after: Gradients, correspondence: Correspondence = IDENTITY, groups: Sequence[Group] = ()
    ) -> GradientGap:
        """The worst of the old parameters, over the rows and slices that correspond; one that lost its gradient is the worst.

        Those of dropped blocks are left out. Of ``groups`` of names, which one of the two models has as one parameter, the sums are
        compared.
        """
        worst, most = GradientGap(noise=self.noise), 0.0
        for group in grouped(self._found, groups):
            names = [name for name in self._found if name in group]
            scale = max(self._scales[name] for name in names) or 1.0
            floor = sum(self._floors[name] for name in names)
            others = {other for name in group if (other := correspondence.module_in_result(name)) is not None}
            if not others:
                continue
            old, new = _sum(self._found[name] for name in names), _sum(after[name] for name in others & after.keys())
            apart = (
                float("inf") if old is None or new is None else _distance(*correspondence.gradients(names[0], old, new))
            )
            times = apart / floor if floor else float("inf") if apart else 0.0
            if not times <= most:
                worst, most = GradientGap(names[0], apart / scale, floor / scale, scale, self.noise), times
                if times != times:  # noqa: PLR0124 - NaN stays the worst
                    break
        return worst


def _is_finite(values: Tensor) -> bool:
    return bool(values.isfinite().all())


def _sum(values: Iterable[Tensor]) -> Tensor | None:
    """The sum of what there is, which is not copied where it is one; None where there is nothing."""
    found = list(values)
    return functools.reduce(operator.add, found) if found else None


def _scales(found: Gradients) -> dict[str, float]:
    """For each parameter the largest norm of a gradient in its module."""
    norms = {name: at_owner(_norm, value) for name, value in found.items()}
    modules: dict[str, float] = {}
    for name, norm in norms.items():
        module = name.rpartition(".")[0]
        modules[module] = max(modules.get(module, 0.0), norm)
    return {name: modules[name.rpartition(".")[0]] for name in norms}


def _distance(old: Tensor, new: Tensor) -> float:
    return at_owner(_apart, new, old) if new.shape == old.shape else float("inf")


def _apart(new: Tensor, old: Tensor) -> float:
    return _norm(new - old)


def _norm(values: Tensor) -> float:
    import torch

    return float(torch.linalg.vector_norm(values))
