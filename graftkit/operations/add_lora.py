"""add_lora: a LoRA adapter beside the base that starts as the identity; made from headers wherever no weight is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from graftkit.architecture.adapter_task import head_modules, task_type
from graftkit.architecture.embeddings import INPUT, OUTPUT
from graftkit.architecture.injection import Injection, skeleton_of
from graftkit.architecture.skeleton import Skeleton, architecture_of
from graftkit.architecture.targets import resolve
from graftkit.checkpoint.adapter import Adapter
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.tensors import FLOATING
from graftkit.errors import RecipeError
from graftkit.operations.adapter_base import base_fields
from graftkit.operations.adapter_tensors import SAMPLED, AdapterMaker, unsuitable
from graftkit.operations.base import Context, Outcome
from graftkit.operations.untie import untied
from graftkit.recipe.add_lora import DATA_INITS, AddLora
from graftkit.verification.adapter import AdapterCheck
from graftkit.verification.promises import EVERY_INPUT, Promise, PromiseClass, Scope

#: Fields of the operation that are not peft's.
OWN = ("op", "exact", "modules_to_save", "train_new_tokens", "examples", "config")


@dataclass(frozen=True, slots=True)
class _Base:
    """The base as it is when the adapter is made: config and the dtype that it loads in."""

    config: Mapping[str, Any]
    dtype: str

    def __call__(self) -> Skeleton:
        return skeleton_of(self.config, self.dtype)


def add_lora(spec: AddLora, checkpoint: Checkpoint, context: Context) -> Outcome:
    """Make the adapter, and take out of the base what a spectral init moves into it.

    Raises:
        RecipeError: a target, pattern or field does not fit this base, or peft refuses.
        InputRejected: the base cannot be operated on.
    """
    _check_offered(spec, checkpoint)
    base = _Base(checkpoint.config, _dtype(checkpoint))
    skeleton = base()
    fields = _fields(spec, skeleton, context)
    injection, notes = resolve(base, fields)
    tie_notes: tuple[str, ...] = ()
    if not fields.get("ensure_weight_tying"):
        checkpoint, tie_notes = untied(checkpoint, skeleton, _trained(injection))
    if tie_notes:
        base = _Base(checkpoint.config, base.dtype)
        injection, notes = resolve(base, fields)
        skeleton = base()
    disk = _disk_names(skeleton, checkpoint)
    halves = 2 if spec.exact else 1
    if spec.init_lora_weights not in SAMPLED:
        reasons = list(unsuitable(injection, disk, checkpoint, halves))
        if reasons:
            more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
            raise RecipeError(f"operations: add_lora: init_lora_weights: {spec.init_lora_weights}: {reasons[0]}{more}")
    seed = (context.seed, context.place)
    maker = AdapterMaker(checkpoint, injection, disk, spec.init_lora_weights, spec.exact, seed)
    tensors = maker.tensors()
    takes_out = spec.spectral and not spec.exact and spec.init_lora_weights != "orthogonal"
    if takes_out:
        residuals = {disk[target.weight]: maker.residual(target) for target in injection.targets}
        checkpoint = checkpoint.with_tensors(residuals)
    adapter = Adapter(_config(spec, injection, checkpoint, context), tensors)
    check = AdapterCheck(_strength(spec), residual=takes_out, vocabulary=_vocabulary(context))
    return Outcome(
        checkpoint,
        _promise(spec),
        (*_notes(spec, injection), *notes, *tie_notes),
        adapter=adapter,
        scope=Scope.NOTHING if takes_out else Scope.EVERYTHING,
        checks=(check,),
    )


def _check_offered(spec: AddLora, checkpoint: Checkpoint) -> None:
    kind = str(spec.init_lora_weights)
    if "quantization_config" in checkpoint.config and (spec.init_lora_weights not in SAMPLED or spec.use_dora):
        what = "use_dora" if spec.use_dora else f"init_lora_weights: {kind}"
        raise RecipeError(
            f"operations: add_lora: {what}: needs the weights, and the base is quantized; true starts without"
        )
    if kind in DATA_INITS:
        raise RecipeError(
            f"operations: add_lora: init_lora_weights: {kind} starts from what examples give, and no examples are run here;"
            " pissa and olora start from the weights alone"
        )
    if kind == "loftq":
        raise RecipeError(
            "operations: add_lora: init_lora_weights: loftq quantizes the base while it makes the adapter, and no quantized"
            " base is written here; pissa on the same targets makes the quantization error small, too"
        )
    if kind == "orthogonal" and any(rank % 2 for rank in (spec.r, *spec.rank_pattern.values())):
        raise RecipeError("operations: add_lora: init_lora_weights: orthogonal takes even ranks alone")
    if not isinstance(spec.init_lora_weights, bool) and kind != "gaussian" and spec.use_dora:
        raise RecipeError(f"operations: add_lora: use_dora: starts as the identity from B = 0, not from {kind}")


def _dtype(checkpoint: Checkpoint) -> str:
    """The dtype that the base loads in: the config's, else that of its first floating tensor, as the loader decides."""
    named = checkpoint.config.get("dtype") or checkpoint.config.get("torch_dtype")
    if isinstance(named, str):
        return named.removeprefix("torch.")
    names = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    return next((names[t.dtype] for t in checkpoint.tensors.values() if t.dtype in FLOATING), "float32")


def _fields(spec: AddLora, skeleton: Skeleton, context: Context) -> dict[str, Any]:
    """The fields of LoraConfig; the init is left to the maker, since it changes neither names nor shapes."""
    written = spec.plain_fields()
    fields = {name: value for name, value in written.items() if name not in OWN}
    fields |= dict(written.get("config") or {})  # type: ignore[call-overload]
    fields["task_type"] = spec.task_type or task_type(architecture_of({"architectures": [skeleton.architecture]}))
    fields["init_lora_weights"] = True
    saved = _modules_to_save(spec, skeleton, context)
    if saved:
        fields["modules_to_save"] = saved
    if spec.train_new_tokens and "trainable_token_indices" not in fields:
        tokens = _trainable_tokens(skeleton, context)
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


def _modules_to_save(spec: AddLora, skeleton: Skeleton, context: Context) -> list[str]:
    if spec.modules_to_save != "auto":
        return list(spec.modules_to_save or ())
    new = [module for outcome in context.earlier for module in outcome.new_modules]
    return new or list(head_modules(skeleton))


def _trainable_tokens(skeleton: Skeleton, context: Context) -> dict[str, list[int]]:
    """Module -> ids of the tokens that the recipe has added, for the input table and an output table of its own."""
    ids = sorted(i for o in context.earlier if o.vocabulary for i in o.vocabulary.new_tokens.values())
    if not ids:
        return {}
    names = {}
    for getter in (INPUT, OUTPUT):
        weights = sorted(skeleton.weight_names(getter), key=lambda name: (name in skeleton.tied, len(name)))
        if weights and not (getter == OUTPUT and weights[0] in skeleton.tied):
            names[weights[0].removesuffix(".weight")] = ids
    return names


def _trained(injection: Injection) -> frozenset[str]:
    """Names in memory of the tables and matrices that are trained in one place: targets, and modules saved whole."""
    copies = {entry.weight for entry in injection.entries.values() if entry.role == "copy"}
    return frozenset({target.weight for target in injection.targets} | copies)


def _disk_names(skeleton: Skeleton, checkpoint: Checkpoint) -> dict[str, str]:
    """Name in memory -> name on disk, through ties; tensors that are stored in a converted form are left out."""
    names = skeleton.memory_names(list(checkpoint.tensors))
    disk = {memory: name for name, (memory, converted) in names.items() if not converted}
    for name, origin in skeleton.tied.items():
        if name not in disk and origin in disk:
            disk[name] = disk[origin]
    return disk


def _config(spec: AddLora, injection: Injection, checkpoint: Checkpoint, context: Context) -> dict[str, Any]:
    """adapter_config.json, with the base that it is loaded on."""
    init = spec.init_lora_weights if spec.init_lora_weights in (*SAMPLED, "mica") else True
    return {
        **injection.config,
        **base_fields(checkpoint, context),
        "init_lora_weights": init,
    }


def _vocabulary(context: Context) -> Any:
    return next((outcome.vocabulary.change for outcome in context.earlier if outcome.vocabulary), None)


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
