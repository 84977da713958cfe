"""How a head's label projection is initialised: from nothing, from words of the vocabulary, or from labelled examples."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer

from graftkit.recipe.choice import OneOf
from graftkit.recipe.fields import FrozenMapping, ListOf, PathText, Text
from graftkit.recipe.schemes import SchemeSpec
from graftkit.recipe.weight_schemes import Lsuv, SharedScheme, Std
from graftkit.recipe_file.problems import Path


def _as_list(value: object) -> object:
    return (value,) if isinstance(value, int | float) and not isinstance(value, bool) else value


Probability = Annotated[float, Field(gt=0, lt=1)]

Prior = Annotated[ListOf[Probability], BeforeValidator(_as_list, json_schema_input_type=float | list[Probability])]


class HeadZeros(SchemeSpec):
    """Zeros; with ``class_prior`` a bias that gives each label its probability (Lin 2017): the first loss is their entropy."""

    scheme: Literal["zeros"] = "zeros"
    class_prior: Annotated[
        Prior,
        Field(description="Share of each label, adding to 1; of multi_label_classification each probability, or one for all."),
    ] = ()  # fmt: skip


class HeadNormal(SchemeSpec):
    """Normal around zero."""

    scheme: Literal["normal"] = "normal"
    std: Std = None
    target_logit_std: Annotated[
        float | None,
        Field(gt=0, description="Standard deviation of the logits: std is this over the RMS norm of probe texts' features."),
    ] = None  # fmt: skip

    @classmethod
    def contradictions(cls, data: Mapping[str, object]) -> Iterator[tuple[Path, str]]:
        """Refuse two spreads."""
        if data.get("std") is not None and data.get("target_logit_std") is not None:
            yield ("target_logit_std",), "and std set the same thing; give one of them"


def _each_a_list(value: object) -> object:
    if not isinstance(value, Mapping):
        return value
    return {label: (words,) if isinstance(words, str) else words for label, words in value.items()}


Words = Annotated[
    Mapping[Text, Annotated[ListOf[Text], Field(min_length=1)]],
    BeforeValidator(_each_a_list, json_schema_input_type=Mapping[Text, Text | list[Text]]),
    AfterValidator(FrozenMapping),
    PlainSerializer(dict),
]


class Verbalizer(SchemeSpec):
    """Rows of the language-model head: the logit of a label is the mean of those of its words (Schick 2021)."""

    scheme: Literal["verbalizer"] = "verbalizer"
    words: Annotated[
        Words,
        Field(description="Label -> its word or words, each one token, spelled as in the text: mostly with a space before."),
    ]  # fmt: skip


class FromExamples(SchemeSpec):
    """Fields of the schemes that are fitted to labelled texts."""

    examples: Annotated[
        PathText,
        Field(
            description="A .jsonl, .csv or .parquet file with one labelled text in each row; for token_classification also .conll,"
            " .iob, .iob2 or .bio."
        ),
    ]
    text: Annotated[
        Text | None, Field(description="The field of the text; null means text, or tokens where each word has a label.")
    ] = None
    label: Annotated[
        Text | None,
        Field(
            description="The field of the label: its name, or its number where the labels have no names; a list of several, or of"
            " those of each word. Null means label, or tags where each word has one."
        ),
    ] = None
    held_out: Annotated[
        float, Field(gt=0, lt=1, description="Share of each label's examples that is only measured on.")
    ] = 0.2
    max_length: Annotated[
        int | None, Field(ge=1, description="Tokens after which a text is cut; null means as many as the model takes.")
    ] = None


class Ridge(FromExamples):
    """Ridge regression onto the labels, with a temperature; its strength is chosen by cross-validation."""

    scheme: Literal["ridge"] = "ridge"


class Lda(FromExamples):
    """Linear discriminant analysis with a shrunk covariance, chosen by cross-validation, and a temperature."""

    scheme: Literal["lda"] = "lda"


class Prototype(FromExamples):
    """Distance to the mean of each label's features, with a temperature (Snell 2017)."""

    scheme: Literal["prototype"] = "prototype"


HeadScheme = Annotated[
    HeadZeros | HeadNormal | Verbalizer | Ridge | Lda | Prototype | SharedScheme | Lsuv,
    OneOf("scheme", "scheme", words=True),
]
