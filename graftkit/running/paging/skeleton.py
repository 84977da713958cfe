"""A model as the loader makes it, with its parameters left on disk."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from graftkit.architecture.embeddings import INPUT, OUTPUT, embedding_of
from graftkit.checkpoint.reading import equal_bytes, torch_dtype
from graftkit.checkpoint.weights import read_weights
from graftkit.errors import NotAsStored, few
from graftkit.running.paging.origin import Origin, origins
from graftkit.running.paging.pager import Pager, page
from graftkit.running.paging.table import Table, is_large, table_of
from graftkit.running.paging.writes import Writes
from graftkit.running.seen_config import read_config

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


def load_paged(model_class: Any, directory: Path, **options: Any) -> tuple[Any, dict[str, Any], Pager]:
    """The model of a checkpoint and what its loader says, as ``from_pretrained(directory)`` gives them, and what reads it.

    Buffers, and parameters that no file holds, lie in memory. Large vocabulary tables are read by rows, all other
    parameters when the forward asks for them.

    Raises:
        StorageFault: transformers does not see config.json.
        NotAsStored: the class changes values that it has loaded.
        Exception: whatever transformers' loader raises.
    """
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    tensors = read_weights(directory, config).tensors
    state = {
        name: torch.empty(stored.shape, dtype=torch_dtype(stored.dtype), device="meta")
        for name, stored in tensors.items()
    }
    model, info = model_class.from_pretrained(
        None, config=read_config(model_class.config_class, directory), state_dict=state, device_map="meta",
        output_loading_info=True, **options,
    )  # fmt: skip
    found = origins(model, tensors)
    _tie(model, found)
    _fill(model, found)
    return model, info, page(model, found, vocabulary_tables(model))


def split_large_tables(model: PreTrainedModel) -> None:
    """Let the large vocabulary tables of a model in memory be multiplied in the pieces of one that is paged in."""
    wanted = vocabulary_tables(model)
    tables: dict[int, Tensor] = {}
    for module in model.modules():
        held = module._parameters  # noqa: SLF001
        for key, value in held.items():
            if value is not None and id(value) in wanted and is_large(value):
                held[key] = tables.setdefault(id(value), table_of(value.detach()))


def join_tables(model: PreTrainedModel) -> None:
    """Let the large vocabulary tables of a model that lie in memory be multiplied at once again."""
    tables: dict[int, tuple[Tensor, Tensor]] = {}
    for module in model.modules():
        held = module._parameters  # noqa: SLF001
        for key, value in held.items():
            if isinstance(value, Table) and value.read is None:
                whole = torch.nn.Parameter(value.as_subclass(torch.Tensor), requires_grad=False)
                held[key] = tables.setdefault(id(value), (value, whole))[1]


def hold(modules: Iterable[torch.nn.Module], pager: Pager | None) -> None:
    """Read the parameters of these modules of a paged model at once, and keep them in memory."""
    tables: dict[int, tuple[Tensor, Tensor]] = {}
    if pager is not None:
        pager.keep_all()
    for module in modules:
        held = module._parameters  # noqa: SLF001
        for key, value in list(held.items()):
            if isinstance(value, Table) and value.read is not None:
                if id(value) not in tables:
                    tables[id(value)] = value, table_of(value.read(0, len(value)))
                held[key] = tables[id(value)][1]
            else:
                held[key]  # asking for it reads it


def vocabulary_tables(model: PreTrainedModel) -> frozenset[int]:
    """Ids of the parameters that embeddings and the output embedding look up and multiply."""
    modules: list[torch.nn.Module] = [part for part in model.modules() if isinstance(part, torch.nn.Embedding)]
    modules += [module for getter in (INPUT, OUTPUT) if (module := embedding_of(model, getter)) is not None]
    return frozenset(id(module._parameters.get("weight")) for module in modules)  # noqa: SLF001 - without reading it


def _tie(model: PreTrainedModel, found: dict[str, Origin]) -> None:
    """Tie what is stored twice where the bytes are equal: on the meta device the loader cannot compare them."""
    for target, source in list(model.all_tied_weights_keys.items()):
        one, two = found.get(target), found.get(source)
        if one is None or two is None or model.get_parameter(target) is model.get_parameter(source):
            continue
        if one.stored is None or two.stored is None or not equal_bytes(one.stored, two.stored):
            model.all_tied_weights_keys.pop(target)
            continue
        parent, _, name = target.rpartition(".")
        setattr(model.get_submodule(parent), name, model.get_parameter(source))


def _fill(model: PreTrainedModel, found: dict[str, Origin]) -> None:
    """Give buffers their stored values, and what no file holds the values that the class itself gives it."""
    filled = {id(parameter) for name, parameter in model.named_parameters(remove_duplicate=False) if name in found}
    made: dict[int, Tensor] = {}
    for module_name, module in model.named_modules():
        for held in (module._buffers, module._parameters):  # noqa: SLF001
            for key, value in held.items():
                if value is None or not value.is_meta or id(value) in filled:
                    continue
                name = f"{module_name}.{key}" if module_name else key
                if name in found:
                    held[key] = found[name].read()[name]
                    held[key]._is_hf_initialized = True  # noqa: SLF001 - what transformers asks for
                else:
                    held[key] = made.setdefault(id(value), torch.empty_like(value, device="cpu"))
        module._is_hf_initialized = False  # noqa: SLF001
    with Writes({name: value for name, value in model.named_parameters() if name in found}) as writes:
        model.initialize_weights()
    if writes.names:
        raise NotAsStored(
            f"{type(model).__name__} writes into {few(writes.names)} when it is loaded, so that it runs where it fits into memory,"
            " and not from its files"
        )
