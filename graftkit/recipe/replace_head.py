"""The spec of replace_head: a new task for a backbone."""

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Literal, get_args

from pydantic import Field

from graftkit.recipe.fields import ListOf, Text
from graftkit.recipe.head_schemes import HeadScheme, HeadZeros
from graftkit.recipe.spec import Spec
from graftkit.recipe.weight_schemes import NewModuleScheme, WeightNormal
from graftkit.recipe_file.problems import Path
from graftkit.recipe_file.wording import shown

Task = Literal[
    "sequence_classification", "token_classification", "question_answering", "multiple_choice", "image_classification",
    "audio_classification", "reward", "value_head", "masked_lm", "causal_lm",
]  # fmt: skip

ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]

TASKS: tuple[str, ...] = get_args(Task)

#: Tasks whose number of outputs is the user's, and those of them whose loss depends on the problem type.
LABELLED = ("sequence_classification", "token_classification", "image_classification", "audio_classification")
TYPED = ("sequence_classification", "image_classification")

#: Tasks whose head gives a logit for each token of the vocabulary.
LANGUAGE = ("masked_lm", "causal_lm")

#: Schemes that are computed from texts.
FITTED = ("ridge", "lda", "prototype")

#: Tasks whose logits can be those of words, or fitted to labelled texts.
OF_TEXTS = ("sequence_classification", "token_classification")

#: What a label of its own would be for these tasks.
ONE_NUMBER = {"reward": "is one label", "value_head": "is one number for each token"}

#: What a value head begins with, and why it has no use for other fields.
BESIDE_SCHEMES = ("zeros", "normal")
BESIDE = {
    "inner_init": "which has no layers before its row",
    "pad_token": "which gives each token a value of its own",
    "keep_lm_head": "which keeps the whole language model",
}

#: How far the shares of a class prior may miss 1: they are written with a few digits.
PRIOR_SLACK = 1e-3


class ReplaceHead(Spec):
    """Put a new head for a task onto the backbone; the old head goes, and every tensor of the new one is written."""

    op: Literal["replace_head"] = "replace_head"
    task: Annotated[Task, Field(description="What the head is for; the class is transformers' own for this task.")]
    labels: Annotated[ListOf[Text], Field(description="Names of the labels, in the order of the logits.")] = ()
    num_labels: Annotated[
        int | None, Field(ge=1, le=1 << 20, description="Number of labels, where they have no names.")
    ] = None
    problem_type: Annotated[
        ProblemType | None,
        Field(description="Which loss trains it; null means regression for one label, else a single label."),
    ] = None
    init: Annotated[HeadScheme, Field(description="The label projection.")] = HeadZeros.model_construct()
    inner_init: Annotated[
        NewModuleScheme, Field(description="The head's matrices before the label projection; norms get 1, biases 0.")
    ] = WeightNormal.model_construct()
    pad_token: Annotated[
        Text | None, Field(description="The token that pads a batch; the head of a causal backbone looks for it.")
    ] = None
    keep_lm_head: Annotated[bool, Field(description="Keep the old language-model head beside the new one.")] = False

    @property
    def count(self) -> int | None:
        """Number of labels; None where the task fixes the number of outputs."""
        if self.task == "reward":
            return 1
        if self.task not in LABELLED:
            return None
        return len(self.labels) or self.num_labels or 1

    @property
    def problem(self) -> ProblemType | None:
        """The problem type to write; None for tasks whose loss does not depend on it."""
        if self.task == "reward":
            return "regression"
        if self.task not in TYPED:
            return None
        return self.problem_type or ("regression" if self.count == 1 else "single_label_classification")

    def plain_fields(self) -> dict[str, object]:
        """The fields in their order, less those that have no meaning for the task."""
        found = super().plain_fields()
        return {name: value for name, value in found.items() if self.task != "value_head" or name not in BESIDE}

    @classmethod
    def contradictions(cls, data: Mapping[str, object]) -> Iterator[tuple[Path, str]]:
        """Refuse labels where the task has none, a prior that does not fit them, and fields without an effect."""
        task, labels = data.get("task"), data.get("labels")
        written = list(labels) if isinstance(labels, list | tuple) else []
        number = data.get("num_labels")
        count = len(written) or (number if isinstance(number, int) and not isinstance(number, bool) else 0)
        if task in LABELLED:
            yield from _label_problems(data, written, count)
        elif task in TASKS:
            why = ONE_NUMBER.get(str(task), "has outputs of a fixed number")
            for name in ("labels", "num_labels"):
                if data.get(name):
                    yield (name,), f"has no meaning for {task}, which {why}"
        if data.get("problem_type") is not None and task not in TYPED and task in TASKS:
            yield ("problem_type",), f"has no effect on {task}"
        if data.get("keep_lm_head") is True and task in LANGUAGE:
            yield ("keep_lm_head",), f"has no meaning for {task}, whose head is a language-model head"
        if task == "value_head":
            yield from _value_head_problems(data)
            return
        yield from _scheme_problems(data, task, count)


def _value_head_problems(data: Mapping[str, object]) -> Iterator[tuple[Path, str]]:
    """A value head is one row beside a model that stays as it is: little can be said of it."""
    for name, why in BESIDE.items():
        if data.get(name) not in (None, False):
            yield (name,), f"has no meaning for value_head, {why}"
    init = data.get("init")
    if "init" in data and _scheme_of(data) not in BESIDE_SCHEMES:
        yield ("init",), f"value_head begins with {' or '.join(BESIDE_SCHEMES)}"
    for name in ("class_prior", "target_logit_std"):
        if isinstance(init, dict) and init.get(name):
            yield ("init", name), "has no meaning for value_head, which has no logits"


def _scheme_of(data: Mapping[str, object]) -> object:
    """The scheme of the label projection, however it is written."""
    init = data.get("init")
    return init.get("scheme") if isinstance(init, dict) else getattr(init, "scheme", init)


def _label_problems(data: Mapping[str, object], labels: list[object], count: int) -> Iterator[tuple[Path, str]]:
    """Problems of the ``labels`` as written; one that is no text is a problem of its own, and counts as a label here."""
    for index, name in enumerate(labels):
        if isinstance(name, str) and name in labels[:index]:
            yield ("labels", index), f"the label {shown(name)} is given a second time"
    kind = data.get("problem_type")
    if labels and data.get("num_labels") is not None:
        yield ("num_labels",), "is redundant: labels already gives the number; leave it out"
    from_file = data.get("task") == "token_classification" and _scheme_of(data) in FITTED
    if not count and kind != "regression" and not data.get("labels") and not from_file:
        yield (), f"{data.get('task')} needs labels or num_labels"
    if count == 1 and (kind == "single_label_classification" or data.get("task") not in TYPED):
        yield ("labels" if labels else "num_labels",), "a choice needs two labels or more"


def _scheme_problems(data: Mapping[str, object], task: object, count: int) -> Iterator[tuple[Path, str]]:
    init, scheme = data.get("init"), _scheme_of(data)
    kind = data.get("problem_type")
    if scheme in FITTED and task in TASKS:
        yield from ((("init",), problem) for problem in _fit_problems(str(scheme), task=task, kind=kind, count=count))
    if scheme == "verbalizer" and task in TASKS:
        yield from _word_problems(data, init.get("words") if isinstance(init, dict) else getattr(init, "words", None))
    prior = init.get("class_prior") if isinstance(init, dict) else getattr(init, "class_prior", None)
    if prior:
        yield from (
            (("init", "class_prior"), problem) for problem in _prior_problems(prior, task=task, kind=kind, count=count)
        )


def _fit_problems(scheme: str, *, task: object, kind: object, count: int) -> Iterator[str]:
    """Schemes that are computed from labelled texts give labels to texts or words; prototypes one to each."""
    if task not in OF_TEXTS or kind == "regression" or (count == 1 and kind != "multi_label_classification"):
        yield f"{scheme} is for {' and '.join(OF_TEXTS)} into labels"
    elif scheme == "prototype" and kind == "multi_label_classification":
        yield "prototype is for texts with a single label; take ridge or lda"


def _word_problems(data: Mapping[str, object], words: object) -> Iterator[tuple[Path, str]]:
    task, labels = data.get("task"), data.get("labels")
    named = isinstance(labels, list | tuple) and all(isinstance(label, str) for label in labels)
    if task not in OF_TEXTS:
        yield ("init",), f"verbalizer is for {' and '.join(OF_TEXTS)}"
    elif not labels:
        yield ("init", "words"), "needs labels, which it gives words to"
    elif isinstance(words, Mapping) and isinstance(labels, list | tuple) and named:
        for label in labels:
            if label not in words:
                yield ("init", "words"), f"has no word for the label {shown(label)}"
        for label in words:
            if label not in labels:
                yield ("init", "words", label), f"is none of the labels: {', '.join(map(str, labels))}"


def _prior_problems(prior: object, *, task: object, kind: object, count: int) -> Iterator[str]:
    given = list(prior) if isinstance(prior, list | tuple) else [prior]
    shares = [share for share in given if isinstance(share, int | float)]
    if task not in LABELLED or kind == "regression" or count == 1:
        yield "has a meaning for classification into labels only"
    elif len(given) != len(shares):
        return
    elif len(shares) != count and not (kind == "multi_label_classification" and len(shares) == 1):
        yield f"has {len(shares)} shares for {count} labels"
    elif kind != "multi_label_classification" and not math.isclose(sum(shares), 1, abs_tol=PRIOR_SLACK):
        yield f"adds up to {sum(shares):g}; the shares of all labels add up to 1"
