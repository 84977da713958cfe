"""The check that runs both checkpoints on the same probes and compares everything that comes out."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from graftkit.errors import InputRejected, printable
from graftkit.verify.distribution import POSITIONS, UNIT_ROUNDOFF, Capture, Distribution, measure, native_mass
from graftkit.verify.forward import Loaded, can_cache, extra_inputs, largest_position, load, run
from graftkit.verify.probes import POSITIONS as DEFAULT_POSITIONS
from graftkit.verify.probes import Probe, covered_ids, make_probes, split, token_budget
from graftkit.verify.vocabulary import KLPromise, VocabularyChange

#: Tokens in one forward.
FORWARD_TOKENS = 1_024

Progress = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class OutputComparison:
    """One output over all probes. ``largest`` is max |Δ| over unmasked places and kept ids; ``allowed`` is 0 for bitwise."""

    name: str
    places: int
    bitwise: bool
    largest: float
    allowed: float


@dataclass(frozen=True, slots=True)
class OutputsReport:
    """What was run, covered and measured. ``failures`` is empty when the promise holds on every probe."""

    architecture: str
    dtype: str
    probes: Mapping[str, int]
    ids_covered: int
    ids: int
    cached_decoding: str
    comparisons: tuple[OutputComparison, ...]
    mass_mean: float | None
    mass_max: float | None
    distribution: Distribution | None
    seconds: Mapping[str, float]
    failures: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return not self.failures

    def rows(self) -> Iterator[tuple[str, str, str]]:
        """``(check, result, figure)`` for a terminal."""
        tokens = sum(self.probes.values())
        yield "probes", "run", f"{tokens} tokens, {self.ids_covered} of {self.ids} old ids, {self.dtype}"
        yield "cached decoding", self.cached_decoding, ""
        for group in ("hidden states", "logits", "other outputs"):
            items = [item for item in self.comparisons if _group(item.name) == group]
            if items:
                bitwise = all(item.bitwise for item in items)
                largest = max(item.largest for item in items)
                places = sum(item.places for item in items)
                yield (
                    group,
                    "bitwise" if bitwise else "within tolerance",
                    f"max |Δ| {largest:.3g} over {places:,} values",
                )
        if self.mass_max is not None:
            yield "mass of new ids", "measured", f"mean {self.mass_mean:.3g}, max {self.mass_max:.3g}"
        if self.distribution is not None:
            d = self.distribution
            bound = f" <= {d.bound:.3g} ({d.bound_kind})" if d.bound is not None else f" ({d.bound_kind})"
            yield (
                "KL(old, new)",
                "bounded" if d.bound is not None else "measured",
                f"max {d.kl_max:.3g}{bound}, float64",
            )


def _group(name: str) -> str:
    if "hidden" in name:
        return "hidden states"
    return "logits" if "logits" in name else "other outputs"


@dataclass
class _Tally:
    """Accumulates one output's comparison over the probes."""

    places: int = 0
    bitwise: bool = True
    largest: float = 0.0
    allowed: float = 0.0
    where: str = ""
    broken: str = ""


@dataclass
class _Comparison:
    """State of one comparison: what the source gave, and what has been found of the result."""

    change: VocabularyChange | None
    tallies: dict[str, _Tally] = field(default_factory=dict)
    masses: list[tuple[float, float, int]] = field(default_factory=list)


def compare_outputs(
    source: Path, result: Path, *, vocabulary: VocabularyChange | None, kl: KLPromise | None, seed: int = 0,
    token_budget_override: int | None = None, progress: Progress | None = None,
) -> OutputsReport:  # fmt: skip
    """Load both checkpoints one after the other, run the same probes, and compare every output.

    Raises:
        InputRejected: the source's own load misses tensors, so that its outputs are random.
        VerificationFailed: a checkpoint does not load, or the forward needs inputs that cannot be made.
    """
    seconds: dict[str, float] = {}
    with _timed(seconds, "load source"):
        old = load(source)
    if old.missing:
        raise InputRejected(f"{source.name}: tensors are missing and random at every load: {_few(old.missing)}")
    live = vocabulary.live if vocabulary else int(old.model.get_input_embeddings().weight.shape[0])
    probes, cached = _probes(old.model, source, live, seed, token_budget_override)
    extra = extra_inputs(old.model, probes[-1], seed)
    with _timed(seconds, "run source"):
        kept, cached = _run_all(old, probes, extra, cached, _step(progress, "run the source"))
    facts = (type(old.model).__name__, str(old.model.dtype).removeprefix("torch."))
    loaded = (old.unexpected, old.mismatched)
    del old
    gc.collect()
    with _timed(seconds, "load result"):
        new = load(result)
    failures = [
        f"outputs: the result's load reports {what}: {_few(names)}"
        for what, names in (
            ("missing tensors", new.missing),
            ("unexpected tensors", new.unexpected - loaded[0]),
            ("shapes that do not fit", new.mismatched - loaded[1]),
        )
        if names
    ]
    if facts != (type(new.model).__name__, str(new.model.dtype).removeprefix("torch.")):
        failures.append(
            f"outputs: the result loads as {type(new.model).__name__} in {new.model.dtype}, the source as {facts}"
        )
    state = _Comparison(vocabulary)
    with _timed(seconds, "run result"):
        failures += _compare_all(new, probes, extra, kept, state, _step(progress, "run the result"))
    failures += _tally_failures(state)
    with _timed(seconds, "distribution"):
        distribution = _distribution(new.model, probes, extra, vocabulary, kl)
    if distribution is not None and distribution.excess > 1e-9:
        failures.append(
            f"outputs: KL(old, new) is {distribution.kl_max:.3g}, above the promised bound {distribution.bound:.3g}"
        )
    count = sum(n for _, _, n in state.masses)
    return OutputsReport(
        architecture=facts[0],
        dtype=facts[1],
        probes={probe.name: int(probe.mask.sum()) for probe in probes},
        ids_covered=covered_ids(probes, live),
        ids=live,
        cached_decoding=cached,
        comparisons=tuple(
            OutputComparison(name, t.places, t.bitwise, t.largest, t.allowed) for name, t in state.tallies.items()
        ),
        mass_mean=sum(mean * n for mean, _, n in state.masses) / count if count else None,
        mass_max=max((largest for _, largest, _ in state.masses), default=None),
        distribution=distribution,
        seconds=seconds,
        failures=tuple(failures),
    )


class _timed:  # noqa: N801 - reads as a statement
    def __init__(self, seconds: dict[str, float], name: str) -> None:
        self._seconds, self._name, self._start = seconds, name, time.perf_counter()

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._seconds[self._name] = round(time.perf_counter() - self._start, 3)


def _few(names: frozenset[str]) -> str:
    ordered = sorted(names)
    return printable(", ".join(ordered[:4]) + (f", … ({len(ordered)} in all)" if len(ordered) > 4 else ""))


def _step(progress: Progress | None, what: str) -> Callable[[float], None]:
    return (lambda share: progress(what, share)) if progress else (lambda _: None)


def _probes(model: Any, source: Path, live: int, seed: int, budget: int | None) -> tuple[list[Probe], str]:
    table = model.get_input_embeddings().weight
    config = model.config.get_text_config()
    layers = getattr(config, "num_hidden_layers", None) or 12
    row_bytes = table.element_size() * (table.shape[0] + 2 * layers * table.shape[1])
    budget = budget or token_budget(model.num_parameters(), row_bytes)
    pad = config.pad_token_id if isinstance(config.pad_token_id, int) and config.pad_token_id < live else 0
    positions = min(largest_position(model) or DEFAULT_POSITIONS, max(budget, 8))
    probes = make_probes(source, live, positions, budget, seed, pad)
    reason = can_cache(model)
    if reason is not None:
        probes = [probe for probe in probes if not probe.cached]
    elif not any(probe.cached for probe in probes):
        reason = "no probe text"
    return probes, "covered" if reason is None else f"not covered: {reason}"


def _run_all(
    old: Loaded, probes: list[Probe], extra: Mapping[str, Any], cached: str, step: Callable[[float], None]
) -> tuple[dict[str, dict[str, Any]], str]:
    """Outputs of the source by probe and name; a cache that the source itself cannot use is left out, and said so."""
    kept: dict[str, dict[str, Any]] = {}
    parts = [part for probe in probes for part in split(probe, FORWARD_TOKENS)]
    for index, part in enumerate(parts):
        try:
            kept[part.name] = run(old.model, part, extra)
        except Exception as error:
            if not part.cached:
                raise
            cached = f"not covered: {type(error).__name__}"
        step((index + 1) / len(parts))
    return kept, cached


def _compare_all(
    new: Loaded, probes: list[Probe], extra: Mapping[str, Any], kept: dict[str, dict[str, Any]], state: _Comparison,
    step: Callable[[float], None],
) -> list[str]:  # fmt: skip
    parts = [part for probe in probes for part in split(probe, FORWARD_TOKENS) if part.name in kept]
    for index, part in enumerate(parts):
        try:
            found = run(new.model, part, extra)
        except Exception as error:  # noqa: BLE001 - whatever the forward raises is the finding
            return [f"outputs: the result's forward fails on probe {part.name!r}: {printable(error)}"]
        before = kept.pop(part.name)
        if before.keys() != found.keys():
            names = sorted(before.keys() ^ found.keys())
            return [f"outputs: the result gives other outputs on probe {part.name!r}: {', '.join(names[:4])}"]
        for name, old in before.items():
            _compare(state, part, name, old, found[name])
        step((index + 1) / len(parts))
    return []


def _compare(state: _Comparison, probe: Probe, name: str, old: Any, new: Any) -> None:
    import torch

    tally = state.tallies.setdefault(name, _Tally())
    change = state.change
    grown = change is not None and (old.shape[-1], new.shape[-1]) == (change.old_rows, change.new_rows)
    if probe.mask.shape == old.shape[:2] == new.shape[:2]:
        old, new = old[probe.mask.bool()], new[probe.mask.bool()]
    if grown and change is not None:
        if change.fresh and new.ndim == 2:
            state.masses.append((*native_mass(new, change), len(new)))
        width = new.shape[-1]
        index = torch.tensor(change.kept)
        old, new = old[..., index], new[..., index]
        tally.allowed = max(tally.allowed, _tolerance(old, change, width))
    if old.shape != new.shape or old.dtype != new.dtype:
        tally.broken = tally.broken or f"is {new.dtype} {list(new.shape)}, was {old.dtype} {list(old.shape)}"
        return
    tally.places += old.numel()
    if torch.equal(old, new):
        if old.isnan().any():
            tally.broken = tally.broken or f"holds NaN on probe {probe.name!r}"
        return
    tally.bitwise = False
    gap = float((old.double() - new.double()).abs().nan_to_num(nan=float("inf")).max())
    if gap > tally.largest:
        tally.largest, tally.where = gap, probe.name
    if old.isnan().any() or new.isnan().any():
        tally.broken = tally.broken or f"holds NaN on probe {probe.name!r}"


def _tolerance(old: Any, change: VocabularyChange, width: int) -> float:
    """What a kernel may change when the table's shape changed: nothing if it did not.

    Two roundings of the output, and a float32 accumulation in another order: (2u + 64·2^-24) · max |logit|.
    """
    if width == change.old_rows:
        return 0.0
    return (2 * UNIT_ROUNDOFF[str(old.dtype)] + 64 * 2.0**-24) * float(old.double().abs().max())


def _tally_failures(state: _Comparison) -> list[str]:
    failures = []
    for name, tally in state.tallies.items():
        if tally.broken:
            failures.append(f"outputs: {name} {tally.broken}")
        elif tally.largest > tally.allowed or (not tally.bitwise and not tally.allowed):
            promised = f"allowed {tally.allowed:.3g}" if tally.allowed else "promised bitwise"
            failures.append(
                f"outputs: {name} differs on probe {tally.where!r}: max |Δ| {tally.largest:.3g} ({promised})"
            )
    return sorted(failures, key=_depth)


def _depth(failure: str) -> tuple[int, int]:
    """Embeddings and early layers first, so that the first failure names where it begins."""
    words = failure.split()
    digits = "".join(c for c in words[1].rpartition(".")[2] if c.isdigit())
    return (0, int(digits)) if "hidden_states" in failure and digits else (1, 0)


def _distribution(
    model: Any,
    probes: list[Probe],
    extra: Mapping[str, Any],
    change: VocabularyChange | None,
    promise: KLPromise | None,
) -> Distribution | None:
    import torch

    module = model.get_output_embeddings() if change is not None and change.fresh else None
    weight = getattr(module, "weight", None)
    if change is None or weight is None or weight.ndim != 2 or weight.shape[0] != change.new_rows:
        return None
    probe = next(part for probe in probes if not probe.cached for part in split(probe, FORWARD_TOKENS))
    with Capture(module) as capture:
        logits = run(model, probe, extra).get("logits")
    if logits is None or len(capture.inputs) != 1 or capture.outputs[0].shape != logits.shape:
        return None
    places = probe.mask.bool().nonzero()
    if logits.shape[:2] != probe.mask.shape:
        places = logits[..., 0].new_ones(logits.shape[:2]).nonzero()
    step = max(len(places) // POSITIONS, 1)
    rows, columns = places[::step][:POSITIONS].T
    hidden, raw = capture.inputs[0], capture.outputs[0]
    with torch.inference_mode():
        return measure(module, hidden[rows, columns], raw[rows, columns], logits[rows, columns], change, promise)
