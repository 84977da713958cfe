"""The config.json of a sparse class that holds what that of a dense class says."""

from __future__ import annotations

import contextlib
import functools
import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from graftkit.architecture.embeddings import INPUT
from graftkit.architecture.skeleton import Skeleton, build_config, build_skeleton, model_class, quiet
from graftkit.errors import InputRejected, few

#: What a config says of the file or the class, and what the document of the sparse class says anew.
OF_THE_FILE = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "model_type")

PER_TOKEN = "num_experts_per_tok"

#: What transformers' configs call alike, or give by these names too: the sizes of the rest.
LAYERS = "num_hidden_layers"
SIZES = (LAYERS, "hidden_size", "vocab_size")


class Unfit(ValueError):
    """A sparse class that cannot do what the dense one does; the message says why."""


@dataclass(frozen=True, slots=True)
class Fields:
    """What the sparse class calls the number of experts, and its widths that become those of the dense layer, by size of the latter.

    ``dense_blocks`` are its counts of blocks that have no experts, which become 0; ``flags`` further fields that it needs so that its
    outputs are those of the dense class.
    """

    experts: str
    widths: Mapping[str, int] = field(default_factory=dict)
    dense_blocks: tuple[str, ...] = ()
    flags: Mapping[str, bool] = field(default_factory=dict)

    def values(self, num_experts: int, num_experts_per_tok: int) -> dict[str, Any]:
        """The fields of config.json that are set."""
        none_dense = dict.fromkeys(self.dense_blocks, 0)
        return {self.experts: num_experts, PER_TOKEN: num_experts_per_tok, **self.widths, **none_dense, **self.flags}


def is_sparse(skeleton: Skeleton) -> bool:
    """Whether the config of a class counts experts for each token."""
    return counts_experts(type(skeleton.model.config))


def counts_experts(kind: Any) -> bool:
    """Whether a config class has experts for each token."""
    return PER_TOKEN in kind.attribute_map or PER_TOKEN in _defaults(kind)


@functools.cache
def _defaults(kind: Any) -> dict[str, Any]:
    with quiet():
        found: dict[str, Any] = kind().to_dict()
    return found


def sparse_document(config: Mapping[str, Any], architecture: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON of config.json for the sparse class: what the dense one's says, ``values``, and defaults for all else that it knows.

    Raises:
        Unfit: its config does not count experts for each token.
        InputRejected: it refuses the values.
    """
    _config_class(architecture)
    gone = set(dropped_fields(config, architecture))
    return _completed({key: value for key, value in config.items() if key not in gone}, config, architecture, values)


def _config_class(architecture: str) -> Any:
    """The config class of a sparse class.

    Raises:
        Unfit: it does not count experts for each token.
    """
    wanted: Any = model_class(architecture).config_class
    if wanted is None or not counts_experts(wanted):
        raise Unfit(f"its config has no {PER_TOKEN}")
    return wanted


def _completed(
    document: Mapping[str, Any], config: Mapping[str, Any], architecture: str, values: Mapping[str, Any]
) -> dict[str, Any]:
    """``document``, of the dense ``config``, with ``values`` and what else the sparse class has to be told."""
    wanted = _config_class(architecture)
    dense, known = build_config(config), _defaults(wanted)
    document = dict(document)
    document |= {"architectures": [architecture], "model_type": wanted.model_type}
    own = dense.to_dict()
    new = {key: value for key, value in known.items() if key not in own and key not in OF_THE_FILE}
    new = {key: value for key, value in new.items() if not _is_of_layers(wanted, value)}
    document |= {**new, **values}
    found = build_config(document).to_dict()
    shared = own.keys() & found.keys() - {*OF_THE_FILE, *values}
    return document | {key: own[key] for key in sorted(shared) if own[key] != found[key]}


def _is_of_layers(kind: Any, value: object) -> bool:
    """Whether a default has an entry for each layer of the default number of them: the class makes it anew for another number."""
    return isinstance(value, list) and len(value) == _defaults(kind).get(kind.attribute_map.get(LAYERS, LAYERS))


def dropped_fields(config: Mapping[str, Any], architecture: str) -> tuple[str, ...]:
    """Fields of config.json that the dense class knows, the sparse one does not, and that change no shape of its tensors."""
    wanted: Any = model_class(architecture).config_class
    dense: Any = type(build_config(config))
    mine, theirs = _defaults(dense), _defaults(wanted)
    known = {*theirs, *wanted.attribute_map, *OF_THE_FILE}
    unknown = [key for key in config if key in mine and key not in known]
    if not unknown:
        return ()
    document = {**config, "architectures": [architecture], "model_type": wanted.model_type}
    whole = build_skeleton(document).shapes

    def changes_nothing(*keys: str) -> bool:
        return build_skeleton({key: value for key, value in document.items() if key not in keys}).shapes == whole

    return tuple(sorted(unknown if changes_nothing(*unknown) else filter(changes_nothing, unknown)))


def candidates(config: Mapping[str, Any], architecture: str) -> list[str]:
    """Sparse classes for the same task: those of the family by name first, then those with the fewest further fields."""
    from transformers import CONFIG_MAPPING
    from transformers.models.auto import modeling_auto

    dense = config["model_type"]
    own = {*build_config(config).to_dict()}
    found: dict[str, tuple[bool, int, str]] = {}
    tables = [
        value
        for name, value in sorted(vars(modeling_auto).items())
        if name.startswith("MODEL_") and name.endswith("_NAMES")
    ]
    for table in (table for table in tables if table.get(dense) == architecture):
        for model_type, name in table.items():
            with contextlib.suppress(Exception):  # a config class may have no defaults, then nothing is known of it
                kind = CONFIG_MAPPING[model_type]
                if isinstance(name, str) and counts_experts(kind):
                    beside = len(_defaults(kind).keys() - own)
                    found[name] = min(
                        found.get(name, (True, beside, name)), (not model_type.startswith(dense), beside, name)
                    )
    return sorted(found, key=lambda name: found[name])


def find_fields(config: Mapping[str, Any], dense: Skeleton, architecture: str) -> Fields:
    """Find which fields of the sparse class count experts and set widths: those whose double makes axes of its own tensors longer.

    Raises:
        Unfit: none counts experts, or no width makes its tensors as wide as those of the dense layer.
    """
    dense_blocks = find_dense_blocks(config, architecture)
    document = sparse_document(config, architecture, dict.fromkeys(dense_blocks, 0))
    before = build_skeleton(document)
    numbers = _own_numbers(config, document)
    longer = {name: list(_longer(before, document, name, value)) for name, value in numbers.items()}
    experts = [name for name, axes in longer.items() if any(axis == 0 and len(shape) == 3 for _, axis, shape in axes)]
    if len(experts) != 1:
        what = (
            f"several fields count experts: {', '.join(experts)}"
            if experts
            else "no field of its own counts experts that lie in one tensor"
        )
        raise Unfit(what)
    width = dense_width(dense, before)
    widths = {name: _width(numbers[name], width, axes) for name, axes in longer.items() if axes and name not in experts}
    return Fields(experts[0], {name: value for name, value in widths.items() if value is not None}, dense_blocks)


def find_dense_blocks(config: Mapping[str, Any], architecture: str) -> tuple[str, ...]:
    """The fields of the sparse class alone that count blocks without experts: with 0 there are more tensors of all experts.

    Raises:
        Unfit, InputRejected: see :func:`sparse_document`.
    """
    document = sparse_document(config, architecture, {})
    before = _stacks(build_skeleton(document))
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that nothing can be drawn for a tensor of no values, where 0 is a size
        for name in _own_numbers(config, document):
            with contextlib.suppress(InputRejected):
                if _stacks(build_skeleton({**document, name: 0})) > before:
                    found.append(name)
    return tuple(found)


def _stacks(skeleton: Skeleton) -> int:
    return sum(len(shape) == 3 for shape in skeleton.shapes.values())


def _own_numbers(config: Mapping[str, Any], document: Mapping[str, Any]) -> dict[str, int]:
    """The numbers above 0 in the config of the sparse class that the dense one has not."""
    own = build_config(config).to_dict()
    found = build_config(document).to_dict()
    return {name: value for name, value in found.items() if name not in own and type(value) is int and value > 0}


def _longer(
    before: Skeleton, document: Mapping[str, Any], name: str, value: int
) -> Iterator[tuple[str, int, tuple[int, ...]]]:
    """The axes that are longer with twice the value: the parameter's name, the axis and the shape that it has now."""
    try:
        after = build_skeleton({**document, name: 2 * value})
    except InputRejected:
        return
    for parameter, shape in before.shapes.items():
        other = after.shapes.get(parameter, ())
        if len(other) == len(shape):
            yield from ((parameter, axis, shape) for axis, size in enumerate(shape) if other[axis] > size)


def _width(value: int, width: int, axes: list[tuple[str, int, tuple[int, ...]]]) -> int | None:
    """The value with which the narrowest of these axes has ``width``; None where there is none."""
    found, left = divmod(value * width, min(shape[axis] for _, axis, shape in axes))
    return None if left else found


def dense_width(dense: Skeleton, sparse: Skeleton) -> int:
    """How wide the layer is that the dense class has and the sparse one has not.

    Raises:
        Unfit: there is none, or no table says how wide the rest is.
    """
    table = dense.embedding(INPUT)
    shapes = [shape for name, shape in dense.shapes.items() if sparse.shapes.get(name) is None and len(shape) == 2]
    if table is None or not shapes:
        raise Unfit("it has every layer that the dense class has")
    return min(math.prod(shape) // table.weight.shape[1] for shape in shapes)


def check_that_rest_is_there(config: Mapping[str, Any], dense: Skeleton, architecture: str) -> None:
    """Refuse a sparse class without the rest of the dense one; it is built once, so that most are refused soon.

    Raises:
        Unfit: its config counts no experts for each token, or it has not all but the feed-forward layer.
        InputRejected: it cannot be built from what the dense class's config says.
    """
    document = _completed(config, config, architecture, {})
    mine, theirs = (build_config(held).get_text_config() for held in (config, document))
    for name in SIZES:
        sizes = getattr(mine, name, None), getattr(theirs, name, None)
        if sizes[0] != sizes[1] and None not in sizes:
            raise Unfit(f"its {name} would be {sizes[1]}, and is {sizes[0]}: it calls it by another name")
    try:
        check_rest(dense, build_skeleton(document))
    except Unfit:
        none_dense = dict.fromkeys(find_dense_blocks(config, architecture), 0)
        if not none_dense:
            raise
        check_rest(dense, build_skeleton({**document, **none_dense}))


def check_rest(dense: Skeleton, sparse: Skeleton) -> None:
    """Refuse a sparse class that has a tensor of the dense one in another shape, or no place for what is no matrix.

    Raises:
        Unfit: there is one.
    """
    other = [name for name, shape in dense.shapes.items() if sparse.shapes.get(name, shape) != shape]
    if other:
        raise Unfit(f"of another shape are {few(other)}")
    left = [name for name, shape in dense.shapes.items() if name not in sparse.shapes and len(shape) != 2]
    if left:
        raise Unfit(f"it has no place for {few(left)}")
