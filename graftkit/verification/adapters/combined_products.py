"""The products of a combined adapter beside what the combination makes of those of its sources, weight by weight."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graftkit.architecture.peft.adapter_edits import find_edits
from graftkit.architecture.peft.edits import BiasShift, Edit, Factors, Replaced, TokenRows
from graftkit.architecture.peft.equal_edits import equal_edits
from graftkit.architecture.peft.replaced import without_base_values
from graftkit.architecture.skeleton import build_skeleton
from graftkit.checkpoint.adapter import AdapterPlace, adapter_at
from graftkit.checkpoint.reading import equal_bytes, read_tensor, torch_dtype
from graftkit.errors import few, printable
from graftkit.initializers.combination import Combination, Update, exact_multiplier, stacked
from graftkit.running.place import Place, open_place
from graftkit.verification.adapters.factor_rounding import WIDE, stored, underflow
from graftkit.verification.adapters.product_loss import product_loss
from graftkit.verification.adapters.resized_products import Product

if TYPE_CHECKING:
    from torch import Tensor

#: By weight, the products of each source that adapts it, one for each expert, and what that source's updates are multiplied with.
SourceProducts = Mapping[str, Sequence[tuple[Sequence[Product], float]]]


@dataclass(frozen=True, slots=True)
class CombinedProduct:
    """One weight. ``off_sum`` is how far its product is off the weighted sum, relative to that sum.

    ``lost`` is the share of energy that is lost of what the combination aims at, ``least`` what any factors of its rank lose.
    ``exact`` says that no factor had to be rounded.
    """

    name: str
    off_sum: float
    lost: float
    least: float
    exact: bool
    failure: str


def by_weight(found: Sequence[tuple[Mapping[str, list[Product]], float]]) -> SourceProducts:
    """Sort the products of each source, which come with its weight, by what they adapt."""
    weights = dict.fromkeys(weight for products, _ in found for weight in products)
    return {
        weight: [(products[weight], times) for products, times in found if weight in products] for weight in weights
    }


def compare_combined(
    sources: SourceProducts, new: Mapping[str, list[Product]], combination: Combination
) -> Iterator[CombinedProduct]:
    """Compare weight by weight; of several experts, the one that fails or is farthest off."""
    for weight, parts in sources.items():
        name = weight.removesuffix(".weight")
        if weight not in new:
            failure = f"products: {printable(name)!r} is adapted by a source and not by the combination"
            yield CombinedProduct(name, 1.0, 1.0, 0.0, exact=False, failure=failure)
            continue
        experts = [
            _compare(weight, expert, [(products[expert], times) for products, times in parts], one, combination)
            for expert, one in enumerate(new[weight])
        ]
        yield max(experts, key=lambda one: (bool(one.failure), one.off_sum))
    for weight in new.keys() - sources.keys():
        name = weight.removesuffix(".weight")
        failure = f"products: {printable(name)!r} is adapted by the combination and by no source"
        yield CombinedProduct(name, 1.0, 0.0, 0.0, exact=False, failure=failure)


def _compare(
    weight: str, expert: int, parts: Sequence[tuple[Product, float]], new: Product, combination: Combination
) -> CombinedProduct:
    updates = [Update(one.a, one.b, one.scaling, times) for one, times in parts]
    ratios = [update.factor / new.scaling for update in updates] if new.scaling else []
    exact = combination.adds_ranks and bool(ratios) and all(exact_multiplier(one) is not None for one in ratios)
    rounding = underflow(new.a, new.b, new.dtypes[1]) if exact else stored(new.a, new.b, new.dtypes)
    new_b = new.b * new.scaling
    wanted = combination.factors(updates, weight, expert)
    loss = product_loss(*wanted, new.a, new_b, abs(new.scaling) * rounding)
    whole = loss if combination.is_sum else product_loss(*stacked(updates), new.a, new_b, 0.0)
    name = weight.removesuffix(".weight")
    failure = loss.failure and f"products: {printable(name)!r} {loss.failure}"
    return CombinedProduct(name, whole.lost**0.5, loss.lost, loss.must, exact=exact, failure=failure)


def other_edits(base: Place, sources: Sequence[tuple[AdapterPlace, float]], new: AdapterPlace) -> Iterator[str]:
    """Yield a sentence where heads, tables, rows of tokens, magnitudes or biases are not what the sources give."""
    found = [(_edits(base, place), times) for place, times in sources]
    made = _edits(base, new)
    yield from _values(found, made)
    yield from _magnitudes(found, made)
    yield from _biases(found, made)


def _edits(base: Place, place: AdapterPlace) -> tuple[Edit, ...]:
    checkpoint = open_place(base)
    edits = find_edits(build_skeleton(checkpoint.config), adapter_at(place), "adapter")
    return without_base_values(edits, checkpoint)


Found = Sequence[tuple[tuple[Edit, ...], float]]


def _values(found: Found, made: tuple[Edit, ...]) -> Iterator[str]:
    kinds = (Replaced, TokenRows)
    wanted = {(type(edit), edit.weight): edit for edits, _ in found for edit in edits if isinstance(edit, kinds)}
    there = {(type(edit), edit.weight): edit for edit in made if isinstance(edit, kinds)}
    wrong = [key for key in wanted.keys() & there.keys() if not equal_edits((wanted[key],), (there[key],))]
    if names := {weight for _, weight in (*wrong, *(wanted.keys() ^ there.keys()))}:
        yield f"values: {few(names)} of the combination are not the values of the source that has them"


def _magnitudes(found: Found, made: tuple[Edit, ...]) -> Iterator[str]:
    wanted, there = (
        {edit.weight: edit.magnitude for edit in edits if isinstance(edit, Factors) and edit.magnitude is not None}
        for edits in ([edit for edits, _ in found for edit in edits], made)
    )
    wrong = [name for name in wanted.keys() & there.keys() if not equal_bytes(wanted[name], there[name])]
    if names := {*wrong, *(wanted.keys() ^ there.keys())}:
        yield f"magnitudes: those of {few(names)} are not the source's"


def _biases(found: Found, made: tuple[Edit, ...]) -> Iterator[str]:
    there = {edit.weight: edit for edit in made if isinstance(edit, BiasShift)}
    for name in sorted({edit.weight for edits, _ in found for edit in edits if isinstance(edit, BiasShift)}):
        terms = [
            (_shift(edit), times)
            for edits, times in found
            for edit in edits
            if isinstance(edit, BiasShift) and edit.weight == name
        ]
        wanted: Tensor = sum(values * times for values, times in terms)  # type: ignore[assignment]
        size = sum(float(values.norm()) * abs(times) for values, times in terms)
        if name not in there:
            yield f"biases: {printable(name)} is missing in the combination"
            continue
        unit = _unit(there[name])
        off = float((_shift(there[name]) - wanted).norm())
        if not off <= (unit + (len(terms) + 2) * WIDE) * size:
            yield f"biases: {printable(name)} is {off / (size or 1.0):.3g} off the weighted sum"


def _shift(edit: BiasShift) -> Tensor:
    return read_tensor(edit.values).double() * edit.scaling


def _unit(edit: BiasShift) -> float:
    import torch

    return torch.finfo(torch_dtype(edit.values.dtype)).eps / 2
