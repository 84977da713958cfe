"""The noise of the figures: the source measured again, its attention computed the other way and its texts last to first."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from graftkit.running.nulls import other_attention
from graftkit.running.probes import Probe
from graftkit.verification.signal.run import Signal, measure

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: What each figure of each block of a stack changes by at most on a text: ``stack -> one mapping for each block``.
Noise = dict[str, list[dict[str, float]]]


def null_noise(model: PreTrainedModel, probe: Probe, extra_inputs: frozenset[str], found: Signal) -> Noise:
    """How far the figures ``found`` of ``model`` move in a run that changes nothing over the real numbers."""
    turned = replace(probe, ids=probe.ids.flip(0), mask=probe.mask.flip(0))
    try:
        with other_attention(model):
            again = measure(model, turned, extra_inputs)
    except Exception:  # noqa: BLE001 - a forward that cannot do with the other attention raises anything
        again = measure(model, turned, extra_inputs)
    return {
        name: [
            {key: _apart(values, new[key][::-1]) for key, values in old.items() if key in new}
            for old, new in zip(blocks, again.blocks.get(name, ()), strict=False)
        ]
        for name, blocks in found.blocks.items()
    }


def _apart(values: list[float], others: list[float]) -> float:
    return max((abs(a - b) for a, b in zip(values, others, strict=False)), default=0.0)
