"""Small random bases with trained-looking adapters, made and saved by peft itself."""

import json
import shutil
import warnings
from pathlib import Path

from support.tiny import build

#: How far each parameter of the adapter is moved away from its initialisation.
TRAINED = 0.05


def make_adapter(directory, class_name, *, dtype="float32", tie=None, scale=TRAINED, base=None, seed=0, **config):
    """Write ``directory/base`` (unless given) and ``directory/adapter``; every adapter parameter is moved by noise of this ``seed``."""
    import torch
    import transformers
    from peft import LoraConfig, get_peft_model

    directory = Path(directory)
    if base is None:
        base = directory / "base"
        build(class_name, base, dtype=dtype, tie=tie)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = getattr(transformers, class_name).from_pretrained(base)
        torch.manual_seed(seed)
        adapted = get_peft_model(model, LoraConfig(**{"r": 4, "lora_alpha": 8, **config}))
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if parameter.requires_grad or "lora_" in name:
                    parameter.add_(torch.randn_like(parameter), alpha=scale)
        adapted.save_pretrained(directory / "adapter")
    return base, directory / "adapter"


def merged_by_peft(base, adapter, class_name, dtype=None):
    """The state dict of peft's own `merge_and_unload`."""
    return load_adapted(base, adapter, class_name, dtype).merge_and_unload().state_dict()


def load_adapted(base, adapter, class_name, dtype=None):
    """Base and adapter as a user loads them."""
    import transformers
    from peft import PeftModel

    model = getattr(transformers, class_name).from_pretrained(base, **({"dtype": dtype} if dtype else {}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(model, str(adapter)).eval()


def edit_adapter(adapter, target, tensors=None, **fields):
    """A copy of the adapter with fields of its config changed, and ``tensors`` applied to its state dict."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(adapter, target)
    path = target / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    if tensors is not None:
        weights = target / "adapter_model.safetensors"
        save_file(tensors(load_file(weights)), weights)
    return target
