"""Source and result on the same texts: their figures block by block, with the band that the source's texts span."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from graftkit.architecture.correspondence import Correspondence
from graftkit.architecture.skeleton import one_line
from graftkit.errors import VerificationFailed
from graftkit.running.forward import run, undisturbed
from graftkit.running.inputs import find_inputs
from graftkit.running.probes import Probe, in_result
from graftkit.running.reference import plan_probes, timed
from graftkit.running.split.together import together
from graftkit.verification.lens.setting import device_of, load_both
from graftkit.verification.promises import Scope
from graftkit.verification.signal.blocks import counterparts, stacks
from graftkit.verification.signal.noise import Noise, null_noise
from graftkit.verification.signal.report import SignalFigure, SignalReport
from graftkit.verification.signal.run import (
    COSINE,
    ENTROPY,
    GRADIENT,
    KURTOSIS,
    RATIO,
    RESIDUAL,
    Block,
    Signal,
    measure,
)

if TYPE_CHECKING:
    import torch
    from torch import nn

    from graftkit.verification.subject import Subject


Kind = TypeVar("Kind")

#: Floating point operations that forward and backward of one model may cost.
OPERATIONS = 3e11

#: So many texts at most, and at least as many as a band needs.
MOST_TEXTS, FEWEST_TEXTS = 8, 2

#: Key -> title, caption, and whether it is shown on a logarithmic axis.
SHOWN = {
    RESIDUAL: ("Residual RMS", "root mean square of what leaves the block", True),
    RATIO: ("Branch over stream", "RMS of what the block adds over that of what it is added to", True),
    KURTOSIS: ("Kurtosis", "3 is a normal distribution; outlier channels raise it", True),
    COSINE: ("Token cosine", "mean between two tokens of a text; 1 is rank collapse", False),
    GRADIENT: ("Gradient RMS", "of the loss by what leaves the block", True),
    ENTROPY: ("Attention entropy", "mean over heads and queries, in nats", False),
}


def compare_signal(subject: Subject) -> SignalReport:
    """Load both checkpoints, run forward and backward on a few texts of old ids, and set their figures side by side.

    Where there is a crew it runs both, each of its ranks a run of blocks forward and backward; where it cannot, this process does so
    alone.

    Raises:
        InputRejected: the source does not load, or its load misses tensors, so that its outputs are random.
        VerificationFailed: the result does not load, or a forward fails.
    """
    return together(subject.crew, "signal", lambda crew: _compare(replace(subject, crew=crew)))


def _compare(subject: Subject) -> SignalReport:
    seconds: dict[str, float] = {}
    with undisturbed():
        with timed(seconds, "load"):
            old, new = load_both(subject, device_of(subject.device), whole_tables=True)
            correspondence = subject.correspondence
            correspondence = correspondence.of_backbones() if Scope.BACKBONE in subject.scope else correspondence
        tokens = max(int(OPERATIONS / (6 * old.model.num_parameters())), 64)
        probes, *_ = plan_probes(old.model, subject.source, correspondence.drawn_ids, subject.seed, tokens)
        probe = _fewer(probes[0], tokens, old.model.device)
        extra_inputs, _ = find_inputs(old.model, lambda tried: run(old.model, probe, tried))
        found = []
        both = (("source", old, probe), ("result", new, in_result(probe, correspondence)))
        for place, (what, loaded, fed) in enumerate(both):
            with timed(seconds, f"run {what}"):
                found.append(_measured(what, loaded.model, fed, extra_inputs))
            if subject.progress:
                subject.progress("measure the signal", (place + 1) / 3)
        with timed(seconds, "run source again"):
            noise = null_noise(old.model, probe, extra_inputs, found[0])
        if subject.progress:
            subject.progress("measure the signal", 1.0)
        pairs = _pairs(old.model, new.model, correspondence)
        noise = _under_new_names(noise, correspondence)
    before, after = found
    before = replace(before, blocks=_under_new_names(before.blocks, correspondence))
    return SignalReport(
        texts=len(probe.ids), tokens=probe.tokens, dtype=old.dtype, loss=after.loss,
        figures=tuple(_figures(before, after, pairs, noise)), new_blocks=tuple(_new(after, pairs)),
        absent={SHOWN[key][0]: reason for key, reason in (before.absent | after.absent).items()}, seconds=seconds,
        unit=probe.unit,
    )  # fmt: skip


def _fewer(probe: Probe, tokens: int, device: torch.device) -> Probe:
    rows = min(max(tokens // probe.ids.shape[1], FEWEST_TEXTS), MOST_TEXTS)
    return replace(probe, ids=probe.ids[:rows].to(device), mask=probe.mask[:rows].to(device))


def _measured(what: str, model: nn.Module, probe: Probe, extra_inputs: frozenset[str]) -> Signal:
    try:
        return measure(model, probe, extra_inputs)
    except Exception as error:  # whatever forward or backward raises is the finding
        raise VerificationFailed(f"signal: the {what}'s forward or backward fails: {one_line(error)}") from error


def _under_new_names(found: Mapping[str, Kind], correspondence: Correspondence) -> dict[str, Kind]:
    """What is known of the source's stacks by the names that the result has for them."""
    names = {name: correspondence.stack_in_result(name) for name in found}
    return {new: found[name] for name, new in names.items() if new is not None}


def _pairs(old: nn.Module, new: nn.Module, correspondence: Correspondence) -> dict[str, list[int | None]]:
    """Stack -> for each block of the result the source's block that it is."""
    before = _under_new_names(stacks(old), correspondence)
    return {
        name: counterparts(before[name], blocks, correspondence.blocks_of(name))
        for name, blocks in stacks(new).items()
        if name in before
    }


def _new(after: Signal, pairs: dict[str, list[int | None]]) -> Iterator[str]:
    for name in after.blocks:
        yield from (f"{name}.{index}" for index, place in enumerate(pairs.get(name, ())) if place is None)


def _figures(before: Signal, after: Signal, pairs: dict[str, list[int | None]], noise: Noise) -> Iterator[SignalFigure]:
    common = [name for name in after.blocks if name in before.blocks and name in pairs]
    for name in common:
        old, new = before.blocks[name], after.blocks[name]
        places = pairs[name][: len(new)]
        for key, (title, caption, log) in SHOWN.items():
            if all(key in block for block in (*old, *new)):
                rows = [_row(old, key, places, index, noise[name]) for index in range(len(new))]
                means, low, high, rounding = zip(*rows, strict=True)
                values = tuple(_mean(block[key]) for block in new)
                stack = name if len(common) > 1 else ""
                yield SignalFigure(key, stack, title, caption, log, means, values, low, high, rounding)


def _row(
    old: Sequence[Block], key: str, places: Sequence[int | None], index: int, noise: Sequence[dict[str, float]]
) -> tuple[float | None, float, float, float]:
    """The source's mean at the block that stands at ``index``, the band there, and the noise of both."""
    place = places[index]
    rounding = [block.get(key, 0.0) for block in noise]
    if place is not None:
        values = old[place][key]
        return _mean(values), min(values), max(values), rounding[place] if place < len(rounding) else 0.0
    earlier = [p for p in places[:index] if p is not None][-1:]
    later = [p for p in places[index + 1 :] if p is not None][:1]
    near = [value for p in (*earlier, *later) for value in old[p][key]] or [v for block in old for v in block[key]]
    return None, min(near), max(near), max(rounding, default=0.0)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
