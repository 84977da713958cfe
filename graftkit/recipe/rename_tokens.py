"""The spec of rename_tokens: other names for tokens that keep their ids."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, PlainSerializer

from graftkit.recipe.choice import OneOf, OrText
from graftkit.recipe.fields import FrozenMapping, Text
from graftkit.recipe.schemes import (
    Copy,
    Describe,
    Mean,
    MeanCov,
    Normal,
    Scheme,
    SchemeSpec,
    SubwordMean,
    Zeros,
)
from graftkit.recipe.spec import Spec
from graftkit.recipe_file.problems import Path
from graftkit.recipe_file.wording import shown


class Keep(SchemeSpec):
    """The row that the token has."""

    scheme: Literal["keep"] = "keep"


KeepOrScheme = Annotated[
    Keep | Mean | SubwordMean | Describe | Copy | MeanCov | Normal | Zeros,
    OneOf("scheme", "scheme", words=True),
]


class NewName(Spec):
    """What a token is called from now on, and what else becomes of it."""

    content: Annotated[Text, Field(description="The new name, as it stands in text.")]
    special: Annotated[
        bool | None, Field(description="Whether the token is special; null means the operation's special.")
    ] = None
    init: Annotated[KeepOrScheme | None, Field(description="Input row; null means the operation's init.")] = None
    output_init: Annotated[
        Scheme | None, Field(description="Output row of an untied model; null means the operation's output_init.")
    ] = None

    def plain(self) -> object:
        """Return the bare content where no other field says anything."""
        written = self.plain_fields()
        return self.content if len(written) == 1 else written


Names = Annotated[
    Mapping[Text, Annotated[NewName, OrText("content")]], AfterValidator(FrozenMapping), PlainSerializer(dict)
]


class RenameTokens(Spec):
    """Give tokens other names, in every file that names them; ids stay, and rows too unless they are made anew."""

    op: Literal["rename_tokens"] = "rename_tokens"
    names: Annotated[
        Names,
        Field(
            min_length=1,
            json_schema_extra={"minProperties": 1},
            description="Each token as the tokenizer spells it, and its new name.",
        ),
    ]
    special: Annotated[
        bool | None, Field(description="Whether the renamed tokens are special; null leaves each as it is.")
    ] = None
    init: Annotated[
        KeepOrScheme, Field(description="Input rows of the renamed tokens: keep, or any scheme of extend_vocab.")
    ] = Keep.model_construct()
    output_init: Annotated[
        Scheme | None,
        Field(description="Output rows (and bias) of an untied model where init is not keep; null means mean."),
    ] = None

    @classmethod
    def contradictions(cls, data: Mapping[str, object]) -> Iterator[tuple[Path, str]]:
        """Refuse a name that stays, a name that is given twice, and output rows where rows are kept."""
        names = data.get("names")
        first: dict[str, object] = {}
        for old, new in names.items() if isinstance(names, Mapping) else ():
            content = _field(new, "content") if isinstance(new, Mapping | NewName) else new
            if not isinstance(content, str):
                continue
            if content == old:
                yield ("names", str(old)), f"{shown(content)} is what the token is called already"
            elif content in first:
                yield ("names", str(old)), f"the name {shown(content)} is given a second time, after {first[content]}"
            first.setdefault(content, old)
            if _field(new, "output_init") is not None and _keeps(_field(new, "init") or data.get("init")):
                yield ("names", str(old), "output_init"), NO_OUTPUT_INIT
        values = names.values() if isinstance(names, Mapping) else ()
        if data.get("output_init") is not None and all(
            _keeps(_field(new, "init") or data.get("init")) for new in values
        ):
            yield ("output_init",), NO_OUTPUT_INIT


#: What is wrong with output rows where rows are kept, as the end of a sentence.
NO_OUTPUT_INIT = "has no effect where init is keep"


def _field(value: object, name: str) -> object:
    return value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)


def _keeps(init: object) -> bool:
    return init is None or isinstance(init, Keep) or init == "keep" or _field(init, "scheme") == "keep"
