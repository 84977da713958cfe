"""The config of a checkpoint as transformers' loader sees it, and never another one in its place."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftkit.errors import StorageFault, printable

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def read_config(config_class: Any, directory: Path) -> PreTrainedConfig:
    """What ``from_pretrained(directory)`` gives.

    Where config.json is not there, or the disk cannot say whether it is, transformers takes the defaults of the class for it, without a
    word: billions of parameters of noise. A config of defaults alone is therefore read again.

    Raises:
        StorageFault: transformers does not see config.json.
        Exception: whatever transformers raises.
    """
    config: PreTrainedConfig = config_class.from_pretrained(directory)
    if _is_all_defaults(config):
        if not config_class.get_config_dict(directory)[0]:
            raise StorageFault(f"{printable(directory.name)}/config.json: cannot be seen any more; nothing was written")
        config = config_class.from_pretrained(directory)
    return config


def _is_all_defaults(config: PreTrainedConfig) -> bool:
    try:
        plain = type(config).from_dict({})
    except Exception:  # noqa: BLE001 - a class that has no defaults, and so nothing to put in a file's place
        return False
    return bool(config.to_dict() == plain.to_dict())
