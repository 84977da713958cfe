"""How what a head gives for labelled examples is scored: one label for each text or word, or several for each text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from graftkit.errors import plural
from graftkit.running.texts import outputs_of_texts, outputs_of_words

if TYPE_CHECKING:
    from torch import Tensor

#: Labels whose figures a table shows one by one, at most.
SHOWN = 8


class AnyScores(Protocol):
    """What was measured on ``examples`` examples: their mean log ``loss`` in nats, and ``figure``, all of it for a table."""

    @property
    def examples(self) -> int: ...
    @property
    def loss(self) -> float: ...
    @property
    def figure(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Scores:
    """Mean log loss in nats, accuracy, and accuracy averaged over the labels, on ``examples`` examples."""

    examples: int
    loss: float
    accuracy: float
    balanced_accuracy: float
    of: ClassVar[str] = "examples"

    @property
    def figure(self) -> str:
        """What a table shows."""
        return (
            f"accuracy {self.accuracy:.3f}, balanced {self.balanced_accuracy:.3f}, loss {self.loss:.4f},"
            f" {self.examples} {self.of}"
        )


@dataclass(frozen=True, slots=True)
class SetScores:
    """Log loss in nats averaged over examples and labels, the F1 of each label where logits above 0 name it, and their mean.

    ``labels`` are the names of the labels, or their numbers.
    """

    examples: int
    loss: float
    macro_f1: float
    f1: tuple[float, ...]
    labels: tuple[str, ...] = ()

    @property
    def figure(self) -> str:
        """What a table shows."""
        each = [f"{name} {value:.2f}" for name, value in zip(self.labels, self.f1, strict=True)]
        shown = f" ({', '.join(each)})" if len(each) <= SHOWN else ""
        return f"macro F1 {self.macro_f1:.3f}{shown}, loss {self.loss:.4f}, {plural(self.examples, 'example')}"


class Measure(Protocol):
    """Runs examples and scores what comes out. An example may give several rows, each of which has a label of its own."""

    def outputs(
        self, model: Any, tokenizer: Any, items: Iterable[tuple[Any, Any]], max_length: int
    ) -> Iterator[tuple[Any, Any]]:
        """Yield each item with what its example gives."""

    def placed(self, output: Any) -> tuple[list[int], Tensor]:
        """The places of an example's rows among those that it has labels for, and the rows. *Shape:* ``(rows, width)``."""

    def rows(self, label: Any, output: Any) -> Iterator[tuple[Any, Tensor]]:
        """Yield label and logits of each row of an example. *Shape:* logits ``(classes,)``."""

    def loss(self, label: Any, logits: Tensor) -> float:
        """The log loss of a row."""

    def moved(self, errors: Tensor) -> Tensor:
        """How far the loss of each row moves at most when its logits move by ``errors``.

        *Shape:* ``(rows, classes)`` to ``(rows,)``.
        """

    def score(self, pairs: Iterable[tuple[Any, Tensor]]) -> AnyScores:
        """The scores of ``(label, logits)`` pairs of rows."""


class OfTexts:
    """What measures have in common whose labels belong to a whole text."""

    __slots__ = ()

    def outputs(
        self, model: Any, tokenizer: Any, items: Iterable[tuple[Any, Any]], max_length: int
    ) -> Iterator[tuple[Any, Any]]:
        """Yield each item with the logits of its text."""
        return outputs_of_texts(model, tokenizer, items, max_length)

    def placed(self, output: Any) -> tuple[list[int], Tensor]:
        """The one row of a text."""
        return [0], output[None]

    def rows(self, label: Any, output: Any) -> Iterator[tuple[Any, Tensor]]:
        """The one row of a text."""
        yield label, output


@dataclass(frozen=True, slots=True)
class OneLabel(OfTexts):
    """Each text has one of ``classes`` labels."""

    classes: int

    def loss(self, label: Any, logits: Tensor) -> float:
        """The cross entropy."""
        return -float(logits.double().log_softmax(-1)[label])

    def moved(self, errors: Tensor) -> Tensor:
        """Twice the largest error of a logit."""
        return 2 * errors.amax(-1)

    def score(self, pairs: Iterable[tuple[Any, Tensor]]) -> Scores:
        """See :class:`Scores`."""
        import torch

        loss, right, counts = 0.0, torch.zeros(self.classes), torch.zeros(self.classes)
        for label, logits in pairs:
            loss += self.loss(label, logits)
            counts[label] += 1
            right[label] += int(logits.argmax()) == label
        n, seen = int(counts.sum()), counts > 0
        return Scores(n, loss / n, float(right.sum()) / n, float((right[seen] / counts[seen]).mean()))


@dataclass(frozen=True, slots=True)
class WordScores(Scores):
    """The same of ``examples`` words."""

    of: ClassVar[str] = "words"


@dataclass(frozen=True, slots=True)
class OneTag(OneLabel):
    """Each word has one of ``classes`` tags; the label of an example is the tuple of its words'."""

    def outputs(
        self, model: Any, tokenizer: Any, items: Iterable[tuple[Any, Any]], max_length: int
    ) -> Iterator[tuple[Any, Any]]:
        """Yield each item with the places of its words and the logits at the first token of each."""
        return outputs_of_words(model, tokenizer, items, max_length)

    def placed(self, output: Any) -> tuple[list[int], Tensor]:
        """The words that have a token."""
        places, rows = output
        return places, rows

    def rows(self, label: Any, output: Any) -> Iterator[tuple[Any, Tensor]]:
        """The words that have a token, each with its tag."""
        yield from ((label[place], row) for place, row in zip(*output, strict=True))

    def score(self, pairs: Iterable[tuple[Any, Tensor]]) -> WordScores:
        """See :class:`WordScores`."""
        found = OneLabel(self.classes).score(pairs)
        return WordScores(found.examples, found.loss, found.accuracy, found.balanced_accuracy)


@dataclass(frozen=True, slots=True)
class LabelSet(OfTexts):
    """Each text has any of the labels, whose names or numbers are ``labels``; a label of a row is the tuple of their numbers."""

    labels: tuple[str, ...]

    def loss(self, label: Any, logits: Tensor) -> float:
        """The binary cross entropy, averaged over the labels."""
        import torch

        return float(torch.nn.functional.binary_cross_entropy_with_logits(logits.double(), self._target(label)))

    def moved(self, errors: Tensor) -> Tensor:
        """The mean error of a logit: the loss of each label moves by no more than its logit does."""
        return errors.mean(-1)

    def score(self, pairs: Iterable[tuple[Any, Tensor]]) -> SetScores:
        """See :class:`SetScores`."""
        import torch

        loss, n = 0.0, 0
        hits, named, there = torch.zeros(3, len(self.labels), dtype=torch.float64)
        for label, logits in pairs:
            target, chosen = self._target(label), (logits > 0).double()
            loss, n = loss + self.loss(label, logits), n + 1
            hits, named, there = hits + target * chosen, named + chosen, there + target
        f1 = 2 * hits / (named + there).clamp(min=1)
        return SetScores(n, loss / n, float(f1.mean()), tuple(f1.tolist()), self.labels)

    def _target(self, label: Any) -> Tensor:
        import torch

        target = torch.zeros(len(self.labels), dtype=torch.float64)
        target[list(label)] = 1
        return target
