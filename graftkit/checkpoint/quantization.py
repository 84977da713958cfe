"""What config.json says of quantized weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

KEY = "quantization_config"


def quantization_config(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The quantization config of a config.json, as the loader finds it: at the top, or in the config of a part; None without one."""
    inside = (value for value in config.values() if isinstance(value, dict))
    return next((found for place in (config, *inside) if isinstance(found := place.get(KEY), dict)), None)


def quantization_method(config: Mapping[str, Any]) -> str:
    """How the weights are quantized, in the words of the config; empty where they are not."""
    found = quantization_config(config)
    return "" if found is None else str(found.get("quant_method") or "no named method")


def without_quantization(config: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a config.json that says nothing of quantization, neither at the top nor in the config of a part."""
    kept = {key: value for key, value in config.items() if key != KEY}
    return {
        key: {inner: held for inner, held in value.items() if inner != KEY} if isinstance(value, dict) else value
        for key, value in kept.items()
    }


def with_quantization(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a config.json with ``changes`` to its quantization config, wherever that stands."""
    if KEY in config:
        return {**config, KEY: {**config[KEY], **changes}}
    return {
        key: {**value, KEY: {**value[KEY], **changes}} if isinstance(value, dict) and KEY in value else value
        for key, value in config.items()
    }
