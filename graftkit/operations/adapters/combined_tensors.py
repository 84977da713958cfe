"""The tensors of several adapters made one: each weight's factors, lazily, in the widest dtype of their sources."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from graftkit.architecture.peft.edits import Factors
from graftkit.architecture.peft.injection import Entry, Injection
from graftkit.checkpoint.computed import TensorGroup, computed
from graftkit.checkpoint.reading import read_tensor, torch_dtype
from graftkit.checkpoint.tensors import LazyTensor, Zeros
from graftkit.errors import InputRejected, RecipeError, printable
from graftkit.initializers.combination import Combination, Update, exact_multiplier, join_experts
from graftkit.initializers.seeding import generator_for
from graftkit.operations.adapters.change_rank import to_rank
from graftkit.operations.adapters.read_factors import read_factors
from graftkit.operations.adapters.source_adapter import SourceAdapter

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class CombinedWeight:
    """One weight of the base: who adapts it, and the rank and scaling of the result.

    ``multipliers`` are by source: the result's scaling times one of them is the source's weight times its scaling.
    """

    weight: str
    sources: tuple[SourceAdapter, ...]
    rank: int
    scaling: float
    multipliers: tuple[float, ...]

    @property
    def pairs(self) -> tuple[Factors, ...]:
        """Its factors, by source."""
        return tuple(source.factors[self.weight] for source in self.sources)

    @property
    def exact(self) -> bool:
        """Whether each multiplier scales a factor without rounding it."""
        return all(exact_multiplier(one) == one for one in self.multipliers)


def combined_weights(
    sources: Sequence[SourceAdapter], combination: Combination, rank: int | None
) -> tuple[CombinedWeight, ...]:
    """What becomes of every weight that one of the ``sources`` adapts; ``rank`` is the chosen one.

    Raises:
        RecipeError: the combination adds factors of two ranks.
    """
    weights = dict.fromkeys(weight for source in sources for weight in source.factors)
    return tuple(_combined(weight, sources, combination, rank) for weight in weights)


def _combined(
    weight: str, sources: Sequence[SourceAdapter], combination: Combination, rank: int | None
) -> CombinedWeight:
    adapting = tuple(source for source in sources if weight in source.factors)
    ranks = [source.factors[weight].rank for source in adapting]
    if combination.adds_ranks:
        new = sum(ranks)
    elif combination.chooses_rank:
        new = rank or max(ranks)
    elif len(set(ranks)) > 1:
        shown = ", ".join(f"{rank} in {source.shown}" for rank, source in zip(ranks, adapting, strict=True))
        raise RecipeError(
            f"{combination.kind} adds A to A and B to B, which takes equal ranks, and {printable(weight)} has rank {shown};"
            " take cat or svd, or give them one rank with resize_adapter",
            field="combination",
        )
    else:
        new = ranks[0]
    whole = [source.weight * source.factors[weight].scaling for source in adapting]
    scaling = _scaling(whole) if combination.adds_ranks else 1.0
    return CombinedWeight(weight, adapting, new, scaling, tuple(_multiplier(one / scaling) for one in whole))


def _scaling(whole: Sequence[float]) -> float:
    """The size of one of ``whole``, with which as few of the others as possible have to be rounded."""
    sizes = [abs(one) for one in whole if one] or [1.0]
    return min(sizes, key=lambda size: sum(exact_multiplier(one / size) is None for one in whole))


def _multiplier(ratio: float) -> float:
    exact = exact_multiplier(ratio)
    return ratio if exact is None else exact


@dataclass
class CombinedTensors:
    """Makes both factors of a weight at once. ``lost`` gives the share of energy that a chosen rank loses, by weight."""

    combination: Combination
    lost: dict[str, float] = field(default_factory=dict)

    def of(self, injection: Injection, combined: Sequence[CombinedWeight]) -> Iterator[tuple[str, LazyTensor]]:
        """Yield each tensor of an update, by the name and in the shape that peft gives it.

        Raises:
            InputRejected: peft gives it another shape.
        """
        by_weight = {one.weight: one for one in combined}
        groups: dict[str, dict[str, LazyTensor]] = {}
        for name, entry in injection.entries.items():
            if entry.target is None:
                continue
            one = by_weight[entry.target.weight]
            if one.weight not in groups:
                groups[one.weight] = self._tensors(one)
            tensor = groups[one.weight].get(entry.role.removeprefix("embedding_"))
            if tensor is None:  # peft gives every target a bias where one has it
                tensor = Zeros(one.pairs[0].b.dtype, entry.shape)
            _check_shape(name, entry, tensor)
            yield name, tensor

    def _tensors(self, one: CombinedWeight) -> dict[str, LazyTensor]:
        """The factors of a weight, its bias and its magnitude, by role."""
        first, pairs = one.pairs[0], one.pairs
        if first.magnitude is not None:
            return {"A": first.a, "B": first.b, "magnitude": first.magnitude, **self._bias(one)}
        if self.combination.adds_ranks and one.multipliers == (1.0,):
            return {"A": first.a, "B": first.b, **self._bias(one)}
        dtypes = [_widest([pair.a.dtype for pair in pairs]), _widest([pair.b.dtype for pair in pairs])]
        both = TensorGroup(lambda: self._make(one, dtypes))
        a = (one.rank * first.experts, first.a.shape[1])
        b = (first.b.shape[0], one.rank * first.experts)
        return {"A": both.tensor(0, dtypes[0], a), "B": both.tensor(1, dtypes[1], b), **self._bias(one)}

    def _bias(self, one: CombinedWeight) -> dict[str, LazyTensor]:
        name = f"{one.weight.removesuffix('.weight')}.bias"
        terms = [
            (source.shifts[name].values, multiplier)
            for source, multiplier in zip(one.sources, one.multipliers, strict=True)
            if name in source.shifts
        ]
        if not terms:
            return {}
        dtype = _widest([values.dtype for values, _ in terms])

        def made() -> Tensor:
            import torch

            return torch.stack([read_tensor(values).double() * times for values, times in terms]).sum(0)

        return {"bias": computed(dtype, terms[0][0].shape, made)}

    def _times(self, one: CombinedWeight) -> list[tuple[float, float]]:
        """What each source's product is multiplied with: its scaling and its weight, or both as one multiplier."""
        if self.combination.adds_ranks:
            return [(multiplier, 1.0) for multiplier in one.multipliers]
        return [(source.factors[one.weight].scaling, source.weight) for source in one.sources]

    def _make(self, one: CombinedWeight, dtypes: Sequence[str]) -> tuple[Tensor, Tensor]:
        """*Shapes:* ``a`` ``(experts·r, in)``, ``b`` ``(out, r·experts)``, as peft stores them."""
        read = [read_factors(pair, source.shown) for pair, source in zip(one.pairs, one.sources, strict=True)]
        generator = generator_for(*self.combination.seed, one.weight)
        made, losses = [], []
        for expert in range(one.pairs[0].experts):
            updates = [Update(*factors[expert], *times) for factors, times in zip(read, self._times(one), strict=True)]
            a, b, lost = to_rank(*self.combination.factors(updates, one.weight, expert), one.rank, generator)
            made.append((a, b))
            losses.append(lost)
        if self.combination.chooses_rank:
            self.lost[one.weight] = max(losses)
        a, b = join_experts(made)
        return a.to(torch_dtype(dtypes[0])), b.to(torch_dtype(dtypes[1]))


def _widest(dtypes: Sequence[str]) -> str:
    """The dtype that holds the values of all, by its safetensors tag."""
    found = set(dtypes)
    if len(found) == 1:
        return dtypes[0]
    return "F64" if "F64" in found else "F32"


def _check_shape(name: str, entry: Entry, tensor: LazyTensor) -> None:
    if entry.shape != tensor.shape:
        raise InputRejected(
            f"{printable(name)}: is {list(tensor.shape)} in the combination, and peft gives it {list(entry.shape)}; load and"
            " save the adapters once with peft"
        )
