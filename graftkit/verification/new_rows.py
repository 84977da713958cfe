"""New rows of an output bias: padded with zeros beside an old bias that is not zero, they take the probability of the old ids."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from graftkit.architecture.vocabulary import Vocabulary, VocabularyTensor
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.reading import read_rows
from graftkit.checkpoint.tensors import Stored
from graftkit.errors import printable


def check_new_biases(new: Checkpoint, vocabulary: Vocabulary, fresh: Collection[int], live: int) -> Iterator[str]:
    """Yield a sentence for each output bias whose new rows are all zero, while the old ids' are not and new weights are not.

    Rows that are zero as a whole, weight and bias, were asked for; a bias alone that is zero was forgotten. ``live`` is
    the number of old ids.
    """
    if not fresh:
        return
    tables = (*vocabulary.of_role("output"), *vocabulary.of_role("input"))
    if not tables or not any(_any(new, tables[0], row) for row in fresh):
        return
    for item in vocabulary.of_role("output_bias"):
        tensor = new.tensors[item.name]
        if not isinstance(tensor, Stored) or any(_any(new, item, row) for row in fresh):
            continue
        old = read_rows(tensor, item.axis, 0, live).double()
        if int((old != 0).sum()) * 2 > old.numel():
            yield (
                f"structure: tensor {printable(item.name)!r}: the {len(fresh)} rows of new ids are padded with zeros,"
                f" those of old ids have mean {float(old.mean()):.3g}"
            )


def _any(checkpoint: Checkpoint, item: VocabularyTensor, row: int) -> bool:
    tensor = checkpoint.tensors[item.name]
    return isinstance(tensor, Stored) and bool(read_rows(tensor, item.axis, row, row + 1).any())
