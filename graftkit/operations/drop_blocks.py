"""drop_blocks: blocks of the main stack taken out, the others numbered anew."""

from __future__ import annotations

from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.errors import RecipeError
from graftkit.operations.base import Context, Outcome
from graftkit.operations.blocks.arrange import arrange
from graftkit.operations.blocks.outcome import changed_outcome
from graftkit.operations.blocks.stack import find_stack
from graftkit.recipe import DropBlocks
from graftkit.recipe.block_numbers import repeated_block


def drop_blocks(spec: DropBlocks, checkpoint: Checkpoint, context: Context) -> Outcome:  # noqa: ARG001 - nothing is sampled
    """Take out the blocks that ``spec`` names, or all but those that it keeps; the others keep their order and their bytes.

    Raises:
        InputRejected: the class has no one list of blocks, or its config cannot place those that stay.
        RecipeError: a block is not there or named twice, or none would go, or none would stay.
    """
    stack = find_stack(checkpoint)
    field = "keep" if spec.keep is not None else "blocks"
    named = stack.numbers(spec.keep or spec.blocks or (), field)
    if (twice := repeated_block(named)) is not None:
        raise RecipeError(f"names block {twice} twice", field=field)
    order = tuple(i for i in range(stack.layers.count) if (i in set(named)) == (spec.keep is not None))
    if len(order) in (0, stack.layers.count):
        raise RecipeError(f"{'keeps' if order else 'drops'} all {stack.layers.count} blocks", field=field)
    return changed_outcome(arrange(stack, order), spec.texts)
