"""How the outputs of a result differ from those of its source: one value for each named output, over all probes.

Every check that runs two models, or one model twice, adds what they give to a :class:`Comparison` and reads its figures from it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graftkit.architecture.correspondence import IDENTITY, Correspondence
from graftkit.running.bits import equal
from graftkit.running.forward import run
from graftkit.running.probes import in_result

if TYPE_CHECKING:
    from torch import Tensor, nn

    from graftkit.running.probes import Probe
    from graftkit.running.reference import Reference

#: What differs by rounding alone may differ by so many times the noise that was measured: both are one draw of it.
NOISE_RATIO = 2.0

#: What cached decoding puts before the names of its outputs.
STEP = re.compile(r"^step \d+ ")

#: Elements that are widened at a time: what a core's cache holds.
CHUNK = 1 << 16

Outputs = Mapping[str, "Tensor"]


@dataclass(slots=True)
class Difference:
    """One output so far, over corresponding columns and unmasked places.

    Attributes:
        places: how many values were compared.
        bitwise: whether all were equal; NaN never is.
        largest: max |Δ|; infinite where a value is finite, or no NaN, on one side alone. NaN beside NaN is no difference.
        squares: the sum of Δ² over what is finite.
        size: the sum of the source's squares over what is finite.
        first: the first probe on which it differs.
        nan: the first probe on which it holds NaN where the source does not.
        gone: the first probe on which it is not given, or in another shape.
    """

    places: int = 0
    bitwise: bool = True
    largest: float = 0.0
    squares: float = 0.0
    size: float = 0.0
    first: str = ""
    nan: str = ""
    gone: str = ""

    @property
    def error(self) -> float:
        """The relative root mean square of the difference, over what is finite; of an output that is all zero it is absolute."""
        return math.sqrt(self.squares / (self.size or 1.0))

    @property
    def relative(self) -> float:
        """The same, and infinite where a value is finite on one side alone."""
        return self.error if math.isfinite(self.largest) else math.inf


class Comparison:
    """What has been compared so far: ``outputs`` gives the difference of each output by the source's name.

    With ``join_steps`` the outputs of all steps of cached decoding count as one, by the plain name.
    """

    def __init__(self, correspondence: Correspondence = IDENTITY, *, join_steps: bool = False) -> None:
        self.outputs: dict[str, Difference] = {}
        self.correspondence = correspondence
        self._join_steps = join_steps

    def add(self, probe: Probe, old: Outputs, new: Outputs) -> None:
        """Compare every output of one probe, each with the result's output of the same block."""
        for name, values in old.items():
            other = self.correspondence.output_in_result(name)
            if other is not None:
                self.compare(name, values, new.get(other), probe)

    def compare(self, name: str, old: Tensor, new: Tensor | None, probe: Probe | None = None) -> None:
        """Compare one output; without a ``probe`` no place is masked."""
        found, place = self._difference(name), "" if probe is None else probe.name
        if new is not None and equal(old, new):
            old = new = self.correspondence.columns(old, new)[0]
        elif new is not None:
            old, new = self.correspondence.columns(old, new)
        if new is None or new.shape != old.shape:
            found.gone, found.bitwise = found.gone or place or name, False
            return
        same = new is old
        old = unmasked(old, probe)
        found.places += old.numel()
        if same:
            found.size += _size(old)
            return
        new = unmasked(new, probe)
        if measure(found, old, new):
            found.first = found.first or place
        if not found.nan and bool((new.isnan() & ~old.isnan()).any()):
            found.nan = place or name

    def _difference(self, name: str) -> Difference:
        key = STEP.sub("", name) if self._join_steps else name
        return self.outputs.setdefault(key, Difference())

    @property
    def bitwise(self) -> bool:
        """Whether every output is equal to the last bit."""
        return all(found.bitwise for found in self.outputs.values())

    @property
    def relative(self) -> dict[str, float]:
        """The relative root mean square of each output's difference."""
        return {name: found.relative for name, found in self.outputs.items()}

    @property
    def worst(self) -> float:
        """The largest of them; 0 where nothing was compared."""
        return max(self.relative.values(), default=0.0)


def compare_runs(model: nn.Module, before: Reference, correspondence: Correspondence = IDENTITY) -> Comparison:
    """Run ``model`` on the probes of a reference and compare its outputs, all steps of cached decoding together."""
    found = Comparison(correspondence, join_steps=True)
    for part in before.parts:
        found.add(part, before.kept[part.name], run(model, in_result(part, correspondence), before.extra_inputs))
    return found


def paired(
    old: Iterable[str], new: Iterable[str], correspondence: Correspondence
) -> tuple[dict[str, str], frozenset[str]]:
    """Names of outputs of the source -> those of the result, and the names that one of the two should give and does not."""
    given = set(new)
    pairs = {name: other for name in old if (other := correspondence.output_in_result(name)) is not None}
    added = {name for name in given - set(pairs.values()) if correspondence.output_in_source(name) is not None}
    gone = {name for name, other in pairs.items() if other not in given}
    return {name: other for name, other in pairs.items() if other in given}, frozenset(added | gone)


def measure(found: Difference, old: Tensor, new: Tensor) -> bool:
    """Add the difference of two tensors of one shape to ``found``, and say whether they are not bitwise equal."""
    if equal(old, new):
        found.size += _size(old)
        return False
    found.bitwise = False
    for a, b in zip(pieces(old), pieces(new), strict=True):
        if not a.numel():
            continue
        found.size += sum_of_squares(a)
        gap = b - a
        most = float(gap.abs().max())
        if math.isfinite(most):
            found.squares += sum_of_squares(gap)
        else:
            apart = (a != b) & ~(a.isnan() & b.isnan())
            most = float(gap[apart].abs().nan_to_num(nan=math.inf, posinf=math.inf).max()) if apart.any() else 0.0
            found.squares += sum_of_squares(finite(gap))
        found.largest = max(found.largest, most)
    return True


def unmasked(values: Tensor, probe: Probe | None) -> Tensor:
    """What stands at places that are no padding, ``(places, ...)``; all of it where the values stand at other places."""
    if probe is None or probe.mask.shape != values.shape[:2]:
        return values
    return values[probe.mask.bool()]


def pieces(values: Tensor) -> Iterator[Tensor]:
    """Rows of ``values`` ``(..., width)`` in float64, a bounded piece at a time."""
    import torch

    width = max(values.shape[-1], 1) if values.ndim else 1
    for piece in torch.split(values.reshape(-1, width), max(CHUNK // width, 1)):
        yield piece.double()


def sum_of_squares(values: Tensor) -> float:
    """In float64, of what is finite."""
    import torch

    found = float(torch.linalg.vector_norm(values)) ** 2
    return found if math.isfinite(found) else float(finite(values).square().sum())


def _size(values: Tensor) -> float:
    return sum(sum_of_squares(piece) for piece in pieces(values))


def finite(values: Tensor) -> Tensor:
    """Zero where an infinity (an id that the model masks) or NaN stands."""
    return values.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
