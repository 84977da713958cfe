"""peft's own injection on a model without weights: which tensors an adapter file holds, and what each of them is.

peft decides; nothing is guessed. Names, shapes and dtypes are those that peft would write for the loaded model.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from graftkit.architecture.peft.limits import beyond_limits
from graftkit.architecture.peft.one_of_each import one_of_each
from graftkit.architecture.peft.parts import NAME, PREFIX, LoraPart, TokensPart, adapter_parts
from graftkit.architecture.skeleton import Skeleton, build_skeleton, one_line, quiet
from graftkit.errors import RecipeError

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

Role = Literal["A", "B", "embedding_A", "embedding_B", "bias", "magnitude", "tokens", "copy"]

#: How the name of a tensor ends, below the module that it belongs to.
SUFFIXES: dict[str, Role] = {
    "lora_A.weight": "A",
    "lora_B.weight": "B",
    "lora_B.bias": "bias",
    "lora_embedding_A": "embedding_A",
    "lora_embedding_B": "embedding_B",
    "lora_magnitude_vector": "magnitude",
}


@dataclass(frozen=True, slots=True)
class Target:
    """A weight that gets a low-rank update: ``scaling`` · B · A is added to it.

    ``weight`` is its name in memory. ``transposed`` says that it is stored as (in, out); ``experts`` is 0 for a module, else
    the number of matrices in a fused parameter.
    """

    module: str
    weight: str
    rank: int
    scaling: float
    transposed: bool
    experts: int


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of the adapter file.

    ``target`` is given for the parts of an update, ``weight`` names the base's tensor that ``tokens`` (its ``rows``) and
    ``copy`` take their values from.
    """

    role: Role
    shape: tuple[int, ...]
    dtype: str
    target: Target | None = None
    weight: str = ""
    rows: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Injection:
    """What peft made of a config: the config as it would save it, the tensors by name, the targets."""

    config: Mapping[str, Any]
    entries: Mapping[str, Entry]
    targets: tuple[Target, ...]
    modules: tuple[str, ...]
    parameters: tuple[str, ...]


#: What stores tensors in a peft model: a target, or a table of which some rows are trained.
Owner = Target | tuple[str, tuple[int, ...]]


def skeleton_of(config: Mapping[str, Any], dtype: str) -> Skeleton:
    """A fresh skeleton in the dtype that the checkpoint is loaded in, such as ``bfloat16``; injection consumes it."""
    import torch

    skeleton = build_skeleton(config)
    skeleton.model.to(getattr(torch, dtype))
    return skeleton


def inject(skeleton: Skeleton, values: Mapping[str, Any]) -> Injection:
    """Let peft inject the LoRA that ``values`` describe into ``skeleton``, which is changed by it.

    Raises:
        RecipeError: peft refuses, in its own words.
    """
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

    if why := beyond_limits(values, skeleton.model):
        raise RecipeError(why)
    shapes = dict(skeleton.shapes)
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            config = LoraConfig(**values)
            with one_of_each() as others:
                model = get_peft_model(skeleton.model, config, adapter_name=NAME, low_cpu_mem_usage=True)
            state = get_peft_model_state_dict(model, adapter_name=NAME, save_embedding_layers=False)
        except Exception as error:  # peft raises ValueError, TypeError, KeyError and its own
            raise RecipeError(f"peft refuses: {one_line(error)}") from error
    owners = dict(_owners(model))
    entries = {key: _entry(key, tensor, owners, shapes) for key, tensor in state.items()}
    owners, entries = _with_copies(owners, entries, others, [name for name, _ in model.named_modules()])
    tuner = model.base_model
    return Injection(
        saved_config(model),
        entries,
        tuple(owner for owner in owners.values() if isinstance(owner, Target)),
        tuple(tuner.targeted_module_names),
        tuple(tuner.targeted_parameter_names),
    )


def _owners(model: PreTrainedModel) -> Iterator[tuple[str, Owner]]:
    """Name of each module of the peft model that stores tensors -> what it is."""
    for part in adapter_parts(model):
        plain = part.path.removeprefix(PREFIX).replace(".base_layer", "")
        if isinstance(part, LoraPart):
            weight = part.weight.removeprefix(PREFIX)
            experts = part.experts if part.on_parameter else 0
            yield part.path, Target(plain, weight, part.rank, part.scaling, part.fan_in_fan_out, experts)
        elif isinstance(part, TokensPart):
            _check_bias(plain, part.table)
            if not part.layer.tied_adapter:
                yield part.path, (f"{plain}.weight", tuple(part.layer.token_indices[NAME]))


def _with_copies(
    owners: Mapping[str, Owner], entries: Mapping[str, Entry], others: Mapping[str, list[str]], order: list[str]
) -> tuple[dict[str, Owner], dict[str, Entry]]:
    """Add the owners and entries of modules that are adapted like another one, in the ``order`` of the model's modules."""
    every, tensors = dict(owners), dict(entries)
    for key, entry in entries.items():
        target = entry.target
        if target is None:
            continue
        for module in others.get(target.module, ()):
            copied = replace(target, module=module, weight=f"{module}.weight")
            every[PREFIX + module] = copied
            tensors[PREFIX + module + key.removeprefix(PREFIX + target.module)] = replace(entry, target=copied)
    places = {name: place for place, name in enumerate(order)}

    def place(name: str) -> int:
        while name not in places:
            name = name.rpartition(".")[0]
        return places[name]

    return (
        dict(sorted(every.items(), key=lambda item: place(item[0]))),
        dict(sorted(tensors.items(), key=lambda item: place(item[0]))),
    )


def _check_bias(name: str, table: nn.Module) -> None:
    """Refuse an output table with a bias: peft's wrapper of an output table computes the logits from the weight alone."""
    if getattr(table, "bias", None) is not None:
        raise RecipeError(
            f"peft would drop the bias of {name}; set train_new_tokens: false,"
            " and train the tables whole if the new rows have to learn",
            field="train_new_tokens",
        )


def _entry(key: str, tensor: Tensor, owners: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Entry:
    shape, dtype = tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")
    for suffix, role in SUFFIXES.items():
        owner = owners.get(key.removesuffix(f".{suffix}")) if key.endswith(f".{suffix}") else None
        if isinstance(owner, Target):
            return Entry(role, shape, dtype, owner)
    owner = owners.get(key.removesuffix(".token_adapter.trainable_tokens_delta"))
    if isinstance(owner, tuple):
        return Entry("tokens", shape, dtype, weight=owner[0], rows=owner[1])
    weight = key.removeprefix(PREFIX).replace(".base_layer", "").replace(".original_module", "")
    if shapes.get(weight) != shape:
        raise RecipeError(f"peft would store {key!r}, and what it starts from is not known; leave out what asks for it")
    return Entry("copy", shape, dtype, weight=weight)


def saved_config(model: PreTrainedModel) -> dict[str, Any]:
    """adapter_config.json as `save_pretrained` writes it, lists in a fixed order."""
    config = model.peft_config[NAME]
    values = config.to_dict() | {"inference_mode": True}
    if config.task_type is None:
        base = model.get_base_model()
        values["auto_mapping"] = {"base_model_class": type(base).__name__, "parent_library": type(base).__module__}
    ordered = {name: sorted(value) if isinstance(value, set) else value for name, value in values.items()}
    saved: dict[str, Any] = json.loads(json.dumps(ordered))
    return saved
