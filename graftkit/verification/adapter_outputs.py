"""The outputs of a base with an adapter beside those without: bitwise, or how far apart."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from graftkit.architecture.correspondence import IDENTITY, Correspondence
from graftkit.architecture.skeleton import one_line
from graftkit.running.forward import run
from graftkit.running.probes import Probe
from graftkit.running.reference import Reference
from graftkit.verification.distribution import UNIT_ROUNDOFF
from graftkit.verification.promises import PromiseClass

#: An adapter that is only rounded may move the outputs so many times as far as rounding its weights once more does.
NOISE_RATIO = 2.0


@dataclass(frozen=True, slots=True)
class OutputGap:
    """Over all probes and outputs: the largest |Δ|, the relative root mean square of the worst output, and its name.

    ``noise`` is that of the base with each adapted weight moved by one rounding, where it was measured.
    """

    bitwise: bool
    largest: float
    relative: float
    values: int
    worst: str
    dtype: str
    broken: tuple[str, ...] = ()
    noise: float | None = None

    def failures(self, strength: PromiseClass | None) -> Iterator[str]:
        """Yield a sentence for what is beyond the promise; with None nothing was promised."""
        yield from self.broken
        if self.bitwise or self.broken or strength in (None, PromiseClass.INTENTIONAL):
            return
        allowed = 0.0 if strength is PromiseClass.BITWISE else NOISE_RATIO * (self.noise or 0.0)
        if self.relative > allowed or strength is PromiseClass.BITWISE:
            promised = "promised bitwise"
            if strength is not PromiseClass.BITWISE:
                promised = f"allowed {allowed:.3g}, twice what one more rounding of the adapted weights does"
            yield (
                f"adapter: {self.worst} is not the base's: max |Δ| {self.largest:.3g}, relative {self.relative:.3g}"
                f" ({promised})"
            )


@dataclass(slots=True)
class _Sums:
    bitwise: bool = True
    largest: float = 0.0
    difference: float = 0.0
    size: float = 0.0
    values: int = 0


def compare(model: Any, reference: Reference, correspondence: Correspondence = IDENTITY, prompt: int = 0) -> OutputGap:
    """Run ``model`` on the probes of ``reference``; logits over new ids are left out.

    ``prompt`` is the number of learnt vectors that the model may put before its input; their outputs are left out.
    """
    sums: dict[str, _Sums] = {}
    broken: list[str] = []
    dtype = ""
    for part in reference.parts:
        try:
            outputs = run(model, part, reference.made)
        except Exception as error:  # noqa: BLE001 - whatever the forward raises is the finding
            broken.append(f"adapter: the forward fails on probe {part.name!r}: {one_line(error)}")
            break
        for name, old in reference.kept[part.name].items():
            new = _behind_prompt(outputs.get(name), old, prompt)
            old, new = (old, new) if new is None else correspondence.columns(old, new)  # noqa: PLW2901
            if new is None or new.shape != old.shape:
                broken.append(f"adapter: {name} has another shape or is gone, on probe {part.name!r}")
                continue
            dtype = str(old.dtype)
            if (new.isnan() & ~old.isnan()).any():
                broken.append(f"adapter: {name} holds NaN on probe {part.name!r}, and the base's does not")
            pair = (_unmasked(part, values) for values in (old, new))
            _add(sums.setdefault(name, _Sums()), *pair)
    if not sums:
        nothing = (*broken, "adapter: no output could be compared")
        return OutputGap(
            bitwise=False, largest=math.inf, relative=math.inf, values=0, worst="", dtype=dtype, broken=nothing
        )
    worst = max(sums, key=lambda name: _relative(sums[name]))
    return OutputGap(
        all(s.bitwise for s in sums.values()),
        max(s.largest for s in sums.values()),
        _relative(sums[worst]),
        sum(s.values for s in sums.values()),
        worst,
        dtype,
        tuple(broken),
    )


def _behind_prompt(new: Any, old: Any, prompt: int) -> Any:
    longer = prompt and new is not None and new.ndim == old.ndim > 1 and new.shape[1] == old.shape[1] + prompt
    return new[:, prompt:] if longer else new


def _unmasked(part: Probe, values: Any) -> Any:
    return values[part.mask.bool()] if part.mask.shape == values.shape[:2] else values


def _add(sums: _Sums, old: Any, new: Any) -> None:
    sums.values += old.numel()
    if old.equal(new):
        sums.size += float(old.double().square().nan_to_num(posinf=0).sum())
        return
    sums.bitwise = False
    before, after = old.double(), new.double()
    different = before != after
    gap = (before - after)[different].abs().nan_to_num(nan=math.inf)
    sums.largest = max(sums.largest, float(gap.max()))
    sums.difference += float(gap.square().sum())
    sums.size += float(before[before.isfinite()].square().sum())


def _relative(sums: _Sums) -> float:
    if sums.difference == 0:
        return 0.0
    return math.sqrt(sums.difference / sums.size) if sums.size else math.inf


def move_by_one_rounding(model: Any, names: Iterable[str], terms: int, seed: int) -> None:
    """Move every value of the weights ``names`` up or down as far as rounding a sum of ``terms`` products moves it.

    The roundings are independent, so that they add up like a random walk: sqrt(terms + 1) units of the weight's dtype.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name in names:
            weight = model.get_parameter(name)
            step = UNIT_ROUNDOFF[str(weight.dtype)] * math.sqrt(terms + 1)
            signs = torch.randint(2, weight.shape, generator=generator) * 2 - 1
            weight.copy_((weight.double() * (1 + step * signs)).to(weight.dtype))


def merged(peft_model: Any, probe: Probe, made: frozenset[str]) -> str:
    """Merge, run one probe again, and say what came of it: bitwise, failed, or why peft cannot merge."""
    before = run(peft_model.get_base_model(), probe, made)
    try:
        alone = peft_model.merge_and_unload()
    except Exception as error:  # noqa: BLE001 - peft says in its own way that a kind of adapter does not merge
        return f"not possible: {one_line(error)}"
    after = run(alone, probe, made)
    equal = before.keys() == after.keys() and all(before[name].equal(after[name]) for name in before)
    return "bitwise" if equal else "failed"
