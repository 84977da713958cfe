"""Scaling of rotary positions in a config.json, in the form that the file has, as transformers' own rules check it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from graftkit.architecture.skeleton import Path, build_config, with_values
from graftkit.errors import InputRejected, RecipeError, printable
from graftkit.recipe_file.wording import did_you_mean, shown

#: What stays of rotary parameters whatever the scaling is.
BASIC = ("rope_theta", "partial_rotary_factor")

#: The positions that a model was trained with, which some ways of scaling start from.
ORIGINAL = "original_max_position_embeddings"

FIELD = "rope_parameters"


def with_rope(config: Mapping[str, Any], place: Path, given: Mapping[str, Any], trained: int) -> dict[str, Any]:
    """The config whose part ``place`` has the rotary parameters ``given``; ``trained`` positions are what it had before.

    Where the way of scaling starts from the positions of the training and nobody says them, they are ``trained``.

    Raises:
        RecipeError: transformers does not know the way of scaling, or not with these values.
    """
    inner = config
    for key in place:
        inner = inner.get(key) or {}
    new_form = FIELD in inner or not {"rope_scaling", "rope_theta"} & inner.keys()
    key = FIELD if new_form else "rope_scaling"
    before = inner.get(key) or {}
    layers = [name for name, value in before.items() if isinstance(value, Mapping)]
    if layers and not given.keys() <= set(layers):
        raise RecipeError(
            f"config.json has them for each of {', '.join(map(printable, layers))}; give one or all of these",
            field=FIELD,
        )
    parts = {name: _merged(before[name], plain) for name, plain in given.items()} if layers else _merged(before, given)
    made = {**before, **parts} if layers else parts
    found = with_values(config, ((*place, key),), made)
    for name in given if layers else ("",):
        read, said = _read(found, place, name), given[name] if layers else given
        if ORIGINAL in read and ORIGINAL not in said:
            where = (*place, key, *((name,) if name else ()), ORIGINAL)
            found = with_values(found, (where,), (before.get(name, {}) if name else before).get(ORIGINAL, trained))
    _check(found)
    return found


def _merged(before: Mapping[str, Any], given: Any) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        raise RecipeError(f"must be a mapping, found {printable(str(given))}", field=FIELD)
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    kind = given.get("rope_type")
    known = ["default", *ROPE_INIT_FUNCTIONS]
    if kind not in known:
        near = did_you_mean(str(kind), known)
        meant = f"did you mean {shown(near)}?" if near else f"transformers knows {', '.join(dict.fromkeys(known))}"
        raise RecipeError(f"rope_type must name a way of scaling, found {printable(str(kind))}; {meant}", field=FIELD)
    return {**{name: before[name] for name in BASIC if name in before}, **_plain(given)}


def _plain(value: Any) -> Any:
    """JSON values of a recipe's frozen ones."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _read(config: Mapping[str, Any], place: Path, layer: str) -> Mapping[str, Any]:
    """The rotary parameters as transformers reads them, with what it fills in."""
    try:
        part = build_config(config)
    except InputRejected as error:
        raise RecipeError(str(error), field=FIELD) from error
    for key in place:
        part = getattr(part, key)
    found = getattr(part, FIELD, None) or {}
    return found.get(layer) or {} if layer else found


def _check(config: Mapping[str, Any]) -> None:
    """Refuse a field that transformers does not know of this way of scaling, of which it only warns.

    Raises:
        RecipeError: there is one, or the values are none that it takes.
    """
    built = _read_whole(config)
    for part in (built, *(getattr(built, name, None) for name in getattr(built, "sub_configs", {}))):
        if getattr(part, FIELD, None) and hasattr(part, "validate_rope"):
            for warning in _warnings(part):
                if "Unrecognized keys" in warning:
                    raise RecipeError(warning, field=FIELD)


def _read_whole(config: Mapping[str, Any]) -> Any:
    try:
        return build_config(config)
    except InputRejected as error:
        raise RecipeError(str(error), field=FIELD) from error


def _warnings(config: Any) -> Iterator[str]:
    """What transformers says of rotary parameters."""
    logger, said = logging.getLogger("transformers.modeling_rope_utils"), list[str]()
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)
    logger.propagate = False
    try:
        config.validate_rope()
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate
    yield from said
