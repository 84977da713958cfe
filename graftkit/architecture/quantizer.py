"""What transformers' own quantizer classes say of a quantization config, before anything is loaded."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from graftkit.architecture.skeleton import one_line, quiet
from graftkit.checkpoint.quantization import quantization_config, quantization_method
from graftkit.errors import printable

if TYPE_CHECKING:
    from graftkit.checkpoint.tensors import LazyTensor

#: What the config classes call their list of modules that stay plain.
PLAIN_MODULES = ("modules_to_not_convert", "llm_int8_skip_modules", "ignore", "skip_modules")

#: What they call the blocks, where nothing outside of these is packed.
BLOCKS = "block_name_to_quantize"

#: What the name of a block's scales adds to that of its weight.
SCALES = "_scale_inv"

#: The field by which a config class has weights unpacked while they are loaded.
UNPACK = "dequantize"


def config_class(config: Mapping[str, Any]) -> type | None:
    """The class of transformers for the quantization config of a config.json; None where it has none."""
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

    found = quantization_config(config) or {}
    method = quantization_method(config)
    for bits in ("4bit", "8bit"):
        if found.get(f"load_in_{bits}"):
            method = f"bitsandbytes_{bits}"
    kind: type | None = AUTO_QUANTIZATION_CONFIG_MAPPING.get(method)
    return kind


def config_fields(config: Mapping[str, Any]) -> frozenset[str]:
    """The fields that the class of a quantization config takes; empty where transformers has no such class."""
    kind = config_class(config)
    return frozenset(inspect.signature(kind.__init__).parameters) if kind else frozenset()  # type: ignore[misc]


def loading_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """What `from_pretrained` is given beside the folder, so that weights are unpacked where transformers can unpack them.

    Without a GPU it does so by itself; asked for it gives the same model on every machine.
    """
    if UNPACK not in config_fields(config):
        return {}
    from transformers.quantizers.auto import AutoQuantizationConfig

    return {
        "quantization_config": AutoQuantizationConfig.from_dict({**(quantization_config(config) or {}), UNPACK: True})
    }


def cannot_load(config: Mapping[str, Any], tensors: Mapping[str, LazyTensor]) -> str:
    """Why transformers cannot load the quantized checkpoint of this config.json and these tensors here; empty where it can."""
    if quantization_config(config) is None:
        return ""
    from transformers.quantizers.auto import AutoHfQuantizer

    method = quantization_method(config)
    if ragged := _ends_within_a_block(config, tensors):
        return (
            f"the base is quantized ({method}), which cannot be run here: transformers unpacks whole blocks alone, and"
            f" {printable(ragged)} of shape {list(tensors[ragged].shape)} ends within one"
        )
    if config_class(config) is None:
        return f"the base is quantized ({method}), which transformers does not load"
    with quiet():
        try:
            given = loading_options(config).get("quantization_config") or dict(quantization_config(config) or {})
            AutoHfQuantizer.from_config(given, pre_quantized=True).validate_environment(
                device_map=None, weights_only=True
            )
        except Exception as error:  # noqa: BLE001 - whatever a quantizer lacks is the reason
            return f"the base is quantized ({method}), which cannot be run here: {one_line(error)}"
    return ""


def _ends_within_a_block(config: Mapping[str, Any], tensors: Mapping[str, LazyTensor]) -> str | None:
    """The first matrix whose last block is smaller than the others, with more than one block on that axis; None without one.

    The loader takes the size of a block for that of the matrix over the number of scales.
    """
    block = (quantization_config(config) or {}).get("weight_block_size")
    if not (isinstance(block, list) and len(block) == 2 and all(isinstance(step, int) and step > 0 for step in block)):
        return None
    for name, tensor in tensors.items():
        sizes = zip(tensor.shape[-2:], block, strict=False)
        if f"{name}{SCALES}" in tensors and any(size > step and size % step for size, step in sizes):
            return name
    return None
