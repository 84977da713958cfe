"""Ids of the tokenizer that no row of the table belongs to: the first text with such a token ends in an index error."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from graftkit.architecture.embeddings import INPUT
from graftkit.architecture.skeleton import build_skeleton, integer_paths
from graftkit.architecture.vocabulary import takes_ids
from graftkit.checkpoint.documents import MAX_TOKENIZER_BYTES, TOKENIZER, Documents
from graftkit.checkpoint.files import read_bounded
from graftkit.checkpoint.tokenizer import TokenizerFiles, read_tokenizer
from graftkit.errors import InputRejected, printable

if TYPE_CHECKING:
    from graftkit.checkpoint.checkpoint import Checkpoint


def missing_rows(tokenizer: TokenizerFiles, rows: int) -> str:
    """Which ids lie past a table of ``rows`` rows, with their first tokens, in a sentence; empty where none do.

    A class that takes no ids has no rows, and misses none.
    """
    past = [index for index in sorted(tokenizer.tokens) if index >= rows > 0]
    if not past:
        return ""
    ids = f"ids {past[0]} to {past[-1]}" if len(past) > 1 else f"id {past[0]}"
    first = ", ".join(repr(printable(tokenizer.tokens[index])) for index in past[:4])
    more = ", …" if len(past) > 4 else ""
    lie = "lie" if len(past) > 1 else "lies"
    return f"the tokenizer's {ids} ({first}{more}) {lie} past the table's {rows} rows; extend_vocab makes the rows"


def missing_rows_of(checkpoint: Checkpoint) -> str:
    """The same for a checkpoint whose files may not have been read yet; empty too where they hold no readable tokenizer.

    What is cheap comes first: an adapter made from headers asks for neither the tokenizer's 128,000 ids nor another skeleton.
    """
    if TOKENIZER not in checkpoint.documents:
        return ""
    sizes = [size for path, size in integer_paths(checkpoint.config) if "vocab" in path[-1]]
    try:
        if sizes and isinstance(checkpoint.documents, Documents) and not _may_pass(checkpoint, min(sizes)):
            return ""
        tokenizer = read_tokenizer(checkpoint.documents, carried=checkpoint.carried)
    except InputRejected:
        return ""  # whatever needs the tokenizer refuses it
    if sizes and tokenizer.size <= min(sizes):
        return ""
    skeleton = build_skeleton(checkpoint.config)
    table = skeleton.embedding(INPUT)
    return missing_rows(tokenizer, table.weight.shape[0]) if table is not None and takes_ids(skeleton.model) else ""


def _may_pass(checkpoint: Checkpoint, rows: int) -> bool:
    """Whether an id of tokenizer.json could be ``rows`` or more: a mapping names such a number, a list is as long.

    It is not parsed, which takes ten times as long.
    """
    raw = read_bounded(checkpoint.directory, TOKENIZER, MAX_TOKENIZER_BYTES)
    pieces = raw.count(b"[") if re.search(rb'"vocab"\s*:\s*\[', raw) else 0
    as_long = rb":\s*(\d{%d,9})\b" % len(str(rows))
    return pieces >= rows or any(int(number) >= rows for number in re.findall(as_long, raw))
