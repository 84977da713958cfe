"""What every operation that makes an adapter asks of the base: how it loads, where its tensors lie, what else is trained."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from graftkit.architecture.accounting import check_shapes
from graftkit.architecture.embeddings import INPUT, OUTPUT
from graftkit.architecture.peft.config_fields import config_fields, without_defaults
from graftkit.architecture.peft.injection import skeleton_of
from graftkit.architecture.peft.task import head_modules
from graftkit.architecture.skeleton import Skeleton
from graftkit.architecture.tying import untie
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.quantization import quantization_config
from graftkit.checkpoint.tensors import FLOATING, LazyTensor
from graftkit.errors import InputRejected, RecipeError, printable
from graftkit.operations.base import Context, vocabulary_of
from graftkit.recipe.adapter_fields import FILLED
from graftkit.recipe_file.paths import expand_path, is_url, path_from_here
from graftkit.recipe_file.wording import unknown


@dataclass(frozen=True, slots=True)
class Base:
    """The base as it is when the adapter is made: config and the dtype that it loads in. Called, it builds a skeleton."""

    config: Mapping[str, Any]
    dtype: str

    def __call__(self) -> Skeleton:
        return skeleton_of(self.config, self.dtype)


def written_config(config: Mapping[str, Any], checkpoint: Checkpoint, context: Context) -> dict[str, Any]:
    """adapter_config.json of an adapter on ``checkpoint``: what differs from peft's defaults, so that older versions read it."""
    return without_defaults({**config, **base_fields(checkpoint, context)})


def base_fields(checkpoint: Checkpoint, context: Context) -> dict[str, Any]:
    """``base_model_name_or_path`` and ``revision``: the written base where the recipe changes it, else the source.

    peft, transformers and unsloth read a path of it from the working folder; where the files lie on this machine is nobody's
    business. Of a model in memory peft takes the model's own name.
    """
    source = context.source
    if source.in_memory:
        return {"base_model_name_or_path": None, "revision": None}
    if checkpoint is not source:
        return {"base_model_name_or_path": _named(context.output), "revision": None}
    if source.revision is not None:
        return {"base_model_name_or_path": source.name, "revision": source.revision}
    return {"base_model_name_or_path": _named(source.name), "revision": None}


def _named(place: str) -> str:
    return place if is_url(place) else path_from_here(expand_path(place))


def loaded_dtype(checkpoint: Checkpoint) -> str:
    """The dtype that the base loads in: the config's, else that of its first floating tensor, as the loader decides."""
    named = checkpoint.config.get("dtype") or checkpoint.config.get("torch_dtype")
    if isinstance(named, str):
        return named.removeprefix("torch.")
    names = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    return next((names[t.dtype] for t in checkpoint.tensors.values() if t.dtype in FLOATING), "float32")


def check_base(skeleton: Skeleton, checkpoint: Checkpoint) -> None:
    """Refuse a base that would not load; a quantized one has other shapes on disk, which its own loader knows.

    Raises:
        InputRejected: a tensor has another shape than the config gives it.
    """
    if quantization_config(checkpoint.config) is None:
        check_shapes(checkpoint, skeleton)


def disk_names(skeleton: Skeleton, checkpoint: Checkpoint) -> dict[str, str]:
    """Name in memory -> name on disk, through ties; tensors that are stored in a converted form are left out."""
    names = skeleton.memory_names(checkpoint.tensors)
    disk = {name: stored for name in names.disk if (stored := names.stored_as(name)) is not None}
    for name, origin in skeleton.tied.items():
        if name not in disk and origin in disk:
            disk[name] = disk[origin]
    return disk


def base_tensor(operation: str, checkpoint: Checkpoint, disk: Mapping[str, str], weight: str) -> LazyTensor:
    """The base's tensor of the name in memory ``weight``; ``disk`` is what :func:`disk_names` returns.

    Raises:
        InputRejected: on disk it has another form.
    """
    name = disk.get(weight)
    if name is None:
        raise InputRejected(
            f"{operation}: {printable(weight)} is stored in a converted form, and what is asked for needs its values;"
            " save the checkpoint once with this transformers, or leave the module out"
        )
    stored = checkpoint.tensors[name]
    if stored.dtype not in FLOATING:
        raise InputRejected(
            f"{operation}: {printable(weight)} is stored quantized ({stored.dtype}), and what is asked for needs its values;"
            " leave the module out"
        )
    return stored


def check_fields(peft_type: str, given: Collection[str], own: Collection[str]) -> None:
    """Compare the names under ``config`` with the fields of peft's config class, less those of the operation's ``own``.

    Raises:
        RecipeError: a name is none of them; a near one is shown.
    """
    known = config_fields(peft_type)
    free = [name for name in known if name not in own and name not in FILLED]
    for name in given:
        if name not in known:
            what = f"{printable(name)!r} is not a field of {peft_type}"
            raise RecipeError(unknown(what, name, free, all_called="its fields are"), field="config")


def untied(checkpoint: Checkpoint, skeleton: Skeleton, trained: Collection[str]) -> tuple[Checkpoint, tuple[str, ...]]:
    """The checkpoint without the ties of which ``trained`` (names in memory) touches a side, and a note where there are any.

    Raises:
        InputRejected: the class ties them whatever the config says.
    """
    apart, copied = untie(checkpoint, skeleton.tied, trained)
    if apart is checkpoint:
        return checkpoint, ()
    copies = f" by copy ({', '.join(copied)})" if copied else ""
    return apart, (f"untied{copies}, since one side is trained",)


def modules_to_save(asked: str | tuple[str, ...] | None, skeleton: Skeleton, context: Context) -> list[str]:
    """The modules that are trained whole: those ``asked`` for, and for ``auto`` the head of the recipe or of the base."""
    if asked != "auto":
        return list(asked or ())
    new = [module for outcome in context.earlier for module in outcome.new_modules]
    return new or list(head_modules(skeleton))


def trainable_tokens(skeleton: Skeleton, context: Context) -> dict[str, list[int]]:
    """Module -> ids of the tokens that the recipe has added or given rows, for the input table and an output table of its own."""
    vocabulary = vocabulary_of(context.earlier)
    ids = list(vocabulary.untrained) if vocabulary else []
    if not ids:
        return {}
    names = {}
    for getter in (INPUT, OUTPUT):
        weights = sorted(skeleton.weight_names(getter), key=lambda name: (name in skeleton.tied, len(name)))
        if weights and not (getter == OUTPUT and weights[0] in skeleton.tied):
            names[weights[0].removesuffix(".weight")] = ids
    return names
