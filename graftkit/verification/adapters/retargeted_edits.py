"""What an adapter does to each weight, beside what the same adapter with another class's names does to that weight there."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from graftkit.architecture.peft.edits import Edit, Factors
from graftkit.architecture.peft.equal_edits import equal_edits
from graftkit.checkpoint.reading import read_tensor
from graftkit.errors import printable

if TYPE_CHECKING:
    from torch import Tensor

    from graftkit.architecture.peft.places import Places
    from graftkit.architecture.skeleton import Skeleton

#: Columns of a product that are formed at a time.
COLUMNS = 64


def unlike_edits(
    old: Iterable[Edit], new: Iterable[Edit], places: Places, tied: Mapping[str, str]
) -> Iterator[str]:  # fmt: skip
    """Yield a sentence for each weight to which ``new`` does not do what ``old`` does in its place, by bytes.

    ``tied`` are the ties of the class: what is done to one weight may be done to the one tied to it. Weights that are converted,
    not only renamed, are left to :func:`unlike_products`.
    """
    joined = {places.modules[path] for path in places.converted}
    wanted = _by_weight(edit for edit in old if _module(edit) not in places.converted)
    found = _by_weight(edit for edit in new if edit.weight not in joined)
    names = {places.weight(weight): weight for weight in wanted}
    for name, weight in names.items():
        if name not in found:
            yield f"nothing is done to {printable(name)!r}"
        elif not equal_edits(wanted[weight], found[name]):
            yield f"{printable(name)!r} gets something else than {printable(weight)!r} got"
    for name in found.keys() - names.keys():
        other = next((a if b == name else b for a, b in tied.items() if name in (a, b)), "")
        if other not in found or not equal_edits(found[name], found[other]):
            yield f"{printable(name)!r} is changed too"


def _module(edit: Edit) -> str:
    return edit.weight.rpartition(".")[0]


def _by_weight(edits: Iterable[Edit]) -> dict[str, tuple[Edit, ...]]:
    found: dict[str, list[Edit]] = defaultdict(list)
    for edit in edits:
        found[edit.weight].append(edit)
    return {weight: tuple(some) for weight, some in found.items()}


def unlike_products(old: Iterable[Edit], new: Iterable[Edit], places: Places, skeleton: Skeleton) -> Iterator[str]:
    """Yield a sentence for each joined weight whose product is not what the loader would join the old products to.

    Both are summed in float64, direction by direction, so that directions that are zero change no bit.
    """
    parts = {edit.weight: edit for edit in old if isinstance(edit, Factors) and _module(edit) in places.converted}
    held = {edit.weight: edit for edit in new if isinstance(edit, Factors)}
    if not parts:
        return
    conversions = skeleton.memory_names(parts).conversions
    left = set(parts)
    for name, conversion in conversions.items():
        left -= conversion.patterns.keys()
        if name not in held:
            yield f"nothing is done to {printable(name)!r}"
        elif not _same_products(name, conversion, parts, held[name], skeleton):
            yield f"the product of {printable(name)!r} is not that of the weights which it joins"
    yield from (f"{printable(name)!r} got a product and is joined to no weight" for name in sorted(left))


def _same_products(name: str, conversion: Any, parts: Mapping[str, Factors], new: Factors, skeleton: Skeleton) -> bool:
    width = read_tensor(new.a).shape[1]
    for start in range(0, width, COLUMNS):
        columns = slice(start, start + COLUMNS)
        converter = copy.deepcopy(conversion.converter)
        for disk, pattern in conversion.patterns.items():
            converter.add_tensor(name, disk, pattern, _products(parts[disk], columns)[0])
        made = converter.convert(name, model=skeleton.model, config=skeleton.model.config)
        if not _equal(made[name], _products(new, columns)):
            return False
    return True


def _equal(made: Any, products: Tensor) -> bool:
    joined = made[0] if isinstance(made, list) else made
    return joined.shape == products.shape and bool(joined.equal(products))


def _products(edit: Factors, columns: slice) -> Tensor:
    """``scaling·B·A`` of each expert as it lies in the weight, the inputs ``columns`` of it: ``(experts, ., .)`` in float64."""
    import torch

    a = read_tensor(edit.a).double()
    b = read_tensor(edit.b).double()
    a, b = a.reshape(edit.experts, -1, a.shape[-1])[..., columns], b.reshape(b.shape[0], -1, edit.experts)
    total = torch.zeros(edit.experts, b.shape[0], a.shape[-1], dtype=torch.float64)
    for direction in range(a.shape[1]):
        total += b[:, direction].T[:, :, None] * a[:, direction][:, None, :]
    total *= edit.scaling
    return total.transpose(1, 2) if edit.layout.endswith("transposed") else total
