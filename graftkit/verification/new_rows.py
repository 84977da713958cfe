"""New rows of which no report tells how they were made: finite, no longer than old rows, and no likelier than old ids.

A convex combination of old rows is never longer than the longest of them, and never takes more of the next-token distribution,
on average over any positions, than the likeliest of them; rows of the same spread keep to both. Zeros in an output bias whose
old values are not zero were forgotten: they take the probability of the old ids.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from graftkit.architecture.vocabulary import Vocabulary, VocabularyTensor
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.reading import read_rows, row_chunks
from graftkit.checkpoint.tensors import Stored
from graftkit.errors import printable
from graftkit.initializers.statistics import table_statistics
from graftkit.verification.distribution import UNIT_ROUNDOFF, Distribution
from graftkit.verification.kl_promise import KLPromise

#: ``id -> token``, None where no token has it.
TokenOf = Callable[[int], str | None]


@dataclass(frozen=True, slots=True)
class WildRow:
    """A new row that is longer than every old row of its table, or not finite. ``others`` are as wrong in that table."""

    tensor: str
    index: int
    norm: float
    largest: float
    others: int

    def sentence(self, token_of: TokenOf) -> str:
        """What is wrong with the row."""
        more = f" (and {self.others} more rows)" if self.others > 1 else " (and 1 more row)" if self.others else ""
        if self.norm - self.norm != 0.0:
            what = "holds values that are not finite"
        else:
            what = f"has norm {self.norm:.3g}, the largest of the old rows has {self.largest:.3g}"
        return (
            f"structure: tensor {printable(self.tensor)!r}: the new row of {named(self.index, token_of)} {what}{more}"
        )


def named(index: int, token_of: TokenOf) -> str:
    """An id with its token, fit for a terminal."""
    token = token_of(index)
    return f"id {index}" if token is None else f"id {index} ({printable(token)!r})"


def wild_rows(new: Checkpoint, tables: Sequence[VocabularyTensor], fresh: Collection[int], live: int) -> list[WildRow]:
    """The worst new row of each table with a row that is not finite or longer than all rows of the ids ``0..live-1``.

    What rounding to the stored dtype can add to a combination of old rows is allowed for.
    """
    found = []
    for item in tables:
        tensor = new.tensors[item.name]
        if not fresh or not isinstance(tensor, Stored):
            continue
        largest = max(_longest(rows) for _, rows in row_chunks(tensor, item.axis, live))
        rows = [(index, read_rows(tensor, item.axis, index, index + 1)) for index in fresh]
        allowed = largest * (1 + UNIT_ROUNDOFF.get(str(rows[0][1].dtype), 2.0**-3))
        wild = [(index, norm) for index, row in rows if not (norm := float(_norms(row))) <= allowed]
        if wild:
            index, norm = max(wild, key=lambda item: (item[1] - item[1] != 0.0, item[1]))
            found.append(WildRow(item.name, index, norm, largest, len(wild) - 1))
    return found


def _norms(rows: Any) -> Any:
    return rows.double().norm(dim=1)


def _longest(rows: Any) -> float:
    norms = _norms(rows)
    return float(norms.masked_fill(~norms.isfinite(), 0.0).max())


def likely_bound(new: Checkpoint, vocabulary: Vocabulary, fresh: Sequence[int], live: int) -> KLPromise | None:
    """The bound on the KL that new output rows keep by what they are: all the mean of the live rows, or of unknown making.

    None where there is no output table or no new row.
    """
    if not fresh or not vocabulary.has_output:
        return None
    item = (vocabulary.of_role("output") or vocabulary.of_role("input"))[0]
    tensor = new.tensors[item.name]
    if not isinstance(tensor, Stored):
        return KLPromise("likeliest")
    made = [read_rows(tensor, item.axis, index, index + 1)[0] for index in fresh]
    if any(not row.equal(made[0]) for row in made):
        return KLPromise("likeliest")
    found = table_statistics(lambda: row_chunks(tensor, item.axis, live), live)
    unit = UNIT_ROUNDOFF.get(str(made[0].dtype), 0.0)
    if bool(((made[0].double() - found.mean).abs() > unit * found.mean.abs()).any()):
        return KLPromise("likeliest")
    averaged = tuple(found.live.nonzero().flatten().tolist()) if found.count < live else None
    return KLPromise("mean", found.count, averaged)


def check_shares(found: Distribution, token_of: TokenOf) -> Iterator[str]:
    """Yield a sentence where the likeliest new id takes more of the distribution, on average, than any old id does."""
    index, mean, largest = max(found.shares, key=lambda share: share[1])
    if not mean <= found.likeliest:
        yield (
            f"outputs: the new {named(index, token_of)} takes {mean:.3g} of the next-token probability on average and up to"
            f" {largest:.3g}, no old id more than {found.likeliest:.3g} on average; KL(old, new) reaches {found.kl_max:.3g}"
        )


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
