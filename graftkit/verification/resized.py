"""An adapter with another rank beside the old one, both as peft loads them on the same base."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graftkit.architecture.injection import NAME
from graftkit.architecture.skeleton import build_skeleton
from graftkit.architecture.tuner import stand_in
from graftkit.errors import few, printable
from graftkit.verification.distribution import UNIT_ROUNDOFF
from graftkit.verification.forward import Loaded, load, run, undisturbed
from graftkit.verification.peft_loading import adapt
from graftkit.verification.reference import Reference, run_loaded
from graftkit.verification.runnable import cannot_run

NEW = "resized"

#: Relative error of float64 in a product of two factors.
EXACT = 1e-12

#: Rounding of the stored factors, in units of their dtype, and of outputs whose kernel sums in another order.
ROUNDED, REORDERED = 4.0, 16.0


@dataclass(frozen=True, slots=True)
class ProductComparison:
    """One adapted weight: the share of its energy that is lost, the least that any factors of the new rank lose, a failure."""

    name: str
    lost: float
    least: float
    failure: str


@dataclass(frozen=True, slots=True)
class ResizedReport:
    """What was compared.

    ``bitwise`` says so of all outputs; ``effect`` is the largest relative change of an output that the old adapter makes,
    ``changed`` the largest that resizing makes. ``not_compared`` says why there are no outputs, empty where there are.
    """

    products: tuple[ProductComparison, ...]
    tokens: int
    bitwise: bool
    changed: float
    effect: float
    failures: tuple[str, ...]
    not_compared: str = ""
    name: str = "resized against old adapter"

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        return dataclasses.asdict(self)

    def rows(self) -> Iterator[tuple[str, str, str]]:
        """``(check, result, figure)`` for a terminal."""
        lost = max(product.lost for product in self.products)
        result = "failed" if self.failures else "exact" if lost <= EXACT else "rounded"
        yield "adapter's products", result, f"{len(self.products)}, at most {lost:.2g} of the energy lost"
        if self.not_compared:
            yield "outputs with adapter", "not run", self.not_compared
            return
        figure = f"{self.tokens} tokens, relative change {self.changed:.2g}; the adapter's own {self.effect:.2g}"
        yield "outputs with adapter", "failed" if self.failures else "bitwise" if self.bitwise else "measured", figure


def compare_resized(base: Path, old: Path, new: Path, *, seed: int = 0) -> ResizedReport:
    """Compare the adapters of the folders ``old`` and ``new`` on the checkpoint ``base``: every product, and outputs.

    Raises:
        InputRejected, VerificationFailed: base or adapters do not load, or the forward needs inputs that cannot be made.
    """
    with undisturbed():
        reason = cannot_run(base)
        loaded = _hollow(base) if reason else load(base)
        adapted = adapt(loaded.model, old)
        adapted.load_adapter(str(new), NEW)
        products = tuple(_products(adapted.get_base_model()))
        failures = [product.failure for product in products if product.failure]
        if reason:
            return ResizedReport(products, 0, bitwise=False, changed=0, effect=0, failures=tuple(failures), not_compared=reason)
        loaded = dataclasses.replace(loaded, model=adapted.get_base_model().eval())
        before = run_loaded(loaded, base, None, seed, None, {}, lambda _: None)
        with adapted.disable_adapter():
            effect, _ = _changes(loaded.model, before)
        adapted.set_adapter(NEW)
        loaded.model.eval()
        changed, differing = _changes(loaded.model, before)
    shrunk = any(product.least > EXACT for product in products)
    allowed = REORDERED * UNIT_ROUNDOFF[f"torch.{before.dtype}"]
    if not shrunk and not changed <= allowed:
        failures.append(f"outputs: {few(differing)} changed by {changed:.3g}, though no product did")
    tokens = sum(part.tokens for part in before.parts)
    return ResizedReport(products, tokens, not differing, changed, effect, tuple(failures))


def _hollow(base: Path) -> Loaded:
    """The class of ``base`` with stand-ins for its weights: peft can put adapters on it, and nothing can be run."""
    skeleton = build_skeleton(json.loads((base / "config.json").read_text(encoding="utf-8")))
    stand_in(skeleton.model, {})
    return Loaded(skeleton.model, frozenset(), frozenset(), frozenset())


def _changes(model: Any, before: Reference) -> tuple[float, list[str]]:
    """The largest relative change of an output, root mean square over a probe, and which outputs are not bitwise equal."""
    largest, differing = 0.0, []
    for part in before.parts:
        found = run(model, part, before.made)
        for name, old in before.kept[part.name].items():
            if old.equal(found[name]):
                continue
            differing.append(name)
            wide = old.double().nan_to_num(0, 0, 0)
            change = float((found[name].double().nan_to_num(0, 0, 0) - wide).norm() / (wide.norm() or 1.0))
            largest = max(largest, change if math.isfinite(change) else math.inf)
    return largest, differing


def _products(model: Any) -> Iterator[ProductComparison]:
    from peft.tuners.lora.layer import LoraLayer

    for path, module in model.named_modules():
        if isinstance(module, LoraLayer):
            experts = getattr(module, "num_experts", 1)
            pairs = zip(_factors(module, NAME, experts), _factors(module, NEW, experts), strict=True)
            yield max((_compare(path, *pair) for pair in pairs), key=lambda found: (bool(found.failure), found.lost))


def _factors(module: Any, name: str, experts: int) -> Iterator[tuple[Any, Any, float]]:
    """``(a, b, unit)`` of each expert, the scaling in ``b``, in float64; ``unit`` is the rounding of their dtype."""
    if name in module.lora_embedding_A:
        a, b = module.lora_embedding_A[name], module.lora_embedding_B[name]
    else:
        a, b = module.lora_A[name].weight, module.lora_B[name].weight
    unit = UNIT_ROUNDOFF[str(a.dtype)]
    wide_a = a.detach().double().reshape(experts, -1, a.shape[1])
    wide_b = b.detach().double().reshape(b.shape[0], -1, experts) * module.scaling[name]
    for expert in range(experts):
        yield wide_a[expert], wide_b[..., expert], unit


def _compare(path: str, old: tuple[Any, Any, float], new: tuple[Any, Any, float]) -> ProductComparison:
    import torch

    (old_a, old_b, _), (new_a, new_b, unit) = old, new
    values = _singular(old_a, old_b)
    energy = float(values.square().sum())
    difference = _singular(torch.cat((old_a, new_a)), torch.cat((old_b, -new_b), 1))
    rank = new_a.shape[0]
    tail = float(values[rank:].square().sum())
    lost, least = (float(difference.square().sum()) / energy, tail / energy) if energy else (float(new_b.norm()), 0.0)
    slack = EXACT if rank >= old_a.shape[0] else ROUNDED * unit
    fine = lost**0.5 <= least**0.5 + slack
    failure = "" if fine else (
        f"products: {printable(path)!r} loses {lost:.3g} of its energy; factors of rank {rank} lose {least:.3g} at least"
    )  # fmt: skip
    return ProductComparison(path, lost, least, failure)


def _singular(a: Any, b: Any) -> Any:
    """The singular values of ``b @ a``, by QR of both."""
    import torch

    return torch.linalg.svdvals(torch.linalg.qr(b).R @ torch.linalg.qr(a.T).R.T)
