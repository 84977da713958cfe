"""resize_adapter: a LoRA adapter with another rank for every weight, and the same scaling."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftkit.architecture.peft.adapter_edits import find_edits
from graftkit.architecture.peft.edits import Factors
from graftkit.architecture.skeleton import build_skeleton
from graftkit.checkpoint.adapter import Adapter, adapter_digests, open_adapter
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.computed import TensorGroup
from graftkit.checkpoint.reading import torch_dtype
from graftkit.checkpoint.tensors import LazyTensor
from graftkit.errors import InputRejected, RecipeError, plural, printable
from graftkit.initializers.combination import join_experts
from graftkit.initializers.seeding import generator_for
from graftkit.operations.adapters.base import check_base, written_config
from graftkit.operations.adapters.change_rank import to_rank
from graftkit.operations.adapters.growth import edits_on
from graftkit.operations.adapters.pattern_notes import pattern_notes
from graftkit.operations.adapters.read_factors import read_factors
from graftkit.operations.adapters.scaling import alpha_for
from graftkit.operations.base import Context, Outcome
from graftkit.recipe import ResizeAdapter
from graftkit.verification.adapters.resized import ResizeCheck
from graftkit.verification.promises import Promise, PromiseClass

if TYPE_CHECKING:
    from torch import Tensor

    from graftkit.architecture.peft.edits import Edit


def resize_adapter(spec: ResizeAdapter, checkpoint: Checkpoint, context: Context) -> Outcome:
    """Return the adapter with rank ``spec.r`` everywhere; the base is left as it is.

    Raises:
        InputRejected: base and adapter do not fit, or peft converts the adapter when it loads it.
        RecipeError: every weight has that rank already.
    """
    adapter, shown = open_adapter(spec.adapter), printable(spec.adapter)
    skeleton = build_skeleton(checkpoint.config)
    check_base(skeleton, checkpoint)
    folder = Path(spec.adapter).resolve()
    edits = edits_on(skeleton, checkpoint, adapter, folder, shown)
    pairs = [edit for edit in edits if isinstance(edit, Factors)]
    names = {id(tensor): name for name, tensor in adapter.tensors.items()}
    if any(id(pair.a) not in names for pair in pairs):
        raise InputRejected(f"{shown}: peft converts it when it loads it; load and save it once with peft")
    ranks = Counter(pair.rank for pair in pairs)
    if ranks.keys() <= {spec.r}:
        raise RecipeError(f"every weight of the adapter has rank {spec.r} already", field="r")
    resizer = Resizer(spec.r, (context.seed, context.place), shown)
    tensors: dict[str, LazyTensor] = dict(adapter.tensors)
    for pair in pairs:
        if pair.rank != spec.r:
            tensors[names[id(pair.a)]], tensors[names[id(pair.b)]] = resizer.resized(pair)
    config = written_config({**adapter.config, **_fields(pairs, spec.r, adapter.config)}, checkpoint, context)
    resized = Adapter(config, tensors)
    _check_scaling(pairs, find_edits(build_skeleton(checkpoint.config), resized, shown), shown)
    shrinks = max(ranks) > spec.r
    return Outcome(
        checkpoint,
        _promise(shrinks=shrinks),
        (*_notes(ranks, spec.r), *pattern_notes(adapter.config, pairs)),
        adapter=resized,
        checks=(ResizeCheck(folder),),
        figures=lambda: {"adapter": spec.adapter, **adapter_digests(folder), "lost_energy": dict(resizer.lost)},
    )


@dataclass
class Resizer:
    """Makes both factors of a weight at once. ``lost`` gives energy by weight.

    ``shown`` names the adapter in errors.
    """

    rank: int
    seed: tuple[int, int]
    shown: str
    lost: dict[str, float] = field(default_factory=dict)

    def resized(self, pair: Factors) -> tuple[LazyTensor, LazyTensor]:
        """Lazy factors of the new rank in the dtypes of the old ones."""
        a = (self.rank * pair.experts, pair.a.shape[1])
        b = (pair.b.shape[0], self.rank * pair.experts)
        both = TensorGroup(lambda: self._make(pair))
        return both.tensor(0, pair.a.dtype, a), both.tensor(1, pair.b.dtype, b)

    def _make(self, pair: Factors) -> tuple[Tensor, Tensor]:
        """*Shapes:* ``a`` ``(experts·r, in)``, ``b`` ``(out, r·experts)``, as peft stores them.

        Raises:
            InputRejected: a value is not finite.
        """
        generator = generator_for(*self.seed, pair.weight)
        made = [to_rank(*factors, self.rank, generator) for factors in read_factors(pair, self.shown)]
        if self.rank < pair.rank:
            self.lost[pair.weight] = max(lost for *_, lost in made)
        new_a, new_b = join_experts([(a, b) for a, b, _ in made])
        return new_a.to(torch_dtype(pair.a.dtype)), new_b.to(torch_dtype(pair.b.dtype))


def _fields(pairs: list[Factors], rank: int, config: Mapping[str, Any]) -> dict[str, Any]:
    """The rank for all, and the alphas that leave every scaling as it is: the most common for all, others by module."""
    divisor = math.sqrt(rank) if config.get("use_rslora") else rank
    alphas = {pair.weight: alpha_for(pair.scaling, divisor) for pair in pairs}
    common = Counter(alphas.values()).most_common(1)[0][0]
    pattern = {weight.removesuffix(".weight"): alpha for weight, alpha in alphas.items() if alpha != common}
    return {"r": rank, "rank_pattern": {}, "lora_alpha": common, "alpha_pattern": pattern}


def _check_scaling(before: list[Factors], edits: tuple[Edit, ...], shown: str) -> None:
    after = {edit.weight: edit.scaling for edit in edits if isinstance(edit, Factors)}
    for pair in before:
        if not math.isclose(after[pair.weight], pair.scaling, rel_tol=1e-15):
            raise InputRejected(
                f"{shown}: {printable(pair.weight)}: alpha_pattern cannot keep its scaling {pair.scaling:g} at the new rank"
            )


def _promise(*, shrinks: bool) -> Promise:
    domain = "sequences of token ids, with the adapter loaded by peft"
    if shrinks:
        return Promise(PromiseClass.ROUNDED, "the product of every weight, to the best of the new rank", domain)
    return Promise(
        PromiseClass.BITWISE,
        "the product of every weight, and all outputs",
        domain,
        ("a kernel may sum in another order when the rank changed: then within rounding",),
    )


def _notes(ranks: Counter[int], rank: int) -> Iterator[str]:
    for old, count in sorted(ranks.items()):
        changes, s = f"from rank {old} to {rank}", "s" * (count == 1)
        if old < rank:
            yield f"{plural(count, 'weight')} grow{s} {changes}: new rows of A as peft draws them, new columns of B zero"
        elif old > rank:
            yield f"{plural(count, 'weight')} shrink{s} {changes}: the nearest product, by singular values"
