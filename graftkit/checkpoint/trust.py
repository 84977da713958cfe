"""What a checkpoint may not make transformers do: checked before any config class sees the config."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from graftkit.checkpoint.files import is_there
from graftkit.errors import InputRejected, printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

#: Keys that hold a number of layers, not one of them (`max_window_layers`) nor a distance (`global_attn_every_n_layers`), which may
#: lie behind the last; as many as any checkpoint may have, however few its tensors, since some share them.
LAYERS = re.compile(r"(?!max_|\w*every_)(num_hidden_layers|n_layers?|num_layers|\w+_layers)")
FEW_LAYERS = 64

#: More labels than any model has.
MOST_LABELS = 1 << 20

_CODE_SELECTING = ("_attn_implementation", "attn_implementation", "_experts_implementation", "experts_implementation")


def check_config(config: object) -> dict[str, Any]:
    """Return ``config`` unless it is no config, or selects code outside transformers.

    A value such as ``org/kernel`` under ``attn_implementation`` makes transformers fetch that kernel from the hub and
    run it, with remote code switched off (CVE-2026-4372). ``attribute_map`` lets any other key stand for that
    attribute, and gets past the check that transformers made for it.

    Raises:
        InputRejected: with the place in config.json and what to remove.
    """
    if not isinstance(config, dict):
        raise InputRejected("config.json: is not a JSON object")
    if not isinstance(config.get("model_type"), str) or not config["model_type"]:
        raise InputRejected('config.json: has no model_type; add the one of the architecture, such as "llama"')
    architectures = config.get("architectures")
    if architectures is not None and not _is_names(architectures):
        raise InputRejected("config.json: architectures: is not a list of class names")
    for place, key, value in _items(config):
        if key == "attribute_map":
            raise InputRejected(f"config.json: {place}: redirects attributes of the config class; remove this key")
        if key.startswith(_CODE_SELECTING):
            kernel = next((text for text in _texts(value) if "/" in text or ":" in text), None)
            if kernel is not None:
                raise InputRejected(
                    f"config.json: {place}: '{printable(kernel)}' names a kernel, code from the hub; remove this key"
                )
    return config


def check_sizes(config: Mapping[str, Any], tensors: int) -> None:
    """Refuse more layers than a checkpoint of so many ``tensors`` can have, and more labels than any.

    A module is made for each layer, and a name for each label, so that a number from a damaged config would keep the machine
    busy for hours.

    Raises:
        InputRejected: with the place in config.json.
    """
    most = max(FEW_LAYERS, tensors)
    for place, key, value in _items(config):
        if not isinstance(value, int):
            continue
        if LAYERS.fullmatch(key) and value > most:
            raise InputRejected(f"config.json: {place} is {value}, and the checkpoint has {tensors} tensors in all")
        if key == "num_labels" and value > MOST_LABELS:
            raise InputRejected(f"config.json: {place} is {value}: no model has more than {MOST_LABELS} labels")


def remote_code(documents: Mapping[str, Any]) -> tuple[str, ...]:
    """Return one line for each ``auto_map`` of the documents: code of the checkpoint that stands in for classes."""
    return tuple(
        f"{name}: {place}: {printable(', '.join(_texts(value)) or value)}"
        for name, document in documents.items()
        if isinstance(document, dict)
        for place, key, value in _items(document)
        if key == "auto_map" and value
    )


def quantization(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return one line for each quantization config; refusing it is left to the operations that compute with weights."""
    return tuple(
        f"config.json: {place}: {printable(value.get('quant_method', 'of no named method'))}"
        for place, key, value in _items(config)
        if key == "quantization_config" and isinstance(value, dict)
    )


def check_root(directory: Path) -> None:
    """Refuse a root ``adapter_config.json``: transformers would load that adapter on top of the weights.

    Raises:
        InputRejected: there is one, or an adapter is all that there is.
    """
    if not is_there(directory / "config.json"):
        for place in ("adapter_config.json", "adapter/adapter_config.json"):
            if (directory / place).is_file():
                folder = (directory / place).parent
                raise InputRejected(
                    f"{place}: is of an adapter, and no base lies here; give the base that it names, or check the adapter with"
                    f" graftkit verify --adapter {printable(folder)}"
                )
    if (directory / "adapter_config.json").exists() or (directory / "adapter_config.json").is_symlink():
        raise InputRejected(
            "adapter_config.json: stands beside the weights, and transformers would load that adapter with them; "
            "name the base model itself, or move the adapter to a folder of its own"
        )


def _items(config: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Yield the printable dotted place, the key and the value of every key, however deep."""
    waiting: list[tuple[str, Any]] = [("", config)]
    while waiting:
        place, value = waiting.pop()
        children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, child in children:
            below = f"{place}.{printable(key)}" if place else printable(key)
            if isinstance(key, str):
                yield below, key, child
            if isinstance(child, dict | list):
                waiting.append((below, child))


def _texts(value: object) -> Iterator[str]:
    waiting: list[object] = [value]
    while waiting:
        found = waiting.pop()
        if isinstance(found, str):
            yield found
        elif isinstance(found, dict):
            waiting.extend(reversed(found.values()))
        elif isinstance(found, list):
            waiting.extend(reversed(found))


def _is_names(found: object) -> bool:
    return isinstance(found, list) and all(isinstance(name, str) and name.isidentifier() for name in found)
