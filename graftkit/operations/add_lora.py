"""add_lora: a LoRA adapter beside the base that starts as the identity; made from headers wherever no weight is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from graftkit.architecture.peft.injection import Injection
from graftkit.architecture.peft.targets import resolve
from graftkit.architecture.peft.task import task_type
from graftkit.architecture.skeleton import Skeleton, architecture_of
from graftkit.checkpoint.adapter import Adapter
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.quantization import quantization_config
from graftkit.errors import RecipeError, printable
from graftkit.operations.adapters.base import (
    Base,
    check_base,
    check_fields,
    disk_names,
    loaded_dtype,
    modules_to_save,
    trainable_tokens,
    untied,
    written_config,
)
from graftkit.operations.adapters.data_factors import DataFactors
from graftkit.operations.adapters.tensors import SAMPLED, AdapterMaker, unsuitable
from graftkit.operations.base import Context, Outcome, correspondence_of
from graftkit.recipe.add_lora import DATA_CONFIGS, DATA_INITS, AddLora
from graftkit.verification.adapters.check import AdapterCheck, Residual
from graftkit.verification.promises import EVERY_INPUT, Promise, PromiseClass, Scope

#: Fields of the operation that are not peft's.
OWN = ("op", "exact", "modules_to_save", "train_new_tokens", "examples", "config")


def add_lora(spec: AddLora, checkpoint: Checkpoint, context: Context) -> Outcome:
    """Make the adapter, and take out of the base what a spectral init moves into it.

    Raises:
        RecipeError: a target, pattern or field does not fit this base, or peft refuses.
        InputRejected: the base cannot be operated on.
    """
    _check_offered(spec, checkpoint)
    base = Base(checkpoint.config, loaded_dtype(checkpoint))
    skeleton = base()
    check_base(skeleton, checkpoint)
    fields = _fields(spec, skeleton, context)
    disk = disk_names(skeleton, checkpoint)
    injection, notes = resolve(base, fields, skeleton)
    _check_rows(injection, skeleton)
    tie_notes: tuple[str, ...] = ()
    if not fields.get("ensure_weight_tying"):
        checkpoint, tie_notes = untied(checkpoint, skeleton, _trained(injection))
    if tie_notes:
        base = Base(checkpoint.config, base.dtype)
        skeleton = base()
        disk = disk_names(skeleton, checkpoint)
        injection, notes = resolve(base, fields, skeleton)
    halves = 2 if spec.exact else 1
    if spec.init_lora_weights not in SAMPLED:
        reasons = list(unsuitable(injection, disk, checkpoint, halves, spec.init_lora_weights))
        if reasons:
            more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
            raise RecipeError(f"{spec.init_lora_weights}: {reasons[0]}{more}", field="init_lora_weights")
    seed = (context.seed, context.place)
    data = None
    if spec.init_lora_weights in DATA_INITS:
        data = DataFactors(spec, checkpoint, base, tuple(target.module for target in injection.targets), seed)
    maker = AdapterMaker(checkpoint, injection, disk, spec.init_lora_weights, spec.exact, seed, data)
    tensors = maker.tensors()
    before = checkpoint
    takes_out = spec.spectral and not spec.exact and spec.init_lora_weights != "orthogonal"
    if takes_out:
        residuals = {disk[target.weight]: maker.residual(target) for target in injection.targets}
        checkpoint = checkpoint.with_tensors(residuals)
    adapter = Adapter(_config(spec, injection, checkpoint, context), tensors)
    check = AdapterCheck(_strength(spec))
    if takes_out:
        residual = _residual(context)
        check = AdapterCheck(_strength(spec), residual, None if residual.from_source else before)
    return Outcome(
        checkpoint,
        _promise(spec),
        (*_notes(spec, injection), *notes, *tie_notes),
        adapter=adapter,
        scope=Scope.NOTHING if takes_out else Scope.EVERYTHING,
        checks=(check,),
        prepare=data.run if data else None,
        reads_weights=maker.reads_weights,
    )


def _check_offered(spec: AddLora, checkpoint: Checkpoint) -> None:
    kind = str(spec.init_lora_weights)
    if quantization_config(checkpoint.config) and (spec.init_lora_weights not in SAMPLED or spec.use_dora):
        field = "use_dora" if spec.use_dora else "init_lora_weights"
        what = "" if spec.use_dora else f"{kind} "
        raise RecipeError(f"{what}needs the weights, and the base is quantized; true starts without", field=field)
    if kind == "loftq":
        raise RecipeError(
            "loftq quantizes the base while it makes the adapter, by bitsandbytes on a"
            " GPU, and no quantized base is written here; pissa on the same targets makes the quantization error small, too",
            field="init_lora_weights",
        )
    if kind == "orthogonal" and any(rank % 2 for rank in (spec.r, *spec.rank_pattern.values())):
        raise RecipeError("orthogonal takes even ranks alone", field="init_lora_weights")
    if not isinstance(spec.init_lora_weights, bool) and kind != "gaussian" and spec.use_dora:
        raise RecipeError(f"starts as the identity from B = 0, not from {kind}", field="use_dora")


def _new_blocks(context: Context) -> list[int]:
    blocks = correspondence_of(context.earlier).blocks
    if blocks is None or not blocks.fresh:
        raise RecipeError("no operation before this one makes a block", field="layers_to_transform")
    return list(blocks.fresh)


def _fields(spec: AddLora, skeleton: Skeleton, context: Context) -> dict[str, Any]:
    """The fields of LoraConfig; the init is left to the maker, since it changes neither names nor shapes."""
    written = spec.plain_fields()
    fields = {name: value for name, value in written.items() if name not in OWN}
    others: Any = written.get("config") or {}
    check_fields("LORA", others, AddLora.model_fields)
    fields |= {name: value for name, value in others.items() if name not in DATA_CONFIGS.values()}
    fields["task_type"] = spec.task_type or task_type(architecture_of({"architectures": [skeleton.architecture]}))
    fields["init_lora_weights"] = True
    if fields.get("layers_to_transform") == "new":
        fields["layers_to_transform"] = _new_blocks(context)
    saved = modules_to_save(spec.modules_to_save, skeleton, context)
    if saved:
        fields["modules_to_save"] = saved
    if spec.train_new_tokens and "trainable_token_indices" not in fields:
        tokens = trainable_tokens(skeleton, context)
        if tokens:
            fields["trainable_token_indices"] = tokens
    if spec.exact:
        fields |= _doubled(fields)
    return fields


def _doubled(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Twice the ranks, and alphas that leave every scaling as it is."""
    factor = 2**0.5 if fields.get("use_rslora") else 2
    return {
        "r": 2 * fields["r"],
        "lora_alpha": factor * fields["lora_alpha"],
        "rank_pattern": {name: 2 * rank for name, rank in (fields.get("rank_pattern") or {}).items()},
        "alpha_pattern": {name: factor * alpha for name, alpha in (fields.get("alpha_pattern") or {}).items()},
    }


def _residual(context: Context) -> Residual:
    """What base and adapter together are compared with: the source, unless its outputs were changed on purpose before."""
    scopes = [outcome.scope for outcome in context.earlier]
    if any(Scope.MEASURE in scope or Scope.NOTHING in scope for scope in scopes):
        return Residual(from_source=False)
    return Residual(correspondence_of(context.earlier), any(Scope.BACKBONE in scope for scope in scopes))


def _check_rows(injection: Injection, skeleton: Skeleton) -> None:
    for entry in injection.entries.values():
        rows = skeleton.shapes[entry.weight][0] if entry.role == "tokens" else 0
        outside = [row for row in entry.rows if not 0 <= row < rows]
        if outside:
            raise RecipeError(
                f"{outside[0]} is no row of {printable(entry.weight)}, which has {rows}",
                field="trainable_token_indices",
            )


def _trained(injection: Injection) -> frozenset[str]:
    """Names in memory of the tables and matrices that are trained in one place: targets, and modules saved whole."""
    copies = {entry.weight for entry in injection.entries.values() if entry.role == "copy"}
    return frozenset({target.weight for target in injection.targets} | copies)


def _config(spec: AddLora, injection: Injection, checkpoint: Checkpoint, context: Context) -> dict[str, Any]:
    """adapter_config.json, with the base that it is loaded on."""
    init = spec.init_lora_weights if spec.init_lora_weights in (*SAMPLED, "mica") else True
    return written_config({**injection.config, "init_lora_weights": init}, checkpoint, context)


def _strength(spec: AddLora) -> PromiseClass:
    if spec.exact:
        return PromiseClass.EXACT
    return PromiseClass.ROUNDED if spec.spectral or spec.use_dora else PromiseClass.BITWISE


def _promise(spec: AddLora) -> Promise:
    strength = _strength(spec)
    assumptions = {
        PromiseClass.BITWISE: ("also after merging",),
        PromiseClass.EXACT: ("the two halves of the adapter cancel in one product, up to the order of summation",),
        PromiseClass.ROUNDED: (
            "norms are divided by themselves" if spec.use_dora else "weights and factors are rounded to what is stored",
        ),
    }[strength]
    return Promise(strength, "every output of the base with the adapter", EVERY_INPUT, assumptions)


def _notes(spec: AddLora, injection: Injection) -> Iterator[str]:
    yield f"{len(injection.targets)} targets, rank {spec.r}" + (", twice in the file (exact)" if spec.exact else "")
    roles = [entry for entry in injection.entries.values() if entry.role == "tokens"]
    if roles:
        yield f"{len(roles[0].rows)} new rows are trained in {', '.join(entry.weight for entry in roles)}"
    saved = sorted({e.weight.rpartition(".")[0] for e in injection.entries.values() if e.role == "copy"})
    if saved:
        yield f"trained whole: {', '.join(saved[:4])}"
