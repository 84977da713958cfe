"""An adapter with another rank beside the old one, both as peft loads them on the same base."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from graftkit.checkpoint.adapter import AdapterPlace
from graftkit.errors import few, plural
from graftkit.running.forward import Loaded, load, release, undisturbed
from graftkit.running.peft_loading import adapt, stand_ins
from graftkit.running.place import Place
from graftkit.running.reference import Reference, run_loaded
from graftkit.running.runnable import cannot_run
from graftkit.verification.adapters.own_noise import own_noise
from graftkit.verification.adapters.resized_products import (
    Product,
    ProductComparison,
    changed_tensors,
    compare_products,
    products,
)
from graftkit.verification.checks import ComparesFiles, Report, Row
from graftkit.verification.comparison import NOISE_RATIO, Comparison, compare_runs
from graftkit.verification.distribution import UNIT_ROUNDOFF
from graftkit.verification.subject import Subject


@dataclass(frozen=True, slots=True)
class ResizedReport(Report):
    """What was compared.

    ``bitwise`` says so of all outputs; ``effect`` is the largest relative change of an output that the old adapter makes,
    ``changed`` the change that resizing makes of the output that is nearest to what is ``allowed`` of it, which is None where
    products changed. ``noise`` is the old adapter's own noise there, None where it was not measured. ``not_compared`` says
    why there are no outputs, empty where there are.
    """

    products: tuple[ProductComparison, ...]
    tokens: int
    bitwise: bool
    changed: float
    effect: float
    failures: tuple[str, ...]
    not_compared: str = ""
    allowed: float | None = None
    noise: float | None = None
    name: str = "resized against old adapter"

    def rows(self) -> Iterator[Row]:
        """The lines that a table shows of it."""
        lost = max(product.lost for product in self.products)
        exact = all(product.exact for product in self.products)
        result = "failed" if self.failures else "bitwise" if exact else "rounded"
        yield Row("adapter's products", result, f"{len(self.products)}, at most {lost:.2g} of the energy lost")
        if self.not_compared:
            yield Row("outputs with adapter", "not run", self.not_compared)
            return
        bound = "" if self.allowed is None else f", {self.allowed:.2g} allowed"
        noise = "" if self.noise is None else f" (its own noise {self.noise:.2g})"
        changed = f"relative change {self.changed:.2g}{bound}{noise}"
        figure = f"{plural(self.tokens, 'token')}, {changed}; the adapter's effect {self.effect:.2g}"
        yield Row(
            "outputs with adapter", "failed" if self.failures else "bitwise" if self.bitwise else "measured", figure
        )


@dataclass(frozen=True, slots=True)
class ResizeCheck(ComparesFiles):
    """The resized adapter beside the old one in the folder ``old``."""

    old: Path
    name: str = "resized against old adapter"

    def run(self, subject: Subject) -> ResizedReport:
        """See :func:`compare_resized`."""
        return compare_resized(
            subject.result, self.old, subject.adapter or self.old, seed=subject.seed, not_run=subject.not_run
        )


def compare_resized(
    base: Place, old: AdapterPlace, new: AdapterPlace, *, seed: int = 0, not_run: str = ""
) -> ResizedReport:
    """Compare the adapters ``old`` and ``new`` on the checkpoint ``base``: every tensor and product, and outputs.

    One base is in memory at a time; ``not_run`` says why none is to be loaded, empty where it is.

    Raises:
        InputRejected, VerificationFailed: base or adapters do not load, or the forward needs inputs that cannot be made.
    """
    with undisturbed():
        reason = not_run or cannot_run(base)
        first = _adapted(base, old, hollow=bool(reason))
        known = products(first.model, base, old)
        before = None if reason else run_loaded(first, base, None, seed, None, {}, lambda _: None)
        release(first.model)
        second = _adapted(base, new, hollow=bool(reason))
        compared = tuple(compare_products(known, products(second.model, base, new)))
        failures = [product.failure for product in compared if product.failure]
        failures += changed_tensors(base, old, new)
        if before is None:
            return ResizedReport(
                compared, 0, bitwise=False, changed=0, effect=0, failures=tuple(failures), not_compared=reason
            )
        changes = compare_runs(second.model, before)
        release(second.model)
        plain = load(base)
        effect = compare_runs(plain.model, before).worst
        release(plain.model)
        bounds: Mapping[str, _Bound] = {}
        if not any(product.shrunk for product in compared):
            bounds = _bounds(base, old, before, changes, known)
    return _report(compared, before, changes, bounds, effect, failures)


@dataclass(frozen=True, slots=True)
class _Bound:
    """How far an output may change, and the noise that this comes from."""

    allowed: float
    noise: float | None


def _report(
    compared: tuple[ProductComparison, ...],
    before: Reference,
    changes: Comparison,
    bounds: Mapping[str, _Bound],
    effect: float,
    failures: list[str],
) -> ResizedReport:
    ratios = {name: change / bounds[name].allowed if bounds else change for name, change in changes.relative.items()}
    worst = max(ratios, key=lambda name: ratios[name])
    bound = bounds.get(worst, _Bound(0.0, None))
    beyond = [name for name, ratio in ratios.items() if bounds and not ratio <= 1]
    if beyond:
        failures = [
            *failures,
            f"outputs: {few(beyond)} changed by up to {changes.relative[worst]:.3g}, though no product did;"
            f" {bound.allowed:.3g} is allowed",
        ]
    return ResizedReport(
        compared,
        sum(part.tokens for part in before.parts),
        changes.bitwise,
        changes.relative[worst],
        effect,
        tuple(failures),
        allowed=bound.allowed if bounds else None,
        noise=bound.noise,
    )


def _bounds(
    base: Place, old: AdapterPlace, before: Reference, changes: Comparison, known: Mapping[str, list[Product]]
) -> dict[str, _Bound]:
    """By output, twice the larger of two: the rounding of one product, and the old adapter's noise where that is not enough.

    A product is a sum over the rank in the factors' dtype, and is rounded once to the model's.
    """
    pairs = [product for parts in known.values() for product in parts]
    unit = UNIT_ROUNDOFF[f"torch.{before.dtype}"]
    floor = unit + max(len(product.a) * product.unit for product in pairs)
    if all(change <= NOISE_RATIO * floor for change in changes.relative.values()):
        return dict.fromkeys(changes.relative, _Bound(NOISE_RATIO * floor, None))
    again = _adapted(base, old, hollow=False)
    noise = own_noise(again.model, before)
    release(again.model)
    own = {name: noise.get(name, 0.0) for name in changes.relative}
    return {name: _Bound(NOISE_RATIO * max(value, floor), value) for name, value in own.items()}


def _adapted(base: Place, adapter: AdapterPlace, *, hollow: bool) -> Loaded:
    """The base with an adapter; ``hollow`` with stand-ins for its weights: peft can put adapters on it, and nothing can be run."""
    loaded = stand_ins(base) if hollow else load(base)
    return dataclasses.replace(loaded, model=adapt(loaded.model, adapter).get_base_model().eval())
