"""Null noise: the source run again in its own dtype, in ways that change nothing over the real numbers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from graftkit.running.forward import run
from graftkit.running.probes import Probe

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: Where a config keeps how its attention is computed.
ATTENTION = "_attn_implementation"

#: Columns of padding that are added on the right.
PADDING = 3

Outputs = dict[str, torch.Tensor]


def null_runs(model: PreTrainedModel, probe: Probe, extra_inputs: frozenset[str]) -> Iterator[tuple[str, Outputs]]:
    """``(what was varied, outputs)``, with rows and columns as the probe has them; what cannot be varied is left out."""
    with other_attention(model) as name:
        if name is not None:
            yield f"attention {name}", run(model, probe, extra_inputs)
    if len(probe.ids) > 1:
        yield "batch order", _reversed_halves(model, probe, extra_inputs)
    if not probe.steps and not extra_inputs:
        with contextlib.suppress(RuntimeError, IndexError, ValueError):  # no room for longer rows
            yield "padding", _padded(model, probe, extra_inputs)


@contextlib.contextmanager
def other_attention(model: PreTrainedModel) -> Iterator[str | None]:
    """Attention computed the other way, eager or SDPA, inside; None where the model has one way only."""
    before = getattr(model.config, ATTENTION, None)
    other = {"eager": "sdpa", "sdpa": "eager"}.get(str(before))
    try:
        if other is not None:
            with contextlib.suppress(ValueError, ImportError):
                model.set_attn_implementation(other)
        yield other if other is not None and getattr(model.config, ATTENTION) == other else None
    finally:
        if before is not None and getattr(model.config, ATTENTION) != before:
            model.set_attn_implementation(before)


def _reversed_halves(model: PreTrainedModel, probe: Probe, extra_inputs: frozenset[str]) -> Outputs:
    """The rows last to first, in two batches."""
    order = list(range(len(probe.ids)))[::-1]
    half = (len(order) + 1) // 2
    parts = [run(model, _rows(probe, rows), extra_inputs) for rows in (order[:half], order[half:])]
    return {
        name: torch.cat([part[name] for part in parts]).flip(0)
        for name in parts[0]
        if all(len(part[name]) == size for part, size in zip(parts, (half, len(order) - half), strict=True))
    }


def _rows(probe: Probe, rows: list[int]) -> Probe:
    return replace(probe, ids=probe.ids[rows], mask=probe.mask[rows])


def _padded(model: PreTrainedModel, probe: Probe, extra_inputs: frozenset[str]) -> Outputs:
    """Columns of padding on the right; what they give is cut off again."""
    length = probe.ids.shape[1]
    pad = getattr(model.config.get_text_config(), "pad_token_id", None)
    ids = torch.nn.functional.pad(probe.ids, (0, PADDING), value=pad if isinstance(pad, int) and pad >= 0 else 0)
    found = run(model, replace(probe, ids=ids, mask=torch.nn.functional.pad(probe.mask, (0, PADDING))), extra_inputs)
    return {
        name: value[:, :length] if value.ndim > 2 else value  # a decoder may have been fed fewer columns than that
        for name, value in found.items()
    }
