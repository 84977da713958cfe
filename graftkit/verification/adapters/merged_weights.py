"""Merged weights beside the exact merge: each value must be the base's plus what the adapter adds, rounded once to its dtype.

Rounding is monotone: a sum that is off its exact value x by at most e, and is then rounded, lies between the roundings of
x - e and x + e. So a merge is replayed value by value, and nothing is asked of the errors that rounding leaves: an update
of less than half a unit in the last place is rounded away, which is right, and is reported as what the dtype keeps of it.

A merge of others may round the update before it is added, as peft does in half precision: it may be off by that as well.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graftkit.architecture.correspondence import IDENTITY, Correspondence
from graftkit.architecture.peft.parts import NAME, LoraPart, SavedPart, TokensPart, adapter_parts
from graftkit.errors import printable
from graftkit.verification.distribution import UNIT_ROUNDOFF

if TYPE_CHECKING:
    from torch import Tensor, nn

#: A module whose weights in float64 are larger than this is not compared in float64.
MODULE_BYTES = 2 << 30

#: The share of values from which on a weight is wrong as a whole, and not in some places.
MOST = 0.5


@dataclass(frozen=True, slots=True)
class WeightComparison:
    """One merged weight.

    ``equal`` is the share of its values that are the exact ones rounded once, to the bit; ``kept`` the share of the adapter's
    update that its dtype keeps: the projection of what changed on what was to change; ``energy`` the squared norm of the update.
    """

    name: str
    equal: float
    kept: float
    energy: float
    failure: str

    @property
    def untouched(self) -> bool:
        """Whether the adapter leaves the weight alone: it neither adds to it nor brings it whole."""
        return not self.energy and not self.kept


def compare_weights(
    adapted: nn.Module,
    merged: nn.Module,
    skipped: list[str],
    later: Correspondence = IDENTITY,
    *,
    backbone: bool = False,
    by_others: bool = False,
) -> Iterator[WeightComparison]:
    """Compare every parameter of the model ``merged`` with the model ``adapted``, merged exactly; say what is left out.

    Rows and blocks that ``later`` made are no part of the merge; with ``backbone``, modules that the merged model has not are none.
    ``by_others`` allows for an update that was computed and rounded in the dtype of the base.
    """
    outer: list[str] = []
    compared: set[str] = set()
    written, modules = _Merged(merged, later), dict(merged.named_modules())
    for part in adapter_parts(adapted):
        there = later.module_in_result(part.path)
        if there is None or (backbone and there not in modules):
            continue
        found: list[WeightComparison] = []
        if isinstance(part, SavedPart):
            found += [
                _replaced(f"{part.path}.{name}", value, written) for name, value in part.module.state_dict().items()
            ]
        elif isinstance(part, TokensPart):
            found.append(_replaced(f"{part.path}.weight", part.layer.get_merged_weights([NAME]), written))
        elif not any(part.path.startswith(f"{above}.base_layer") for above in outer):
            outer.append(part.path)
            size = sum(parameter.numel() for parameter in part.base.parameters())
            if 8 * size > MODULE_BYTES:
                skipped.append(f"{printable(part.path)}: {size:,} elements are too many to be merged in float64")
            else:
                found += _folded(part, written, by_others=by_others)
        compared.update(comparison.name for comparison in found)
        yield from found
    yield from _untouched(adapted, written, outer, compared)


@dataclass(frozen=True, slots=True)
class _Merged:
    """The merged model, and what became of ids and blocks behind the merge. Names are those from before."""

    model: nn.Module
    later: Correspondence

    def at(self, name: str) -> Tensor:
        """The parameter or buffer of that name, which is one of a block that is still there."""
        owner, _, leaf = (self.later.module_in_result(name) or name).rpartition(".")
        tensor: Tensor = getattr(self.model.get_submodule(owner), leaf)
        return tensor.detach()


def _untouched(adapted: nn.Module, merged: _Merged, outer: list[str], compared: set[str]) -> Iterator[WeightComparison]:
    """Yield a comparison for each other parameter that is not the adapted model's to the last bit, such as a trained bias."""
    here = dict(adapted.named_parameters(remove_duplicate=False))
    for given, _ in merged.model.named_parameters(remove_duplicate=False):
        name = merged.later.module_in_source(given)
        if name is None or name in compared or any(name.startswith(f"{path}.") for path in outer):
            continue
        owner, _, leaf = name.rpartition(".")
        wanted = next((here[other] for other in (name, f"{owner}.original_module.{leaf}") if other in here), None)
        if wanted is None:
            continue
        old, found = merged.later.rows(wanted.detach(), merged.at(name))
        if not old.to(found.dtype).equal(found):
            yield WeightComparison(name, 0, 0, 0, f"weights: {printable(name)!r} is not that of base and adapter")


def _replaced(name: str, wanted: Tensor, merged: _Merged) -> WeightComparison:
    old, found = merged.later.rows(wanted.detach(), merged.at(name))
    equal = old.to(found.dtype).equal(found)
    return WeightComparison(
        name, float(equal), 1, 0, "" if equal else f"weights: {printable(name)!r} is not the adapter's"
    )


def _folded(part: LoraPart, merged: _Merged, *, by_others: bool) -> Iterator[WeightComparison]:
    """Compare every parameter of one adapted module with peft's own merge of it in float64."""
    module = part.module
    exact, sizes = _merge(copy.deepcopy(module).double()), _merge(_without_signs(module))
    before = dict(part.base.named_parameters())
    errors: dict[str, Tensor] = {}
    for name, size in sizes.items():
        wide = str(before[name].dtype) == "torch.float64"
        # r products are summed and scaled, and the sum is added: one rounding each, of at most the size of the whole
        errors[name] = (part.rank + 4) * UNIT_ROUNDOFF["torch.float64" if wide else "torch.float32"] * size
    scaled = NAME in getattr(module, "lora_magnitude_vector", ())
    summed = exact | {"weight": _unscaled(part)} if scaled else exact
    unit = UNIT_ROUNDOFF[str(before["weight"].dtype)] if by_others and "weight" in before else 0.0
    for name in sizes:  # product and scaling of the update are rounded, and with DoRA the sum that is scaled
        update = (summed[name] - before[name].detach().double()).abs()
        errors[name] = errors[name] + unit * (2 * update + scaled * summed[name].abs())
    if scaled:  # its norm and the quotient are rounded too
        errors["weight"] = _scaled_error(summed["weight"], exact["weight"], errors["weight"], part)
        errors["weight"] = errors["weight"] + 2 * unit * exact["weight"].abs()
    for leaf, wanted in exact.items():
        name, later = f"{part.path}.{leaf}", merged.later
        written = merged.at(name)
        value, found = later.rows(wanted, written)
        old, error = (later.rows(values, written)[0] for values in (before[leaf].detach().double(), errors[leaf]))
        if not value.equal(old):
            yield _compare(name, value, old, found, error)
        elif not old.to(found.dtype).equal(found):
            yield WeightComparison(name, 0, 0, 0, f"weights: {printable(name)!r} is not that of base and adapter")


def _merge(module: Any) -> dict[str, Tensor]:
    """The parameters of an adapted module's base layer by name, merged by peft; the module is used up."""
    if hasattr(module, "unload_and_optionally_merge_module"):
        alone = module.unload_and_optionally_merge_module(merge=True, safe_merge=False, adapter_names=None)
    else:
        module.merge()
        alone = module.get_base_layer()
    return {name: parameter.detach() for name, parameter in alone.named_parameters()}


def _without_signs(module: Any) -> Any:
    """A copy in float64 that merges to |W| + |scaling|·|B|·|A|: what no sum of the real merge exceeds on its way."""
    import torch

    bare = copy.deepcopy(module).double()
    with torch.no_grad():
        for parameter in bare.parameters():
            parameter.abs_()
    for layer in (layer for layer in bare.modules() if hasattr(layer, "lora_variant")):
        layer.lora_variant.clear()
        layer.scaling = {name: abs(value) for name, value in layer.scaling.items()}
    return bare


def _unscaled(part: LoraPart) -> Tensor:
    """A DoRA weight in float64 before its rows are scaled."""
    plain = copy.deepcopy(part.module).double()
    plain.lora_variant.clear()
    return _merge(plain)["weight"]


def _scaled_error(summed: Tensor, exact: Tensor, error: Tensor, part: LoraPart) -> Tensor:
    """The error of a DoRA weight, whose rows are scaled to their magnitudes: that of its sum, scaled, and that of the norm.

    The norm of n values is off by at most the norm of their errors, and forming it rounds n + 4 times.
    """
    along = 0 if part.transposed else 1
    norm = summed.norm(dim=along, keepdim=True)
    scale = exact.norm(dim=along, keepdim=True) / norm
    rounded = (exact.shape[along] + 4) * UNIT_ROUNDOFF["torch.float32"]
    total: Tensor = scale * error + exact.abs() * (error.norm(dim=along, keepdim=True) / norm + rounded)
    return total


def _compare(name: str, exact: Tensor, before: Tensor, found: Tensor, error: Tensor) -> WeightComparison:
    import torch

    change, made = exact - before, found.double() - before
    energy = float(change.square().sum())
    kept = float((made * change).sum()) / energy
    low, high = (exact - error).to(found.dtype), (exact + error).to(found.dtype)
    wrong = ~((low <= found) & (found <= high))
    equal = float((exact.to(found.dtype) == found).double().mean())
    failure = ""
    if wrong.any():
        worst = torch.where(wrong, (found.double() - exact).abs(), 0.0).max()
        failure = (
            f"weights: {printable(name)!r} is not base plus adapter, rounded once, at {int(wrong.sum()):,} of {wrong.numel():,}"
            f" values: at most {float(worst):.3g} off; {kept:.0%} of the adapter's update was made"
            f"{_explained(exact, before, found, error, wrong)}"
        )
    return WeightComparison(name, equal, kept, energy, failure)


def _explained(exact: Tensor, before: Tensor, found: Tensor, error: Tensor, wrong: Tensor) -> str:
    """What would explain every value of a wrong merge, as the end of a sentence.

    Tried are multiples of the update, each value within one rounding more; what none explains is told by its size.
    """
    if found.equal(before.to(found.dtype)):
        return ": it was left out"
    change, unit = exact - before, UNIT_ROUNDOFF[str(found.dtype)]
    factor = float(((found.double() - before) * change).sum() / change.square().sum())
    for multiple, words in ((2.0, "it was added twice"), (factor, f"it was scaled by {factor:.4g}")):
        wanted = before + multiple * change
        slack = max(1.0, abs(multiple)) * error + unit * wanted.abs()
        if ((wanted - slack).to(found.dtype) <= found).all() and (found <= (wanted + slack).to(found.dtype)).all():
            return f": {words}"
    if float(wrong.double().mean()) > MOST:
        off = float((found.double() - exact).norm() / exact.norm())
        return f"; all of it is off, by {off:.2%} of its norm: another base, or one that was quantized on the way"
    return ""
