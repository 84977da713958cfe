"""Why a model in memory cannot be worked on: its weights are not all there, or not as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from graftkit.errors import InputRejected, few, printable

if TYPE_CHECKING:
    from torch import nn


def check_model(model: Any) -> None:
    """Refuse what is no plain model of transformers with all of its weights in this process' memory.

    Raises:
        InputRejected: with the reason, and what to do.
    """
    name = printable(type(model).__name__)
    why = _why_not_plain(model) or _why_not_there(model)
    if why:
        raise InputRejected(f"{name}: {why}")


def _why_not_plain(model: Any) -> str:
    """Why it is not an unwrapped and unadapted model whose class transformers has; empty where it is."""
    import torch
    import transformers

    if isinstance(model, torch.nn.Module) and _is_sharded(model):
        return "its weights are sharded over processes (FSDP); graft before it is sharded"
    if hasattr(model, "peft_config") or getattr(model, "_hf_peft_config_loaded", False):
        return "an adapter is on it; merge the adapter (merge_and_unload) or take it off (unload) first"
    if not isinstance(model, transformers.PreTrainedModel):
        inner = next((key for key in ("module", "_orig_mod") if hasattr(model, key)), None)
        unwrap = f"; give the model inside it (.{inner})" if inner else ""
        return f"is not a model of transformers{unwrap}"
    if getattr(transformers, type(model).__name__, None) is not type(model):
        return "is not a class of transformers itself, so that the result could not be built or reloaded"
    return ""


def _is_sharded(model: nn.Module) -> bool:
    """Whether FSDP or DeepSpeed's ZeRO-3 has spread its parameters over processes; a rank of its own counts as well."""
    import torch

    kinds: list[type] = []
    if torch.distributed.is_available():
        from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
        from torch.distributed.tensor import DTensor

        kinds = [FSDPModule, FullyShardedDataParallel]
        if any(isinstance(parameter, DTensor) for parameter in model.parameters()):
            return True
    if any(isinstance(module, tuple(kinds)) for module in model.modules()):
        return True
    return any(hasattr(parameter, "ds_id") for parameter in model.parameters())


def _why_not_there(model: Any) -> str:
    """Why its weights cannot be read as they are; empty where they can."""
    import torch

    if getattr(model, "hf_quantizer", None) is not None or getattr(model.config, "quantization_config", None):
        return "its weights are quantized; load it without a quantization config"
    named = [*model.named_parameters(), *model.named_buffers()]
    if absent := [name for name, value in named if value.is_meta]:
        return f"{few(absent)}: on the meta device, without values; load the weights first (no offloading to disk)"
    strange = [name for name, value in model.named_parameters() if type(value) is not torch.nn.Parameter]
    if strange or (strange := [name for name, value in model.named_parameters() if not value.is_floating_point()]):
        return f"{few(strange)}: not plain floating-point parameters, as those of a quantized model"
    devices = sorted({str(value.device) for _, value in named if value.device.type != "cpu"})
    if devices:
        return (
            f"weights lie on {', '.join(devices)}, and outputs are compared on the CPU; model.to('cpu') first, and move the"
            " new one"
        )
    return ""
