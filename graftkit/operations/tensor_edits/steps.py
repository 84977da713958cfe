"""The steps of edit_tensors: the key of each in a recipe, and its function."""

from __future__ import annotations

from graftkit.operations.tensor_edits.assertions import assert_that
from graftkit.operations.tensor_edits.fill import fill
from graftkit.operations.tensor_edits.layout import concat, permute, reshape, split
from graftkit.operations.tensor_edits.names import delete, rename
from graftkit.operations.tensor_edits.stepped import StepFunction
from graftkit.operations.tensor_edits.values import add, cast, low_rank, scale

STEPS: dict[str, StepFunction] = {
    "rename": rename,
    "delete": delete,
    "cast": cast,
    "scale": scale,
    "add": add,
    "split": split,
    "concat": concat,
    "permute": permute,
    "reshape": reshape,
    "fill": fill,
    "low_rank": low_rank,
    "assert": assert_that,
}
