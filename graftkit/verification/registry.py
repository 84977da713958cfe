"""Every check of a result, in the order in which they run, and the one loop over them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter

from graftkit.errors import VerificationFailed, require_sound_system
from graftkit.running.place import folder_of
from graftkit.verification.adapters.prepared import PreparedAdapter
from graftkit.verification.checks import Check, Finding, LeftOut, Sentences, SentencesCheck
from graftkit.verification.pair import Pair
from graftkit.verification.promises import Scope
from graftkit.verification.subject import Subject


@dataclass(frozen=True, slots=True)
class ReportCheck:
    """Every byte of a checkpoint is the one that the report in its folder names."""

    name: str = "report"

    def applies(self, subject: Subject) -> bool:
        """Where a report lies there, and no recipe says how the checkpoint came about."""
        return subject.pair is not None and subject.pair.report is not None

    def run(self, subject: Subject) -> Finding:
        """Hand over what was found when the report was read, since other checks rest on it."""
        return subject.pair.accounted if subject.pair else Sentences(self.name, ())


@dataclass(frozen=True, slots=True)
class TokenizerCheck:
    """Old text and old ids are what they were, and each new token is its one id."""

    name: str = "tokenizer"

    def applies(self, subject: Subject) -> bool:
        """Where the tokenizer was changed."""
        return subject.tokens is not None

    def run(self, subject: Subject) -> Finding:
        """Compare the tokenizers; see :func:`~graftkit.verification.tokens.tokenization.check_tokenization`."""
        from graftkit.verification.tokens.tokenization import check_tokenization

        tokens = subject.tokens
        if tokens is None:
            raise ValueError("the tokenizer was not changed")
        source, ids = folder_of(subject.source), subject.correspondence.ids
        if tokens.replaced is not None:
            source, ids = tokens.replaced.folder, tokens.replaced.ids
        return check_tokenization(source, folder_of(subject.result), tokens, ids=ids)


@dataclass(frozen=True, slots=True)
class OutputsCheck:
    """Both run on the same probes, and everything that comes out is compared; the promise is held against what was measured."""

    name: str = "outputs"

    def applies(self, subject: Subject) -> bool:
        """Where there is a result and the source is what it is compared with."""
        return subject.runs and subject.base_changed and Scope.NOTHING not in subject.scope

    def run(self, subject: Subject) -> Finding:
        """Compare the outputs; see :func:`~graftkit.verification.outputs.compare_outputs`."""
        from graftkit.verification.composition import weaker_than_promised
        from graftkit.verification.outputs import compare_outputs

        found = compare_outputs(subject)
        weaker = weaker_than_promised(subject.promise, found) if subject.promise else ()
        likelier = subject.pair.likelier_ids(found) if subject.pair else ()
        return dataclasses.replace(found, failures=(*found.failures, *weaker, *likelier))


@dataclass(frozen=True, slots=True)
class LeftOutCheck:
    """Says of lens and signal that they were asked for and have nothing to compare with."""

    name: str = "left_out"

    def applies(self, subject: Subject) -> bool:
        """Where the source is not what the result is compared with."""
        return bool(self._asked(subject)) and Scope.NOTHING in subject.scope

    def run(self, subject: Subject) -> Finding:
        """Name them, with the reason."""
        from graftkit.verification.first_step import OTHER_SOURCE

        return LeftOut(self._asked(subject), OTHER_SOURCE)

    @staticmethod
    def _asked(subject: Subject) -> tuple[str, ...]:
        return tuple(name for name in ("lens", "signal") if name in subject.wanted)


@dataclass(frozen=True, slots=True)
class LensCheck:
    """Both in true float64, module by module, and beside the noise of their own dtype."""

    name: str = "lens"

    def applies(self, subject: Subject) -> bool:
        """Where it is asked for or float64 alone tells whether outputs are equal, and it is the source that they are compared with."""
        needed = subject.scope.in_float64 and subject.runs and subject.base_changed
        return (self.name in subject.wanted or needed) and Scope.NOTHING not in subject.scope

    def run(self, subject: Subject) -> Finding:
        """Look through the lens; see :func:`~graftkit.verification.lens.lens.compare_lens`."""
        from graftkit.verification.lens.lens import compare_lens

        return compare_lens(subject)


@dataclass(frozen=True, slots=True)
class SignalCheck:
    """How the signal travels through the blocks of both."""

    name: str = "signal"

    def applies(self, subject: Subject) -> bool:
        """Where it is asked for and the source is what the result is compared with."""
        return self.name in subject.wanted and Scope.NOTHING not in subject.scope

    def run(self, subject: Subject) -> Finding:
        """Measure it; see :func:`~graftkit.verification.signal.compare_signal`."""
        from graftkit.verification.signal import compare_signal

        return compare_signal(subject)


@dataclass(frozen=True, slots=True)
class FirstStepCheck:
    """Old gradients, dead new parameters, and a forecast of one optimiser step beside the step."""

    name: str = "first_step"

    def applies(self, subject: Subject) -> bool:
        """Where it is asked for; what is new is looked at whatever the result is compared with."""
        return self.name in subject.wanted

    def run(self, subject: Subject) -> Finding:
        """Take the step; see :func:`~graftkit.verification.first_step.compare_first_step`."""
        from graftkit.verification.first_step import compare_first_step

        return compare_first_step(subject)


#: What always runs, where it applies: on checkpoints, and on adapters. Then come the operations' own checks, and what is asked for.
CHECKPOINTS: tuple[Check, ...] = (
    ReportCheck(),
    SentencesCheck("bytes", attrgetter("pair"), Pair.tensors),
    SentencesCheck("config", attrgetter("pair"), Pair.documents),
    TokenizerCheck(),
    OutputsCheck(),
)
ADAPTERS: tuple[Check, ...] = (
    SentencesCheck("adapter files", attrgetter("prepared"), PreparedAdapter.changes),
    SentencesCheck("base", attrgetter("prepared"), PreparedAdapter.other_base),
)
LOOKS: tuple[Check, ...] = (LeftOutCheck(), LensCheck(), SignalCheck(), FirstStepCheck())


def verify(subject: Subject, own: Sequence[tuple[Check, Subject]] = ()) -> Iterator[Finding]:
    """Yield what each check finds that applies, in order. ``own`` are the operations' own checks, each with what it looks at.

    A result that does not load or run is found by the check that ran into it.

    Raises:
        InputRejected: a source does not load.
        StorageFault: a result does not load since the system failed.
    """
    checks = (*((check, subject) for check in (*CHECKPOINTS, *ADAPTERS)), *own, *((check, subject) for check in LOOKS))
    for check, at in checks:
        if check.name not in subject.left_out and check.applies(at):
            yield _run(check, at)


def _run(check: Check, subject: Subject) -> Finding:
    try:
        return check.run(subject)
    except VerificationFailed as error:
        require_sound_system(error)
        return Sentences(check.name, (str(error),))
