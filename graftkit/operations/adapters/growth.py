"""What to write in a recipe so that a base gets the rows that an adapter or a fine-tuned checkpoint was trained with."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from graftkit.architecture.embeddings import INPUT
from graftkit.architecture.governing import find_governing
from graftkit.architecture.peft.adapter_edits import find_edits
from graftkit.architecture.skeleton import build_skeleton, with_values
from graftkit.checkpoint.tokenizer import NO_TOKENIZER, TokenizerFiles, find_tokenizer
from graftkit.errors import InputRejected, plural, printable
from graftkit.operations.adapters.other_ids import refuse_other_ids
from graftkit.operations.adapters.tokenizer_beside import operations_that_add, read_beside

if TYPE_CHECKING:
    from pathlib import Path

    from graftkit.architecture.peft.edits import Edit
    from graftkit.architecture.skeleton import Skeleton
    from graftkit.checkpoint.adapter import Adapter
    from graftkit.checkpoint.checkpoint import Checkpoint

#: More tokens than this are counted, not listed.
LISTED = 24


def edits_on(
    skeleton: Skeleton, checkpoint: Checkpoint, adapter: Adapter, folder: Path, shown: str
) -> tuple[Edit, ...]:
    """The result of :func:`find_edits`, whose ``skeleton`` is used up; ``folder`` is the adapter's.

    Raises:
        InputRejected: as there, or it brings rows of tokens that have other ids here; where the adapter would fit a base with more
            rows, the error says how to grow this one.
    """
    try:
        edits = find_edits(skeleton, adapter, shown)
    except InputRejected as refused:
        refuse_other_ids(adapter, folder, checkpoint, shown, None)
        rows, wanted = _rows_that_fit(checkpoint, adapter)
        if not wanted:
            raise
        raise InputRejected(
            f"{shown}: was trained on a vocabulary of {wanted} rows, and {printable(checkpoint.name)} has {rows}; grow the base"
            f" first, above this operation: {lines_to_grow(checkpoint, rows, wanted, _beside(folder))}"
        ) from refused
    refuse_other_ids(adapter, folder, checkpoint, shown, edits)
    return edits


def _rows_that_fit(checkpoint: Checkpoint, adapter: Adapter) -> tuple[int, int]:
    """The rows of the base's table, and those with which the adapter would fit its class; 0 where no larger number makes it fit."""
    skeleton = build_skeleton(checkpoint.config)
    table = skeleton.embedding(INPUT)
    rows = 0 if table is None else int(table.weight.shape[0])
    sizes = sorted({size for tensor in adapter.tensors.values() for size in tensor.shape if size > rows > 0})
    for size in sizes:
        try:
            paths = find_governing(checkpoint.config, skeleton, rows).paths
            grown = build_skeleton(with_values(checkpoint.config, paths, size), skeleton.architecture)
            find_edits(grown, adapter, "")
        except InputRejected:
            continue
        return rows, size
    return rows, 0


def _beside(folder: Path) -> TokenizerFiles:
    try:
        return read_beside(folder) or NO_TOKENIZER
    except InputRejected:
        return NO_TOKENIZER


def lines_to_grow(base: Checkpoint, rows: int, wanted: int, larger: TokenizerFiles) -> str:
    """The operations that give ``base``, now of ``rows`` rows, ``wanted`` rows and the tokens that only ``larger`` has.

    In words where the files do not tell which tokens these are, or where they would get other ids.
    """
    smaller = find_tokenizer(base.documents, carried=base.carried)
    new = [index for index, token in sorted(larger.tokens.items()) if smaller.id_of(token) is None]
    needed = smaller.size + len(new)
    entries = {entry.index: entry for entry in larger.added}
    known = smaller.tokens and larger.tokens and entries.keys() >= set(new)
    if not known or new != list(range(smaller.size, needed)) or needed > wanted:
        return "extend_vocab with the tokens that were added for the training, in the order of their ids"
    if len(new) > LISTED:
        return f"extend_vocab with the {plural(len(new), 'token')} of ids {new[0]} to {new[-1]}, in this order"
    operations = operations_that_add(entries[index] for index in new)
    grown = max(rows, needed)
    if grown < wanted:
        multiples = (1 << power for power in range(3, 13))
        multiple = next((one for one in multiples if -(-grown // one) * one == wanted), wanted)
        operations = operations or [{"op": "extend_vocab"}]
        operations[-1] |= {"pad_to_multiple_of": multiple}
    return printable(", ".join(f"- {json.dumps(operation, ensure_ascii=False)}" for operation in operations))
