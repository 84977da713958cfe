"""Merged weights beside peft's own merge of them in float64: nothing but rounding may be left, leaning towards nothing."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from graftkit.architecture.injection import NAME
from graftkit.errors import printable
from graftkit.verification.distribution import UNIT_ROUNDOFF

#: A module whose weights in float64 are larger than this is not compared in float64.
MODULE_BYTES = 2 << 30

#: How far the error of a merged weight may exceed rounding to nearest, where the sum itself is formed in that dtype.
SUMMED = 8.0

#: The same where it is formed in more precision and rounded once.
ROUNDED_ONCE = 1.05

#: How much of what the adapter adds may be missing or too much, as a share.
LEANING = 0.02


@dataclass(frozen=True, slots=True)
class WeightComparison:
    """One merged weight. ``rounding`` is its error in units of the dtype's rounding, ``leaning`` the share of the change lost."""

    name: str
    rounding: float
    leaning: float
    failure: str


def compare_weights(adapted: Any, merged: Any, skipped: list[str]) -> Iterator[WeightComparison]:
    """Compare every weight that the adapter changes in the model ``adapted`` with the model ``merged``; say what is left out."""
    from peft.tuners.lora.layer import LoraLayer
    from peft.utils.other import ModulesToSaveWrapper, TrainableTokensWrapper

    outer: list[str] = []
    for path, module in adapted.named_modules():
        if isinstance(module, ModulesToSaveWrapper):
            for name, value in module.modules_to_save[NAME].state_dict().items():
                yield _replaced(f"{path}.{name}", value, _at(merged, f"{path}.{name}"))
        elif isinstance(module, TrainableTokensWrapper):
            rows = module.token_adapter.get_merged_weights([NAME])
            yield _replaced(f"{path}.weight", rows, _at(merged, f"{path}.weight"))
        elif isinstance(module, LoraLayer) and not any(path.startswith(f"{above}.base_layer") for above in outer):
            outer.append(path)
            size = sum(parameter.numel() for parameter in module.get_base_layer().parameters())
            if 8 * size > MODULE_BYTES:
                skipped.append(f"{printable(path)}: {size:,} elements are too many to be merged in float64")
                continue
            yield from _folded(path, module, merged)


def _at(model: Any, name: str) -> Any:
    owner, _, leaf = name.rpartition(".")
    return getattr(model.get_submodule(owner), leaf).detach()


def _replaced(name: str, wanted: Any, found: Any) -> WeightComparison:
    equal = wanted.detach().to(found.dtype).equal(found)
    return WeightComparison(name, 0, 0, "" if equal else f"weights: {printable(name)!r} is not the adapter's")


def _folded(path: str, module: Any, merged: Any) -> Iterator[WeightComparison]:
    """Compare every parameter of one adapted module with peft's own merge of it in float64."""
    exact = copy.deepcopy(module).double()
    if hasattr(exact, "unload_and_optionally_merge_module"):
        exact = exact.unload_and_optionally_merge_module(merge=True, safe_merge=False, adapter_names=None)
    else:
        exact.merge()
        exact = exact.get_base_layer()
    before = module.get_base_layer()
    for name, value in exact.named_parameters():
        found = _at(merged, f"{path}.{name}")
        if value.equal(before.get_parameter(name).double()):
            continue  # not touched: its bytes are the source's, as the ledger says
        yield _compare(f"{path}.{name}", value.detach(), before.get_parameter(name).detach().double(), found)


def _compare(name: str, exact: Any, before: Any, found: Any) -> WeightComparison:
    error, change = found.double() - exact, exact - before
    unit = UNIT_ROUNDOFF[str(found.dtype)]
    half = unit > UNIT_ROUNDOFF["torch.float32"]
    scale = exact.norm() if half else before.norm() + exact.norm()
    tiny = 2.0**-25 * exact.numel() ** 0.5 if str(found.dtype) == "torch.float16" else 0.0
    rounding = float(error.norm() / (unit * scale + tiny))
    size = float(change.square().sum())
    leaning = abs(float((error * change).sum())) / size
    # Rounding errors are independent of the change: their share of it has this standard deviation.
    noise = unit * float((exact.square() * change.square()).sum()) ** 0.5 / size
    failure = ""
    if not rounding <= (ROUNDED_ONCE if half else SUMMED):
        failure = f"weights: {printable(name)!r} is off peft's merge in float64 by {rounding:.3g} roundings"
    elif not leaning <= LEANING + 6 * noise:
        failure = f"weights: {printable(name)!r} lacks or repeats {leaning:.0%} of what the adapter adds"
    return WeightComparison(name, rounding, leaning, failure)
