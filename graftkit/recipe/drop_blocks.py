"""The spec of drop_blocks: which blocks go, or which ones stay."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

from pydantic import Field

from graftkit.recipe.block_numbers import BlockNumbers
from graftkit.recipe.fields import PathText
from graftkit.recipe.spec import Spec
from graftkit.recipe_file.problems import Path


class DropBlocks(Spec):
    """Take blocks out of the main stack; those that stay keep their order and are numbered anew."""

    op: Literal["drop_blocks"] = "drop_blocks"
    blocks: Annotated[
        BlockNumbers | None, Field(description="Blocks to drop: numbers, ranges such as 20-27, 'first 2' or 'last 4'.")
    ] = None
    keep: Annotated[BlockNumbers | None, Field(description="Blocks to keep, all others being dropped.")] = None
    texts: Annotated[
        PathText | None,
        Field(description="A file of texts, on which KL and perplexity are measured before and after."),
    ] = None

    @classmethod
    def contradictions(cls, data: Mapping[str, object]) -> Iterator[tuple[Path, str]]:
        """Refuse an operation that selects nothing, or in both ways."""
        given = [name for name in ("blocks", "keep") if data.get(name) is not None]
        if not given:
            yield (), "selects nothing; give blocks or keep"
        elif len(given) == 2:
            yield ("keep",), "says the same as blocks; give one of the two"
