"""From a planned checkpoint to a model in memory that shares with the given one whatever did not change."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftkit.architecture.names import TensorNames, tensor_names
from graftkit.architecture.skeleton import Skeleton, build_config, build_skeleton, one_line
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.held import Held
from graftkit.checkpoint.reading import read_tensor
from graftkit.errors import VerificationFailed
from graftkit.running.forward import undisturbed
from graftkit.running.live.model import LiveModel
from graftkit.running.texts import write_tokenizer

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


def assemble(planned: Checkpoint, source: LiveModel, directory: Path) -> LiveModel:
    """The model of ``planned``, made of ``source``; its documents are written to ``directory``.

    Raises:
        VerificationFailed: transformers does not load it.
    """
    directory.mkdir()
    write_tokenizer(planned, directory)
    skeleton = build_skeleton(planned.config)
    same_class = type(skeleton.model) is type(source.model)
    shared = _shared(planned, skeleton, source.model, same_class=same_class)
    with undisturbed():
        model = _load(skeleton, planned, shared, source, directory)
    old = dict(_tensors(source.model))
    buffers = dict(_buffers(model, source.model)) if model.dtype == source.model.dtype else {}
    for name, value in {**shared.by_parameter, **buffers}.items():
        _put(model, name, old[value] if isinstance(value, str) else value)
    _take_over(model, source.model, same_class=same_class)
    return LiveModel.of(model, directory, planned.name)


@dataclass(frozen=True, slots=True)
class _Shared:
    """What the new model shares: ``by_parameter`` its names in memory -> the tensor, or its name in the old model.

    ``loaded`` are the names under which the loader is given tensors of the old model in the form that they have in memory;
    ``covered`` the names on disk that these stand for.
    """

    by_parameter: Mapping[str, Tensor | str]
    loaded: frozenset[str]
    covered: frozenset[str]


def _shared(planned: Checkpoint, skeleton: Skeleton, old: PreTrainedModel, *, same_class: bool) -> _Shared:
    """Find what did not change, also of what is saved in another form than it has in memory; of what stands twice, one is a copy.

    The loader is given the latter as it is in memory where the class stays the same: it would not note how another is saved.
    """
    names = skeleton.memory_names(planned.tensors)
    before = {_bare(old, name): name for name, _ in _tensors(old)}
    by_parameter: dict[str, Tensor | str] = {}
    loaded: dict[str, tuple[str, ...]] = {}
    taken: set[int] = set()
    for name, disks in names.disk.items():
        held = [tensor for disk in disks if isinstance(tensor := planned.tensors[disk], Held)]
        if name not in skeleton.shapes or len(held) != len(disks):
            continue
        if held[0].plain and not names[disks[0]].converted:
            copied = id(held[0]) in taken  # two weights that begin alike are not one
            by_parameter[name] = held[0].values.clone() if copied else held[0].values
            taken.add(id(held[0]))
            continue
        origin = before.get(_bare(skeleton.model, name))
        if origin is not None and all(origin in tensor.parameters for tensor in held):
            by_parameter[name] = origin
            if same_class:
                loaded[name] = disks
    kept = _kept_by_loader(skeleton, names, loaded)
    return _Shared(by_parameter, frozenset(kept), frozenset(disk for name in kept for disk in loaded[name]))


def _kept_by_loader(skeleton: Skeleton, names: TensorNames, loaded: Mapping[str, tuple[str, ...]]) -> set[str]:
    """Those of ``loaded`` that the loader takes as they are in memory, and that alone are made of what they stand for."""
    found = tensor_names(skeleton.model, loaded)
    made_of = [disk for disks in names.disk.values() for disk in disks]
    return {
        name
        for name, disks in loaded.items()
        if found[name] == (name, False) and all(made_of.count(disk) == 1 for disk in disks)
    }


def _load(
    skeleton: Skeleton, planned: Checkpoint, shared: _Shared, source: LiveModel, directory: Path
) -> PreTrainedModel:
    """Let transformers' loader put the model together, of the old tensors themselves where they are not converted."""
    from transformers import GenerationConfig

    old = dict(_tensors(source.model))
    state = {name: old[name].detach() for name in shared.loaded}
    for disk, tensor in planned.tensors.items():
        if disk not in shared.covered:
            state[disk] = tensor.values if isinstance(tensor, Held) else read_tensor(tensor)
    import torch

    config: Any = build_config(planned.config)
    dtype = getattr(torch, planned.config.get("dtype", ""), source.model.dtype)
    config.name_or_path = source.model.config.name_or_path
    for key in ("_attn_implementation", "_experts_implementation"):
        if (chosen := getattr(source.model.config, key, None)) is not None:
            setattr(config, key, chosen)
    try:
        model, info = type(skeleton.model).from_pretrained(
            None, config=config, state_dict=state, dtype=dtype, output_loading_info=True
        )
    except Exception as error:  # whatever loading runs into is the finding
        raise VerificationFailed(f"outputs: the result does not load: {one_line(error)}") from error
    if info["missing_keys"] or info["mismatched_keys"]:
        strange = sorted(map(str, (*info["missing_keys"], *info["mismatched_keys"])))
        raise VerificationFailed(f"outputs: the result's load reports missing tensors: {strange[0]}")
    if "generation_config.json" in planned.documents and model.can_generate():
        model.generation_config = GenerationConfig.from_pretrained(directory)
    result: PreTrainedModel = model
    return result


def _tensors(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Every parameter and buffer by each of its names."""
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _buffers(new: PreTrainedModel, old: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Buffers that are not saved, such as rotary frequencies, as they are in the old model, which may have cast or changed them."""
    saved = new.state_dict().keys()
    before = {_bare(old, name): value for name, value in old.named_buffers()}
    for name, value in new.named_buffers():
        other = before.get(_bare(new, name))
        if name not in saved and other is not None and other.shape == value.shape:
            yield name, other


def _bare(model: PreTrainedModel, name: str) -> str:
    """The name without that of the base model, which only some of the classes put before it."""
    return name.removeprefix(f"{model.base_model_prefix}.")


def _put(model: PreTrainedModel, name: str, value: Tensor) -> None:
    """Let the parameter or buffer ``name`` lie where ``value`` lies; whatever is tied to it goes along."""
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    if leaf in module._buffers:  # noqa: SLF001 - where a buffer is
        module._buffers[leaf] = value.detach()  # noqa: SLF001
    else:
        module.get_parameter(leaf).data = value.detach()


def _take_over(new: PreTrainedModel, old: PreTrainedModel, *, same_class: bool) -> None:
    """Modes of the old model that are no weights: training, frozen parameters, checkpointing, and how it is saved."""
    frozen = {
        _bare(old, name) for name, value in old.named_parameters(remove_duplicate=False) if not value.requires_grad
    }
    for name, value in new.named_parameters(remove_duplicate=False):
        if _bare(new, name) in frozen:
            value.requires_grad_(requires_grad=False)
    new.train(old.training)
    if any(getattr(module, "gradient_checkpointing", False) for module in old.modules()):
        getattr(new, "activation_checkpointing_enable", new.gradient_checkpointing_enable)()
    if same_class:
        with contextlib.suppress(AttributeError):
            del new._weight_conversions  # noqa: SLF001
        if hasattr(old, "_weight_conversions"):
            new._weight_conversions = old._weight_conversions  # noqa: SLF001 - the names that it is saved under
