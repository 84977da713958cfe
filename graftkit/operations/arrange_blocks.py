"""arrange_blocks: the blocks of the main stack in another order, with repeats as copies."""

from __future__ import annotations

from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.errors import RecipeError
from graftkit.operations.base import Context, Outcome
from graftkit.operations.blocks.arrange import arrange
from graftkit.operations.blocks.outcome import changed_outcome
from graftkit.operations.blocks.stack import find_stack
from graftkit.recipe import ArrangeBlocks


def arrange_blocks(spec: ArrangeBlocks, checkpoint: Checkpoint, context: Context) -> Outcome:  # noqa: ARG001 - nothing is sampled
    """Give the checkpoint the blocks that ``spec`` lists by their present numbers, each with the bytes that it has.

    Raises:
        InputRejected: the class has no one list of blocks, or its config cannot place these.
        RecipeError: a block is not there, or the order is the present one.
    """
    stack = find_stack(checkpoint)
    order = stack.numbers(spec.blocks, "blocks")
    if order == tuple(range(stack.layers.count)):
        raise RecipeError("is the order in which the blocks are already", field="blocks")
    return changed_outcome(arrange(stack, order), spec.texts)
