"""`verify --adapter`: whether a prepared adapter and its base are unchanged since the report, and still fit."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graftkit.architecture.accounting import account
from graftkit.architecture.peft.adapter_edits import find_edits
from graftkit.architecture.peft.replaced import replaced_tensors
from graftkit.architecture.skeleton import build_skeleton
from graftkit.checkpoint.adapter import CONFIG, Adapter, open_adapter
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.errors import InputRejected, VerificationFailed, printable
from graftkit.verification.adapters.check import AdapterCheck, AdapterReport, Residual
from graftkit.verification.adapters.origin import Origin, find_origin
from graftkit.verification.adapters.prepared import PreparedAdapter
from graftkit.verification.adapters.record import AdapterRecord, read_record
from graftkit.verification.checks import find_kind
from graftkit.verification.digests import checkpoint_digests
from graftkit.verification.registry import verify
from graftkit.verification.subject import Subject

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
        """One sentence for each thing found wrong, by the look that found it: adapter, base, and those of the check itself."""
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
            "verdict": "" if self.failures else self.verdict,
            "found": dict(self.found),
            "failures": self.failures,
        }


def verify_adapter(
    adapter: str | os.PathLike[str], base: str | os.PathLike[str] | None = None, *, outputs: bool = True
) -> AdapterVerification:
    """Check the adapter in the folder ``adapter`` on ``base``, by default the one that it names.

    With the report of the run that made it, digests of config, weights and base are compared; without it, only what
    loading and outputs show.

    Raises:
        InputRejected: the folder holds no adapter, or its base cannot be found or opened.
        VerificationFailed: the base does not load, or its forward needs inputs that cannot be made.
    """
    adapter, base = os.fspath(adapter), base if base is None else os.fspath(base)
    directory = Path(adapter)
    there = open_adapter(adapter)
    opened = _open_base(directory, there.config, base)
    known = read_record(directory)
    digests = functools.cache(lambda weights: checkpoint_digests(opened, weights=weights))
    replaced = functools.partial(replaced_by, opened, there)
    origin = find_origin(there.config, known, opened, digests, weights=True, replaced=replaced)
    source, residual, not_run = _reference(known) if outputs else (None, None, "--no-outputs")
    subject = Subject(
        source or opened.directory,
        opened.directory,
        adapter=directory,
        prepared=PreparedAdapter(there, known, origin),
        not_run=not_run,
        digests=digests,
    )
    findings = tuple(verify(subject, [(AdapterCheck(known.strength if known else None, residual), subject)]))
    check = find_kind(findings, AdapterReport)
    if check is None:  # base or model could not be loaded or run
        raise VerificationFailed(
            "; ".join(s for finding in findings if finding.name == "adapter" for s in finding.failures)
        )
    files, made_for = (next(f.failures for f in findings if f.name == name) for name in ("adapter files", "base"))
    return AdapterVerification(
        adapter,
        str(opened.directory),
        str(known.path) if known else None,
        check,
        {"adapter": files, "base": made_for},
        origin,
        _notes(there.config, known, check),
    )


def replaced_by(base: Checkpoint, adapter: Adapter) -> frozenset[str]:
    """The base's tensors that the adapter brings whole; none where it is no LoRA, or does not fit."""
    try:
        edits = find_edits(build_skeleton(base.config), adapter, CONFIG)
        return replaced_tensors(base, account(base), edits)
    except InputRejected:
        return frozenset()


def _reference(known: AdapterRecord | None) -> tuple[Path | None, Residual | None, str]:
    """What base and adapter together stand for, where that is not the base, and why they cannot be run beside it."""
    if not known or not known.residual:
        return None, None, ""
    source = _open_source(known.source) if known.residual.from_source else None
    if source is None:
        return None, None, "what base and adapter together stand for is not there any more"
    return source, known.residual, ""


def _notes(config: Mapping[str, Any], known: AdapterRecord | None, check: AdapterReport) -> tuple[str, ...]:
    if known is None:
        unseen = UNSEEN if config["peft_type"] == "LORA" else UNSEEN_OF_OTHERS
        return () if check.trained else (unseen,)
    if known.base.weights:
        return ()
    return ("the report holds no digests of the base's weights: it was made without running the model",)


def _open_base(directory: Path, config: Mapping[str, Any], base: str | None) -> Checkpoint:
    if base is not None:
        return Checkpoint.open(base)
    named = config.get("base_model_name_or_path")
    if not isinstance(named, str):
        raise InputRejected(
            f"{printable(directory / CONFIG)}: names no base; give one: graftkit verify BASE --adapter DIR"
        )
    above = directory.resolve().parent
    if not os.path.isdir(named) and named.startswith(os.curdir) and (above / "config.json").is_file():
        return Checkpoint.open(str(above))  # written with the adapter in it, from another working folder
    try:
        return Checkpoint.open(named, revision=config.get("revision"))
    except InputRejected as error:
        raise InputRejected(
            f"base_model_name_or_path: {error}; give the base: graftkit verify BASE --adapter DIR"
        ) from error


def _open_source(source: Mapping[str, Any]) -> Path | None:
    try:
        return Checkpoint.open(source["name"], revision=source["revision"]).directory
    except InputRejected:
        return None
