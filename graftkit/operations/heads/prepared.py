"""What of a head is computed by running the model, or copied from words, before its tensors are made."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from graftkit.architecture.accounting import Structure
from graftkit.architecture.head import Head
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.operations.heads.examples import is_fitted
from graftkit.operations.heads.fit import ExampleFit, feature_norm
from graftkit.operations.heads.lsuv import UnitVariance
from graftkit.operations.heads.values import HeadMaker
from graftkit.operations.heads.words import WordRows
from graftkit.recipe import ReplaceHead
from graftkit.recipe.head_schemes import HeadNormal, Verbalizer
from graftkit.verification.checks import Check


def runs_the_model(spec: ReplaceHead) -> bool:
    """Whether values of the head come from a run of the model."""
    return _has_target(spec) or is_fitted(spec) or UnitVariance.wanted(spec) or isinstance(spec.init, Verbalizer)


def _has_target(spec: ReplaceHead) -> bool:
    return isinstance(spec.init, HeadNormal) and spec.init.target_logit_std is not None


class HeadPreparation:
    """Fills ``maker`` with what a spec asks to be fitted; ``source`` is the checkpoint that had the old head."""

    def __init__(
        self, spec: ReplaceHead, head: Head, maker: HeadMaker, source: Checkpoint, structure: Structure
    ) -> None:
        self._head, self._maker = head, maker
        self._fit = ExampleFit(spec, head, maker.seed) if is_fitted(spec) else None
        self._unit = UnitVariance(spec, head, maker.seed) if UnitVariance.wanted(spec) else None
        self._words = WordRows(spec, head, source, structure) if isinstance(spec.init, Verbalizer) else None
        self._has_target = _has_target(spec)
        self._figures: dict[str, Any] = {}

    def run(self, result: Checkpoint, step: Callable[[float], None]) -> None:
        """Run ``result``, the checkpoint with the new head, as far as it is needed; ``step`` is told the share that is done."""
        maker = self._maker
        if self._unit is not None:
            maker.fitted |= self._unit.run(result, maker.dtype, step)
            self._figures["lsuv"] = self._unit.figures
        if self._fit is not None:
            maker.fitted |= self._fit.run(result, maker.dtype, step)
            self._figures.update(self._fit.figures)
        elif self._words is not None:
            maker.fitted |= self._words.copies(maker.dtype)
            maker.fitted |= self._words.run(result, maker.dtype, step)
            self._figures.update(self._words.figures)
        elif self._has_target:
            self._figures.update(feature_norm(result, self._head, step))
            maker.feature_norm = self._figures["feature_norm"]

    def figures(self) -> Mapping[str, Any]:
        """What was measured on the way; complete behind :meth:`run`."""
        return self._figures.copy()

    def checks(self) -> Iterator[Check]:
        """Yield the check of the fit, where there is one."""
        if self._fit is not None:
            yield self._fit.check()
