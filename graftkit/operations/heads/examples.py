"""The labelled examples that a head is fitted to: how they are read, dealt and fitted, for each kind of label."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftkit.checkpoint.example_sets import SetFile
from graftkit.checkpoint.examples import ExampleFile
from graftkit.checkpoint.tagged import TaggedFile
from graftkit.errors import RecipeError, printable
from graftkit.initializers.classifiers import deal, fit
from graftkit.initializers.dealing import HELD_OUT, badly_dealt, deal_sets
from graftkit.initializers.label_sets import fit_sets
from graftkit.initializers.seeding import generator_for
from graftkit.recipe import ReplaceHead
from graftkit.recipe.head_schemes import FromExamples
from graftkit.verification.heads.measures import LabelSet, Measure, OneLabel, OneTag

if TYPE_CHECKING:
    from torch import Tensor

    from graftkit.initializers.classifiers import Pieces

#: Folds of the cross-validation.
FOLDS = 5

#: What the examples of a fit are dealt by.
LOT = "held out"

#: Weight, bias where there is one, and what the report says of them; of the pieces, and of whether a bias is wanted.
Fit = Callable[["Pieces", bool], tuple["Tensor", "Tensor | None", dict[str, Any]]]


@dataclass(frozen=True)
class Examples:
    """Surveyed examples. Each gives rows of features, one after the other, each of which has a label.

    Attributes:
        read: yields label and input of each example, in the order of the file.
        labels: of each row a number, or zeros and ones; ``(rows,)`` or ``(rows, classes)``.
        starts: the first row of each example.
        dealt: the fold of each example, :data:`~graftkit.initializers.dealing.HELD_OUT` where it is only measured on.
        measure: runs and scores them.
        fit: fits the scheme of the recipe.
    """

    read: Callable[[], Iterator[tuple[Any, Any]]]
    labels: Tensor
    starts: Tensor
    dealt: Tensor
    measure: Measure
    fit: Fit

    def held_out(self) -> Iterator[tuple[Any, Any]]:
        """Yield label and input of what is not fitted to."""
        yield from (pair for index, pair in enumerate(self.read()) if self.dealt[index] == HELD_OUT)


def survey_examples(spec: ReplaceHead, seed: tuple[int, int]) -> Examples:
    """Read the recipe's file once, and deal what is in it.

    Raises:
        RecipeError: the file is wrong; with the line.
    """
    if spec.task == "token_classification":
        return _tags(spec, seed)
    return _label_sets(spec, seed) if spec.problem == "multi_label_classification" else _one_label(spec, seed)


def with_labels_of_file(spec: ReplaceHead) -> ReplaceHead:
    """The spec with the tags of its file as labels, where each word has one and the recipe names none.

    Raises:
        RecipeError: the file is wrong; with the line.
    """
    if spec.task != "token_classification" or not is_fitted(spec) or spec.labels or spec.num_labels:
        return spec
    names = _tagged_file(spec).names()
    if len(names) < 2:
        raise RecipeError(
            f"{printable(_tagged_file(spec).path)}: has {len(names)} tags, and a choice needs two or more", field="init"
        )
    return spec.model_copy(update={"labels": names})


def is_fitted(spec: ReplaceHead) -> bool:
    """Whether the label projection comes from examples."""
    return isinstance(spec.init, FromExamples)


def _one_label(spec: ReplaceHead, seed: tuple[int, int]) -> Examples:
    import torch

    scheme: Any = spec.init
    count = spec.count or 1
    file = ExampleFile(Path(scheme.examples), scheme.text or "text", scheme.label or "label", spec.labels, count)
    labels = file.survey()
    return Examples(
        lambda: ((example.label, example.text) for example in file.read()),
        torch.tensor(labels),
        torch.arange(len(labels)),
        deal(labels, scheme.held_out, FOLDS, generator_for(*seed, LOT)),
        OneLabel(count),
        _fit_one(scheme.scheme, count),
    )


def _label_sets(spec: ReplaceHead, seed: tuple[int, int]) -> Examples:
    import torch

    scheme: Any = spec.init
    count = spec.count or 1
    file = SetFile(Path(scheme.examples), scheme.text or "text", scheme.label or "label", spec.labels, count)
    sets = file.survey()
    dealt = deal_sets(sets, count, scheme.held_out, FOLDS, generator_for(*seed, LOT))
    names = tuple(map(printable, spec.labels or range(count)))
    _refuse_badly_dealt(file.path, spec, badly_dealt(sets, count, dealt), "examples")
    rows = torch.zeros(len(sets), count, dtype=torch.int64)
    for index, labels in enumerate(sets):
        rows[index, list(labels)] = 1
    return Examples(
        lambda: ((example.labels, example.text) for example in file.read()),
        rows,
        torch.arange(len(sets)),
        dealt,
        LabelSet(names),
        _fit_sets(scheme.scheme, count),
    )


def _tags(spec: ReplaceHead, seed: tuple[int, int]) -> Examples:
    """Words with a tag each; a sentence is dealt as a whole, so that none is fitted to and measured on."""
    import torch

    scheme: Any = spec.init
    count, file = spec.count or 1, _tagged_file(spec)
    sentences = file.survey()
    sets = [tuple(sorted(set(tags))) for tags in sentences]
    dealt = deal_sets(sets, count, scheme.held_out, FOLDS, generator_for(*seed, LOT))
    _refuse_badly_dealt(file.path, spec, badly_dealt(sets, count, dealt, against_rest=False), "sentences")
    lengths = torch.tensor([len(tags) for tags in sentences])
    return Examples(
        lambda: ((sentence.tags, sentence.words) for sentence in file.read()),
        torch.tensor([tag for tags in sentences for tag in tags]),
        lengths.cumsum(0) - lengths,
        dealt,
        OneTag(count),
        _fit_one(scheme.scheme, count),
    )


def _tagged_file(spec: ReplaceHead) -> TaggedFile:
    scheme: Any = spec.init
    file = TaggedFile(
        Path(scheme.examples), scheme.text or "tokens", scheme.label or "tags", spec.labels, spec.count or 1
    )
    for name in ("text", "label"):
        if file.has_columns and getattr(scheme, name) is not None:
            raise RecipeError(f"{printable(file.path)} has columns, and no fields: leave it out", field=f"init.{name}")
    return file


def _refuse_badly_dealt(path: Path, spec: ReplaceHead, labels: list[int], what: str) -> None:
    for label in labels:
        name = printable(spec.labels[label] if spec.labels else label)
        raise RecipeError(
            f"{printable(path)}: the few {what} of label {name!r} carry others as well, so that they cannot be dealt to what is"
            " fitted and what is measured on; give more of them"
        )


def _fit_one(method: Any, count: int) -> Fit:
    """One label for each row: ridge, LDA or prototypes."""

    def run(pieces: Pieces, bias: bool) -> tuple[Tensor, Tensor | None, dict[str, Any]]:
        found = fit(method, pieces, count, FOLDS, bias=bias)
        figures = {
            "strength": found.strength,
            "temperature": found.temperature,
            "cross_validation": {"folds": FOLDS, "loss": found.loss, "accuracy": found.accuracy},
        }
        return found.weight, found.bias, figures

    return run


def _fit_sets(method: Any, count: int) -> Fit:
    """Several labels or none: ridge or LDA, each label against the rest."""

    def run(pieces: Pieces, bias: bool) -> tuple[Tensor, Tensor | None, dict[str, Any]]:
        found = fit_sets(method, pieces, count, FOLDS, bias=bias)
        figures = {
            "strength": list(found.strengths),
            "temperature": list(found.temperatures),
            "cross_validation": {"folds": FOLDS, "loss": found.loss, "losses": list(found.losses)},
        }
        return found.weight, found.bias, figures

    return run
