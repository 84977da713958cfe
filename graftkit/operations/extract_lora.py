"""extract_lora: what fine-tuning changed in the linears, as an adapter; whatever else it changed is named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from graftkit.architecture.accounting import Structure, account
from graftkit.architecture.embeddings import INPUT
from graftkit.architecture.peft.adapter_edits import find_edits
from graftkit.architecture.peft.parts import PREFIX
from graftkit.architecture.skeleton import Skeleton, build_skeleton
from graftkit.checkpoint.adapter import Adapter
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.reading import equal_bytes
from graftkit.checkpoint.tensors import FLOATING, LazyTensor
from graftkit.checkpoint.tokenizer import find_tokenizer
from graftkit.checkpoint.weights_on_hub import download_weights
from graftkit.errors import InputRejected, RecipeError, few, plural, printable
from graftkit.operations.adapters.base import written_config
from graftkit.operations.adapters.growth import lines_to_grow
from graftkit.operations.adapters.target_names import target_names
from graftkit.operations.adapters.weight_difference import WeightDifference
from graftkit.operations.base import Context, Outcome, check_plain_weights
from graftkit.recipe import ExtractLora
from graftkit.verification.adapters.extracted import ExtractCheck
from graftkit.verification.promises import Promise, PromiseClass


@dataclass(frozen=True, slots=True)
class Changes:
    """What differs, by name in memory: linears by module, the tensors of modules that are stored whole, and the rest.

    ``reshaped`` gives the shapes, the base's first, of those ``others`` that have two.
    """

    linears: Mapping[str, WeightDifference]
    saved: Mapping[str, LazyTensor]
    others: tuple[str, ...]
    reshaped: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]


def extract_lora(spec: ExtractLora, checkpoint: Checkpoint, context: Context) -> Outcome:
    """Return the adapter that turns the base into the fine-tuned checkpoint. Planning reads both, to see what differs.

    Raises:
        InputRejected: the two are not of one class, something else than a linear differs, or nothing does.
        RecipeError: a name in allow_lost or modules_to_save fits nothing that differs.
    """
    download_weights(checkpoint)
    tuned = Checkpoint.open(spec.fine_tuned)
    structure, other = account(checkpoint), account(tuned)
    if structure.skeleton.architecture != other.skeleton.architecture:
        raise InputRejected(
            f"{tuned.name}: is a {other.skeleton.architecture}, the base a {structure.skeleton.architecture};"
            " give the base the same class first (replace_head)"
        )
    check_plain_weights(tuned, spec.op)
    changes = _changes(spec, checkpoint, structure, tuned, other, (context.seed, context.place))
    _refuse_shapes(spec, changes, checkpoint, structure, tuned, other)
    _refuse_loss(spec, changes, structure.skeleton)
    if not changes.linears:
        raise InputRejected(f"{tuned.name}: no linear differs from {checkpoint.name}: there is nothing to extract")
    ranks = {name: _rank(spec, difference) for name, difference in changes.linears.items()}
    tensors: dict[str, LazyTensor] = {}
    for name, difference in changes.linears.items():
        for side, tensor in zip("AB", difference.tensors(ranks[name]), strict=True):
            tensors[f"{PREFIX}{name}.lora_{side}.weight"] = tensor
    tensors |= {PREFIX + name: tensor for name, tensor in changes.saved.items()}
    config = written_config(_config(spec, changes, ranks, structure.skeleton), checkpoint, context)
    adapter = Adapter(config, dict(sorted(tensors.items())))
    find_edits(build_skeleton(checkpoint.config), adapter, "the extracted adapter")
    return Outcome(
        checkpoint,
        _promise(),
        tuple(_notes(changes, ranks)),
        adapter=adapter,
        checks=(ExtractCheck(tuned.directory, lambda: {name: one.least for name, one in changes.linears.items()}),),
        figures=lambda: {
            "ranks": ranks,
            "lost_energy": {name: difference.lost for name, difference in changes.linears.items()},
            "lost_tensors": list(changes.others),
        },
    )


def _changes(
    spec: ExtractLora,
    checkpoint: Checkpoint,
    structure: Structure,
    tuned: Checkpoint,
    other: Structure,
    seed: tuple[object, ...],
) -> Changes:
    """Compare every tensor of both, by name in memory, and sort what differs."""
    import torch
    from transformers.pytorch_utils import Conv1D

    base = {structure.memory[name].name: name for name in checkpoint.tensors}
    fused = {found.name for found in structure.memory.values() if found.converted}
    theirs = {other.memory[name].name: name for name in tuned.tensors}
    linears: dict[str, WeightDifference] = {}
    saved: dict[str, LazyTensor] = {}
    reshaped: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
    others = sorted(base.keys() ^ theirs.keys())
    for name in base.keys() & theirs.keys():
        old, new = checkpoint.tensors[base[name]], tuned.tensors[theirs[name]]
        if name not in fused and equal_bytes(old, new):
            continue
        if old.shape != new.shape:
            reshaped[name] = (old.shape, new.shape)
        owner, _, leaf = name.rpartition(".")
        module = structure.skeleton.model.get_submodule(owner) if name in structure.skeleton.shapes else None
        plain = name not in fused and old.shape == new.shape and {old.dtype, new.dtype} <= set(FLOATING)
        if plain and _named(owner, spec.modules_to_save):
            saved |= _whole(owner, structure, tuned, theirs)
        elif plain and leaf == "weight" and isinstance(module, torch.nn.Linear | Conv1D):
            linears[owner] = WeightDifference(name, old, new, isinstance(module, Conv1D), seed)
        elif name not in fused or _fused_differ(name, checkpoint, structure, tuned, other):
            others.append(name)
    return Changes(dict(sorted(linears.items())), saved, tuple(sorted(others)), reshaped)


def _whole(
    owner: str, structure: Structure, tuned: Checkpoint, theirs: Mapping[str, str]
) -> Iterator[tuple[str, LazyTensor]]:
    tied = structure.skeleton.tied
    for name in structure.skeleton.shapes:
        if name.startswith(f"{owner}."):
            if name in tied or name in tied.values():
                raise InputRejected(
                    f"modules_to_save: {printable(owner)!r} is tied; an adapter would untie it; extract_lora does not"
                )
            yield name, tuned.tensors[theirs[name]]


def _fused_differ(name: str, checkpoint: Checkpoint, structure: Structure, tuned: Checkpoint, other: Structure) -> bool:
    old, new = structure.memory.on_disk(name), other.memory.on_disk(name)
    return old != new or not all(equal_bytes(checkpoint.tensors[one], tuned.tensors[one]) for one in old)


def _named(name: str, given: tuple[str, ...]) -> bool:
    """Whether a name or the end of it, or of a module that holds it, is among those given; as peft matches names."""
    parts = name.split(".")
    heads = (".".join(parts[:stop]) for stop in range(1, len(parts) + 1))
    return any(head == one or head.endswith(f".{one}") for head in heads for one in given)


def _refuse_shapes(
    spec: ExtractLora,
    changes: Changes,
    checkpoint: Checkpoint,
    structure: Structure,
    tuned: Checkpoint,
    other: Structure,
) -> None:
    """Refuse tensors of another shape than the base's, none of which an adapter can hold; more rows can be added first."""
    tables = [one.skeleton.embedding(INPUT) for one in (structure, other)]
    rows, wanted = (0 if table is None else int(table.weight.shape[0]) for table in tables)
    lost = changes.reshaped
    if rows >= wanted:  # else there are ids that the base cannot take, so that the two cannot be run side by side
        lost = {name: shapes for name, shapes in lost.items() if not _named(name, spec.allow_lost)}
    if not lost:
        return
    way = "extract from a base of the same shapes"
    if 0 < rows < wanted:
        way = f"grow the base first, above this operation: {lines_to_grow(checkpoint, rows, wanted, find_tokenizer(tuned.documents))}"
    name, (old, new) = min(lost.items())
    raise InputRejected(
        f"{tuned.name}: another shape than in the base, in {plural(len(lost), 'tensor')} of {structure.skeleton.architecture}:"
        f" {printable(name)} is {list(new)}, in the base {list(old)}; {way}"
    )


def _refuse_loss(spec: ExtractLora, changes: Changes, skeleton: Skeleton) -> None:
    lost = [name for name in changes.others if not _named(name, spec.allow_lost)]
    if lost:
        raise RecipeError(
            f"{plural(len(lost), 'tensor')} of {skeleton.architecture} changed outside linear layers: {few(lost)}; name their modules"
            " in modules_to_save to store them whole, or in allow_lost to leave them as in the base",
            field="allow_lost",
        )
    for key, found in (("allow_lost", changes.others), ("modules_to_save", tuple(changes.saved))):
        for given in getattr(spec, key):
            if not any(_named(name, (given,)) for name in found):
                raise RecipeError(f"{printable(given)!r} names nothing that differs", field=key)


def _rank(spec: ExtractLora, difference: WeightDifference) -> int:
    if spec.energy is not None:
        return min(difference.rank_for(spec.energy), difference.largest_rank)
    return min(spec.r or 1, difference.largest_rank)


def _config(spec: ExtractLora, changes: Changes, ranks: Mapping[str, int], skeleton: Skeleton) -> dict[str, Any]:
    """What LoraConfig writes, every scaling 1: alpha is the rank."""
    from peft import LoraConfig

    common = Counter(ranks.values()).most_common(1)[0][0]
    pattern = {name: rank for name, rank in ranks.items() if rank != common}
    config = LoraConfig(
        r=common,
        lora_alpha=common,
        rank_pattern=pattern,
        alpha_pattern=dict(pattern),
        target_modules=sorted(target_names(changes.linears, skeleton)),
        modules_to_save=sorted({name.rpartition(".")[0] for name in changes.saved}) or None,
        fan_in_fan_out=any(difference.transposed for difference in changes.linears.values()),
        inference_mode=True,
    )
    del spec
    return {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}


def _promise() -> Promise:
    return Promise(
        PromiseClass.ROUNDED,
        "the difference of every linear, to the best of its rank",
        "sequences of token ids, with the adapter loaded by peft",
    )


def _notes(changes: Changes, ranks: Mapping[str, int]) -> Iterator[str]:
    low, high = min(ranks.values()), max(ranks.values())
    yield f"{plural(len(ranks), 'linear')} differ{'s' * (len(ranks) == 1)}; rank {low if low == high else f'{low} to {high}'}"
    if changes.saved:
        yield f"{plural(len(changes.saved), 'tensor')} stored whole: {few(changes.saved)}"
    if changes.others:
        one = len(changes.others) == 1
        lost = "differs and is lost" if one else "differ and are lost"
        yield f"{plural(len(changes.others), 'tensor')} {lost}, as allowed: {few(changes.others)}"
