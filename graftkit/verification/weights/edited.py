"""Edited tensors beside an independent recomputation of the steps: each written tensor holds the bits that the steps make."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.reading import equal_bytes
from graftkit.checkpoint.tensors import LazyTensor
from graftkit.errors import plural, printable
from graftkit.running.place import open_place
from graftkit.verification.checks import Report, Row
from graftkit.verification.weights.replayed_steps import Value, loaded, replay

if TYPE_CHECKING:
    from graftkit.recipe.edit_tensors import Step
    from graftkit.verification.subject import Subject


@dataclass(frozen=True, slots=True)
class EditedReport(Report):
    """How many tensors the steps left as they were or moved, and how many they computed."""

    moved: int
    computed: int
    failures: tuple[str, ...]
    name: str = "edited tensors"

    def rows(self) -> Iterator[Row]:
        """The lines that a table shows of it."""
        figure = f"{plural(self.moved, 'tensor')} by their bytes, {plural(self.computed, 'tensor')} computed anew from the source"
        yield Row(self.name, "failed" if self.failures else "bitwise", figure)


@dataclass(frozen=True, slots=True)
class EditCheck:
    """What was written beside the ``steps`` replayed on the checkpoint ``before`` them; ``after`` is what they were planned to give.

    ``source`` is the recipe's own checkpoint, and ``sampled`` holds by step and name what was sampled from its seed.
    """

    before: Checkpoint
    after: Checkpoint
    source: Checkpoint
    steps: tuple[Step, ...]
    sampled: Mapping[tuple[int, str], LazyTensor]
    name: str = "edited tensors"

    def applies(self, subject: Subject) -> bool:
        """Wherever something was written."""
        return subject.base_changed

    def run(self, subject: Subject) -> EditedReport:
        """Compare every tensor; one that a later operation changed is compared as it was planned, since no file holds it."""
        written = open_place(subject.result).tensors
        later = subject.changed_later
        found = {name: tensor for name, tensor in written.items() if name not in later}
        return self.compare(found | {name: tensor for name, tensor in self.after.tensors.items() if name in later})

    def compare(self, found: Mapping[str, LazyTensor]) -> EditedReport:
        """Compare the tensors that were ``found``, one at a time."""
        wanted = replay(self.steps, self.before.tensors, self.sampled, self._open)
        failures = [
            f"edits: the steps {'make' if name in wanted else 'leave'} {'' if name in wanted else 'no '}tensor {printable(name)!r}"
            for name in sorted(wanted.keys() ^ found.keys())
        ]
        shared = {name: value for name, value in wanted.items() if name in found}
        failures += [sentence for name, value in shared.items() if (sentence := _unlike(name, value, found[name]))]
        computed = sum(map(callable, wanted.values()))
        return EditedReport(len(wanted) - computed, computed, tuple(failures))

    def _open(self, name: str | None) -> Mapping[str, LazyTensor]:
        return self.source.tensors if name is None else _tensors_of(name)


@functools.lru_cache(maxsize=8)
def _tensors_of(name: str) -> Mapping[str, LazyTensor]:
    return Checkpoint.open(name).tensors


def _unlike(name: str, wanted: Value, found: LazyTensor) -> str | None:
    """Say where a written tensor is not what the steps make of the source."""
    import torch

    shown = f"edits: tensor {printable(name)!r}"
    if not callable(wanted):
        return None if equal_bytes(wanted, found) else f"{shown} is not the source's, byte for byte"
    value, here = wanted(), loaded(found)
    if (value.dtype, value.shape) != (here.dtype, here.shape):
        return (
            f"{shown} was written as {here.dtype} {list(here.shape)}, the steps make {value.dtype} {list(value.shape)}"
        )
    width = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[value.element_size()]
    different = int((value.contiguous().view(width) != here.view(width)).sum())
    if not different:
        return None
    return f"{shown} is not what the steps make of the source, at {different:,} of {value.numel():,} values"
