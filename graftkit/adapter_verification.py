"""`verify --adapter`: whether a prepared adapter and its base still are the ones that were reported, and still fit."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graftkit.checkpoint.adapter import CONFIG, WEIGHTS
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.errors import InputRejected, printable
from graftkit.verification.adapter import AdapterCheck, AdapterReport
from graftkit.verification.promises import PromiseClass

REPORT = "graft_report.json"

#: What neither loading nor outputs can show while the zero factor is zero.
UNSEEN = (
    "no graft_report.json lies beside the adapter, so that nothing tells what it was: a changed lora_alpha, a flipped bit"
    " in A, a target that is gone from config and weights alike, and another base of the same shape cannot be seen"
)


@dataclass(frozen=True, slots=True)
class AdapterVerification:
    """What was found of an adapter: the check itself, and how it differs from what its report says."""

    adapter: str
    base: str
    report: str | None
    check: AdapterReport
    identity: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def failures(self) -> tuple[str, ...]:
        """One sentence for each check that failed."""
        return (*self.identity, *self.check.failures)

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return {**dataclasses.asdict(self), "failures": self.failures}


def verify_adapter(adapter: str, base: str | None = None, *, outputs: bool = True) -> AdapterVerification:
    """Check the adapter in the folder ``adapter`` on ``base``, by default the one that it names.

    With the report of the run that made it, digests of config, weights and base are compared; without it, only what
    loading and outputs show.

    Raises:
        InputRejected: the folder holds no adapter, or its base cannot be found or opened.
    """
    directory = Path(adapter)
    config = _read(directory / CONFIG)
    if not (directory / WEIGHTS).is_file():
        raise InputRejected(f"{printable(adapter)}: holds no {WEIGHTS}")
    opened = _open_base(directory, config, base)
    found = next((path for path in (directory / REPORT, directory.resolve().parent / REPORT) if path.is_file()), None)
    report = _read(found) if found else {}
    known = report.get("checks", {}).get("adapter")
    strength = PromiseClass[known["strength"].upper()] if known else PromiseClass.BITWISE
    residual = known is not None and (known.get("weights") or {}).get("word") == "rounded"
    reason = "" if outputs else "--no-outputs"
    source = _source(report) if residual and outputs else None
    notes = []
    if known is None:
        notes.append(UNSEEN)
    if residual and outputs and source is None:
        reason = "the source that base and adapter together stand for is not there any more"
    check = AdapterCheck(strength, residual=source is not None).run(opened.directory, directory, source, reason=reason)
    if known and not check.base.weights:
        notes.append("the base's weights were not read, so that another base of the same shape cannot be seen")
    elif known and not known["base"]["weights"]:
        notes.append("the report holds no digests of the base's weights: it was made without running the model")
    identity = tuple(_identity(known, report, config, check)) if known else ()
    return AdapterVerification(
        adapter, str(opened.directory), str(found) if known else None, check, identity, tuple(notes)
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputRejected(f"{printable(path)}: cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise InputRejected(f"{printable(path)}: holds no mapping")
    return value


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


def _source(report: Mapping[str, Any]) -> Path | None:
    try:
        return Checkpoint.open(report["source"]["name"], revision=report["source"]["revision"]).directory
    except InputRejected:
        return None


def _identity(
    known: Mapping[str, Any], report: Mapping[str, Any], config: Mapping[str, Any], check: AdapterReport
) -> Iterator[str]:
    """Yield what is no longer as it was reported: config value by value, weights, base."""
    before = report["adapter"]["config"]
    changed = [
        f"{name} is {config.get(name)!r}, was {before.get(name)!r}"
        for name in sorted({*before, *config})
        if config.get(name) != before.get(name)
    ]
    if changed:
        yield f"adapter: {CONFIG} is not the reported one: {printable('; '.join(changed[:3]))}"
    elif check.digests[CONFIG] != known["digests"][CONFIG]:
        yield f"adapter: {CONFIG} was written anew, with the same values"
    if check.digests[WEIGHTS] != known["digests"][WEIGHTS]:
        yield f"adapter: {WEIGHTS} is not the reported one (SHA-256 {check.digests[WEIGHTS][:12]}…)"
    old, new = known["base"], check.base
    if new.tensors != old["tensors"]:
        yield "adapter: the base has other tensors than the reported one"
    if new.config != old["config"]:
        yield "adapter: the base's config.json is not the reported one"
    if old["weights"] and new.weights and sorted(new.weights.values()) != sorted(old["weights"].values()):
        yield "adapter: the base's weights are not those of the reported one"
