"""A combined adapter beside its sources: every product, whatever else they train, and the outputs of the weighted sum."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from graftkit.architecture.peft.parts import NAME, LoraPart, lora_parts
from graftkit.checkpoint.adapter import AdapterPlace
from graftkit.errors import few, plural
from graftkit.initializers.combination import Combination, Update, join_experts, stacked
from graftkit.running.forward import load, undisturbed
from graftkit.running.peft_loading import adapt, stand_ins
from graftkit.running.place import Place
from graftkit.running.reference import Reference, run_loaded
from graftkit.running.runnable import cannot_run
from graftkit.verification.adapters.combined_products import (
    CombinedProduct,
    SourceProducts,
    by_weight,
    compare_combined,
    other_edits,
)
from graftkit.verification.adapters.own_noise import own_noise
from graftkit.verification.adapters.resized_products import Product, products
from graftkit.verification.checks import ComparesFiles, Report, Row
from graftkit.verification.comparison import NOISE_RATIO, Comparison, compare_runs
from graftkit.verification.distribution import UNIT_ROUNDOFF
from graftkit.verification.subject import Subject

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True)
class Source:
    """The folder of an adapter and what its updates are multiplied with."""

    folder: Path
    weight: float


@dataclass(frozen=True, slots=True)
class CombinedReport(Report):
    """What was compared. The weighted sum is that of the sources' products, multiplied by peft in the forward.

    ``bitwise`` says that all outputs are those of the weighted sum; ``changed`` is how far one is off, relative, where that is
    most of what is ``allowed``, which is None where the products are no exact sum; ``effect`` is the largest relative change that
    the weighted sum makes of an output. ``not_compared`` says why there are no outputs, empty where there are.
    """

    kind: str
    products: tuple[CombinedProduct, ...]
    tokens: int
    bitwise: bool
    changed: float
    effect: float
    failures: tuple[str, ...]
    not_compared: str = ""
    allowed: float | None = None
    name: str = "combination against its sources"

    def rows(self) -> Iterator[Row]:
        """The lines that a table shows of it."""
        exact = all(product.exact for product in self.products)
        off = max((product.off_sum for product in self.products), default=0.0)
        lost = max((product.lost for product in self.products), default=0.0)
        result = "failed" if self.failures else "exact" if exact else "rounded"
        figure = f"{len(self.products)} by {self.kind}, at most {lost:.2g} of the energy lost, {off:.2g} off the weighted sum"
        yield Row("combined products", result, figure)
        if self.not_compared:
            yield Row("outputs with adapter", "not run", self.not_compared)
            return
        bound = "" if self.allowed is None else f", {self.allowed:.2g} allowed"
        figure = f"{plural(self.tokens, 'token')}, {self.changed:.2g} off the weighted sum{bound}; its effect {self.effect:.2g}"
        yield Row(
            "outputs with adapter", "failed" if self.failures else "bitwise" if self.bitwise else "measured", figure
        )


@dataclass(frozen=True, slots=True)
class CombineCheck(ComparesFiles):
    """The combined adapter beside its ``sources``."""

    sources: tuple[Source, ...]
    combination: Combination
    name: str = "combination against its sources"

    def run(self, subject: Subject) -> CombinedReport:
        """See :func:`compare_with_sources`."""
        if subject.adapter is None:
            raise ValueError("there is no adapter")
        return compare_with_sources(
            subject.result, self.sources, subject.adapter, self.combination, seed=subject.seed, not_run=subject.not_run
        )


def compare_with_sources(
    base: Place,
    sources: Sequence[Source],
    new: AdapterPlace,
    combination: Combination,
    *,
    seed: int = 0,
    not_run: str = "",
) -> CombinedReport:
    """Compare the adapter ``new`` with those of ``sources``, all on the checkpoint ``base``, which is loaded once.

    ``not_run`` says why it is not to be loaded; empty where it is.

    Raises:
        InputRejected, VerificationFailed: base or adapters do not load, or the forward needs inputs that cannot be made.
    """
    with undisturbed():
        known = by_weight([(_products(base, source.folder), source.weight) for source in sources])
        made = _products(base, new)
        compared = tuple(compare_combined(known, made, combination))
        failures = [product.failure for product in compared if product.failure]
        failures += other_edits(base, [(source.folder, source.weight) for source in sources], new)
        if reason := not_run or cannot_run(base):
            return CombinedReport(
                combination.kind, compared, 0, bitwise=False, changed=0, effect=0, failures=tuple(failures),
                not_compared=reason,
            )  # fmt: skip
        report = CombinedReport(
            combination.kind, compared, 0, bitwise=False, changed=0, effect=0, failures=tuple(failures)
        )
        return _with_outputs(report, base, new, known, made, seed)


def _products(base: Place, adapter: AdapterPlace) -> dict[str, list[Product]]:
    """The products of an adapter as peft puts it on the base, whose own weights are stand-ins: none of them is read."""
    return products(adapt(stand_ins(base).model, adapter).get_base_model(), base, adapter)


def _with_outputs(
    report: CombinedReport,
    base: Place,
    new: AdapterPlace,
    known: SourceProducts,
    made: Mapping[str, list[Product]],
    seed: int,
) -> CombinedReport:
    """The report with the outputs of the adapter ``new`` beside those of the weighted sum, which are held where that is exact."""
    loaded = load(base)
    adapted = adapt(loaded.model, new)
    model = adapted.get_base_model().eval()
    with weighted_sum(model, known):
        before = run_loaded(dataclasses.replace(loaded, model=model), base, None, seed, None, {}, lambda _: None)
    changes = compare_runs(model, before)
    with adapted.disable_adapter():
        effect = compare_runs(model, before).worst
    changed, allowed, failures = changes.worst, None, report.failures
    if all(product.exact for product in report.products):
        bounds = _bounds(model, before, changes, known, made)
        nearest = max(changes.relative, key=lambda name: changes.relative[name] / bounds[name])
        changed, allowed = changes.relative[nearest], bounds[nearest]
        if beyond := [name for name, one in changes.relative.items() if not one <= bounds[name]]:
            failures += (f"outputs: {few(beyond)}: up to {changed:.3g} off the weighted sum, {allowed:.3g} is allowed",)
    return dataclasses.replace(
        report, tokens=sum(part.tokens for part in before.parts), bitwise=changes.bitwise, changed=changed,
        effect=effect, failures=failures, allowed=allowed,
    )  # fmt: skip


@contextlib.contextmanager
def weighted_sum(model: nn.Module, sources: SourceProducts) -> Iterator[None]:
    """Put the factors of the ``sources`` themselves into the adapted model inside, side by side, so that peft adds their products."""
    parts = [part for part in lora_parts(model) if part.weight in sources]
    held = [(part.a.data, part.b.data, part.module.r[NAME], part.module.scaling[NAME]) for part in parts]
    try:
        for part in parts:
            _put(part, sources[part.weight])
        yield
    finally:
        for part, (a, b, rank, scaling) in zip(parts, held, strict=True):
            part.a.data, part.b.data, part.module.r[NAME], part.module.scaling[NAME] = a, b, rank, scaling


def _put(part: LoraPart, sources: Sequence[tuple[Sequence[Product], float]]) -> None:
    scaling = part.scaling or 1.0
    experts = [
        stacked([Update(one.a, one.b, one.scaling * times / scaling) for one, times in each])
        for each in ([(products[expert], times) for products, times in sources] for expert in range(len(sources[0][0])))
    ]
    a, b = (factor.to(part.a.dtype) for factor in join_experts(experts))
    part.a.data, part.b.data = a, b
    part.module.r[NAME], part.module.scaling[NAME] = len(experts[0][0]), scaling


def _bounds(
    model: nn.Module, before: Reference, changes: Comparison, known: SourceProducts, made: Mapping[str, list[Product]]
) -> dict[str, float]:
    """By output, twice the larger of two: the rounding of one product, and the weighted sum's own noise where that is not enough."""
    unit = UNIT_ROUNDOFF[f"torch.{before.dtype}"]
    floor = unit + max(len(product.a) * product.unit for parts in made.values() for product in parts)
    if changes.worst <= NOISE_RATIO * floor:
        return dict.fromkeys(changes.relative, NOISE_RATIO * floor)
    with weighted_sum(model, known):
        noise = own_noise(model, before)
    return {name: NOISE_RATIO * max(noise.get(name, 0.0), floor) for name in changes.relative}
