"""The spec of insert_blocks: where new blocks go, and how they begin."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

from pydantic import Field

from graftkit.recipe.block_numbers import BlockNumbers
from graftkit.recipe.fields import PathText
from graftkit.recipe.spec import Spec
from graftkit.recipe_file.problems import Path


class InsertBlocks(Spec):
    """Put a new block behind each of some blocks of the main stack, a copy of the one that it follows."""

    op: Literal["insert_blocks"] = "insert_blocks"
    after: Annotated[
        BlockNumbers | None,
        Field(description="Blocks that a new one follows, by their present numbers, such as [7, 15, 23]."),
    ] = None
    every: Annotated[
        int | None,
        Field(
            ge=1, lt=10**6, description="A new block behind each group of so many blocks: 8 means after 7, 15, 23, ..."
        ),
    ] = None
    init: Annotated[
        Literal["identity", "copy"],
        Field(
            description="identity: what the block writes to the residual stream starts at zero, so that the model does what it"
            " did; copy: the block as it is (depth up-scaling), which changes the outputs."
        ),
    ] = "identity"
    texts: Annotated[
        PathText | None,
        Field(description="For copies: a file of texts, on which KL and perplexity are measured before and after."),
    ] = None

    @classmethod
    def contradictions(cls, data: Mapping[str, object]) -> Iterator[tuple[Path, str]]:
        """Refuse an operation that names no place, or names it in both ways, and texts that would measure nothing."""
        given = [name for name in ("after", "every") if data.get(name) is not None]
        if not given:
            yield (), "names no place; give after or every"
        elif len(given) == 2:
            yield ("every",), "says where as after does; give one of the two"
        if data.get("texts") is not None and data.get("init", "identity") == "identity":
            yield ("texts",), "measures nothing where the outputs stay as they are; it is for init: copy"
