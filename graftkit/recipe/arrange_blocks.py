"""The spec of arrange_blocks: the blocks of the result, in any order."""

from typing import Annotated, Literal

from pydantic import Field

from graftkit.recipe.block_numbers import BlockNumbers
from graftkit.recipe.fields import PathText
from graftkit.recipe.spec import Spec


class ArrangeBlocks(Spec):
    """Put the blocks of the main stack into another order; a block that is named again is a copy (depth up-scaling)."""

    op: Literal["arrange_blocks"] = "arrange_blocks"
    blocks: Annotated[
        BlockNumbers,
        Field(
            description="The blocks of the result by their present numbers, such as [0-23, 8-31]; repeats are copies."
        ),
    ]
    texts: Annotated[
        PathText | None,
        Field(description="A file of texts, on which KL and perplexity are measured before and after."),
    ] = None
