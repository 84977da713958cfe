"""The spec of trim_vocab: fewer tokens, each row of the others as it was."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

from pydantic import Field

from graftkit.recipe.fields import ListOf, PathText, Text
from graftkit.recipe.spec import Spec
from graftkit.recipe_file.problems import Path
from graftkit.recipe_file.wording import shown


class KeptTokens(Spec):
    """Which tokens stay, and with them whatever these need: what they are merged from, symbols, bytes, the unknown token."""

    texts: Annotated[
        PathText | None,
        Field(
            description="Tokens of these texts: a .txt with a text a line, or the field text of .jsonl, .csv or .parquet."
        ),
    ] = None
    min_count: Annotated[
        int, Field(ge=1, description="How often a token must stand in the texts to stay because of them.")
    ] = 1
    tokens: Annotated[ListOf[Text], Field(description="Further tokens, as the tokenizer spells them.")] = ()
    special: Annotated[
        Literal["all", "used"],
        Field(
            description="Which of the special and other added tokens stay: all, or those of a role, of a template or config, of the"
            " texts, and those that are listed."
        ),
    ] = "all"

    @classmethod
    def contradictions(cls, data: Mapping[str, object]) -> Iterator[tuple[Path, str]]:
        """Refuse a choice of nothing, a count without texts, and a token that is listed twice."""
        if not data.get("texts") and not data.get("tokens"):
            yield (), "keeps no token of the vocabulary; give texts or tokens"
        if data.get("min_count") is not None and not data.get("texts"):
            yield ("min_count",), "has no effect without texts"
        first: dict[str, int] = {}
        listed = data.get("tokens")
        for place, token in enumerate(listed if isinstance(listed, list | tuple) else ()):
            if isinstance(token, str) and first.setdefault(token, place) != place:
                yield ("tokens", place), f"the token {shown(token)} is given a second time, after tokens.{first[token]}"

    def plain(self) -> object:
        """Return the fields, without what is as it always is."""
        usual = (("special", "all"), ("min_count", 1))
        return {name: value for name, value in self.plain_fields().items() if (name, value) not in usual}


class TrimVocab(Spec):
    """Drop tokens from the tokenizer, and their rows from every table that is indexed by the vocabulary; ids are numbered anew."""

    op: Literal["trim_vocab"] = "trim_vocab"
    keep: Annotated[KeptTokens, Field(description="Which tokens stay.")]
    pad_to_multiple_of: Annotated[
        int | None, Field(ge=1, le=2**20, description="Fill the tables up to a multiple of this, with mean rows.")
    ] = None
