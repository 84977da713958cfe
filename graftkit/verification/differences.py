"""How the outputs of the result differ from those of the source: bitwise, or within what another kernel may round."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from graftkit.architecture.correspondence import Correspondence
from graftkit.running.bits import equal
from graftkit.running.predictions import divergences
from graftkit.verification.comparison import Difference, measure, unmasked
from graftkit.verification.distribution import UNIT_ROUNDOFF, Capture, largest_row_norm, native_mass, positions_for

if TYPE_CHECKING:
    from torch import Tensor

    from graftkit.architecture.embeddings import Table
    from graftkit.running.probes import Probe

#: Input and output of the output embedding, ``(n, d)`` and ``(n, rows)``.
Call = tuple["Tensor", "Tensor"]

#: Positions whose distributions are compared at a time.
POSITIONS = 64


@dataclass(frozen=True, slots=True)
class OutputComparison:
    """One output over all probes. ``largest`` is max |Δ| over unmasked places and kept ids; ``allowed`` is 0 for bitwise.

    ``first`` is the first probe on which it differs, empty where it is bitwise everywhere. ``kl_mean`` and ``kl_max`` are
    KL(old ‖ new) of the distributions that logits are, in nats, where differences are only measured.
    """

    name: str
    places: int
    bitwise: bool
    largest: float
    allowed: float
    first: str = ""
    kl_mean: float | None = None
    kl_max: float | None = None


@dataclass(slots=True)
class Tally(Difference):
    """The difference of one output, what was ``allowed`` of it, and the KL where it is logits whose difference is measured."""

    allowed: float = 0.0
    beyond: bool = False
    broken: str = ""
    kl_places: int = 0
    kl_sum: float = 0.0
    kl_max: float = 0.0


@dataclass(slots=True)
class Differences:
    """What has been found of the result so far, its output embedding being ``module``.

    Where differences are expected and only ``measured``, the KL between the two distributions is measured as well.
    """

    correspondence: Correspondence
    module: Table | None = None
    measured: bool = False
    tallies: dict[str, Tally] = field(default_factory=dict)
    masses: list[tuple[float, float, int]] = field(default_factory=list)
    seen: list[tuple[Tensor | None, Tensor | None, Tensor]] = field(default_factory=list)
    _norm: float | None = None

    def compare(self, probe: Probe, name: str, old: Tensor, new: Tensor, capture: Capture, places: int) -> None:
        """Compare one output of one probe; note the mass of new ids, and ``places`` of its positions for the KL."""
        tally = self.tallies.setdefault(name, Tally())
        grown = self._is_over_ids(name, old, new)
        old, new = (old, new) if grown else self.correspondence.channels(old, new)
        if not grown and equal(old, new):  # which NaN never is
            self._count_equal(tally, probe, name, old)
            return
        where = probe if probe.mask.shape == old.shape[:2] == new.shape[:2] else None
        call = capture.behind(new, name) if grown else None
        old, new = unmasked(old, where), unmasked(new, where)
        whole = new
        if grown:
            old, whole = old.flatten(0, -2), new.flatten(0, -2)
            call = call and (unmasked(call[0], where).flatten(0, -2), unmasked(call[1], where).flatten(0, -2))
            self._note(whole, call, places)
            old, new = self.correspondence.columns(old, whole)
        if not _comparable(tally, probe, old, new):
            return
        distributions = self._count(tally, name, old, old.numel())
        if not measure(tally, old, new):
            return
        tally.first = tally.first or probe.name
        reordered = grown and self.correspondence.reordered
        tally.beyond = tally.beyond or not reordered
        for start in range(0, len(old), POSITIONS) if reordered or distributions else ():
            part = slice(start, start + POSITIONS)
            if reordered:
                _tally_allowed(tally, old[part], new[part], self._reordering(call, part, whole))
            if distributions:
                _tally_kl(tally, old[part], new[part])

    def _count(self, tally: Tally, name: str, values: Tensor, places: int) -> bool:
        """Count ``places`` of ``values``, and say whether its rows are distributions whose KL is measured."""
        distributions = self.measured and "logits" in name and values.ndim > 1 and values.shape[-1] > 1
        tally.places += places
        tally.kl_places += places // values.shape[-1] if distributions else 0
        return bool(distributions)

    def _count_equal(self, tally: Tally, probe: Probe, name: str, values: Tensor) -> None:
        """Count the places that no mask hides, of values that are equal everywhere."""
        masked = probe.mask.shape == values.shape[:2]
        places = values.numel() // probe.mask.numel() * probe.tokens if masked else values.numel()
        self._count(tally, name, values, places)

    def _is_over_ids(self, name: str, old: Tensor, new: Tensor) -> bool:
        return "hidden" not in name and old.ndim > 1 and self.correspondence.over_ids(old, new)

    def _note(self, new: Tensor, call: Call | None, places: int) -> None:
        if not self.correspondence.fresh_ids or not len(new):
            return
        self.masses.append((*native_mass(new, self.correspondence), len(new)))
        room = positions_for(new.shape[-1]) - sum(len(kept[-1]) for kept in self.seen)
        step = math.ceil(len(new) / max(min(places, room), 1))
        if room > 0:
            hidden, raw = (item[::step].clone() for item in call) if call else (None, None)
            self.seen.append((hidden, raw, new[::step].clone()))

    def _reordering(self, call: Call | None, part: slice, logits: Tensor) -> Tensor:
        """``(n, 1)`` how far two orders of summation may lie apart in a matrix product, scaled as the logits are.

        Rounding errors of a float32 sum of d products grow like sqrt(d) (Higham and Mary, 2019, take them as independent):
        2·sqrt(d)·2^-24·|h|·|w|, and |h|·|w| <= ‖h‖·‖w‖.
        """
        if call is None or self.module is None:
            return 64 * 2.0**-24 * logits[part].double().abs().clamp(max=1e5).max(-1, keepdim=True).values
        if self._norm is None:
            self._norm = largest_row_norm(self.module.weight)
        hidden, raw = call[0][part].double(), call[1][part].double()
        unit = 2.0**-53 if str(logits.dtype) == "torch.float64" else 2.0**-24
        scale = max(1.0, float(logits[part].double().clamp(-1e5, 1e5).abs().max() / raw.abs().max().clamp(min=1e-30)))
        length: Tensor = hidden.norm(dim=-1, keepdim=True)
        return 2 * math.sqrt(hidden.shape[-1]) * unit * length * self._norm * scale

    def positions(self) -> tuple[Tensor | None, Tensor | None, Tensor] | None:
        """Input and output of the output embedding (None where it was not called for them) and logits, for the KL."""
        import torch

        seen = [item for item in self.seen if item[0] is not None] or self.seen
        if not seen:
            return None
        hidden, raw, logits = zip(*seen, strict=True)
        return (
            (torch.cat(hidden), torch.cat(raw), torch.cat(logits))
            if hidden[0] is not None
            else (None, None, torch.cat(logits))
        )

    def failures(self) -> list[str]:
        """A sentence for each output that differs beyond what is allowed, the earliest layer first.

        Differences that are only measured are none; another shape or NaN always is.
        """
        found = []
        for name, tally in sorted(self.tallies.items(), key=lambda item: depth(item[0])):
            shown = self.correspondence.shown(name)
            promised = f"allowed {tally.allowed:.3g}" if tally.allowed else "promised bitwise"
            if tally.broken:
                found.append(f"outputs: {shown} {tally.broken}")
            elif tally.beyond and not self.measured:
                found.append(
                    f"outputs: {shown} of probe {tally.first!r} differs: max |Δ| {tally.largest:.3g} ({promised})"
                )
        return found

    def comparisons(self) -> Iterator[OutputComparison]:
        """What was measured of each output."""
        for name, tally in self.tallies.items():
            mean = tally.kl_sum / tally.kl_places if tally.kl_places else None
            yield OutputComparison(
                name, tally.places, tally.bitwise, tally.largest, tally.allowed, tally.first,
                mean, tally.kl_max if tally.kl_places else None,
            )  # fmt: skip


def _comparable(tally: Tally, probe: Probe, old: Tensor, new: Tensor) -> bool:
    if old.shape != new.shape or old.dtype != new.dtype:
        found = f"is {new.dtype} {list(new.shape)}, was {old.dtype} {list(old.shape)}"
    elif new.isnan().any():
        found = "holds NaN" + (", as it does for the source" if old.isnan().any() else "")
    else:
        return True
    tally.bitwise = False
    tally.broken = tally.broken or f"of probe {probe.name!r} {found}"
    return False


def _tally_allowed(tally: Tally, old: Tensor, new: Tensor, margin: Tensor) -> None:
    """``margin`` is allowed beside a few roundings of the logit itself.

    A product is rounded once, what a model does with it (a scale, a soft cap) a few times more: 2 sides · 3 roundings. A logit
    that is infinite on one side alone is beyond all of it.
    """
    a, b = old.double(), new.double()
    gap = (a - b).abs()
    tally.beyond = tally.beyond or bool((~gap.isfinite() & (a != b)).any())
    counts = gap.isfinite() & (a != b)
    if counts.any():
        allowed = (margin + 6 * UNIT_ROUNDOFF[str(old.dtype)] * a.abs().maximum(b.abs()))[counts]
        tally.allowed = max(tally.allowed, float(allowed.max()))
        tally.beyond = tally.beyond or bool((gap[counts] > allowed).any())


def _tally_kl(tally: Tally, old: Tensor, new: Tensor) -> None:
    """KL(old ‖ new) over the last axis."""
    kl = divergences(old, new)
    tally.kl_sum += float(kl.sum())
    tally.kl_max = max(tally.kl_max, float(kl.max()))


def depth(name: str) -> tuple[bool, bool, bool, int]:
    """Where in the model an output stands: encoders first, hidden states by layer, what is made of them last."""
    last = name.rpartition(".")[2]
    hidden = "hidden_states" in name and last.isdigit()
    return (name.startswith("step"), not (hidden and "encoder" in name and "decoder" not in name), not hidden,
            int(last) if hidden else 0)  # fmt: skip
