"""The products of an adapter's factors beside those of one with another rank, weight by weight."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graftkit.architecture.peft.adapter_edits import find_edits
from graftkit.architecture.peft.edits import Factors
from graftkit.architecture.peft.parts import LoraPart, lora_parts
from graftkit.architecture.skeleton import build_skeleton
from graftkit.checkpoint.adapter import AdapterPlace, adapter_at
from graftkit.checkpoint.reading import equal_bytes, torch_dtype
from graftkit.errors import few, printable
from graftkit.running.place import Place, open_place
from graftkit.verification.adapters.factor_rounding import WIDE, stored
from graftkit.verification.adapters.product_loss import product_loss
from graftkit.verification.distribution import UNIT_ROUNDOFF

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from graftkit.checkpoint.tensors import LazyTensor


@dataclass(frozen=True, slots=True)
class ProductComparison:
    """One adapted weight: the share of its energy that is lost, the least that any factors of the new rank lose, a failure.

    ``exact`` says that the product is the same to the last bit, ``shrunk`` that the rank became smaller.
    """

    name: str
    lost: float
    least: float
    exact: bool
    shrunk: bool
    failure: str


@dataclass(frozen=True, slots=True)
class Product:
    """The factors of one expert in float64, *shapes* ``(r, in)`` and ``(out, r)``, and what is multiplied with their product.

    ``unit`` is the rounding of the dtype in which they are multiplied, ``dtypes`` are those in which they are stored.
    """

    a: Tensor
    b: Tensor
    scaling: float
    unit: float
    dtypes: tuple[torch.dtype, torch.dtype]


def products(model: nn.Module, base: Place, place: AdapterPlace) -> dict[str, list[Product]]:
    """The products of every adapted weight, one for each expert, of an adapter as peft put it on ``model``."""
    dtypes = {pair.weight: (torch_dtype(pair.a.dtype), torch_dtype(pair.b.dtype)) for pair in _pairs(base, place)}
    return {part.weight: list(_experts(part, dtypes[part.weight])) for part in lora_parts(model)}


def compare_products(old: Mapping[str, list[Product]], new: Mapping[str, list[Product]]) -> Iterator[ProductComparison]:
    """Compare weight by weight; of several experts, the one that fails or loses most."""
    for weight, parts in old.items():
        found = [_compare(weight.removesuffix(".weight"), *pair) for pair in zip(parts, new[weight], strict=True)]
        yield max(found, key=lambda one: (bool(one.failure), one.lost))


def changed_tensors(base: Place, old: AdapterPlace, new: AdapterPlace) -> Iterator[str]:
    """Yield a sentence where tensors that hold no factor (heads, rows of tokens, magnitudes, biases) are not byte-equal."""
    before, after = ({**adapter_at(place).tensors} for place in (old, new))
    factors = {id(tensor) for pair in _pairs(base, old, before) for tensor in (pair.a, pair.b)}
    kept = [name for name, tensor in before.items() if id(tensor) not in factors]
    changed = [name for name in kept if name not in after or not equal_bytes(before[name], after[name])]
    if before.keys() != after.keys():
        changed += before.keys() ^ after.keys()
    if changed:
        yield f"tensors: {few(set(changed))} of the adapter changed, though no rank of theirs did"


def _pairs(base: Place, place: AdapterPlace, tensors: Mapping[str, LazyTensor] | None = None) -> list[Factors]:
    adapter = adapter_at(place)
    adapter = adapter if tensors is None else dataclasses.replace(adapter, tensors=tensors)
    skeleton = build_skeleton(open_place(base).config)
    return [edit for edit in find_edits(skeleton, adapter, "adapter") if isinstance(edit, Factors)]


def _experts(part: LoraPart, dtypes: tuple[torch.dtype, torch.dtype]) -> Iterator[Product]:
    a, b = part.wide_factors()
    wide_a, wide_b = a.reshape(part.experts, -1, a.shape[1]), b.reshape(b.shape[0], -1, part.experts)
    unit = UNIT_ROUNDOFF[str(part.a.dtype)]
    for expert in range(part.experts):
        yield Product(wide_a[expert], wide_b[..., expert], part.scaling, unit, dtypes)


def _same(old: Product, new: Product) -> bool:
    """Whether the old directions are there to the last bit, and all others are zero on one side.

    A scaling is the quotient of two numbers: it may differ by the rounding of both.
    """
    rank = len(old.a)
    return (
        abs(new.scaling - old.scaling) <= 2 * WIDE * abs(old.scaling)
        and new.a[:rank].equal(old.a)
        and new.b[:, :rank].equal(old.b)
        and not new.b[:, rank:].any()
    )


def _compare(name: str, old: Product, new: Product) -> ProductComparison:
    """Hold what is lost, as a norm, to the least that must be, and to what rounding adds: the stored factors, and this sum."""
    shrunk = len(new.a) < len(old.a)
    if not shrunk and _same(old, new):
        return ProductComparison(name, 0.0, 0.0, exact=True, shrunk=False, failure="")
    rounding = abs(new.scaling) * stored(new.a, new.b, new.dtypes)
    loss = product_loss(old.a, old.b * old.scaling, new.a, new.b * new.scaling, rounding)
    failure = loss.failure if shrunk else loss.sentence
    failure = failure and f"products: {printable(name)!r} {failure}"
    return ProductComparison(name, loss.lost, loss.must, exact=False, shrunk=shrunk, failure=failure)
