"""`verify --adapter`: whether a prepared adapter and its base still are the ones that were reported, and still fit."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graftkit.checkpoint.adapter import CONFIG, WEIGHTS, Adapter, open_adapter
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.reading import chunks
from graftkit.checkpoint.tensors import LazyTensor
from graftkit.errors import InputRejected, few, printable
from graftkit.verification.adapter import AdapterCheck, AdapterReport
from graftkit.verification.adapter_origin import Origin, find_origin
from graftkit.verification.adapter_record import AdapterRecord, read_record
from graftkit.verification.digests import checkpoint_digests, tensor_digests
from graftkit.verification.structural import first_not_finite

#: What neither loading nor outputs can show while the zero factor is zero.
UNSEEN = (
    "no graft_report.json lies beside the adapter, so that nothing tells what it was: a changed lora_alpha, a flipped bit"
    " in A, a target that is gone from config and weights alike, and another base of the same shape cannot be seen"
)

#: The same for other kinds of adapters.
UNSEEN_OF_OTHERS = (
    "no graft_report.json lies beside the adapter, so that nothing tells what it was: changed values that no output shows yet,"
    " and another base of the same shape cannot be seen"
)


@dataclass(frozen=True, slots=True)
class AdapterVerification:
    """What was found of an adapter: the check itself, and how adapter and base differ from what they were made as.

    ``origin`` says whether the base is the one that the adapter was made for, or that nothing tells.
    """

    adapter: str
    base: str
    report: str | None
    check: AdapterReport
    identity: Mapping[str, tuple[str, ...]]
    origin: Origin
    notes: tuple[str, ...]

    @property
    def found(self) -> Mapping[str, tuple[str, ...]]:
        """One sentence for each thing that each kind of look found wrong: adapter, base, and those of the check itself."""
        return {**self.identity, **self.check.found}

    @property
    def failures(self) -> tuple[str, ...]:
        """One sentence for each check that failed."""
        return tuple(sentence for sentences in self.found.values() for sentence in sentences)

    @property
    def verdict(self) -> str:
        """One line. It begins with ``verified`` only where the base is known to be the one that the adapter was made for."""
        check = self.check
        fits = (
            "the adapter is the one that was reported and fits its base" if self.report else "the adapter fits its base"
        )
        if check.trained and check.gap is not None:
            does = (
                f"trained: it moves the outputs by {check.gap.relative:.2g}, relative, and nothing was promised of it"
            )
        elif check.not_compared:
            does = f"the model was not run ({check.not_compared})"
        else:
            does = "it changes nothing that is promised" if self.report else "it changes no output"
        if self.origin.known_by:
            return f"verified: {fits}; {does}"
        return f"not known to be its base: {self.origin.unknown}; {fits} by names and shapes; {does}"

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return {
            **dataclasses.asdict(self),
            "verdict": self.verdict,
            "found": dict(self.found),
            "failures": self.failures,
        }


def verify_adapter(adapter: str, base: str | None = None, *, outputs: bool = True) -> AdapterVerification:
    """Check the adapter in the folder ``adapter`` on ``base``, by default the one that it names.

    With the report of the run that made it, digests of config, weights and base are compared; without it, only what
    loading and outputs show.

    Raises:
        InputRejected: the folder holds no adapter, or its base cannot be found or opened.
    """
    directory = Path(adapter)
    there = open_adapter(adapter)
    opened = _open_base(directory, there.config, base)
    known = read_record(directory)
    digests = functools.cache(lambda weights: checkpoint_digests(opened, weights=weights))
    origin = find_origin(there.config, known, opened, digests, weights=True)
    reason = "" if outputs else "--no-outputs"
    source = None
    if known and known.residual and outputs:
        source = _source(known.source) if known.residual.from_source else None
        reason = "" if source else "what base and adapter together stand for is not there any more"
    residual = known.residual if known and source else None
    check = AdapterCheck(known.strength if known else None, residual).look(
        opened.directory, directory, source, reason=reason, digests=digests
    )
    identity: dict[str, tuple[str, ...]] = {"adapter": tuple(_not_finite(there))}
    notes: tuple[str, ...] = ()
    if known:
        identity["adapter"] = (*_changed_adapter(known, there), *identity["adapter"])
        if not known.base.weights:
            notes = ("the report holds no digests of the base's weights: it was made without running the model",)
    elif not check.trained:
        notes = (UNSEEN if there.config["peft_type"] == "LORA" else UNSEEN_OF_OTHERS,)
    identity["base"] = tuple(f"adapter: {sentence}" for sentence in origin.different)
    report = str(known.path) if known else None
    return AdapterVerification(adapter, str(opened.directory), report, check, identity, origin, notes)


def _open_base(directory: Path, config: Mapping[str, Any], base: str | None) -> Checkpoint:
    if base is not None:
        return Checkpoint.open(base)
    named = config.get("base_model_name_or_path")
    if not isinstance(named, str):
        raise InputRejected(
            f"{printable(directory / CONFIG)}: names no base; give one: graftkit verify BASE --adapter DIR"
        )
    try:
        return Checkpoint.open(named, revision=config.get("revision"))
    except InputRejected as error:
        raise InputRejected(
            f"base_model_name_or_path: {error}; give the base: graftkit verify BASE --adapter DIR"
        ) from error


def _source(source: Mapping[str, Any]) -> Path | None:
    try:
        return Checkpoint.open(source["name"], revision=source["revision"]).directory
    except InputRejected:
        return None


def _changed_adapter(known: AdapterRecord, adapter: Adapter) -> Iterator[str]:
    """Yield how config and tensors are no longer as they were reported, value by value."""
    before, config = known.config, adapter.config
    changed = [
        f"{name} is {config.get(name)!r}, was {before.get(name)!r}"
        for name in sorted({*before, *config})
        if config.get(name) != before.get(name)
    ]
    if changed:
        yield f"adapter: {CONFIG} is not the reported one: {printable('; '.join(changed[:3]))}"
    digests = tensor_digests(adapter.tensors)
    tensors = {name: (tensor.dtype, tensor.shape, digests[name]) for name, tensor in adapter.tensors.items()}
    if tensors != known.tensors:
        yield f"adapter: {WEIGHTS} is not the reported one: {few(_unlike(known.tensors, tensors))}"


def _not_finite(adapter: Adapter) -> Iterator[str]:
    """Yield a sentence where a tensor of the adapter holds NaN or infinity."""
    broken = [name for name, tensor in adapter.tensors.items() if any(_not_finite_in(tensor))]
    if broken:
        yield f"adapter: {WEIGHTS} holds NaN or infinity, in {few(broken)}: its training has diverged"


def _not_finite_in(tensor: LazyTensor) -> Iterator[bool]:
    import numpy as np

    for piece in chunks(tensor):
        yield first_not_finite(tensor.dtype, np.frombuffer(piece, np.uint8)) is not None


def _unlike(old: Mapping[str, object], new: Mapping[str, object]) -> list[str]:
    return [name for name in {*old, *new} if old.get(name) != new.get(name)]
