"""`verify --adapter`: whether a prepared adapter and its base still are the ones that were reported, and still fit."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graftkit.checkpoint.adapter import CONFIG, FOLDER, WEIGHTS, Adapter, open_adapter
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.errors import InputRejected, few, printable
from graftkit.recipe.add_adapter import STARTS
from graftkit.verification.adapter import AdapterCheck, AdapterReport, Residual
from graftkit.verification.digests import BaseDigests, tensor_digests
from graftkit.verification.promises import PromiseClass
from graftkit.verification.vocabulary import VocabularyChange

REPORT = "graft_report.json"

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
    """What was found of an adapter: the check itself, and how adapter and base differ from what their report says."""

    adapter: str
    base: str
    report: str | None
    check: AdapterReport
    identity: Mapping[str, tuple[str, ...]]
    notes: tuple[str, ...]

    @property
    def found(self) -> Mapping[str, tuple[str, ...]]:
        """One sentence for each thing that each kind of look found wrong: adapter, base, and those of the check itself."""
        return {**self.identity, **self.check.found}

    @property
    def failures(self) -> tuple[str, ...]:
        """One sentence for each check that failed."""
        return tuple(sentence for sentences in self.found.values() for sentence in sentences)

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return {**dataclasses.asdict(self), "found": dict(self.found), "failures": self.failures}


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
    known = _known(directory)
    strength = known.strength if known else PromiseClass[STARTS.get(there.config["peft_type"], "bitwise").upper()]
    reason = "" if outputs else "--no-outputs"
    source = None
    if known and known.residual and outputs:
        source = _source(known.source) if known.residual.from_source else None
        reason = "" if source else "what base and adapter together stand for is not there any more"
    residual = known.residual if known and source else None
    check = AdapterCheck(strength, residual).run(opened.directory, directory, source, reason=reason)
    notes: tuple[str, ...] = (UNSEEN if there.config["peft_type"] == "LORA" else UNSEEN_OF_OTHERS,)
    identity: Mapping[str, tuple[str, ...]] = {}
    if known:
        notes = tuple(_unread(known, check.base))
        identity = {
            "adapter": tuple(_changed_adapter(known, there)),
            "base": tuple(_changed_base(known.base, check.base)),
        }
    return AdapterVerification(
        adapter, str(opened.directory), str(known.path) if known else None, check, identity, notes
    )


@dataclass(frozen=True, slots=True)
class _Known:
    """What the report of the run that made an adapter says of it; ``tensors`` are dtype, shape and SHA-256 by name."""

    path: Path
    strength: PromiseClass
    residual: Residual | None
    source: Mapping[str, Any]
    config: Mapping[str, Any]
    tensors: Mapping[str, tuple[str, tuple[int, ...], str]]
    base: BaseDigests


def _known(directory: Path) -> _Known | None:
    """Read the report that lies in the adapter's folder or above it; None where there is none, or none of an adapter.

    Raises:
        InputRejected: it is there and cannot be read.
    """
    path = next((path for path in (directory / REPORT, directory.resolve().parent / REPORT) if path.is_file()), None)
    if path is None:
        return None
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        found = report["checks"].get("adapter")
        if found is None:
            return None
        ledger = [entry for entry in report["ledger"] if entry["shard"] == f"{FOLDER}/{WEIGHTS}"]
        return _Known(
            path,
            PromiseClass[found["strength"].upper()],
            _residual(found["residual"]),
            {name: report["source"][name] for name in ("name", "revision")},
            dict(report["adapter"]["config"]),
            {str(entry["name"]): (entry["dtype"], tuple(entry["shape"]), entry["sha256"]) for entry in ledger},
            BaseDigests(**{name: found["base"][name] for name in ("config", "tensors", "weights")}),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputRejected(
            f"{printable(path)}: is damaged ({type(error).__name__}: {printable(error)}); move it away to verify the"
            " adapter without it"
        ) from error


def _residual(found: Mapping[str, Any] | None) -> Residual | None:
    if found is None:
        return None
    change = found["vocabulary"]
    vocabulary = change and VocabularyChange(**{**change, "fresh": tuple(change["fresh"])})
    return Residual(vocabulary, found["backbone"], found["from_source"])


def _unread(known: _Known, base: BaseDigests) -> Iterator[str]:
    if not base.weights:
        yield "the base's weights were not read, so that another base of the same shape cannot be seen"
    elif not known.base.weights:
        yield "the report holds no digests of the base's weights: it was made without running the model"


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


def _changed_adapter(known: _Known, adapter: Adapter) -> Iterator[str]:
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


def _changed_base(old: BaseDigests, new: BaseDigests) -> Iterator[str]:
    """Yield how the base is not the reported one."""
    if new.tensors != old.tensors:
        yield "adapter: the base has other tensors than the reported one"
    if new.config != old.config:
        yield "adapter: the base's config.json is not the reported one"
    if old.weights and new.weights and old.weights != new.weights:
        names = few(_unlike(old.weights, new.weights))
        yield f"adapter: the base's weights are not those of the reported one: {names}"


def _unlike(old: Mapping[str, object], new: Mapping[str, object]) -> list[str]:
    return [name for name in {*old, *new} if old.get(name) != new.get(name)]
