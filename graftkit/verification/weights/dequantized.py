"""Dequantized weights beside their codes: each value is the nearest of its dtype to what codes and scales say, exactly.

The replay shares nothing with what wrote the weights: codes are decoded from their bits, scales are found for each value by its
place, and rounding is not repeated but judged: no neighbour of what was written may be nearer to the exact value, in float64, which
holds the product of any code and any scale of 32 bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.quantization import quantization_config
from graftkit.checkpoint.reading import row_chunks
from graftkit.checkpoint.tensors import LazyTensor
from graftkit.errors import few, plural, printable
from graftkit.running.place import open_place
from graftkit.verification.checks import Report, Row
from graftkit.verification.weights.replayed_codes import Fp4Replay, Fp8Replay, PairReplay, Replay

if TYPE_CHECKING:
    from torch import Tensor

    from graftkit.verification.subject import Subject

#: Names of torch's integers that are as wide as a dtype.
WORDS = {"BF16": "int16", "F32": "int32"}


@dataclass(frozen=True, slots=True)
class DequantizedReport(Report):
    """How many ``weights`` and ``values`` were replayed, and the share of values that ``dtype`` holds exactly."""

    weights: int
    values: int
    exact: float
    dtype: str
    failures: tuple[str, ...]
    name: str = "dequantized"

    def rows(self) -> Iterator[Row]:
        """The lines that a table shows of it."""
        figure = (
            f"{plural(self.weights, 'weight')}, {self.values:,} values: the nearest of {self.dtype} to what codes and scales say,"
            f" {self.exact:.2%} without rounding"
        )
        yield Row("dequantized weights", "failed" if self.failures else "rounded once", figure)


@dataclass(frozen=True, slots=True)
class DequantizedCheck:
    """The weights of ``after`` beside the packed ones of ``before``, in the directory that was written.

    ``changed`` are those that the same operation changed once they were plain: of them what was planned is compared.
    """

    before: Checkpoint
    after: Checkpoint
    changed: frozenset[str] = frozenset()
    name: str = "dequantized"

    def applies(self, subject: Subject) -> bool:
        """Wherever something was written."""
        return subject.base_changed

    def run(self, subject: Subject) -> DequantizedReport:
        """Compare what is written; what was changed behind the dequantizing is compared as it was planned."""
        written = open_place(subject.result)
        changed = self.changed | subject.changed_later
        found = {
            name: planned if name in changed else written.tensors.get(name, planned)
            for name, planned in self.after.tensors.items()
        }
        left = {name: tensor for name, tensor in written.tensors.items() if name not in self.after.tensors}
        return self.compare({**found, **left}, written.config)

    def compare(self, found: Mapping[str, LazyTensor], config: Mapping[str, Any]) -> DequantizedReport:
        """Compare the tensors that were ``found``, and what the ``config`` beside them says."""
        said = quantization_config(self.before.config) or {}
        failures = list(_left_over(self.before, found, config))
        weights = values = exact = 0
        for name, parts in packed_parts(self.before.tensors).items():
            tensor, replay = (
                found.get(name),
                replay_of(name, [self.before.tensors[part] for part in parts], parts, said),
            )
            if tensor is None or tensor.dtype not in WORDS or tensor.shape != replay.shape:
                failures.append(f"dequantized: {printable(name)!r} {_misfit(tensor, replay.shape)}")
                continue
            wrong, same = _compare(replay, tensor)
            weights, values, exact = weights + 1, values + math.prod(tensor.shape), exact + same
            if wrong:
                of = f"{wrong:,} of {math.prod(tensor.shape):,} values"
                failures.append(f"dequantized: {printable(name)!r} is not what its codes and scales say at {of}")
        dtypes = {tensor.dtype for name, tensor in found.items() if name in packed_parts(self.before.tensors)}
        return DequantizedReport(weights, values, exact / max(values, 1), few(sorted(dtypes)), tuple(failures))


def packed_parts(tensors: Mapping[str, LazyTensor]) -> dict[str, tuple[str, ...]]:
    """Name of each weight that is stored packed -> the names of its codes, of its scales, and of the scale of all where it has one."""
    found: dict[str, tuple[str, ...]] = {}
    for name in tensors:
        stem = name.removesuffix("_packed")
        if f"{name}_scale_inv" in tensors:
            found[name] = (name, f"{name}_scale_inv")
        elif name.endswith("_blocks") and (scales := f"{name.removesuffix('_blocks')}_scales") in tensors:
            found[name.removesuffix("_blocks")] = (name, scales)
        elif stem != name and (whole := f"{stem}_global_scale") in tensors:
            found[stem] = (name, f"{stem}_scale", whole)
        for scales in (f"{name}_scale", f"{name}_weight_scale"):
            if (whole := f"{scales}_2") in tensors:
                found[name] = (name, scales, whole)
    return found


def replay_of(name: str, held: Sequence[LazyTensor], parts: Sequence[str], said: Mapping[str, Any]) -> Replay:
    """The replay of a weight that is ``held`` packed in the tensors called ``parts``; ``said`` is the quantization config."""
    if len(held) == 3:
        return PairReplay(held[0], held[1], held[2], divided=name not in parts)
    return Fp8Replay.of(held[0], held[1], said) if name in parts else Fp4Replay(held[0], held[1])


def _left_over(before: Checkpoint, found: Mapping[str, LazyTensor], config: Mapping[str, Any]) -> Iterator[str]:
    """Yield a sentence for a quantization config beside plain weights, and for what is left of packed ones."""
    if quantization_config(config) is not None:
        yield "dequantized: config.json still has a quantization_config, by which a loader takes plain weights for packed ones"
    pairs = packed_parts(before.tensors)
    if left := sorted({part for name, parts in pairs.items() for part in parts if part != name} & found.keys()):
        yield f"dequantized: {few(left)}: left of packed weights that are plain now"


def _misfit(tensor: LazyTensor | None, shape: tuple[int, ...]) -> str:
    if tensor is None:
        return "is missing"
    if tensor.dtype not in WORDS:
        return f"is {tensor.dtype}, which is not a plain weight"
    return f"has the shape {list(tensor.shape)}, and its codes are of {list(shape)}"


def _compare(replay: Replay, tensor: LazyTensor) -> tuple[int, int]:
    """How many values are not the nearest of their dtype to the exact ones, and how many are the exact ones."""
    import torch

    wrong = same = 0
    for start, values in row_chunks(tensor, 0, tensor.shape[0]):
        exact = torch.from_numpy(replay.exact(start, start + len(values)))
        gap, off = (values.double() - exact).abs(), exact.isnan() != values.isnan()
        for neighbour in _neighbours(values, WORDS[tensor.dtype]):
            off |= (neighbour.double() - exact).abs() < gap
        wrong += int(off.sum())
        same += int((values.double() == exact).sum())
    return wrong, same


def _neighbours(values: Tensor, word: str) -> Iterator[Tensor]:
    """Yield for each value the next one away from zero and the next one towards it; zero has one on each side."""
    import torch

    bits = values.view(getattr(torch, word))
    away = (bits + 1).view(values.dtype)
    yield away
    yield torch.where(values == 0, -away, (bits - 1).view(values.dtype))
