"""What a look through the lens runs on: both models on a device, the probes cut to what fits, and the floor."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from graftkit.architecture.correspondence import Correspondence
from graftkit.architecture.skeleton import one_line
from graftkit.errors import RecipeError, VerificationFailed, printable
from graftkit.running import memory
from graftkit.running.forward import Loaded, can_cache, load, run
from graftkit.running.inputs import find_inputs
from graftkit.running.peft_loading import put_inside
from graftkit.running.place import Place
from graftkit.running.probes import Probe, split
from graftkit.running.reference import load_source, plan_probes
from graftkit.running.split.interrupts import CannotSplit
from graftkit.verification.lens.floor import Floor, measure_floor
from graftkit.verification.lens.trace import KEPT_BYTES, Hooks, tokens_that_fit
from graftkit.verification.promises import Scope
from graftkit.verification.subject import Subject

#: Rows and tokens of the batch that the floor is measured on.
FLOOR_ROWS, FLOOR_TOKENS = 2, 16


@dataclass(frozen=True, slots=True)
class Setting:
    """What a comparison runs on: both models, the probes in parts, and what they are fed beside ids."""

    old: Loaded
    new: Loaded
    parts: list[Probe]
    extra_inputs: frozenset[str]
    floor: Floor
    rows: int
    correspondence: Correspondence
    backbone: bool = False


def device_of(name: str | None) -> torch.device:
    """The device of that name; the processor where none is named.

    Raises:
        RecipeError: it is not one that computes in float64, or is not there.
    """
    try:
        device = torch.device(name or "cpu")
    except RuntimeError as error:
        raise RecipeError(f"--device: {printable(str(name))!r} is no device; take cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise RecipeError(f"--device: {device.type} does not compute in float64; take cpu or cuda")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise RecipeError(
            f"--device: {device} is not there ({torch.cuda.device_count()} found); leave it out to use the cpu"
        )
    return device


def load_both(
    subject: Subject, device: torch.device, *, paged: bool = False, whole_tables: bool = False
) -> tuple[Loaded, Loaded]:
    """Load both checkpoints onto ``device``, whole or without their heads, the result with its adapter if there is one.

    Of backbones, the correspondence names the module of each that is run alone.

    ``paged`` ones read their parameters from the files as their forwards ask for them, on the cpu. A crew loads them together, so
    that corresponding blocks lie with one rank; see :meth:`~graftkit.running.split.crew.Crew.load` on ``whole_tables``.

    Raises:
        CannotSplit: the crew cannot run them.
        RecipeError: the adapter is of a kind that stands outside of the model's layers.
    """
    crew, adapter, backbone = subject.crew, subject.adapter, Scope.BACKBONE in subject.scope
    if crew is not None and device.type != "cpu":
        raise CannotSplit(f"it runs on {device}")
    if crew is not None and adapter is not None:
        raise CannotSplit("an adapter is put into the result")
    part, near = subject.correspondence.part, subject.correspondence.module_in_result
    old = load_source(
        subject.source, backbone=backbone, part=part[0], paged=paged, crew=crew, whole_tables=whole_tables
    )
    new = (
        load(subject.result, paged=paged)
        if crew is None
        else crew.load(subject.result, beside=near, whole_tables=whole_tables)
    )
    if adapter is not None:
        try:
            put_inside(new.model, adapter)
        except ValueError as error:  # so peft says that a kind cannot be put into a model of transformers
            raise RecipeError(
                f"verify: lens, signal and first_step cannot take this adapter ({one_line(error)}); leave them out"
            ) from error
        new.model.eval()
    new = new.backbone(part[1]) if backbone else new
    for loaded in () if paged or crew is not None else (old, new):
        loaded.model.to(device)
    return old, new


def prepare(
    source: Place, old: Loaded, new: Loaded, correspondence: Correspondence, seed: int, tokens: int, *, backbone: bool
) -> Setting:  # fmt: skip
    """Make the probes, find out what they must be fed, measure the floor, and cut them to what fits into memory.

    A ``backbone`` does not generate.
    """
    device = next(old.model.parameters()).device
    probes, budget, live, rows = plan_probes(old.model, source, correspondence.drawn_ids, seed, tokens)
    probes = [_on(device, probe) for probe in probes]
    extra_inputs, _ = find_inputs(old.model, lambda tried: run(old.model, _head(probes[0]), tried))
    cached = not backbone and can_cache(old.model, extra_inputs) is None
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(live, (FLOOR_ROWS, min(probes[0].ids.shape[1], FLOOR_TOKENS)), generator=generator)
    batch = _on(device, Probe("floor", ids, torch.ones_like(ids)))
    kept: list[torch.Tensor] = []

    def wrap(run: Callable[[], dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        with Hooks(old.model, lambda _, found: kept.extend(found.values())):
            return run()

    with in_float64(old):
        floor = measure_floor(old.model, batch, extra_inputs, wrap)
    least = 8 if ids.shape[1] > 1 else 1  # an image is one
    fitting = min(budget.forward, tokens_that_fit(kept, ids.numel(), _room(old), least))
    parts = [part for probe in probes if not probe.steps or cached for part in split(probe, fitting)]
    return Setting(old, new, parts, extra_inputs, floor, rows, correspondence, backbone)


def _room(loaded: Loaded) -> float:
    """Bytes for what the modules give: the usual, or a quarter of what is free where that is why parameters are paged in."""
    return KEPT_BYTES if loaded.pager is None else min(KEPT_BYTES, memory.available() / 4)


def _on(device: torch.device, probe: Probe) -> Probe:
    return replace(probe, ids=probe.ids.to(device), mask=probe.mask.to(device))


def _head(probe: Probe) -> Probe:
    return replace(probe, ids=probe.ids[:2], mask=probe.mask[:2])


@contextlib.contextmanager
def in_float64(loaded: Loaded) -> Iterator[None]:
    """Say which model it was that does not run in float64."""
    try:
        yield
    except Exception as error:  # whatever a forward raises under the mode is the finding
        name = type(loaded.model).__name__
        raise VerificationFailed(f"lens: the forward of {name} does not run in float64: {one_line(error)}") from error
