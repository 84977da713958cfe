"""A base with an adapter as peft loads it: what a merged checkpoint is compared with.

Two instruments. Each merged weight is compared with peft's own merge in float64: what is left must be the rounding of its
dtype, and must not lean towards what the adapter adds. And the outputs of both are compared with the adapted model's in
float64: the merged model's error may be at most twice the adapted one's own.
"""

from __future__ import annotations

import copy
import dataclasses
import gc
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graftkit.architecture.skeleton import one_line
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.reading import read_tensor
from graftkit.errors import VerificationFailed, printable
from graftkit.verification.distribution import UNIT_ROUNDOFF
from graftkit.verification.forward import Loaded, few, load, run, undisturbed
from graftkit.verification.reference import Reference, run_loaded

NAME = "default"

#: A module whose weights in float64 are larger than this is not compared in float64.
MODULE_BYTES = 2 << 30

#: Experts with adapters on them are held in float64 while the reference is made, up to this size.
FUSED_BYTES = 4 << 30

#: How far the error of a merged weight may exceed rounding to nearest, where the sum itself is formed in that dtype.
SUMMED = 8.0

#: The same where it is formed in more precision and rounded once.
ROUNDED_ONCE = 1.05

#: What cached decoding puts before the names of its outputs.
STEP = re.compile(r"^step \d+ ")

#: How much of what the adapter adds may be missing or too much, as a share.
LEANING = 0.02

#: The bound on the noise ratio.
NOISE_RATIO = 2.0

#: Noise below so many units of rounding counts as so much: in float32 (False) and in half precision (True).
FLOOR = {False: 16.0, True: 4.0}


@dataclass(frozen=True, slots=True)
class WeightComparison:
    """One merged weight. ``rounding`` is its error in units of the dtype's rounding, ``leaning`` the share of the change lost."""

    name: str
    rounding: float
    leaning: float
    failure: str


@dataclass(frozen=True, slots=True)
class OutputNoise:
    """One output: relative root-mean-square errors against the adapted model in float64."""

    name: str
    adapted: float
    merged: float

    @property
    def ratio(self) -> float:
        """The noise ratio; 1 says that merging adds nothing to the arithmetic's own noise."""
        return self.merged / self.adapted


@dataclass(frozen=True, slots=True)
class AdaptedReport:
    """What was compared with the base and the adapter as peft loads them. ``skipped`` says what was not, and why."""

    weights: tuple[WeightComparison, ...]
    outputs: tuple[OutputNoise, ...]
    tokens: int
    skipped: tuple[str, ...]
    failures: tuple[str, ...]
    name: str = "merged against adapted"

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        outputs = [{**dataclasses.asdict(output), "ratio": output.ratio} for output in self.outputs]
        return {**dataclasses.asdict(self), "outputs": outputs}

    def rows(self) -> Iterator[tuple[str, str, str]]:
        """``(check, result, figure)`` for a terminal."""
        verdict = "failed" if self.failures else "rounded"
        if self.weights:
            rounding = max(weight.rounding for weight in self.weights)
            leaning = max(weight.leaning for weight in self.weights)
            figure = (
                f"{len(self.weights)}, at most {rounding:.2g} roundings off float64, {leaning:.1g} of the change lost"
            )
            yield "merged weights", verdict, figure
        if self.outputs:
            worst = max(self.outputs, key=lambda output: output.ratio)
            figure = f"{self.tokens} tokens, noise ratio at most {worst.ratio:.3g} ({worst.merged:.2g} / {worst.adapted:.2g})"
            yield "outputs beside peft", verdict, figure
        for reason in self.skipped:
            yield "not compared", "skipped", reason


def load_adapted(source: Path, folder: Path, base: Checkpoint | None = None) -> Loaded:
    """Load ``source`` (or ``base``, where that is only planned) and put the adapter of ``folder`` on it, as a user would.

    The model is the plain class with peft's layers in it, in eval mode.

    Raises:
        VerificationFailed: base or adapter do not load.
    """
    loaded = load(source) if base is None else assembled(base)
    return dataclasses.replace(loaded, model=adapt(loaded.model, folder).get_base_model().eval())


def adapt(model: Any, folder: Path) -> Any:
    """The peft model of ``model`` and the adapter of ``folder``.

    Raises:
        VerificationFailed: peft does not load it.
    """
    from peft import PeftModel

    try:
        return PeftModel.from_pretrained(model, str(folder), adapter_name=NAME)
    except Exception as error:  # peft raises whatever it runs into
        raise VerificationFailed(
            f"adapter: peft does not load it on {type(model).__name__}: {one_line(error)}"
        ) from error


def assembled(base: Checkpoint) -> Loaded:
    """The model of a checkpoint that lies on no disk: every tensor is read or computed."""
    from graftkit.architecture.skeleton import build_config, build_skeleton

    state = {name: read_tensor(tensor) for name, tensor in base.tensors.items()}
    model_class = type(build_skeleton(base.config).model)
    model = model_class.from_pretrained(None, config=build_config(base.config), state_dict=state)
    return Loaded(model.eval(), frozenset(), frozenset(), frozenset())


def compare_with_adapted(
    source: Path, result: Path, folder: Path, *, base: Checkpoint | None = None, seed: int = 0
) -> AdaptedReport:
    """Compare the merged checkpoint ``result`` with ``source`` and the adapter of ``folder``, unmerged.

    Raises:
        InputRejected, VerificationFailed: a checkpoint or the adapter does not load, or the forward needs inputs that
            cannot be made.
    """
    skipped: list[str] = []
    with undisturbed():
        adapted = load_adapted(source, folder, base)
        merged = load(result)
        weights = tuple(_weights(adapted.model, merged.model, skipped))
        del merged
        gc.collect()
        native = run_loaded(adapted, source, None, seed, None, {}, lambda _: None)
        reference = _in_float64(adapted.model, native, skipped)
        del adapted
        gc.collect()
        outputs, broken = _outputs(load(result), native, reference)
    failures = [weight.failure for weight in weights if weight.failure] + broken
    failures += [
        f"outputs: {item.name} of the merged model is {item.merged:.3g} off the adapted model in float64, which itself"
        f" rounds by {item.adapted:.3g}: a noise ratio of {item.ratio:.3g}, above {NOISE_RATIO:g}"
        for item in outputs
        if item.ratio > NOISE_RATIO
    ]
    tokens = sum(part.tokens for part in native.parts)
    return AdaptedReport(weights, tuple(outputs), tokens, tuple(skipped), tuple(failures))


def _weights(adapted: Any, merged: Any, skipped: list[str]) -> Iterator[WeightComparison]:
    from peft.tuners.lora.layer import LoraLayer
    from peft.utils.other import ModulesToSaveWrapper, TrainableTokensWrapper

    outer: list[str] = []
    for path, module in adapted.named_modules():
        if isinstance(module, ModulesToSaveWrapper):
            for name, value in module.modules_to_save[NAME].state_dict().items():
                yield _replaced(f"{path}.{name}", value, _at(merged, f"{path}.{name}"))
        elif isinstance(module, TrainableTokensWrapper):
            rows = module.token_adapter.get_merged_weights([NAME])
            yield _replaced(f"{path}.weight", rows, _at(merged, f"{path}.weight"))
        elif isinstance(module, LoraLayer) and not any(path.startswith(f"{above}.base_layer") for above in outer):
            outer.append(path)
            size = sum(parameter.numel() for parameter in module.get_base_layer().parameters())
            if 8 * size > MODULE_BYTES:
                skipped.append(f"{printable(path)}: {size:,} elements are too many to be merged in float64")
                continue
            yield from _folded(path, module, merged)


def _at(model: Any, name: str) -> Any:
    owner, _, leaf = name.rpartition(".")
    return getattr(model.get_submodule(owner), leaf).detach()


def _replaced(name: str, wanted: Any, found: Any) -> WeightComparison:
    equal = wanted.detach().to(found.dtype).equal(found)
    return WeightComparison(name, 0, 0, "" if equal else f"weights: {printable(name)!r} is not the adapter's")


def _folded(path: str, module: Any, merged: Any) -> Iterator[WeightComparison]:
    """Compare every parameter of one adapted module with peft's own merge of it in float64."""
    exact = copy.deepcopy(module).double()
    if hasattr(exact, "unload_and_optionally_merge_module"):
        exact = exact.unload_and_optionally_merge_module(merge=True, safe_merge=False, adapter_names=None)
    else:
        exact.merge()
        exact = exact.get_base_layer()
    before = module.get_base_layer()
    for name, value in exact.named_parameters():
        found = _at(merged, f"{path}.{name}")
        if value.equal(before.get_parameter(name).double()):
            continue  # not touched: its bytes are the source's, as the ledger says
        yield _compare(f"{path}.{name}", value.detach(), before.get_parameter(name).detach().double(), found)


def _compare(name: str, exact: Any, before: Any, found: Any) -> WeightComparison:
    error, change = found.double() - exact, exact - before
    unit = UNIT_ROUNDOFF[str(found.dtype)]
    half = unit > UNIT_ROUNDOFF["torch.float32"]
    scale = exact.norm() if half else before.norm() + exact.norm()
    tiny = 2.0**-25 * exact.numel() ** 0.5 if str(found.dtype) == "torch.float16" else 0.0
    rounding = float(error.norm() / (unit * scale + tiny))
    size = float(change.square().sum())
    leaning = abs(float((error * change).sum())) / size
    # Rounding errors are independent of the change: their share of it has this standard deviation.
    noise = unit * float((exact.square() * change.square()).sum()) ** 0.5 / size
    failure = ""
    if not rounding <= (ROUNDED_ONCE if half else SUMMED):
        failure = f"weights: {printable(name)!r} is off peft's merge in float64 by {rounding:.3g} roundings"
    elif not leaning <= LEANING + 6 * noise:
        failure = f"weights: {printable(name)!r} lacks or repeats {leaning:.0%} of what the adapter adds"
    return WeightComparison(name, rounding, leaning, failure)


def _in_float64(model: Any, native: Reference, skipped: list[str]) -> dict[str, dict[str, Any]]:
    """The outputs of every probe in true float64; empty where the class cannot be run so."""
    from peft.tuners.lora.layer import ParamWrapper

    from graftkit.verification.lens.float64 import float64

    # peft registers what it adds to a parameter of experts as a parametrization, which must keep the parameter's dtype.
    fused = [module for module in model.modules() if isinstance(module, ParamWrapper)]
    size = sum(parameter.numel() for module in fused for parameter in module.parameters())
    if 8 * size > FUSED_BYTES:
        skipped.append(f"outputs in float64: adapted experts of {size:,} elements are too many to be held in float64")
        return {}
    try:
        for module in fused:
            module.double()
        with float64(model):
            return {part.name: run(model, part, native.made) for part in native.parts}
    except Exception as error:  # noqa: BLE001 - a class with kernels that know no float64
        skipped.append(f"outputs in float64: {one_line(error)}")
        return {}


def _outputs(
    merged: Loaded, native: Reference, reference: dict[str, dict[str, Any]]
) -> tuple[list[OutputNoise], list[str]]:
    """Errors of the adapted and of the merged model, over all probes; a finite forward is asked for in any case."""
    sums: dict[str, list[float]] = {}
    for part in native.parts:
        try:
            found = run(merged.model, part, native.made)
        except Exception as error:  # noqa: BLE001 - whatever the forward raises is the finding
            return [], [f"outputs: the merged model's forward fails on probe {part.name!r}: {one_line(error)}"]
        other = native.names[part.name] ^ found.keys()
        if other:
            return [], [f"outputs: only one of adapted and merged model gives these outputs: {few(other)}"]
        mask = part.mask.bool()
        for name, exact in reference.get(part.name, {}).items():
            if name not in native.kept[part.name]:
                continue
            values = [exact.double(), native.kept[part.name][name].double(), found[name].double()]
            if exact.shape[:2] == mask.shape:
                values = [value[mask] for value in values]
            wanted, old, new = (value.nan_to_num(0, 0, 0) for value in values)
            tally = sums.setdefault(STEP.sub("", name), [0.0, 0.0, 0.0])
            for index, square in enumerate((wanted, old - wanted, new - wanted)):
                tally[index] += float(square.square().sum())
    unit = UNIT_ROUNDOFF[str(merged.model.dtype)]
    noises = []
    for name, (size, old, new) in sums.items():
        floor = FLOOR[unit > UNIT_ROUNDOFF["torch.float32"]] * unit * size**0.5
        scale = size**0.5 or 1.0
        noises.append(OutputNoise(name, max(old**0.5, floor) / scale or unit, new**0.5 / scale))
    return noises, []
