"""A label projection that is fitted: to labelled examples, or to the size that the logits are to have."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftkit.architecture.head import Head
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.examples import ExampleFile
from graftkit.checkpoint.reading import torch_dtype
from graftkit.errors import RecipeError, printable
from graftkit.initializers.classifiers import deal, fit
from graftkit.initializers.seeding import generator_for
from graftkit.operations.heads.model import feature_model, projection_of
from graftkit.recipe import ReplaceHead
from graftkit.recipe.head_schemes import FromExamples
from graftkit.running.probe_texts import PROBE_TEXTS
from graftkit.running.texts import longest, outputs_of_texts
from graftkit.verification.heads.held_out import score

if TYPE_CHECKING:
    from torch import Tensor

    from graftkit.initializers.classifiers import Pieces

#: Folds of the cross-validation, and rows of features that are computed with at a time.
FOLDS, ROWS = 5, 4096

Step = Callable[[float], None]


@dataclass
class ExampleFit:
    """Fits ridge, LDA or prototypes to a file of examples; the file is surveyed at once, fitted by :meth:`run`."""

    spec: ReplaceHead
    head: Head
    seed: tuple[int, int]
    folds: Any = None
    labels: list[int] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Read the file once.

        Raises:
            RecipeError: the file is wrong, or the class has no place for what the scheme fits.
        """
        scheme, name = self.scheme, projection_of(self.head)
        if scheme.scheme != "ridge" and not self.head.tensors_of("projection_bias"):
            raise RecipeError(
                f"{scheme.scheme} needs a bias, and the label projection"
                f" {printable(name)!r} of {self.head.skeleton.architecture} has none; ridge does without",
                field="init",
            )
        self.labels = self.file.survey()
        self.folds = deal(self.labels, scheme.held_out, FOLDS, generator_for(*self.seed, "held out"))

    @property
    def scheme(self) -> Any:
        """The scheme of the recipe: one of those with examples."""
        return self.spec.init

    @property
    def file(self) -> ExampleFile:
        """The file of the examples."""
        scheme = self.scheme
        return ExampleFile(Path(scheme.examples), scheme.text, scheme.label, self.spec.labels, self.classes)

    @property
    def classes(self) -> int:
        """Number of labels."""
        return self.spec.count or 1

    def held_out(self) -> Iterator[tuple[int, str]]:
        """Label and text of what is not fitted to."""
        for index, example in enumerate(self.file.read()):
            if self.folds[index] < 0:
                yield example.label, example.text

    def run(self, result: Checkpoint, dtype: str, step: Step) -> dict[str, Any]:
        """Compute the features, fit, and measure on what was held out. Returns tensors by name in memory.

        Features lie in a temporary file, so memory does not grow with the number of examples.
        """
        import numpy as np
        import torch

        with tempfile.TemporaryFile() as file, feature_model(result, self.head) as (model, tokenizer):
            width = self.head.tensors_of("projection")[0].shape[1]
            features = np.memmap(file, np.float32, "w+", shape=(len(self.labels), width))
            length = longest(model, tokenizer, self.scheme.max_length)
            items = ((index, example.text) for index, example in enumerate(self.file.read()))
            for done, (index, values) in enumerate(outputs_of_texts(model, tokenizer, items, length), 1):
                features[index] = values.numpy()
                step(done / len(self.labels))
            del model
            labels = torch.tensor(self.labels)

            def pieces() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
                for start in range(0, len(labels), ROWS):
                    part = slice(start, start + ROWS)
                    yield torch.from_numpy(features[part].copy()), labels[part], self.folds[part]

            bias = bool(self.head.tensors_of("projection_bias"))
            found = fit(self.scheme.scheme, pieces, self.classes, FOLDS, bias=bias)
            weight = found.weight.to(torch_dtype(dtype))
            made = {self.head.tensors_of("projection")[0].name: weight}
            intercept = torch.zeros(self.classes)
            if found.bias is not None:
                intercept = found.bias.to(torch_dtype(dtype))
                made[self.head.tensors_of("projection_bias")[0].name] = intercept
            scores = score(_held_out_logits(pieces, weight.double(), intercept.double()), self.classes)
            rounding = _loss_rounding(pieces, weight, intercept)
        self.figures = {
            "scheme": self.scheme.scheme,
            "examples": len(self.labels),
            "max_length": length,
            "strength": found.strength,
            "temperature": found.temperature,
            "cross_validation": {"folds": FOLDS, "loss": found.loss, "accuracy": found.accuracy},
            "held_out": dataclasses.asdict(scores),
            "loss_rounding": rounding,
            "held_out_rows": (self.folds < 0).nonzero().flatten().tolist(),
        }
        return made


def _held_out_logits(pieces: Pieces, weight: Tensor, bias: Tensor) -> Iterator[tuple[int, Tensor]]:
    for features, labels, folds in pieces():
        out = folds < 0
        logits = features[out].double() @ weight.T + bias
        yield from zip(labels[out].tolist(), logits, strict=True)


def _loss_rounding(pieces: Pieces, weight: Tensor, bias: Tensor) -> float:
    """How far rounding of the logits may move the mean loss on what was held out.

    A logit is a sum in float32, rounded to the dtype of the weight; a loss moves by twice the largest error of its logits.
    """
    import torch

    single, unit = (torch.finfo(dtype).eps / 2 for dtype in (torch.float32, weight.dtype))
    weight, bias = weight.double(), bias.double()
    moved, examples = 0.0, 0
    for features, _, folds in pieces():
        held = features[folds < 0].double()
        logits, sums = held @ weight.T + bias, held.abs() @ weight.abs().T + bias.abs()
        errors = unit * logits.abs() + (weight.shape[1] + 1) * single * sums
        moved += float(2 * errors.amax(-1).sum()) if len(held) else 0.0
        examples += len(held)
    return moved / max(examples, 1)


def is_fitted(spec: ReplaceHead) -> bool:
    """Whether the label projection comes from examples."""
    return isinstance(spec.init, FromExamples)


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
