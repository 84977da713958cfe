"""Another class for the config of a checkpoint: one of the same config, of the text model in a wrapper, or a wrapper around it."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from graftkit.architecture.skeleton import Skeleton, build_class, build_config, model_class, one_line
from graftkit.errors import InputRejected

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def related_skeleton(config: Mapping[str, Any], architecture: str) -> Skeleton:
    """Build the class ``architecture`` from the JSON of another class's config.json.

    A wrapper gets this config for its part of that kind; its other parts are those of a new config of its own.

    Raises:
        InputRejected: there is no such class, or it takes another kind of config than this one and its parts.
    """
    kind, built = model_class(architecture), build_config(config)
    wanted = kind.config_class
    for part in (built, *_parts(built)):
        if wanted is not None and isinstance(part, wanted):
            return build_class(kind, copy.deepcopy(part))
    around = _around(kind, built)
    if around is not None:
        return build_class(kind, around)
    name = getattr(wanted, "__name__", "config of its own")
    raise InputRejected(
        f"{architecture} takes a {name}, and the base's config.json is a {type(built).__name__} without one inside"
    )


def _parts(config: Any) -> Iterator[Any]:
    """Yield the configs inside a config, outer ones first."""
    inside = [getattr(config, name, None) for name in getattr(type(config), "sub_configs", {})]
    found = [part for part in inside if hasattr(part, "model_type")]
    yield from found
    for part in found:
        yield from _parts(part)


def _around(kind: type[PreTrainedModel], built: Any) -> Any:
    """A config of the class with ``built`` as its text model; None where it has no place for one."""
    from transformers import AutoConfig

    wanted: Any = kind.config_class
    takes = getattr(wanted, "sub_configs", {})
    name = next((name for name, part in takes.items() if part is not AutoConfig and isinstance(built, part)), None)
    if name is None and takes.get("text_config") is AutoConfig:
        name = "text_config"
    if name is None:
        return None
    try:
        return wanted(**{name: copy.deepcopy(built)})
    except Exception as error:  # config classes validate with whatever exception they like
        raise InputRejected(f"{kind.__name__}: no config of it takes the base's: {one_line(error)}") from error
