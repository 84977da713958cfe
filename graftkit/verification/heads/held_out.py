"""The written head on the examples that it was not fitted to, run as a trainer would run it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from graftkit.running.forward import load, undisturbed
from graftkit.running.place import Place, folder_of
from graftkit.running.texts import outputs_of_texts
from graftkit.verification.checks import LoadsModels, Report, Row
from graftkit.verification.subject import Subject

#: Examples that are run alone as well: what a batch changes is the noise of the written head against itself.
ALONE = 64


@dataclass(frozen=True, slots=True)
class Scores:
    """Mean log loss in nats, accuracy, and accuracy averaged over the labels, on ``examples`` examples."""

    examples: int
    loss: float
    accuracy: float
    balanced_accuracy: float


@dataclass(frozen=True, slots=True)
class HeldOutReport(Report):
    """What the fit said and what the written checkpoint gives.

    ``noise`` is the most by which an example's loss depends on the batch that it is in, ``rounding`` how far rounding of the
    logits may move the mean loss; the two losses may be so far apart.
    """

    fitted: Scores
    written: Scores
    noise: float
    rounding: float
    name: str = "held_out_examples"
    derived: ClassVar[tuple[str, ...]] = ("failures",)

    @property
    def failures(self) -> tuple[str, ...]:
        """A sentence where the two differ."""
        if abs(self.fitted.loss - self.written.loss) <= self.noise + self.rounding:
            return ()
        return (
            f"head: on the held-out examples the written checkpoint has a loss of {self.written.loss:.6g},"
            f" the fitted head {self.fitted.loss:.6g}",
        )

    def rows(self) -> Iterator[Row]:
        """The lines that a table shows of it."""
        w = self.written
        yield Row(
            "held-out examples",
            "failed" if self.failures else "as fitted",
            f"accuracy {w.accuracy:.3f}, balanced {w.balanced_accuracy:.3f}, loss {w.loss:.4f}, {w.examples} examples,"
            f" noise {self.noise:.1g}, rounding {self.rounding:.1g}",
        )


def score(pairs: Iterable[tuple[int, Any]], classes: int) -> Scores:
    """Score ``(label, logits)`` pairs. *Shape:* logits ``(classes,)``."""
    import torch

    loss, right, counts = 0.0, torch.zeros(classes), torch.zeros(classes)
    for label, logits in pairs:
        loss += _loss(logits, label)
        counts[label] += 1
        right[label] += int(logits.argmax()) == label
    n, seen = int(counts.sum()), counts > 0
    return Scores(n, loss / n, float(right.sum()) / n, float((right[seen] / counts[seen]).mean()))


@dataclass(frozen=True, slots=True)
class HeldOutCheck(LoadsModels):
    """The written head on the examples that it was not fitted to."""

    examples: Callable[[], Iterable[tuple[int, str]]]
    figures: Callable[[], Mapping[str, Any]]
    classes: int
    name: str = "held_out_examples"

    def run(self, subject: Subject) -> HeldOutReport:
        """See :func:`check_held_out`."""
        return check_held_out(subject.result, self.examples, self.figures, self.classes)


def check_held_out(
    result: Place, examples: Callable[[], Iterable[tuple[int, str]]], figures: Callable[[], Mapping[str, Any]], classes: int
) -> HeldOutReport:  # fmt: skip
    """Run the written checkpoint on the held-out ``(label, text)`` pairs. ``figures`` gives the fitted scores and the length.

    Raises:
        VerificationFailed: it does not load.
    """
    from transformers import AutoTokenizer

    with undisturbed():
        model = load(result).model
        tokenizer = AutoTokenizer.from_pretrained(folder_of(result))
        found = figures()
        length = found["max_length"]
        numbered = [(index, label, text) for index, (label, text) in enumerate(examples())]
        labels = [label for _, label, _ in numbered]
        together = dict(outputs_of_texts(model, tokenizer, ((index, text) for index, _, text in numbered), length))
        alone: dict[int, Any] = {}
        for index, _, text in numbered[:ALONE]:
            alone |= outputs_of_texts(model, tokenizer, [(index, text)], length)
    noise = max(
        (abs(_loss(logits, labels[i]) - _loss(together[i], labels[i])) for i, logits in alone.items()), default=0.0
    )
    written = score(((labels[index], logits) for index, logits in together.items()), classes)
    return HeldOutReport(Scores(**found["held_out"]), written, noise, found["loss_rounding"])


def _loss(logits: Any, label: int) -> float:
    return -float(logits.double().log_softmax(-1)[label])
