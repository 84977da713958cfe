"""A merged checkpoint beside peft's own merge, and both beside the merge in float64, value by value."""

import json

from support.adapters import load_adapted

#: Unit roundoff by name of the dtype.
UNITS = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}


def check_merge(base, adapter, class_name, merged):
    """Each value of ``merged`` is peft's, or nearer to the merge in float64; in half precision it is that, rounded once.

    How far a sum in float32 can be off is bounded by its length and by the sum of all absolute values.
    """
    import torch
    import transformers

    theirs, exact = (_by_name(base, adapter, class_name, dtype) for dtype in (None, torch.float64))
    bound = _without_signs(base, adapter, class_name)
    config = json.loads((adapter / "adapter_config.json").read_text())
    rank = max([config["r"], *config["rank_pattern"].values()])
    ours = getattr(transformers, class_name).from_pretrained(merged, dtype="auto").state_dict()
    assert ours.keys() == exact.keys()
    for name, value in ours.items():
        length = rank + 4 + (value.shape[-1] if config["use_dora"] and value.ndim > 1 else 0)
        slack = length * UNITS["float32"] * bound[name]
        low, high = ((exact[name] + sign * slack).to(value.dtype) for sign in (-1, 1))
        if value.dtype != torch.float32:
            assert ((low <= value) & (value <= high)).all(), name
        other = value != theirs[name]
        off, peft_off = ((found.double() - exact[name]).abs()[other] for found in (value, theirs[name]))
        assert (off <= peft_off + 2 * slack[other]).all(), name
    return ours


def _by_name(base, adapter, class_name, dtype):
    """peft's merge by name in memory."""
    return load_adapted(base, adapter, class_name, dtype).merge_and_unload().state_dict()


def _without_signs(base, adapter, class_name):
    """|W| + scaling·|B|·|A| for every weight, in float64."""
    import torch

    model = load_adapted(base, adapter, class_name, torch.float64)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.abs_()
    for module in model.modules():
        if hasattr(module, "lora_variant"):
            module.lora_variant.clear()
    return model.merge_and_unload().state_dict()
