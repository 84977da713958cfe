"""The outputs of a base with an adapter beside those without: bitwise, or how far apart."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graftkit.architecture.correspondence import IDENTITY, Correspondence
from graftkit.architecture.skeleton import one_line
from graftkit.running.forward import run
from graftkit.running.probes import in_result
from graftkit.verification.comparison import NOISE_RATIO, Comparison
from graftkit.verification.distribution import UNIT_ROUNDOFF
from graftkit.verification.promises import PromiseClass

if TYPE_CHECKING:
    from torch import Tensor, nn

    from graftkit.running.probes import Probe
    from graftkit.running.reference import Reference


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


def compare(
    model: nn.Module, reference: Reference, correspondence: Correspondence = IDENTITY, prompt: int = 0
) -> OutputGap:
    """Run ``model`` on the probes of ``reference``; logits over new ids are left out.

    ``prompt`` is the number of learnt vectors that the model may put before its input; their outputs are left out.
    """
    found = Comparison(correspondence)
    stopped: list[str] = []
    for part in reference.parts:
        old = reference.kept[part.name]
        try:
            outputs = run(model, in_result(part, correspondence), reference.extra_inputs)
        except Exception as error:  # noqa: BLE001 - whatever the forward raises is the finding
            stopped.append(f"adapter: the forward fails on probe {part.name!r}: {one_line(error)}")
            break
        found.add(part, old, {name: _behind_prompt(new, old.get(name), prompt) for name, new in outputs.items()})
    compared = {name: one for name, one in found.outputs.items() if one.places}
    broken = (*_broken(found), *stopped)
    if not compared:
        nothing = (*broken, "adapter: no output could be compared")
        return OutputGap(
            bitwise=False, largest=math.inf, relative=math.inf, values=0, worst="", dtype="", broken=nothing
        )
    worst = max(compared, key=lambda name: compared[name].relative)
    return OutputGap(
        found.bitwise,
        max(one.largest for one in compared.values()),
        compared[worst].relative,
        sum(one.places for one in compared.values()),
        worst,
        f"torch.{reference.dtype}",
        broken,
    )


def _broken(found: Comparison) -> Iterator[str]:
    for name, one in found.outputs.items():
        if one.gone:
            yield f"adapter: {name} has another shape or is gone, on probe {one.gone!r}"
        if one.nan:
            yield f"adapter: {name} holds NaN on probe {one.nan!r}, and the base's does not"


def _behind_prompt(new: Tensor, old: Tensor | None, prompt: int) -> Tensor:
    longer = prompt and old is not None and new.ndim == old.ndim > 1 and new.shape[1] == old.shape[1] + prompt
    return new[:, prompt:] if longer else new


def move_by_one_rounding(model: nn.Module, names: Iterable[str], terms: int, seed: int) -> None:
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


def merged(peft_model: Any, probe: Probe, extra_inputs: frozenset[str]) -> str:
    """Merge, run one probe again, and say what came of it: bitwise, failed, or why peft cannot merge."""
    before = run(peft_model.get_base_model(), probe, extra_inputs)
    try:
        alone = peft_model.merge_and_unload()
    except Exception as error:  # noqa: BLE001 - peft says in its own way that a kind of adapter does not merge
        return f"not possible: {one_line(error)}"
    after = run(alone, probe, extra_inputs)
    equal = before.keys() == after.keys() and all(before[name].equal(after[name]) for name in before)
    return "bitwise" if equal else "failed"
