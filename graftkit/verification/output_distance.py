"""How far the outputs of two models, or of two runs of one, are from each other: by output, over all probes."""

from __future__ import annotations

import contextlib
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from graftkit.architecture.peft.injection import NAME
from graftkit.running.forward import run
from graftkit.running.probes import Probe
from graftkit.running.reference import Reference

#: What cached decoding puts before the names of its outputs.
STEP = re.compile(r"^step \d+ ")


@dataclass(frozen=True, slots=True)
class Distances:
    """Relative root-mean-square distances by output, and whether all outputs are equal to the last bit."""

    relative: Mapping[str, float]
    bitwise: bool


class _Sums:
    """Squares of differences and of what they are relative to, by output."""

    def __init__(self) -> None:
        self.squares: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        self.bitwise = True

    def add(self, part: Probe, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
        """Add what both give at the positions that are no padding; a value that is finite on one side only is far off."""
        mask = part.mask.bool()
        for name in old.keys() & new.keys():
            before, after = old[name], new[name]
            if before.shape != after.shape:
                continue
            if before.shape[:2] == mask.shape:
                before, after = before[mask], after[mask]
            difference, size = (
                self.squares[STEP.sub("", name)],
                float(before.double().nan_to_num(0, 0, 0).square().sum()),
            )
            difference[1] += size
            if before.equal(after):
                continue
            self.bitwise = False
            both = [value.double().nan_to_num(math.inf, math.inf, -math.inf) for value in (before, after)]
            gap = (both[1] - both[0])[both[0] != both[1]]
            difference[0] += float(gap.nan_to_num(math.inf).square().sum())

    def distances(self) -> Distances:
        """The relative distances."""
        relative = {name: math.sqrt(gap / size) if size else gap for name, (gap, size) in self.squares.items()}
        return Distances(relative, self.bitwise)


def distances(model: Any, before: Reference) -> Distances:
    """How far ``model`` is from the reference."""
    sums = _Sums()
    for part in before.parts:
        sums.add(part, before.kept[part.name], run(model, part, before.made))
    return sums.distances()


def own_noise(model: Any, before: Reference) -> dict[str, float]:
    """The noise of an adapted model whose reference this is, by output: the most of several runs that change nothing over the reals.

    Attention the other way, the rows of a batch last to first, padding, and the adapter's directions last to first.
    """
    from graftkit.verification.lens.nulls import null_runs

    sums: dict[str, _Sums] = defaultdict(_Sums)
    for part in before.parts:
        for name, outputs in null_runs(model, part, before.made):
            sums[name].add(part, before.kept[part.name], outputs)
    with reversed_directions(model):
        for part in before.parts:
            sums["directions"].add(part, before.kept[part.name], run(model, part, before.made))
    noise: dict[str, float] = {}
    for one in sums.values():
        for name, distance in one.distances().relative.items():
            noise[name] = max(noise.get(name, 0.0), distance)
    return noise


@contextlib.contextmanager
def reversed_directions(model: Any) -> Iterator[None]:
    """Let each product of an adapter's factors be summed over its directions last to first inside."""
    pairs = list(_factors(model))
    for a, b, experts in pairs:
        _reverse(a, b, experts)
    try:
        yield
    finally:
        for a, b, experts in pairs:
            _reverse(a, b, experts)


def _factors(model: Any) -> Iterator[tuple[Any, Any, int]]:
    from peft.tuners.lora.layer import LoraLayer

    for module in model.modules():
        if isinstance(module, LoraLayer):
            table = NAME in module.lora_embedding_A
            a = module.lora_embedding_A[NAME] if table else module.lora_A[NAME].weight
            b = module.lora_embedding_B[NAME] if table else module.lora_B[NAME].weight
            yield a, b, getattr(module, "num_experts", 1)


def _reverse(a: Any, b: Any, experts: int) -> None:
    """*Shapes:* ``a`` ``(experts·r, in)``, ``b`` ``(out, r·experts)``."""
    a.data = a.data.reshape(experts, -1, a.shape[1]).flip(1).reshape(a.shape)
    b.data = b.data.reshape(b.shape[0], -1, experts).flip(1).reshape(b.shape)
