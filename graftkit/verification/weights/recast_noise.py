"""How far the outputs of a checkpoint in another dtype are off the source's, and how much of that is the dtype's own arithmetic.

Three distances, each relative by root mean square: what the new dtype gives from what the source gives in float64 (``total``); from
what the new weights give in float64 (``arithmetic``); and the two in float64 (``weights``). A cast that only rounds moves outputs by no
more than the arithmetic of the dtype does anyway: total over arithmetic is at most the usual noise ratio.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from graftkit.errors import VerificationFailed
from graftkit.running.float64 import float64
from graftkit.running.forward import Loaded, outputs_of, run, undisturbed
from graftkit.running.paging.room import paged as paged_in
from graftkit.running.paging.skeleton import split_large_tables
from graftkit.verification.comparison import Comparison
from graftkit.verification.lens.lens import OPERATIONS
from graftkit.verification.lens.setting import Setting, device_of, in_float64, load_both, prepare
from graftkit.verification.lens.source_outputs import observed
from graftkit.verification.lens.trace import KEPT_BYTES
from graftkit.verification.promises import Scope

if TYPE_CHECKING:
    from torch import Tensor

    from graftkit.running.probes import Probe
    from graftkit.verification.subject import Subject


@dataclass(frozen=True, slots=True)
class RecastNoise:
    """The distances of the worst output, over ``tokens`` unmasked tokens; see the module."""

    tokens: int
    total: float
    arithmetic: float
    weights: float
    derived: ClassVar[tuple[str, ...]] = ("ratio",)

    @property
    def ratio(self) -> float:
        """Total over arithmetic; infinite where arithmetic alone changes nothing, or an output is finite in one of the two alone."""
        if not math.isfinite(self.total):
            return math.inf
        if self.total <= self.arithmetic:
            return 1.0
        return self.total / self.arithmetic if self.arithmetic else math.inf


def recast_noise(subject: Subject) -> RecastNoise:
    """Run both on the same probes, each in float64 and the result in its own dtype too.

    Raises:
        InputRejected: the source does not load.
        VerificationFailed: the result does not load, or a forward does not run.
    """
    correspondence = subject.correspondence
    from_files = paged_in((subject.source, subject.result), KEPT_BYTES, wanted=subject.paged)
    alone = replace(subject, adapter=None, scope=Scope.EVERYTHING, crew=None)
    with undisturbed():
        old, new = load_both(alone, device_of(None), paged=from_files)
        for loaded in (old, new):
            split_large_tables(loaded.model)
        tokens = max(int(OPERATIONS / (2 * old.model.num_parameters())), 64)
        setting = prepare(subject.source, old, new, correspondence, subject.seed, tokens, backbone=False)
        total, weights = Comparison(correspondence, join_steps=True), Comparison(correspondence, join_steps=True)
        arithmetic = Comparison(join_steps=True)
        for part in setting.parts:
            truth = _in_float64(setting, old, part)
            wide = _in_float64(setting, new, part)
            native = _run(new, part, setting)
            total.add(part, truth, native)
            weights.add(part, truth, wide)
            arithmetic.add(part, {name: wide[name] for name in truth if name in wide}, native)
    count = sum(part.tokens for part in setting.parts)
    found = [
        RecastNoise(count, value, arithmetic.relative.get(name, 0.0), weights.relative[name])
        for name, value in total.relative.items()
    ]
    return max(found, key=lambda one: one.ratio)


def _in_float64(setting: Setting, loaded: Loaded, part: Probe) -> dict[str, Tensor]:
    """The outputs that count: logits over the vocabulary, or the last hidden state."""
    with in_float64(loaded), float64(loaded.model):
        found = outputs_of(loaded.model, part, setting.extra_inputs)
    return {name: found[name] for name in observed(found, setting.rows)}


def _run(new: Loaded, part: Probe, setting: Setting) -> dict[str, Tensor]:
    try:
        return run(new.model, part, setting.extra_inputs)
    except Exception as error:
        raise VerificationFailed(
            f"cast: the result's forward fails in {new.dtype} on probe {part.name!r}: {error}"
        ) from error
