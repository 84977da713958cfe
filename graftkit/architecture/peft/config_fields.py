"""The fields of adapter_config.json: which there are, and which need not be written since peft's config class has them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

#: Fields that are written whatever they hold: vLLM, SGLang and llama.cpp's converter ask the file for them.
ALWAYS = ("peft_type", "base_model_name_or_path", "r", "lora_alpha", "target_modules")

#: What peft fills in itself and no other version needs to read.
_VERSION = "peft_version"


def config_fields(peft_type: str) -> tuple[str, ...]:
    """The fields of the installed peft's config class for a kind of adapter; empty where it has no such kind."""
    return tuple(field.name for field in _fields(peft_type))


def without_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that differ from peft's defaults or that other programs read.

    A peft that lacks a field refuses or ignores the file that names it, even where its value is the default.
    """
    defaults = _defaults(config["peft_type"])
    return {
        name: value
        for name, value in config.items()
        if name in ALWAYS or (name != _VERSION and not (name in defaults and defaults[name] == value))
    }


def with_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """Every field that the installed peft has, as peft reads the file; its version is left out."""
    whole = {**_defaults(config["peft_type"]), **config}
    return {name: value for name, value in whole.items() if name != _VERSION}


def _defaults(peft_type: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for field in _fields(peft_type):
        value = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if value is not dataclasses.MISSING:
            found[field.name] = json.loads(json.dumps(value, default=str))
    return found


def _fields(peft_type: str) -> tuple[dataclasses.Field[Any], ...]:
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    known = {getattr(kind, "value", kind): config for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    return dataclasses.fields(known[peft_type]) if peft_type in known else ()
