"""The written head on the examples that it was not fitted to, run as a trainer would run it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from graftkit.running.forward import load, undisturbed
from graftkit.running.place import Place, folder_of
from graftkit.verification.checks import LoadsModels, Report, Row
from graftkit.verification.heads.measures import AnyScores, Measure
from graftkit.verification.subject import Subject

#: Examples that are run alone as well: what a batch changes is the noise of the written head against itself.
ALONE = 64


@dataclass(frozen=True, slots=True)
class HeldOutReport(Report):
    """What the fit said and what the written checkpoint gives.

    ``noise`` is the most by which an example's loss depends on the batch that it is in, ``rounding`` how far rounding of the
    logits may move the mean loss; the two losses may be so far apart.
    """

    fitted: AnyScores
    written: AnyScores
    noise: float
    rounding: float
    name: str = "held_out_examples"
    derived: ClassVar[tuple[str, ...]] = ("failures",)

    @property
    def failures(self) -> tuple[str, ...]:
        """A sentence where the two differ."""
        if self.fitted.examples != self.written.examples:
            return (
                f"head: {self.fitted.examples} examples were held out, and the written checkpoint gives {self.written.examples}",
            )
        if abs(self.fitted.loss - self.written.loss) <= self.noise + self.rounding:
            return ()
        return (
            f"head: on the held-out examples the written checkpoint has a loss of {self.written.loss:.6g},"
            f" the fitted head {self.fitted.loss:.6g}",
        )

    def rows(self) -> Iterator[Row]:
        """The lines that a table shows of it."""
        yield Row(
            "held-out examples",
            "failed" if self.failures else "as fitted",
            f"{self.written.figure}, noise {self.noise:.1g}, rounding {self.rounding:.1g}",
        )


@dataclass(frozen=True, slots=True)
class HeldOutCheck(LoadsModels):
    """The written head on the examples that it was not fitted to; ``fitted`` gives the scores and the length of the fit."""

    examples: Callable[[], Iterable[tuple[Any, Any]]]
    fitted: Callable[[], tuple[AnyScores, Mapping[str, Any]]]
    measure: Measure
    name: str = "held_out_examples"

    def run(self, subject: Subject) -> HeldOutReport:
        """See :func:`check_held_out`."""
        return check_held_out(subject.result, self.examples, self.fitted, self.measure)


def check_held_out(
    result: Place,
    examples: Callable[[], Iterable[tuple[Any, Any]]],
    fitted: Callable[[], tuple[AnyScores, Mapping[str, Any]]],
    measure: Measure,
) -> HeldOutReport:
    """Run the written checkpoint on the held-out ``(label, text)`` pairs; ``fitted`` gives the fit's scores and its figures.

    Raises:
        VerificationFailed: it does not load.
    """
    from transformers import AutoTokenizer

    with undisturbed():
        model = load(result).model
        tokenizer = AutoTokenizer.from_pretrained(folder_of(result))
        scores, found = fitted()
        length = found["max_length"]
        numbered = [(index, label, given) for index, (label, given) in enumerate(examples())]
        labels = [label for _, label, _ in numbered]
        together = dict(measure.outputs(model, tokenizer, ((index, given) for index, _, given in numbered), length))
        alone: dict[int, Any] = {}
        for index, _, given in numbered[:ALONE]:
            alone |= measure.outputs(model, tokenizer, [(index, given)], length)
    noise = max((_apart(measure, labels[i], output, together[i]) for i, output in alone.items()), default=0.0)
    written = measure.score(row for i, output in together.items() for row in measure.rows(labels[i], output))
    return HeldOutReport(scores, written, noise, found["loss_rounding"])


def _apart(measure: Measure, label: Any, one: Any, other: Any) -> float:
    """The most by which the losses of an example's rows differ between two runs."""
    first, second = ([measure.loss(*row) for row in measure.rows(label, output)] for output in (one, other))
    return max((abs(a - b) for a, b in zip(first, second, strict=True)), default=0.0)
