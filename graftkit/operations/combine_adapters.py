"""combine_adapters: one LoRA adapter of several, each with a weight."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from graftkit.architecture.peft.adapter_edits import find_edits
from graftkit.architecture.peft.edits import Factors
from graftkit.architecture.peft.injection import inject, skeleton_of
from graftkit.architecture.skeleton import Skeleton, build_skeleton
from graftkit.checkpoint.adapter import Adapter, adapter_digests
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.errors import InputRejected, RecipeError, few, plural, printable
from graftkit.initializers.combination import Combination
from graftkit.operations.adapters.base import check_base, loaded_dtype, written_config
from graftkit.operations.adapters.combined_tensors import CombinedTensors, CombinedWeight, combined_weights
from graftkit.operations.adapters.origin import refuse_other_base
from graftkit.operations.adapters.pattern_notes import pattern_notes
from graftkit.operations.adapters.scaling import alpha_for
from graftkit.operations.adapters.source_adapter import SourceAdapter, open_sources, origins
from graftkit.operations.adapters.target_names import target_names
from graftkit.operations.adapters.values_that_stay import FIELDS, holder_of_values, values_of
from graftkit.operations.base import Context, Outcome
from graftkit.recipe import CombineAdapters
from graftkit.verification.adapters.combined import CombineCheck, Source
from graftkit.verification.promises import Promise, PromiseClass


def combine_adapters(spec: CombineAdapters, checkpoint: Checkpoint, context: Context) -> Outcome:
    """Return one adapter of those that ``spec`` names; the base is left as it is.

    Raises:
        InputRejected: base and adapters do not fit, one was made for another base and ``spec.base`` does not accept that, or what
            they train does not add.
        RecipeError: nothing would change, or the combination does not fit the ranks.
    """
    check_base(build_skeleton(checkpoint.config), checkpoint)
    sources = open_sources(spec.adapters, checkpoint)
    combination = Combination(
        spec.combination, spec.density, spec.majority_sign_method or "total", (context.seed, context.place)
    )
    _check_change(spec)
    _check_sum(sources, combination)
    assumed = tuple(_check_origins(spec, sources, checkpoint, weights=False))
    holder = holder_of_values(sources)
    combined = combined_weights(sources, combination, spec.svd_rank)
    if not combined:
        raise InputRejected(f"{sources[0].shown}: holds no low-rank update, so that there is nothing to combine")
    made = CombinedTensors(combination)
    fields = _fields(combined, sources, holder, build_skeleton(checkpoint.config))
    injection = inject(skeleton_of(checkpoint.config, loaded_dtype(checkpoint)), fields)
    _check_targets(combined, [target.weight for target in injection.targets])
    tensors = dict(made.of(injection, combined)) | (dict(values_of(holder)) if holder else {})
    adapter = Adapter(written_config(injection.config, checkpoint, context), tensors)
    _check_forms(combined, adapter, checkpoint)
    return Outcome(
        checkpoint,
        _promise(combination, combined, assumed),
        tuple(_notes(sources, combination, combined, holder)),
        adapter=adapter,
        checks=(CombineCheck(tuple(Source(source.folder, source.weight) for source in sources), combination),),
        prepare=lambda _: _refuse_others(spec, sources, checkpoint),
        figures=lambda: {
            "adapters": [
                {"adapter": one.path, "weight": one.weight, **adapter_digests(source.folder)}
                for one, source in zip(spec.adapters, sources, strict=True)
            ],
            "lost_energy": dict(made.lost),
        },
    )


def _check_change(spec: CombineAdapters) -> None:
    if len(spec.adapters) == 1 and spec.adapters[0].weight == 1 and spec.combination == "cat":
        raise RecipeError("one adapter with the weight 1 is what it was", field="adapters")


def _check_sum(sources: Sequence[SourceAdapter], combination: Combination) -> None:
    """Refuse DoRA where it is no sum, and biases that peft's own arithmetic would drop.

    Raises:
        InputRejected: an adapter has magnitudes and is not taken as it is, or biases and the combination is no sum.
    """
    dora = [source for source in sources if any(pair.magnitude is not None for pair in source.factors.values())]
    if dora and (why := _why_no_dora(dora, sources, combination)):
        raise InputRejected(
            f"{dora[0].shown}: is DoRA, whose update is divided by the norm of base and update, so that it adds to no other, and"
            f" {why}; merge it into the base first"
        )
    for source in sources:
        if source.shifts and not combination.is_sum:
            raise InputRejected(
                f"{source.shown}: lora_bias: peft's {combination.kind} leaves biases out; take cat or svd, which add them"
            )


def _why_no_dora(dora: Sequence[SourceAdapter], sources: Sequence[SourceAdapter], combination: Combination) -> str:
    """Why adapters of which some are DoRA cannot be taken as they are; empty where they can."""
    counts = Counter(weight for source in sources for weight in source.factors)
    if shared := sorted(weight for weight, count in counts.items() if count > 1):
        return f"{few(shared)} is adapted by more than one"
    if len(dora) < len(sources):
        return "the others have no magnitudes"
    if any(source.weight != 1 for source in sources):
        return "a weight is not 1"
    return "" if combination.kind == "cat" else f"{combination.kind} makes other factors"


def _check_origins(
    spec: CombineAdapters, sources: Sequence[SourceAdapter], checkpoint: Checkpoint, *, weights: bool
) -> Iterator[str]:
    """Yield what is not known of the base that an adapter was made for; the base's weights are read only with ``weights``.

    Raises:
        InputRejected: it was made for another one, and ``spec.base`` does not accept that.
    """
    for source, origin in zip(sources, origins(sources, checkpoint, weights=weights), strict=True):
        if spec.base == "accept":
            found = f": {origin.different[0]}" if origin.different else ""
            yield f"the base was accepted without asking whether {source.shown} was made for it{found}"
            continue
        refuse_other_base(origin, source.shown)
        if not origin.known_by:
            yield f"{source.shown} was made for this base: {origin.unknown}"


def _refuse_others(spec: CombineAdapters, sources: Sequence[SourceAdapter], checkpoint: Checkpoint) -> None:
    tuple(_check_origins(spec, sources, checkpoint, weights=spec.base == "check"))


def _fields(
    combined: Sequence[CombinedWeight],
    sources: Sequence[SourceAdapter],
    holder: SourceAdapter | None,
    skeleton: Skeleton,
) -> dict[str, Any]:
    """The fields of LoraConfig: what is most common for all, other ranks and alphas by the name of what they are for."""
    ranks = {_key(one): one.rank for one in combined}
    alphas = {_key(one): alpha_for(one.scaling, one.rank) for one in combined}
    (rank, alpha), _ = Counter((ranks[key], alphas[key]) for key in ranks).most_common(1)[0]
    modules = {_key(one) for one in combined if _is_module(one, skeleton)}
    dropouts = {source.adapter.config.get("lora_dropout") or 0.0 for source in sources}
    fields: dict[str, Any] = {
        "task_type": _task_type(sources),
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {key: value for key, value in ranks.items() if value != rank},
        "alpha_pattern": {key: value for key, value in alphas.items() if value != alpha},
        "target_modules": sorted(target_names(modules, skeleton)),
        "target_parameters": sorted(key for key in ranks if key not in modules) or None,
        "lora_dropout": dropouts.pop() if len(dropouts) == 1 else 0.0,
        "use_dora": any(pair.magnitude is not None for one in combined for pair in one.pairs),
        "lora_bias": any(source.shifts for source in sources),
    }
    if holder is not None:
        fields |= {field: holder.adapter.config[field] for field in FIELDS if holder.adapter.config.get(field)}
    return fields


def _key(one: CombinedWeight) -> str:
    return one.weight.removesuffix(".weight")


def _is_module(one: CombinedWeight, skeleton: Skeleton) -> bool:
    """Whether peft adapts the layer that the weight belongs to, and not the parameter, such as one of fused experts."""
    import torch
    from transformers.pytorch_utils import Conv1D

    owner, _, leaf = one.weight.rpartition(".")
    kinds = (torch.nn.Linear, torch.nn.Embedding, Conv1D)
    return leaf == "weight" and isinstance(skeleton.model.get_submodule(owner), kinds)


def _task_type(sources: Sequence[SourceAdapter]) -> str | None:
    found = {str(kind) for source in sources if (kind := source.adapter.config.get("task_type"))}
    if len(found) > 1:
        raise InputRejected(f"adapter_config.json: task_type is {' and '.join(map(printable, sorted(found)))}")
    return found.pop() if found else None


def _check_targets(combined: Sequence[CombinedWeight], found: Collection[str]) -> None:
    """Refuse where peft's names of targets reach other weights than those that are adapted."""
    if other := {one.weight for one in combined} ^ set(found):
        raise InputRejected(f"peft cannot tell {few(other)} from the other targets by name")


def _check_forms(combined: Sequence[CombinedWeight], adapter: Adapter, checkpoint: Checkpoint) -> None:
    """Let peft load the result, and refuse where a rank or a scaling is not the one that is meant."""
    edits = find_edits(build_skeleton(checkpoint.config), adapter, "the combination")
    found = {edit.weight: edit for edit in edits if isinstance(edit, Factors)}
    for one in combined:
        edit = found[one.weight]
        if edit.rank != one.rank or not math.isclose(edit.scaling, one.scaling, rel_tol=1e-15):
            raise InputRejected(
                f"{printable(one.weight)}: rank_pattern and alpha_pattern cannot give it rank {one.rank} and scaling"
                f" {one.scaling:g}"
            )


def _promise(combination: Combination, combined: Sequence[CombinedWeight], assumed: tuple[str, ...]) -> Promise:
    domain = "sequences of token ids, with the adapter loaded by peft"
    if not combination.is_sum:
        observable = f"the factors of peft's {combination.kind}, which are those of no sum"
        return Promise(PromiseClass.INTENTIONAL, observable, domain, assumed)
    wanted = "the weighted sum of the products of every weight"
    if combination.chooses_rank:
        return Promise(PromiseClass.ROUNDED, f"{wanted}, to the best of its rank", domain, assumed)
    if all(one.exact for one in combined):
        return Promise(PromiseClass.EXACT, wanted, domain, ("a kernel may sum in another order", *assumed))
    rounded = "factors are rounded once where what they are multiplied with is no power of two"
    return Promise(PromiseClass.ROUNDED, wanted, domain, (rounded, *assumed))


def _notes(
    sources: Sequence[SourceAdapter],
    combination: Combination,
    combined: Sequence[CombinedWeight],
    holder: SourceAdapter | None,
) -> Iterator[str]:
    ranks = sorted({one.rank for one in combined})
    shown = f"{ranks[0]}" if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
    yield f"{plural(len(combined), 'weight')} of {plural(len(sources), 'adapter')} by {combination.kind}, rank {shown}"
    for source in sources:
        alone = [one for one in combined if one.sources == (source,)]
        if alone and len(sources) > 1:
            yield f"{source.shown} alone adapts {plural(len(alone), 'weight')}"
    if combination.kind == "linear":
        yield "linear adds A to A and B to B: each A meets the B of all, and the product is not the weighted sum; cat and svd give that"
    if holder is not None:
        values = few(sorted({edit.weight for edit in holder.values.values()}))
        yield f"{values}: the whole values of {holder.shown}"
    for source in sources:
        for note in (*pattern_notes(source.adapter.config, source.edits), *source.left):
            yield f"{source.shown}: {note}"
