"""A label projection that is fitted: to labelled examples, or to the size that the logits are to have."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from graftkit.architecture.head import Head
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.reading import torch_dtype
from graftkit.errors import RecipeError, printable
from graftkit.initializers.dealing import HELD_OUT
from graftkit.operations.heads.examples import survey_examples
from graftkit.operations.heads.model import feature_model, projection_of
from graftkit.recipe import ReplaceHead
from graftkit.running.probe_texts import PROBE_TEXTS
from graftkit.running.texts import longest, outputs_of_texts
from graftkit.verification.checks import json_of
from graftkit.verification.heads.held_out import HeldOutCheck

if TYPE_CHECKING:
    from torch import Tensor

    from graftkit.initializers.classifiers import Pieces
    from graftkit.verification.heads.measures import AnyScores, Measure

#: Rows of features that are computed with at a time.
ROWS = 4096

#: The fold of a row that no feature was computed for.
LEFT_OUT = HELD_OUT - 1

Step = Callable[[float], None]


@dataclass
class ExampleFit:
    """Fits the label projection to a file of examples; the file is surveyed at once, fitted by :meth:`run`."""

    spec: ReplaceHead
    head: Head
    seed: tuple[int, int]
    figures: dict[str, Any] = field(default_factory=dict)
    scores: AnyScores | None = None

    def __post_init__(self) -> None:
        """Read the file once.

        Raises:
            RecipeError: the file is wrong, or the class has no place for what the scheme fits.
        """
        name = projection_of(self.head)
        if self.scheme.scheme != "ridge" and not self.head.tensors_of("projection_bias"):
            raise RecipeError(
                f"{self.scheme.scheme} needs a bias, and the label projection"
                f" {printable(name)!r} of {self.head.skeleton.architecture} has none; ridge does without",
                field="init",
            )
        self.examples = survey_examples(self.spec, self.seed)

    @property
    def scheme(self) -> Any:
        """The scheme of the recipe: one of those with examples."""
        return self.spec.init

    def check(self) -> HeldOutCheck:
        """The held-out examples once more, on what was written."""
        return HeldOutCheck(self.examples.held_out, self.fitted, self.examples.measure)

    def fitted(self) -> tuple[AnyScores, Mapping[str, Any]]:
        """What was measured on the held-out examples, and all figures.

        Raises:
            ValueError: nothing was fitted yet.
        """
        if self.scores is None:
            raise ValueError("nothing was fitted yet")
        return self.scores, self.figures

    def run(self, result: Checkpoint, dtype: str, step: Step) -> dict[str, Any]:
        """Compute the features, fit, and measure on what was held out. Returns tensors by name in memory.

        Features lie in a temporary file, so memory does not grow with the number of examples.
        """
        import numpy as np
        import torch

        examples, measure = self.examples, self.examples.measure
        with tempfile.TemporaryFile() as file, feature_model(result, self.head) as (model, tokenizer):
            width = self.head.tensors_of("projection")[0].shape[1]
            features = np.memmap(file, np.float32, "w+", shape=(len(examples.labels), width))
            length = longest(model, tokenizer, self.scheme.max_length)
            folds = self._compute(features, model, tokenizer, length, step)
            del model
            self._check_reached(folds, length)

            def pieces() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
                for start in range(0, len(folds), ROWS):
                    part = slice(start, start + ROWS)
                    yield torch.from_numpy(features[part].copy()), examples.labels[part], folds[part]

            weight, bias, found = examples.fit(pieces, bool(self.head.tensors_of("projection_bias")))
            made = {self.head.tensors_of("projection")[0].name: weight.to(torch_dtype(dtype))}
            if bias is not None:
                made[self.head.tensors_of("projection_bias")[0].name] = bias.to(torch_dtype(dtype))
            weight, *rest = made.values()
            intercept = rest[0] if rest else torch.zeros(len(weight))
            self.scores = measure.score(_held_out_logits(pieces, weight.double(), intercept.double()))
            rounding = _loss_rounding(pieces, weight, intercept, measure)
        self.figures = {
            "scheme": self.scheme.scheme,
            "examples": len(examples.starts),
            **self._words(folds),
            "max_length": length,
            **found,
            "held_out": json_of(self.scores),
            "loss_rounding": rounding,
            "held_out_rows": (examples.dealt == HELD_OUT).nonzero().flatten().tolist(),
        }
        return made

    def _compute(self, features: Any, model: Any, tokenizer: Any, length: int, step: Step) -> Tensor:
        """Write the features of every row that has any, and return the fold of each row."""
        import torch

        examples, measure = self.examples, self.examples.measure
        folds = torch.full((len(examples.labels),), LEFT_OUT)
        items = ((index, given) for index, (_, given) in enumerate(examples.read()))
        for done, (index, output) in enumerate(measure.outputs(model, tokenizer, items, length), 1):
            places, values = measure.placed(output)
            rows = examples.starts[index] + torch.tensor(places, dtype=torch.int64)
            features[rows.numpy()] = values.numpy()
            folds[rows] = examples.dealt[index]
            step(done / len(examples.starts))
        return folds

    def _check_reached(self, folds: Tensor, length: int) -> None:
        """Refuse labels of words that are all behind the end of what is read.

        Raises:
            RecipeError: there is one.
        """
        if not bool((folds == LEFT_OUT).any()):
            return
        for label in range(self.spec.count or 1):
            own = folds[self.examples.labels == label]
            if not bool((own == HELD_OUT).any()) or len(set(own[own > HELD_OUT].tolist())) < 2:
                name = printable(self.spec.labels[label] if self.spec.labels else label)
                raise RecipeError(
                    f"too few words of label {name!r} stand within the first {length} tokens of their sentences",
                    field="init.max_length",
                )

    def _words(self, folds: Tensor) -> dict[str, Any]:
        """What the report says of the words, where they and not texts have labels."""
        if self.spec.task != "token_classification":
            return {}
        return {"words": len(folds), "words_left_out": int((folds == LEFT_OUT).sum())}


def _held_out_logits(pieces: Pieces, weight: Tensor, bias: Tensor) -> Iterator[tuple[Any, Tensor]]:
    """Label and logits of each row that is held out; a label is a number, or the numbers of the ones in its row."""
    for features, labels, folds in pieces():
        out = folds == HELD_OUT
        logits = features[out].double() @ weight.T + bias
        own = labels[out]
        found = [tuple(row.nonzero().flatten().tolist()) for row in own] if own.ndim > 1 else own.tolist()
        yield from zip(found, logits, strict=True)


def _loss_rounding(pieces: Pieces, weight: Tensor, bias: Tensor, measure: Measure) -> float:
    """How far rounding of the logits may move the mean loss on what was held out.

    A logit is a sum in float32, rounded to the dtype of the weight.
    """
    import torch

    single, unit = (torch.finfo(dtype).eps / 2 for dtype in (torch.float32, weight.dtype))
    weight, bias = weight.double(), bias.double()
    moved, rows = 0.0, 0
    for features, _, folds in pieces():
        held = features[folds == HELD_OUT].double()
        logits, sums = held @ weight.T + bias, held.abs() @ weight.abs().T + bias.abs()
        errors = unit * logits.abs() + (weight.shape[1] + 1) * single * sums
        moved += float(measure.moved(errors).sum()) if len(held) else 0.0
        rows += len(held)
    return moved / max(rows, 1)


def feature_norm(result: Checkpoint, head: Head, step: Step) -> Mapping[str, Any]:
    """The root mean square of the norms of the probe texts' features: σ = c / this gives logits of standard deviation c."""
    with feature_model(result, head) as (model, tokenizer):
        items = list(enumerate(PROBE_TEXTS))
        squares = [
            float(values.square().sum())
            for _, values in outputs_of_texts(model, tokenizer, items, longest(model, tokenizer, None))
        ]
    step(1.0)
    return {"feature_norm": (sum(squares) / len(squares)) ** 0.5, "probe_texts": len(squares)}
