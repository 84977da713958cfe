"""The skeleton of a checkpoint: its transformers class on the meta device, which tells shapes, roles and names."""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from graftkit.architecture.embeddings import embedding_of
from graftkit.architecture.names import TensorNames, tensor_names
from graftkit.architecture.packed import NOTHING_PACKED, Packed, find_packed
from graftkit.checkpoint.quantization import quantization_config, without_quantization
from graftkit.errors import InputRejected, printable

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from graftkit.architecture.embeddings import Table
    from graftkit.checkpoint.tensors import LazyTensor

Path = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LoadingInfo:
    """What transformers' loader would say of a set of tensors: names in memory, and the two shapes of a mismatch.

    ``packed`` are those that it leaves to a quantizer.
    """

    missing: frozenset[str] = frozenset()
    unexpected: frozenset[str] = frozenset()
    mismatched: frozenset[tuple[str, tuple[int, ...], tuple[int, ...]]] = frozenset()
    packed: Packed = NOTHING_PACKED


@dataclass(frozen=True, slots=True)
class Skeleton:
    """A model class built from a config on the meta device.

    ``shapes`` are those of the state dict, by name in memory; ``tied`` maps each tied name to the name it is tied to. Of a
    ``quantized`` checkpoint it is the plain class, whose weights may be packed on disk.
    """

    architecture: str
    model: PreTrainedModel
    shapes: Mapping[str, tuple[int, ...]]
    tied: Mapping[str, str]
    quantized: bool = False
    _names: dict[tuple[str, ...], TensorNames] = field(default_factory=dict, repr=False, compare=False)

    def weight_names(self, getter: str) -> frozenset[str]:
        """Names in memory of the table of the module that ``getter`` returns; empty where there is no such table.

        By module, not by parameter: a tied parameter stands under both modules' names here, also where the values on
        disk differ and the loader would not tie them.
        """
        module = self.embedding(getter)
        return frozenset() if module is None else self.weight_names_of(module)

    def weight_names_of(self, module: Table) -> frozenset[str]:
        """Names in memory of the table of ``module``, one for each place in which the model holds it."""
        named = self.model.named_modules(remove_duplicate=False)
        return frozenset(f"{name}.weight" for name, value in named if value is module)

    def embedding(self, getter: str) -> Table | None:
        """The module of the input or output embedding; None where there is none with a table."""
        return embedding_of(self.model, getter)

    def memory_names(self, disk_names: Iterable[str]) -> TensorNames:
        """The names in memory of these names on disk, with the way back."""
        given = tuple(disk_names)
        if given not in self._names:
            self._names[given] = tensor_names(self.model, given)
        return self._names[given]

    def loading(self, tensors: Mapping[str, LazyTensor]) -> LoadingInfo:
        """What transformers' loader would do with ``tensors``; where its rules leave a doubt, the loader itself is asked.

        Of packed tensors no more is asked than that they lie beside one another.
        """
        packed = find_packed(self.model, self.memory_names(tensors), tensors) if self.quantized else NOTHING_PACKED
        plain = {name: tensor for name, tensor in tensors.items() if name not in packed.tensors}
        if not packed.tensors and self._fit_exactly(plain):
            return LoadingInfo()
        info = self.ask_loader(plain)
        return replace(info, missing=info.missing - packed.weights, packed=packed)

    def _fit_exactly(self, tensors: Mapping[str, LazyTensor]) -> bool:
        """Whether each tensor is taken over as it is, and each name in memory gets one: its own, or one it is tied to."""
        names = self.memory_names(tensors)
        shapes = {name: tensors[disk].shape for disk, (name, converted) in names.items() if not converted}
        return (
            len(shapes) == len(tensors)
            and all(self.shapes.get(name) == shape for name, shape in shapes.items())
            and all(name in shapes or self.tied.get(name) in shapes for name in self.shapes)
        )

    def ask_loader(self, tensors: Mapping[str, LazyTensor]) -> LoadingInfo:
        """Let transformers' loader load ``tensors`` on the meta device, without a weight."""
        import torch

        from graftkit.checkpoint.reading import torch_dtype

        state = {
            name: torch.empty(tensor.shape, dtype=torch_dtype(tensor.dtype), device="meta")
            for name, tensor in tensors.items()
        }
        with quiet():
            try:
                _, info = type(self.model).from_pretrained(
                    None,
                    config=copy.deepcopy(self.model.config),
                    state_dict=state,
                    device_map="meta",
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,
                    dtype=torch.float32,
                )
            except Exception as error:  # transformers raises whatever its conversions run into
                raise InputRejected(
                    f"{self.architecture}: transformers cannot load these tensors: {one_line(error)}"
                ) from error
        mismatched = frozenset((name, tuple(found), tuple(wanted)) for name, found, wanted in info["mismatched_keys"])
        return LoadingInfo(frozenset(info["missing_keys"]), frozenset(info["unexpected_keys"]), mismatched)


def one_line(error: BaseException) -> str:
    """The first line of an error's message, with the second where it only leads there, fit for a terminal."""
    first, *further = str(error).strip().split("\n")
    text = f"{first} {further[0].strip()}" if further and first.endswith(":") else first
    return printable(f"{type(error).__name__}: {text}"[:300])


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' progress bars and load reports off the terminal, and its global state as it was."""
    import torch
    from transformers.utils import logging as transformers_logging

    level, dtype = transformers_logging.get_verbosity(), torch.get_default_dtype()
    bars = transformers_logging.is_progress_bar_enabled()
    changes = level != logging.CRITICAL  # setting it goes over every logger of the process
    if changes:
        transformers_logging.set_verbosity(logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)
        if changes:
            transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def build_config(config: Mapping[str, Any]) -> Any:
    """Build transformers' config object from the JSON of a config.json.

    Raises:
        InputRejected: the model type is not one of transformers, or its config class refuses the values.
    """
    from transformers import PreTrainedConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    model_type = config.get("model_type")
    if model_type not in CONFIG_MAPPING:
        raise InputRejected(
            f"config.json: model_type {printable(model_type)!r} is not one of transformers;"
            " its code would have to come with the checkpoint, and that is not run"
        )
    values = PreTrainedConfig._decode_special_floats(copy.deepcopy(dict(config)))  # noqa: SLF001 - the only decoder
    values.pop("auto_map", None)
    with quiet():
        try:
            return CONFIG_MAPPING[model_type].from_dict(values)
        except Exception as error:  # config classes validate with whatever exception they like
            raise InputRejected(f"config.json: transformers refuses it: {one_line(error)}") from error


def build_skeleton(config: Mapping[str, Any], architecture: str | None = None) -> Skeleton:
    """Build the class that config.json's ``architectures`` names (or ``architecture``) on the meta device.

    Raises:
        InputRejected: no such class in transformers, or the class cannot be built from the config.
    """
    built = build_config(without_quantization(config))
    skeleton = build_class(model_class(architecture or architecture_of(config)), built)
    return replace(skeleton, quantized=quantization_config(config) is not None)


def model_class(name: str) -> type[PreTrainedModel]:
    """The class of transformers that ``architectures`` of a config.json names.

    Raises:
        InputRejected: there is none of that name, or it is no model.
    """
    import torch
    import transformers

    found = getattr(transformers, name, None)
    if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
        raise InputRejected(f"config.json: architectures: {printable(name)!r} is not a model class of transformers")
    if (
        getattr(found, "forward", None) is torch.nn.Module.forward
    ):  # and building it would leave marks on the classes below it
        raise InputRejected(
            f"config.json: architectures: {printable(name)!r} is a base class of transformers, not a model"
        )
    return found


def build_class(kind: type[PreTrainedModel], built: Any) -> Skeleton:
    """Build a class from transformers' config object on the meta device.

    Raises:
        InputRejected: it cannot be built from it.
    """
    import torch

    with quiet():
        try:
            with torch.device("meta"):
                model = kind(built)
        except Exception as error:  # model classes assert and raise freely
            raise InputRejected(f"{kind.__name__}: cannot be built from config.json: {one_line(error)}") from error
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    return Skeleton(kind.__name__, model, shapes, dict(model.all_tied_weights_keys))


def architecture_of(config: Mapping[str, Any]) -> str:
    """The class name in ``architectures``, or the base model of the config's type where the list is absent."""
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    architectures = config.get("architectures")
    if architectures:
        if not (isinstance(architectures, list) and isinstance(architectures[0], str)):
            raise InputRejected("config.json: architectures: expected a list of class names")
        return architectures[0]
    name = MODEL_MAPPING_NAMES.get(config["model_type"])
    if not isinstance(name, str):
        raise InputRejected("config.json: architectures is missing; name the class that the tensors belong to")
    return name


def sibling_architectures(config: Mapping[str, Any], architecture: str) -> list[str]:
    """Every other class of transformers' auto mappings with the same model type, the pretraining head first."""
    from transformers.models.auto import modeling_auto

    names: dict[str, None] = {}
    tables = sorted(key for key in vars(modeling_auto) if key.startswith("MODEL_") and key.endswith("_NAMES"))
    for table in ["MODEL_FOR_PRETRAINING_MAPPING_NAMES", *tables]:
        entry = getattr(modeling_auto, table).get(config["model_type"])
        for name in (entry,) if isinstance(entry, str) else entry or ():
            names[name] = None
    names.pop(architecture, None)
    return list(names)


def integer_paths(value: object, prefix: Path = ()) -> Iterator[tuple[Path, int]]:
    """Yield each integer in nested dicts with its path; lists and booleans are passed over."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from integer_paths(item, (*prefix, str(key)))
    elif isinstance(value, int) and not isinstance(value, bool):
        yield prefix, value


def with_values(config: Mapping[str, Any], paths: Sequence[Path], value: object) -> dict[str, Any]:
    """A copy of ``config`` in which every path of ``paths`` holds ``value``; missing sub-configs are made."""
    changed = dict(config)
    for path in paths:
        place = changed
        for key in path[:-1]:
            inner = place.get(key)
            place[key] = dict(inner) if isinstance(inner, dict) else {}
            place = place[key]
        place[path[-1]] = value
    return changed
