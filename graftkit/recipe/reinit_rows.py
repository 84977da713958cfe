"""The spec of reinit_rows: new rows for token ids that are there already."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from graftkit.recipe.choice import BRANCH
from graftkit.recipe.fields import ListOf, Text
from graftkit.recipe.schemes import Mean, Scheme
from graftkit.recipe.spec import Spec
from graftkit.recipe_file.problems import Path

#: Stands for every id whose input row was never trained, by its norm or because it equals an earlier row.
NEVER_TRAINED = "never_trained"

#: No vocabulary has more ids.
MOST_ID = 2**24 - 1

Id = Annotated[int, Field(ge=0, le=MOST_ID)]


class IdRange(Spec):
    """The ids from ``first`` to ``last``, both included."""

    first: Annotated[Id, Field(description="The first id.")]
    last: Annotated[Id, Field(description="The last id.")]

    @classmethod
    def contradictions(cls, data: Mapping[str, object]) -> Iterator[tuple[Path, str]]:
        """Refuse a range without an id."""
        first, last = data.get("first"), data.get("last")
        if isinstance(first, int) and isinstance(last, int) and last < first:
            yield ("last",), f"must be at least {first}, the first id, found the number {last}"


def _kind(value: object) -> str:
    if isinstance(value, dict | IdRange):
        return f"{BRANCH}mapping"
    return f"{BRANCH}{'number' if isinstance(value, int) and not isinstance(value, bool) else 'text'}"


def _word_or_list(value: object) -> str:
    return f"{BRANCH}{'word' if isinstance(value, str) else 'list'}"


#: A token as the tokenizer spells it, an id, or a range of ids.
Chosen = Annotated[
    Annotated[Text, Tag(f"{BRANCH}text")]
    | Annotated[Id, Tag(f"{BRANCH}number")]
    | Annotated[IdRange, Tag(f"{BRANCH}mapping")],
    Discriminator(_kind),
]

Tokens = Annotated[
    Annotated[Literal["never_trained"], Tag(f"{BRANCH}word")]
    | Annotated[
        Annotated[ListOf[Chosen], Field(min_length=1, json_schema_extra={"minItems": 1})], Tag(f"{BRANCH}list")
    ],
    Discriminator(_word_or_list),
]


class ReinitRows(Spec):
    """Make the rows of token ids anew, in every table that is indexed by the vocabulary; all other rows stay."""

    op: Literal["reinit_rows"] = "reinit_rows"
    tokens: Annotated[
        Tokens, Field(description="never_trained, or a list of tokens, ids and ranges such as {first: 5, last: 9}.")
    ]
    init: Annotated[Scheme, Field(description="Input rows.")] = Mean.model_construct()
    output_init: Annotated[
        Scheme | None, Field(description="Output rows (and bias) of an untied model; null means mean.")
    ] = None
