"""The outputs of an adapter with another class's names beside those of the old one on its own class, with the weights of one base."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftkit.architecture.peft.adapter_edits import find_edits
from graftkit.architecture.peft.edits import BiasShift, Edit, Factors, TokenRows
from graftkit.architecture.peft.source_class import find_source
from graftkit.architecture.related_class import related_skeleton
from graftkit.architecture.skeleton import one_line
from graftkit.checkpoint.adapter import AdapterPlace, adapter_at
from graftkit.checkpoint.reading import read_tensor
from graftkit.errors import GraftkitError, InputRejected, VerificationFailed, few
from graftkit.running.bits import equal
from graftkit.running.forward import Loaded, load, run
from graftkit.running.lent import lend
from graftkit.running.peft_loading import adapt
from graftkit.running.place import Place, open_place
from graftkit.running.reference import Reference, run_loaded
from graftkit.verification.adapters.own_noise import own_noise
from graftkit.verification.comparison import NOISE_RATIO, STEP, Comparison, Outputs

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

    from graftkit.running.probes import Probe


@dataclass(frozen=True, slots=True)
class RetargetedOutputs:
    """What running both showed.

    ``source`` is the class that the old adapter was run on, empty where it was not; ``not_compared`` says why, or which outputs were
    left out since the two classes give others without an adapter already. ``changed`` is the largest relative difference of an
    output between the two over ``tokens``, ``allowed`` the most that it may be: 0 where the classes give the same bits without an
    adapter. ``effect`` is what the new adapter changes, and ``bit_equal`` says that it changes no bit; of ``trained`` modules with
    values that are not the base's or zero, ``ran`` were run.
    """

    source: str
    not_compared: str
    tokens: int
    changed: float
    allowed: float
    effect: float
    bit_equal: bool
    trained: int
    ran: int
    failures: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Gap:
    """How the two adapters differ: the fields of the same names in :class:`RetargetedOutputs`."""

    source: str = ""
    not_compared: str = ""
    tokens: int = 0
    changed: float = 0.0
    allowed: float = 0.0
    failures: tuple[str, ...] = ()


def compare_outputs(
    base: Place, old: Path, new: AdapterPlace, to: str | None, edits: Iterable[Edit], *, seed: int = 0
) -> RetargetedOutputs | str:
    """Run the adapter ``new`` on the checkpoint ``base``, or on its class ``to``, and that of ``old`` on its own class.

    ``edits`` are those of the new adapter. Returns why nothing was run where the forward needs inputs that cannot be made.

    Raises:
        InputRejected, VerificationFailed: base or adapter do not load.
    """
    config = open_place(base).config
    own = load(base)
    target = own if to is None else dataclasses.replace(own, model=lend(own.model, related_skeleton(config, to)))
    try:
        before = run_loaded(target, base, None, seed, None, {}, lambda _: None)
    except VerificationFailed as error:
        return str(error).removeprefix("outputs: ").partition("; verify:")[0]
    trained = frozenset(_trained(edits, target.model))
    source = _find_source(own, config, old, before)
    model = adapt(target.model, new).get_base_model().eval()
    effect, after, ran = _run(model, before, trained)
    gap = _Gap(not_compared=source) if isinstance(source, str) else source.gap(model, after)
    failures = gap.failures
    if effect.bitwise and ran:
        failures += (
            f"outputs: equal to the base's to the last bit, though {ran} trained modules ran: the adapter has no effect",
        )
    return RetargetedOutputs(
        gap.source, gap.not_compared, gap.tokens, gap.changed, gap.allowed, effect.worst, effect.bitwise, len(trained), ran,
        failures,
    )  # fmt: skip


def _run(model: Any, before: Reference, modules: Iterable[str]) -> tuple[Comparison, Reference, int]:
    """Run the probes of ``before``: the difference, what the model gave, and how many of ``modules`` were run.

    Raises:
        VerificationFailed: it does not run with the adapter.
    """
    ran: set[str] = set()
    hooks = list(_note_runs(model, modules, ran))
    effect, kept = Comparison(join_steps=True), {}
    for part in before.parts:
        old = before.kept[part.name]
        try:
            new = run(model, part, before.extra_inputs)
        except Exception as error:  # whatever the forward raises is the finding
            why = f"outputs: {before.architecture} does not run with the adapter: {one_line(error)}"
            raise VerificationFailed(why) from error
        kept[part.name] = {name: value for name, value in new.items() if name in old}
        effect.add(part, old, new)
    for hook in hooks:
        hook.remove()
    return effect, dataclasses.replace(before, kept=kept), len(ran)


def _note_runs(model: Any, modules: Iterable[str], ran: set[str]) -> Iterator[RemovableHandle]:
    """Hooks that note in ``ran`` which of ``modules`` are run."""
    for name in modules:
        yield model.get_submodule(name).register_forward_hook(lambda *_, name=name: ran.add(name))


@dataclass(frozen=True, slots=True)
class _Source:
    """The class that the old adapter was trained on, with that adapter and the weights of the base.

    ``plain`` is how its outputs differ from those of the target, both without an adapter; ``same`` are the outputs without a
    difference, each by its probe and its name.
    """

    name: str
    model: Any
    plain: Comparison
    same: frozenset[tuple[str, str]]

    def gap(self, model: Any, after: Reference) -> _Gap:
        """How its outputs differ from ``after``, what the adapted target ``model`` gave.

        What is the same without an adapter has to be the same with it. What differs by no more than the noise of the adapted target
        may differ twice as much, or by twice that noise; the rest is left out.
        """
        plain = self.plain.relative
        differing = {name for name, one in self.plain.outputs.items() if not (one.bitwise or one.gone)}
        noise: Mapping[str, float] = own_noise(model, after) if differing else {}
        near = {name for name in differing if plain[name] <= NOISE_RATIO * noise.get(name, 0.0)}
        allowed = {name: NOISE_RATIO * max(plain[name], noise[name]) for name in near}
        left_out = self._left_out(differing - near, after.architecture)
        found, tokens = self._compare(after, lambda part, name: STEP.sub("", name) in near or (part, name) in self.same)
        if not found.outputs:
            nothing = f"{self.name} and {after.architecture} have no output in common"
            return _Gap(not_compared=left_out or nothing)
        beyond = [
            name for name, one in found.outputs.items() if not (one.bitwise or one.relative <= allowed.get(name, -1))
        ]
        beyond += [name for name, one in found.outputs.items() if one.gone and name not in beyond]
        failures = tuple(self._failures(beyond, found, allowed))
        return _Gap(self.name, left_out, tokens, found.worst, max(allowed.values(), default=0.0), failures)

    def _compare(self, after: Reference, wanted: Callable[[str, str], bool]) -> tuple[Comparison, int]:
        """The difference over the outputs that are ``wanted``, by probe and name, and the tokens behind them."""
        found, tokens = Comparison(join_steps=True), 0
        for part, outputs in _runs(self.model, after):
            kept = {name: value for name, value in after.kept[part.name].items() if wanted(part.name, name)}
            found.add(part, kept, outputs)
            tokens += part.tokens if kept else 0
        return found, tokens

    def _left_out(self, names: Collection[str], target: str) -> str:
        """Which outputs are not compared since they differ without an adapter on some probes or all; empty where none is."""
        if not names:
            return ""
        worst = max(self.plain.relative[name] for name in names)
        return f"{self.name} and {target} differ by up to {worst:.2g} without an adapter, in {few(names)}"

    def _failures(self, beyond: list[str], found: Comparison, allowed: Mapping[str, float]) -> Iterator[str]:
        if beyond:
            worst = max(beyond, key=lambda name: found.relative[name])
            yield (
                f"outputs: {few(beyond)} differ by up to {found.relative[worst]:.3g} from the old adapter's on {self.name} with the"
                f" same weights; {allowed.get(worst, 0.0):.3g} is allowed"
            )


def _find_source(own: Loaded, config: Mapping[str, Any], old: Path, before: Reference) -> _Source | str:
    """The class of the old adapter with that adapter on it, or why there is none."""
    adapter = adapter_at(old)
    build = find_source(adapter, config)
    if build is None:
        return "the class that the adapter was trained on is not known, or not to be had from this base"
    try:
        skeleton = build()
        find_edits(build(), adapter, "the old adapter")
        model, plain = lend(own.model, skeleton), Comparison(join_steps=True)
        same: set[tuple[str, str]] = set()
        for part, outputs in _runs(model, before):
            kept = {name: value for name, value in before.kept[part.name].items() if name in outputs}
            plain.add(part, kept, outputs)
            same |= {(part.name, name) for name, value in kept.items() if equal(value, outputs[name])}
        return _Source(skeleton.architecture, adapt(model, old).get_base_model().eval(), plain, frozenset(same))
    except GraftkitError as error:
        return str(error)


def _runs(model: Any, reference: Reference) -> Iterator[tuple[Probe, Outputs]]:
    """Yield the outputs of each probe that the model takes.

    Raises:
        InputRejected: it takes none.
    """
    refusal, taken = "", 0
    for part in reference.parts:
        try:
            outputs = run(model, part, reference.extra_inputs)
        except Exception as error:  # noqa: BLE001 - whatever a forward that wants other inputs raises
            refusal = refusal or one_line(error)
            continue
        taken += 1
        yield part, outputs
    if not taken:
        raise InputRejected(
            f"{type(model).__name__} does not run on token ids with the weights of this base: {refusal}"
        )


def _trained(edits: Iterable[Edit], model: Any) -> Iterator[str]:
    """Yield the modules that the adapter really changes: products that are not zero, and values other than the base's."""
    state = model.state_dict()
    for edit in edits:
        if isinstance(edit, Factors):
            live = bool(read_tensor(edit.a).any()) and bool(read_tensor(edit.b).any())
        elif isinstance(edit, BiasShift):
            live = bool(read_tensor(edit.values).any())
        else:
            weight = state[edit.weight]
            held = weight[list(edit.rows)] if isinstance(edit, TokenRows) else weight
            live = not read_tensor(edit.values).to(held.dtype).equal(held)
        if live:
            yield edit.weight.rpartition(".")[0]
