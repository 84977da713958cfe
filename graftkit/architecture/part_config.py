"""The config.json of a part: what the whole's says of it, with what transformers' config object of the part has beside."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from graftkit.architecture.related_class import related_skeleton
from graftkit.architecture.skeleton import (
    Skeleton,
    build_class,
    build_config,
    build_skeleton,
    model_class,
    one_line,
    quiet,
)
from graftkit.errors import InputRejected

#: Of a config as a dict: what names its file or class, and what stands in the document anyway.
NOT_OF_THE_PART = ("_name_or_path", "architectures")

#: What a whole says of the file that holds it, its parts too.
OF_THE_FILE = ("dtype", "torch_dtype", "transformers_version")


def part_skeleton(config: Mapping[str, Any], architecture: str) -> Skeleton:
    """Build the class ``architecture`` from the part of another class's config.json that is for it.

    A class that takes none of the configs in it is built from the values of the text config that its own config has too.

    Raises:
        InputRejected: there is no such class, or it cannot be built from what the config holds.
    """
    try:
        return related_skeleton(config, architecture)
    except InputRejected as error:
        kind, text = model_class(architecture), build_config(config).get_text_config()
        wanted: Any = kind.config_class
        if wanted is None or isinstance(text, wanted):
            raise
        known = wanted().to_dict()
        values = {key: value for key, value in text.to_dict().items() if key in known and key != "model_type"}
        with quiet():
            try:
                other = wanted.from_dict(values)
            except Exception as refusal:  # config classes validate with whatever exception they like
                raise InputRejected(f"{error}; its own config refuses the values: {one_line(refusal)}") from refusal
        return build_class(kind, other)


def part_document(config: Mapping[str, Any], part: Skeleton) -> dict[str, Any]:
    """The JSON of config.json for the class of ``part``, which was built from ``config``.

    Raises:
        InputRejected: transformers would read other values from it than the part was built from.
    """
    wanted, built = part.model.config, build_config(config)
    if isinstance(built, type(wanted)):
        return {**config, "architectures": [part.architecture]}
    inside = next((held for one, held in _parts(config, built) if isinstance(one, type(wanted))), {})
    document = {
        "architectures": [part.architecture],
        **{key: value for key, value in inside.items() if key not in NOT_OF_THE_PART},
        "model_type": wanted.model_type,
        **{key: config[key] for key in OF_THE_FILE if key in config},
    }
    target, found = _values(part), _values(build_skeleton(document))
    document |= {key: value for key, value in target.items() if found.get(key, ...) != value}
    left = _values(build_skeleton(document))
    if left != target:
        key = next(key for key in {**left, **target} if left.get(key, ...) != target.get(key, ...))
        raise InputRejected(f"config.json: {key} of the part cannot be written so that transformers reads it again")
    return document


def _values(skeleton: Skeleton) -> dict[str, Any]:
    found = skeleton.model.config.to_dict()
    return {key: value for key, value in found.items() if key not in (*NOT_OF_THE_PART, *OF_THE_FILE)}


def _parts(config: Mapping[str, Any], built: Any) -> Iterator[tuple[Any, Mapping[str, Any]]]:
    """Yield the configs inside a config with what the JSON says of each, outer ones first."""
    names = [
        name for name in getattr(type(built), "sub_configs", {}) if hasattr(getattr(built, name, None), "model_type")
    ]
    inside = [(getattr(built, name), config.get(name)) for name in names]
    known = [(part, document if isinstance(document, Mapping) else {}) for part, document in inside]
    yield from known
    for part, document in known:
        yield from _parts(document, part)
