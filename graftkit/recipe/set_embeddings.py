"""The spec of set_embeddings: whether input and output embedding are one table or two."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

from pydantic import Field

from graftkit.recipe.spec import Spec
from graftkit.recipe_file.problems import Path


class SetEmbeddings(Spec):
    """Make two tables of a tied input and output embedding, by copy, or one of two."""

    op: Literal["set_embeddings"] = "set_embeddings"
    tied: Annotated[
        bool,
        Field(
            description="false gives the output embedding a copy of the input table, so that the two train apart; true drops the output"
            " table where it is the input table byte for byte."
        ),
    ]
    allow_change: Annotated[
        bool, Field(description="Drop the output table though it differs from the input table: every logit changes.")
    ] = False

    @classmethod
    def contradictions(cls, data: Mapping[str, object]) -> Iterator[tuple[Path, str]]:
        """Refuse to allow a change where there is none."""
        if data.get("tied") is False and "allow_change" in data:
            yield ("allow_change",), "has no meaning with tied: false, which changes no output"
