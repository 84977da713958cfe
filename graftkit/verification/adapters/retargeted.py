"""An adapter with the names of another class beside the old one: every product, the outputs of both, and that it has an effect."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from graftkit.architecture.peft.adapter_edits import Placed, find_edits, place_adapter
from graftkit.architecture.peft.edits import Edit
from graftkit.architecture.peft.places import Places
from graftkit.architecture.peft.under_old_names import under_old_names
from graftkit.architecture.related_class import related_skeleton
from graftkit.architecture.skeleton import Skeleton, build_skeleton
from graftkit.checkpoint.adapter import AdapterPlace, adapter_at
from graftkit.errors import InputRejected, plural
from graftkit.running.forward import undisturbed
from graftkit.running.place import Place, open_place
from graftkit.running.runnable import cannot_run
from graftkit.verification.adapters.retargeted_edits import unlike_edits, unlike_products
from graftkit.verification.adapters.retargeted_outputs import RetargetedOutputs, compare_outputs
from graftkit.verification.checks import ComparesFiles, Report, Row
from graftkit.verification.subject import Subject


@dataclass(frozen=True, slots=True)
class RetargetedReport(Report):
    """What was compared: ``weights`` of the class ``architecture``, and ``outputs`` where there are any; ``not_run`` says why not."""

    architecture: str
    weights: int
    outputs: RetargetedOutputs | None
    not_run: str
    failures: tuple[str, ...]
    name: str = "retargeted against old adapter"

    def rows(self) -> Iterator[Row]:
        """The lines that a table shows of it."""
        verdict = "failed" if self.failures else "bitwise"
        yield Row(
            "adapter's products",
            verdict,
            f"{plural(self.weights, 'weight')} of {self.architecture}, each product as it was",
        )
        found = self.outputs
        if found is None:
            yield Row("outputs with adapter", "not run", self.not_run)
            return
        if found.source:
            word = "failed" if found.failures else "measured" if found.allowed else "bitwise"
            bound = f", {found.allowed:.2g} allowed" if found.allowed else ""
            figure = f"{plural(found.tokens, 'token')}, relative change {found.changed:.2g}{bound}"
            yield Row(f"beside {found.source}", word, f"{figure}, with the weights of one base")
        if found.not_compared:
            yield Row("beside the old class", "not compared", found.not_compared)
        if not found.trained:
            yield Row("effect of the adapter", "none", "it is not trained: every product is zero")
        elif not found.ran:
            yield Row("effect of the adapter", "not measured", "no probe runs a module that it changes")
        else:
            figure = (
                f"relative change {found.effect:.2g} of an output; {found.ran} of {found.trained} trained modules ran"
            )
            yield Row("effect of the adapter", "failed" if found.bit_equal else "measured", figure)


@dataclass(frozen=True, slots=True)
class RetargetCheck(ComparesFiles):
    """The new adapter beside the one in the folder ``old``, whose modules have their ``places`` in the class ``to`` of the base.

    Without ``to`` that is the base's own class.
    """

    old: Path
    places: Places
    to: str | None
    name: str = "retargeted against old adapter"

    def run(self, subject: Subject) -> RetargetedReport:
        """See :func:`compare_retargeted`."""
        adapter = subject.adapter or self.old
        return compare_retargeted(
            subject.result, self.old, adapter, self.places, self.to, seed=subject.seed, not_run=subject.not_run
        )


def compare_retargeted(
    base: Place, old: Path, new: AdapterPlace, places: Places, to: str | None, *, seed: int = 0, not_run: str = ""
) -> RetargetedReport:
    """Compare the adapters ``old`` and ``new``; ``places`` says where the modules of the old one are in the new.

    ``not_run`` says why no model is to be loaded; empty where one is.

    Raises:
        InputRejected, VerificationFailed: base or adapters do not load.
    """
    config = open_place(base).config

    def build() -> Skeleton:
        return build_skeleton(config) if to is None else related_skeleton(config, to)

    with undisturbed():
        before, after = _old_edits(build, old, places), _new_edits(build, new)
        if isinstance(after, str):
            return RetargetedReport(build().architecture, 0, None, "", (after,))
        skeleton = build()
        wrong = [
            *unlike_edits(before, after, places, skeleton.tied),
            *unlike_products(before, after, places, skeleton),
        ]
        failures = [f"products: {sentence}" for sentence in wrong]
        reason = not_run or cannot_run(base)
        found = reason or compare_outputs(base, old, new, to, after, seed=seed)
    weights = len({edit.weight for edit in after})
    if isinstance(found, str):
        return RetargetedReport(skeleton.architecture, weights, None, found, tuple(failures))
    return RetargetedReport(skeleton.architecture, weights, found, "", (*failures, *found.failures))


def _old_edits(build: Callable[[], Skeleton], folder: Path, places: Places) -> tuple[Edit, ...]:
    adapter = adapter_at(folder)
    plain = dataclasses.replace(adapter, config={**adapter.config, "task_type": None})
    placed: Placed = place_adapter(under_old_names(build(), plain, places), plain, str(folder))
    return placed.edits


def _new_edits(build: Callable[[], Skeleton], place: AdapterPlace) -> tuple[Edit, ...] | str:
    """What peft makes of the new adapter, or why it makes nothing of it."""
    try:
        return find_edits(build(), adapter_at(place), "adapter")
    except InputRejected as refused:
        return f"products: {refused}"
