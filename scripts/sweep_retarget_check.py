"""A class inside a wrapper with the wrapper's values, a LoRA on it, and where plain peft finds the factors of a retargeted one."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from sweep_vocab_check import one_line

PREFIX = "base_model.model."


class Wrong(Exception):
    """A check failed; the message says which."""


class NoPair(Exception):
    """There is nothing to retarget; the message says why."""


def inner_model(model: Any, kind: Any) -> Any:
    """A model of the class with the wrapper's own values, found by the class or the shapes of its base model.

    Raises:
        NoPair: it cannot be built from the wrapper's config, or nothing inside the wrapper is such a model.
    """
    text = model.config.get_text_config()
    config = next((one for one in (model.config, text) if isinstance(one, kind.config_class)), None)
    if config is None:
        raise NoPair(f"takes a {kind.config_class.__name__}, and the wrapper's text has a {type(text).__name__}")
    try:
        small = kind(copy.deepcopy(config)).eval()
    except Exception as error:
        raise NoPair(f"cannot be built from the wrapper's config: {one_line(error)}") from error
    if whole := [module for module in model.modules() if _shapes(module) == _shapes(small)]:
        small.load_state_dict(whole[0].state_dict())
        return small
    shapes = _shapes(small.base_model)
    inside = [module for _, module in model.named_modules() if _shapes(module) == shapes]
    inside = [module for module in inside if type(module) is type(small.base_model)] or inside
    if not inside:
        raise NoPair("no module of the wrapper has the shapes of its base model")
    small.base_model.load_state_dict(inside[0].state_dict())
    theirs, ours = model.get_output_embeddings(), small.get_output_embeddings()
    if ours is not None and theirs is not None and ours.weight.shape == theirs.weight.shape:
        ours.load_state_dict(theirs.state_dict(), strict=False)
    return small


def _shapes(module: Any) -> dict[str, Any]:
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


def train(small: Any, folder: Path) -> None:
    """Save a LoRA on every linear, each of whose values is random."""
    import torch
    from peft import LoraConfig, get_peft_model
    from support.tiny import forward

    from graftkit.architecture.peft.task import task_type

    try:
        torch.manual_seed(0)
        config = LoraConfig(r=2, lora_alpha=4, target_modules="all-linear", task_type=task_type(type(small).__name__))
        adapted = get_peft_model(copy.deepcopy(small), config)
    except Exception as error:
        raise NoPair(f"peft makes no LoRA of all its linears: {one_line(error)}") from error
    try:
        forward(adapted.get_base_model(), torch.arange(4, 12)[None])
    except Exception as error:
        if _runs(small):
            raise NoPair(f"does not run with a LoRA on all its linears: {one_line(error)}") from error
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn_like(parameter) * 0.05)
    adapted.save_pretrained(folder)


def _runs(model: Any) -> bool:
    """Whether a model runs on token ids."""
    import torch
    from support.tiny import forward

    try:
        forward(model, torch.arange(4, 12)[None])
    except Exception:  # noqa: BLE001 - a forward that lacks an input raises anything
        return False
    return True


def check_places(old: Path, small: Any, new: Path, model: Any) -> None:
    """Each factor lies on the weight that it was made for, and peft loads all of them and no more.

    Raises:
        Wrong: one lies elsewhere, or peft lacks one or knows none of its name.
    """
    from peft import PeftModel
    from safetensors.torch import load_file

    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (old, new))
    weights = [dict(one.named_parameters(remove_duplicate=False)) for one in (small, model)]
    held = {value.numpy().tobytes(): name for name, value in after.items()}
    if len(held) != len(before) or len(after) != len(before):
        raise Wrong(f"{len(before)} tensors became {len(after)}")
    for name, value in before.items():
        other = held.get(value.numpy().tobytes())
        if other is None:
            raise Wrong(f"{name} has changed its values")
        pair = [_weight(key, found) for key, found in zip((name, other), weights, strict=True)]
        if name.rpartition(".lora_")[2] != other.rpartition(".lora_")[2] or not pair[0].equal(pair[1]):
            raise Wrong(f"{name} has become {other}, which is on another weight")
    loaded = PeftModel.from_pretrained(copy.deepcopy(model), str(new))
    result = loaded.load_adapter(str(new), "default")
    if result.missing_keys or result.unexpected_keys:
        raise Wrong(f"peft: missing {result.missing_keys[:2]}, unexpected {result.unexpected_keys[:2]}")


def _weight(key: str, weights: dict[str, Any]) -> Any:
    return weights[f"{key.removeprefix(PREFIX).partition('.lora_')[0]}.weight"]


def check_same(one: Path, other: Path) -> None:
    """Both adapters have the same tensors by the same names.

    Raises:
        Wrong: a name or a value differs.
    """
    from safetensors.torch import load_file

    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (one, other))
    if before.keys() != after.keys():
        raise Wrong(f"there and back, {sorted(before.keys() ^ after.keys())[:2]} differ")
    if changed := [name for name, value in before.items() if not value.equal(after[name])]:
        raise Wrong(f"there and back, {changed[0]} has other values")
