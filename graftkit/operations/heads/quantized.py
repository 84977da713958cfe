"""A new head on a quantized backbone: it is plain, and the quantization config has to say so."""

from __future__ import annotations

from typing import Any

from graftkit.architecture.head import Head
from graftkit.architecture.quantizer import BLOCKS, PLAIN_MODULES, config_fields
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.quantization import quantization_config, quantization_method, with_quantization
from graftkit.errors import InputRejected, RecipeError, printable


def check_values(checkpoint: Checkpoint, *, runs_model: bool) -> None:
    """Refuse, on a quantized base, a head whose values come from a run of the model.

    Raises:
        RecipeError: they do.
    """
    if runs_model and quantization_config(checkpoint.config) is not None:
        raise RecipeError(
            "runs the model to make the head, and the base is quantized; choose zeros, normal or another scheme that runs nothing",
            field="init",
        )


def with_plain_head(config: dict[str, Any], head: Head, packed: frozenset[str]) -> dict[str, Any]:
    """``config`` whose quantizer, where there is one, leaves the new modules of ``head`` as they are.

    A quantizer that packs whatever its config does not exempt would take the new weights for packed ones; ``packed`` are the
    modules that are. One that works inside the blocks alone never sees a head.

    Raises:
        InputRejected: what the config of such a quantizer calls the modules that stay plain is not known.
    """
    found = quantization_config(config)
    if found is None:
        return config
    fields = config_fields(config)
    field = next((name for name in PLAIN_MODULES if name in fields), None)
    if field is None and BLOCKS in fields:
        return config
    if field is None:
        raise InputRejected(
            f"config.json: quantization_config: {printable(quantization_method(config))} has no list of modules that stay plain,"
            " so that a new head could be taken for a packed one; give the checkpoint that it was quantized from"
        )
    plain = found.get(field)
    listed = [*plain] if plain else [name for name in _by_default(head) if name not in packed]
    return with_quantization(config, {field: [*dict.fromkeys((*listed, *head.modules))]})


def _by_default(head: Head) -> list[str]:
    """The modules of the class that transformers leaves plain where a config names none."""
    from transformers.quantizers.base import get_keys_to_not_convert

    return sorted(get_keys_to_not_convert(head.skeleton.model))
