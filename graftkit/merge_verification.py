"""`verify A B --adapter`: whether a checkpoint that another program wrote is a base with an adapter merged into it."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graftkit.adapter_verification import replaced_by
from graftkit.architecture.accounting import account
from graftkit.checkpoint.adapter import open_adapter
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.errors import few, plural
from graftkit.verification.adapters.merged_model import AdaptedReport, MergeCheck
from graftkit.verification.adapters.origin import Origin, find_origin
from graftkit.verification.adapters.prepared import PreparedAdapter
from graftkit.verification.adapters.record import read_record
from graftkit.verification.checks import Finding, Row, Sentences, find_kind
from graftkit.verification.digests import checkpoint_digests
from graftkit.verification.promises import Scope
from graftkit.verification.registry import verify
from graftkit.verification.subject import Subject


@dataclass(frozen=True, slots=True)
class MergeVerification:
    """What was found of a merge: one finding for each check, and whether the base is the one that the adapter was made for."""

    base: str
    merged: str
    adapter: str
    findings: tuple[Finding, ...]
    origin: Origin
    notes: tuple[str, ...]

    @property
    def failures(self) -> tuple[str, ...]:
        """One sentence for each thing that is wrong; empty where the merge is right."""
        return tuple(sentence for finding in self.findings for sentence in finding.failures)

    @property
    def verdict(self) -> str:
        """One line, where nothing was found."""
        found = find_kind(self.findings, AdaptedReport)
        weights = len(found.weights) if found else 0
        left = f"; not compared: {'; '.join(found.skipped)}" if found and found.skipped else ""
        known = "" if self.origin.known_by else f"; not known to be the adapter's base: {self.origin.unknown}"
        return (
            f"verified: B is A with the adapter merged into it: {weights} changed weights, each base plus adapter, rounded;"
            f" every other weight is A's{left}{known}"
        )

    def rows(self) -> Iterator[Row]:
        """The lines that a table shows of it."""
        for finding in self.findings:
            yield from finding.rows()

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return {
            "base": self.base,
            "merged": self.merged,
            "adapter": self.adapter,
            "known_by": self.origin.known_by,
            "unknown": self.origin.unknown,
            "checks": {finding.name: finding.to_json() for finding in self.findings},
            "notes": self.notes,
            "failures": self.failures,
            "verdict": self.verdict if not self.failures else "",
        }


def verify_merge(
    base: str | os.PathLike[str], merged: str | os.PathLike[str], adapter: str | os.PathLike[str]
) -> MergeVerification:
    """Check that the checkpoint ``merged`` is ``base`` with the adapter in the folder ``adapter``, whoever merged them.

    Every weight is replayed from base and adapter in float64, and the outputs are compared with those of both, unmerged.

    Raises:
        InputRejected: one of the three cannot be opened or loaded.
    """
    base, merged, adapter = (os.fspath(path) for path in (base, merged, adapter))
    folder, there = Path(adapter), open_adapter(adapter)
    old, new = Checkpoint.open(base), Checkpoint.open(merged)
    known = read_record(folder)
    digests = functools.cache(lambda weights: checkpoint_digests(old, weights=weights))
    replaced = functools.partial(replaced_by, old, there)
    origin = find_origin(there.config, known, old, digests, weights=True, replaced=replaced)
    subject = Subject(
        old.directory,
        new.directory,
        scope=Scope.NOTHING,
        prepared=PreparedAdapter(there, known, origin),
        digests=digests,
    )
    apart = tuple(_other_shapes(old, new))
    own = () if apart else ((MergeCheck(folder, by_others=True), subject),)
    findings = tuple(verify(subject, own))
    if apart:
        findings += (Sentences("shapes", apart),)
    return MergeVerification(base, merged, adapter, findings, origin, tuple(_notes(new, findings)))


def _other_shapes(old: Checkpoint, new: Checkpoint) -> Iterator[str]:
    """Yield how the two are not of one class and of the same shapes, so that no weight of one is at its place in the other."""
    mine, theirs = account(old), account(new)
    before, after = mine.skeleton, theirs.skeleton
    if strange := set(theirs.unknown) - set(mine.unknown):
        yield f"shapes: B holds {plural(len(strange), 'tensor')} of no class of its config: {few(strange)}"
    if before.architecture != after.architecture:
        yield f"shapes: B is a {after.architecture}, A a {before.architecture}"
        return
    names = sorted(n for n in {*before.shapes, *after.shapes} if before.shapes.get(n) != after.shapes.get(n))
    if names:
        a, b = (list(skeleton.shapes.get(names[0], ())) for skeleton in (before, after))
        yield f"shapes: of A and B differ in {few(names)}; {names[0]} is {a} in A and {b} in B"


def _notes(new: Checkpoint, findings: tuple[Finding, ...]) -> Iterator[str]:
    """Yield what several wrong weights together say of the merge."""
    found = find_kind(findings, AdaptedReport)
    wrong = {weight.name for weight in found.weights if weight.failure} if found else set()
    tied = account(new).skeleton.tied
    sides = sorted(name for pair in tied.items() for name in pair if name in wrong)
    if sides:
        yield (
            f"B ties {few({name for pair in tied.items() for name in pair})}: where the adapter changes one side only, the merge"
            " has to untie them"
        )
    if found and any(weight.failure and weight.untouched for weight in found.weights) and not sides:
        yield "weights that the adapter leaves alone differ as well: B comes from another base, or was trained or rounded since"
