"""insert_blocks: new blocks behind old ones, as the identity (LLaMA Pro) or as copies (depth up-scaling)."""

from __future__ import annotations

from collections.abc import Callable

from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.errors import RecipeError
from graftkit.operations.base import Context, Outcome
from graftkit.operations.blocks.arrange import arrange
from graftkit.operations.blocks.outcome import changed_outcome, outcome_of
from graftkit.operations.blocks.silence import refuse_twins, silenced
from graftkit.operations.blocks.stack import Stack, find_stack
from graftkit.recipe import InsertBlocks
from graftkit.recipe.block_numbers import repeated_block
from graftkit.verification.promises import EVERY_INPUT, Promise, PromiseClass, Scope


def insert_blocks(spec: InsertBlocks, checkpoint: Checkpoint, context: Context) -> Outcome:  # noqa: ARG001 - nothing is sampled
    """Put a copy behind each of the blocks that ``spec`` names; as the identity, what it writes to the stream is zero.

    Raises:
        InputRejected: the class has no one list of blocks, its config cannot place new ones, or no zeros make one of them the
            identity.
        RecipeError: a block is not there or named twice, or a new one would only repeat what another new one learns.
    """
    stack = find_stack(checkpoint)
    after = _places(spec, stack)
    order, copies = [], []
    for block in range(stack.layers.count):
        order.append(block)
        if block in after:
            copies.append(len(order))
            order.append(block)
    arranged = arrange(stack, order, copies)
    if spec.init == "copy":
        return changed_outcome(arranged, spec.texts)
    silent = silenced(arranged)
    refuse_twins(silent, by_bytes=False)

    def prepare(_: Callable[[float], None]) -> None:
        refuse_twins(silent, by_bytes=True)

    promise = Promise(PromiseClass.BITWISE, "hidden states behind every block that was there, and logits", EVERY_INPUT)
    notes = (f"zero in the new blocks, so that they give what they are given: {silent.shown}",)
    return outcome_of(arranged, silent.checkpoint, promise, Scope.EVERYTHING, notes, prepare)


def _places(spec: InsertBlocks, stack: Stack) -> tuple[int, ...]:
    count = stack.layers.count
    if spec.every is not None:
        if spec.every > count:
            raise RecipeError(f"{stack.layers.path} has only {count} blocks, no group of {spec.every}", field="every")
        return tuple(range(spec.every - 1, count, spec.every))
    after = stack.numbers(spec.after or (), "after")
    if (twice := repeated_block(after)) is not None:
        raise RecipeError(
            f"names block {twice} twice; two new blocks in a row begin with the same values and learn the same at first:"
            " put the second behind another block",
            field="after",
        )
    return after
