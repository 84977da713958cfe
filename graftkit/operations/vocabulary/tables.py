"""The tables that are indexed by the vocabulary, with some of their rows made anew."""

from __future__ import annotations

import functools
from collections.abc import Iterator

from graftkit.architecture.accounting import account
from graftkit.architecture.governing import resized_by_transformers, two_vocabularies
from graftkit.architecture.vocabulary import Vocabulary, VocabularyTensor, find_vocabulary
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.computed import as_bytes
from graftkit.checkpoint.tensors import LazyTensor, patch_rows
from graftkit.errors import InputRejected, RecipeError, few
from graftkit.operations.vocabulary.rows import RowMaker

#: What is assumed of logits where a table has another shape.
OTHER_KERNEL = "a kernel may round logits differently where the table's shape changed, then within the stated tolerance"


def one_vocabulary(checkpoint: Checkpoint) -> Vocabulary:
    """Every tensor that is indexed by the tokenizer's ids.

    Raises:
        InputRejected: there is none, its tables cannot be told, or encoder and decoder have one each.
    """
    structure = account(checkpoint)
    vocabulary = find_vocabulary(checkpoint, structure)
    if two := two_vocabularies(checkpoint.config, structure.skeleton, vocabulary.rows):
        raise InputRejected(f"{structure.skeleton.architecture}: {two}")
    return vocabulary


def check_renumbered(checkpoint: Checkpoint, vocabulary: Vocabulary) -> None:
    """Refuse to give tokens other ids where these index a table that has not the vocabulary's number of rows.

    Raises:
        InputRejected: there is one.
    """
    skeleton = account(checkpoint).skeleton
    if beside := other_sizes(checkpoint, vocabulary):
        raise InputRejected(
            f"{skeleton.architecture}: token ids index {few(beside)} too, of {skeleton.shapes[beside[0]][0]:,} rows where the"
            f" vocabulary has {vocabulary.rows:,}; under other ids tokens would get rows of others there"
        )


def other_sizes(checkpoint: Checkpoint, vocabulary: Vocabulary) -> list[str]:
    """Names in memory of tables that token ids index and that have another number of rows than the vocabulary."""
    skeleton = account(checkpoint).skeleton
    resized = resized_by_transformers(checkpoint.config, skeleton, vocabulary.rows)
    return sorted(name for name in resized if skeleton.shapes[name][0] != vocabulary.rows)


def check_output_init(vocabulary: Vocabulary, *, given: bool) -> None:
    """Refuse an ``output_init`` that no row would get.

    Raises:
        RecipeError: it is ``given``, and the checkpoint has no output table of its own.
    """
    if given and not vocabulary.of_role("output"):
        why = "its input and output rows are tied" if vocabulary.tied else "it has no output embedding"
        raise RecipeError(f"has no meaning for this checkpoint: {why}", field="output_init")


def with_rows(vocabulary: Vocabulary, maker: RowMaker, size: int) -> Iterator[tuple[str, LazyTensor]]:
    """Yield each tensor by name with the maker's rows, grown to ``size`` rows; nothing where there are none."""
    if not maker.ids:
        return
    for item in vocabulary.tensors:
        produce = functools.partial(_row_bytes, maker, item)
        yield item.name, patch_rows(maker.table(item), axis=item.axis, rows=maker.ids, size=size, produce=produce)


def _row_bytes(maker: RowMaker, item: VocabularyTensor) -> memoryview:
    return as_bytes(maker.values(item))
