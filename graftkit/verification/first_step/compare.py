"""Source and result, one optimiser step into training."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from graftkit.verification.first_step.adapter import adapter_first_step
from graftkit.verification.first_step.forecast import ceiling, direction, forecast, old_logits
from graftkit.verification.first_step.reach import first_moves
from graftkit.verification.first_step.report import FirstStepReport
from graftkit.verification.first_step.task import MOST_IDS, TEXTS, differentiable, gradients, loss_of, with_ids
from graftkit.verification.forward import load, run, undisturbed
from graftkit.verification.inputs import find_inputs
from graftkit.verification.probes import Probe
from graftkit.verification.promises import Scope
from graftkit.verification.reference import plan_probes, timed
from graftkit.verification.vocabulary import VocabularyChange

Progress = Callable[[str, float], None]

#: Old gradients may differ by so much, relative to their norm: another order of float32 sums, and nothing else.
GRADIENT_TOLERANCE = 1e-4


def compare_first_step(
    source: Path, result: Path, *, vocabulary: VocabularyChange | None, seed: int = 0, device: str | None = None,
    scope: Scope = Scope.EVERYTHING, adapter: Path | None = None, progress: Progress | None = None,
) -> FirstStepReport:  # fmt: skip
    """Take the first step of training with copies of both models in float32, on the CPU, one model at a time.

    The old gradients are those of the loss over old texts and the old ids alone, where everything is promised. With an
    ``adapter`` the base is frozen, and the step is that of the adapter.

    Raises:
        VerificationFailed: the result does not load, or its forward cannot be differentiated.
    """
    del device
    seconds: dict[str, float] = {}
    if adapter is not None:
        return adapter_first_step(result, adapter, vocabulary, seed, scope, lambda share: _tell(progress, share))
    with undisturbed(), differentiable():
        with timed(seconds, "source"):
            old = load(source).model.float()
            shapes = {name: tuple(value.shape) for name, value in old.named_parameters()}
            probes, *_ = plan_probes(old, source, vocabulary, seed, None)
            texts = replace(probes[0], ids=probes[0].ids[:TEXTS], mask=probes[0].mask[:TEXTS])
            before, ids = _old_gradients(old, texts, vocabulary) if not scope else ({}, 0)
        del old
        gc.collect()
        _tell(progress, 0.3)
        with timed(seconds, "result"):
            new = load(result).model.float()
            made, _ = find_inputs(new, lambda tried: run(new, texts, tried))
            after = gradients(new, loss_of(new, texts, made, ids)) if before else {}
        worst, at = _worst(before, after, shapes)
        fresh = vocabulary.fresh[:MOST_IDS] if vocabulary else ()
        task = with_ids(texts, fresh)
        with timed(seconds, "reach"):
            moves = first_moves(new, task, made, _new_parameters(new, shapes, vocabulary, fresh))
        _tell(progress, 0.6)
        with timed(seconds, "forecast"):
            parameters = {name: value.detach() for name, value in new.named_parameters()}
            steps = []
            if before:
                along = direction(parameters, gradients(new, loss_of(new, task, made)))
                steps = list(forecast(old_logits(new, texts, made, ids), parameters, along))
        _tell(progress, 1.0)
    why = "" if before else "a new head or a layer made anew has other logits"
    return FirstStepReport(
        worst if before else None, at, why, moves, len(vocabulary.fresh) - len(fresh) if vocabulary else 0, tuple(steps),
        ceiling(steps), why, seconds, tuple(_failures(worst, at, moves)),
    )  # fmt: skip


def _old_gradients(model: Any, texts: Probe, vocabulary: VocabularyChange | None) -> tuple[Mapping[str, Any], int]:
    """Gradients of the loss over the old ids, and how many those are; empty where the outputs are no distribution over ids."""
    made, outputs = find_inputs(model, lambda tried: run(model, texts, tried))
    logits = outputs.get("logits")
    if logits is None or logits.ndim != 3 or logits.shape[-1] <= int(texts.ids.max()):
        return {}, 0
    ids = vocabulary.live if vocabulary else logits.shape[-1]
    return gradients(model, loss_of(model, texts, made, ids)), ids


def _worst(
    before: Mapping[str, Any], after: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[float, str]:
    """The largest relative difference of an old parameter's gradient, over its old rows, and whose it is."""
    worst, at = 0.0, ""
    for name, old in before.items():
        new = after.get(name)
        if new is None:
            return float("inf"), name
        rows = slice(shapes[name][0]) if shapes[name] else ...
        error = float((new[rows] - old).norm() / old.norm().clamp(min=1e-20))
        if error > worst:
            worst, at = error, name
    return worst, at


def _new_parameters(
    model: Any, shapes: Mapping[str, tuple[int, ...]], vocabulary: VocabularyChange | None, fresh: Sequence[int]
) -> dict[str, Sequence[int] | None]:
    """The parameters that are new as a whole, and the tables with their new rows; an embedding never trains its pad row."""
    pads = {f"{name}.weight": getattr(module, "padding_idx", None) for name, module in model.named_modules()}
    sizes = {vocabulary.new_rows} if vocabulary and fresh else set()
    found: dict[str, Sequence[int] | None] = {}
    for name, value in model.named_parameters():
        if name not in shapes:
            found[name] = None
        elif value.ndim and value.shape[0] in sizes and shapes[name][0] == (vocabulary.old_rows if vocabulary else -1):
            found[name] = [row for row in fresh if row != pads.get(name)]
    return found


def _failures(worst: float, at: str, moves: Mapping[str, int | None]) -> Iterator[str]:
    if not worst <= GRADIENT_TOLERANCE:
        yield f"first step: the gradient of the old parameter {at} differs by {worst:.2g} of its norm"
    dead = [name for name, step in moves.items() if step is None]
    if dead:
        more = f" (and {len(dead) - 1} more)" if len(dead) > 1 else ""
        yield f"first step: {dead[0]}{more} has no gradient from the task's loss within three steps: it would never be trained"


def _tell(progress: Progress | None, share: float) -> None:
    if progress is not None:
        progress("take the first step", share)
