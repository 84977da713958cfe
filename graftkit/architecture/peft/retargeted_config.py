"""adapter_config.json for an adapter on a class with other names: full ones, since patterns were meant for the old."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from graftkit.architecture.peft.parts import NAME, LoraPart, SavedPart, TokensPart, adapter_parts
from graftkit.architecture.peft.task import task_type

if TYPE_CHECKING:
    from graftkit.architecture.peft.places import Places
    from graftkit.architecture.skeleton import Skeleton

#: Tasks whose class in peft generates text, which any class of transformers that generates can be put into.
GENERATING = ("CAUSAL_LM", "SEQ_2_SEQ_LM")


def retargeted_config(config: Mapping[str, Any], adapted: Any, places: Places, skeleton: Skeleton) -> dict[str, Any]:
    """The config of an adapter that peft has put on ``adapted``, a model with the old names, for the class of ``skeleton``.

    Raises:
        InputRejected: a module that is saved whole is not one module of the class.
    """
    parts = list(adapter_parts(adapted))
    layers = [part for part in parts if isinstance(part, LoraPart)]
    names = {part.path: _target(part, places) for part in layers}
    ranks = {names[part.path]: part.rank for part in layers}
    alphas = {names[part.path]: part.module.lora_alpha[NAME] for part in layers}
    modules = [names[part.path] for part in layers if not part.on_parameter]
    parameters = [names[part.path] for part in layers if part.on_parameter]
    saved = [places.module(part.path) for part in parts if isinstance(part, SavedPart)]
    tokens = {
        places.module(part.path): list(part.layer.token_indices[NAME])
        for part in parts
        if isinstance(part, TokensPart) and not part.layer.tied_adapter
    }
    return {
        **config,
        **class_fields(config, skeleton),
        "target_modules": sorted(modules),
        "target_parameters": sorted(parameters) or None,
        "exclude_modules": None,
        "layers_to_transform": None,
        "layers_pattern": None,
        "rank_pattern": {name: rank for name, rank in ranks.items() if rank != config.get("r", 8)},
        "alpha_pattern": {name: alpha for name, alpha in alphas.items() if alpha != config.get("lora_alpha", 8)},
        "modules_to_save": sorted(saved) or None,
        "trainable_token_indices": tokens or None,
    }


def class_fields(config: Mapping[str, Any], skeleton: Skeleton) -> dict[str, Any]:
    """``task_type`` and ``auto_mapping`` for a class: the old task where the class does it, else none, and the name of the class."""
    old, kind = config.get("task_type"), type(skeleton.model)
    kept = old == task_type(skeleton.architecture) or (old in GENERATING and skeleton.model.can_generate())
    if old is not None and kept:
        return {"task_type": old, "auto_mapping": None}
    return {
        "task_type": None,
        "auto_mapping": {"base_model_class": kind.__name__, "parent_library": kind.__module__},
    }


def _target(part: LoraPart, places: Places) -> str:
    name = places.weight(part.weight)
    return name if part.on_parameter else name.removesuffix(".weight")
