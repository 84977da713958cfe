"""What peft makes of a base and an adapter, learnt from the modules that peft itself builds and fills.

Which tensor of the adapter lands in which module, with which scaling and in which layout, is read off those modules. No
name of a tensor is taken apart here.
"""

from __future__ import annotations

import contextlib
import functools
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from graftkit.architecture.peft.edits import BiasShift, Edit, Factors, Layout, Replaced, TokenRows
from graftkit.architecture.peft.exchanged_prefix import exchanged_prefix
from graftkit.architecture.peft.parts import NAME, LoraPart, SavedPart, TokensPart, adapter_parts
from graftkit.architecture.peft.placement import CHANGES_BASE, Placement, fill, peft_config, wrap_on_meta
from graftkit.architecture.skeleton import Skeleton, one_line, quiet
from graftkit.checkpoint.adapter import Adapter
from graftkit.checkpoint.tensors import LazyTensor
from graftkit.errors import InputRejected, printable

#: Variants of LoRA that merge as plain LoRA does, and DoRA.
PLAIN = ("NoneType", "MiCALinearVariant", "MiCAEmbeddingVariant")
DORA = ("DoraLinearVariant", "DoraEmbeddingVariant")


def find_edits(skeleton: Skeleton, adapter: Adapter, shown: str) -> tuple[Edit, ...]:
    """What ``adapter`` changes in the class of ``skeleton``, whose model peft rebuilds in place.

    Raises:
        InputRejected: peft cannot put the adapter on this base, a tensor is missing or left over, or what the adapter
            does cannot be folded into weights; the module or field is named.
    """
    return place_adapter(skeleton, adapter, shown).edits


@dataclass(frozen=True, slots=True)
class Placed:
    """An adapter on a class: the ``model`` that peft has made of both, where each tensor went, and what the adapter changes."""

    model: Any
    placement: Placement
    edits: tuple[Edit, ...]


def place_adapter(skeleton: Skeleton, adapter: Adapter, shown: str) -> Placed:
    """Let peft put ``adapter`` on the class of ``skeleton``, which is used up; raises as :func:`find_edits` does."""
    with _refusals(skeleton, adapter, shown):
        model = wrap_on_meta(skeleton.model, peft_config(adapter))
        placement = fill(model, adapter)
        edits = tuple(_edits(model.base_model.model, placement))
    if placement.unused:
        name = printable(min(placement.unused))
        raise InputRejected(f"{shown}: tensor {name!r} lands in no place that can be folded into a weight")
    return Placed(model, placement, edits)


def check_fit(skeleton: Skeleton, adapter: Adapter, shown: str) -> None:
    """Let peft put a LoRA adapter on the class of ``skeleton``, from shapes alone.

    Adapters whose loading changes the base's weights or repeats layers are let through unchecked.

    Raises:
        InputRejected: peft cannot, or a tensor is missing or has no place.
    """
    config = adapter.config
    init = config.get("init_lora_weights")
    reads_weights = isinstance(init, str) and init.lower().startswith(CHANGES_BASE)
    if config["peft_type"] != "LORA" or reads_weights or config.get("layer_replication"):
        return
    with _refusals(skeleton, adapter, shown):
        fill(wrap_on_meta(skeleton.model, peft_config(adapter)), adapter)


@contextlib.contextmanager
def _refusals(skeleton: Skeleton, adapter: Adapter, shown: str) -> Iterator[None]:
    """Turn whatever peft raises into one sentence about ``adapter``, which errors call ``shown``."""
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exchanged = None
        try:
            exchanged = exchanged_prefix(skeleton, adapter)
            yield
        except Exception as error:  # peft raises whatever it runs into
            if exchanged is not None:
                why = f"{skeleton.architecture} names its modules otherwise: {exchanged}"
            elif isinstance(error, InputRejected):
                why = str(error)
            else:
                why = f"peft cannot put it on {skeleton.architecture}: {_why(error)}"
            raise InputRejected(f"{shown}: {why}") from error


def _why(error: Exception) -> str:
    """The error in one line: the first of torch's sizes that do not fit, or the key that is missing."""
    lines = [line.strip() for line in str(error).splitlines() if "size mismatch" in line]
    if lines:
        return printable(lines[0])
    return f"tensor {printable(error.args[0])!r} is missing" if isinstance(error, KeyError) else one_line(error)


def _edits(root: Any, placement: Placement) -> Iterator[Edit]:
    for part in adapter_parts(root):
        if isinstance(part, LoraPart):
            if f"modules_to_save.{NAME}" in part.path:
                raise InputRejected(
                    f"module {printable(part.path)!r} is saved whole and adapted as well; merge it with peft"
                )
            yield from _of_layer(part, placement)
        elif isinstance(part, SavedPart):
            for name, value in part.module.state_dict(keep_vars=True).items():
                tensor = placement.tensor_behind(value, f"{part.path}.modules_to_save.{NAME}.{name}")
                yield Replaced(f"{part.path}.{name}", tensor, shared=False)
        else:
            yield _token_rows(part, placement)
    for name, value in list(root.named_parameters(remove_duplicate=False)):
        if placement.names.get(id(value)) in placement.unused:
            yield Replaced(_without_wrappers(name), placement.tensor_behind(value, name), shared=True)


def _without_wrappers(name: str) -> str:
    """The name that a parameter of the base has where peft's layers lie around it."""
    return re.sub(r"\.(token_adapter|base_layer|original_module)(?=\.)", "", name)


def _of_layer(part: LoraPart, placement: Placement) -> Iterator[Edit]:
    from peft.tuners.lora.layer import Embedding, Linear, ParamWrapper

    path, module, kind = part.path, part.module, type(part.module)
    variant = type(module.lora_variant.get(NAME)).__name__
    if kind not in {Embedding, Linear, ParamWrapper} or variant not in PLAIN + DORA:
        what = kind.__name__ if variant in PLAIN + DORA else variant
        raise InputRejected(
            f"module {printable(path)!r} is a {what} of LoRA, which cannot be folded into a weight here"
        )

    def at(name: str) -> LazyTensor:
        return placement.tensor_behind(functools.reduce(getattr, name.split("."), module), f"{path}.{name}")

    layout: Layout = "transposed" if part.transposed else "linear"
    if part.on_parameter and module.get_param().ndim == 3:
        layout = "experts" if module._did_swap_in_out_features else "experts_transposed"  # noqa: SLF001
    names = (
        ("lora_embedding_A.{}", "lora_embedding_B.{}") if part.on_table else ("lora_A.{}.weight", "lora_B.{}.weight")
    )
    a, b = (at(name.format(NAME)) for name in names)
    magnitude = at(f"lora_magnitude_vector.{NAME}.weight") if variant in DORA else None
    experts = part.experts if part.on_parameter else 1
    yield Factors(part.weight, a, b, part.rank, part.scaling, layout, experts, magnitude)
    if module.lora_bias[NAME]:
        if getattr(part.base, "bias", None) is None:
            raise InputRejected(f"lora_bias: module {printable(path)!r} has no bias that the LoRA's could be added to")
        yield BiasShift(f"{path}.bias", at(f"lora_B.{NAME}.bias"), part.scaling)


def _token_rows(part: TokensPart, placement: Placement) -> TokenRows:
    path, layer = part.path, part.layer
    rows = tuple(int(row) for row in layer.token_indices[NAME])
    if len(set(rows)) != len(rows):
        raise InputRejected("adapter_config.json: trainable_token_indices names an id twice")
    if getattr(layer.base_layer, "bias", None) is not None:
        raise InputRejected(
            f"trainable_token_indices: peft leaves out the bias of {printable(path)!r} while the adapter is active, so"
            " that no merged weight can equal it"
        )
    values = placement.tensor_behind(
        layer.trainable_tokens_delta[NAME], f"{path}.token_adapter.trainable_tokens_delta.{NAME}"
    )
    return TokenRows(f"{path}.weight", rows, values)
