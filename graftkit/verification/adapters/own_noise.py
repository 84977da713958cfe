"""The noise of an adapted model: what runs that change nothing over the real numbers change of its outputs."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING

from graftkit.architecture.peft.parts import LoraPart, lora_parts
from graftkit.verification.comparison import Comparison, compare_runs

if TYPE_CHECKING:
    from torch import nn

    from graftkit.running.reference import Reference


def own_noise(model: nn.Module, before: Reference) -> dict[str, float]:
    """The noise of an adapted model whose reference this is, by output: the most of several runs, relative.

    Attention the other way, the rows of a batch last to first, padding, and the adapter's directions last to first.
    """
    from graftkit.running.nulls import null_runs

    runs: dict[str, Comparison] = defaultdict(lambda: Comparison(join_steps=True))
    for part in before.parts:
        for name, outputs in null_runs(model, part, before.extra_inputs):
            runs[name].add(part, before.kept[part.name], outputs)
    with reversed_directions(model):
        runs["directions"] = compare_runs(model, before)
    noise: dict[str, float] = {}
    for run in runs.values():
        for name, relative in run.relative.items():
            noise[name] = max(noise.get(name, 0.0), relative)
    return noise


@contextlib.contextmanager
def reversed_directions(model: nn.Module) -> Iterator[None]:
    """Let each product of an adapter's factors be summed over its directions last to first inside."""
    parts = list(lora_parts(model))
    for part in parts:
        _reverse(part)
    try:
        yield
    finally:
        for part in parts:
            _reverse(part)


def _reverse(part: LoraPart) -> None:
    a, b = part.a, part.b
    a.data = a.data.reshape(part.experts, -1, a.shape[1]).flip(1).reshape(a.shape)
    b.data = b.data.reshape(b.shape[0], -1, part.experts).flip(1).reshape(b.shape)
