"""Rows that average those of old tokens, as they were written: each stands where its token is, and is the mean of its own parts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graftkit.architecture.vocabulary import VocabularyTensor
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.reading import read_ids
from graftkit.checkpoint.tensors import LazyTensor
from graftkit.checkpoint.tokenizer import read_tokenizer
from graftkit.errors import plural, printable
from graftkit.running.place import open_place
from graftkit.verification.checks import Report, Row

if TYPE_CHECKING:
    from graftkit.verification.subject import Subject

#: Bytes in float64 that the rows of old tokens may take, which are averaged at a time.
BATCH_BYTES = 4 << 20

#: The unit roundoff of float64.
UNIT = 2.0**-53


@dataclass(frozen=True, slots=True)
class Average:
    """The row of ``content``, which has the id ``index`` where no file says otherwise: the mean of the rows of the ids ``parts``."""

    content: str
    index: int
    parts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class AveragedReport(Report):
    """How many ``rows`` of all ``tables`` together were found to be the mean of their parts."""

    tables: int
    averages: int
    failures: tuple[str, ...]
    name: str = "averaged rows"

    def rows(self) -> Iterator[Row]:
        """The lines that a table shows of it."""
        figure = f"{plural(self.averages, 'row')} of {plural(self.tables, 'table')}, from the source's rows once more"
        yield Row("averaged rows", "failed" if self.failures else "equal", figure)


@dataclass(frozen=True, slots=True)
class AveragedRowsCheck:
    """Averages the old rows once more, and looks for each mean at the id that the written tokenizer gives the token.

    ``before`` is what the operation was given, ``averages`` are those of each of its tables.
    """

    before: Checkpoint
    averages: Callable[[], Mapping[VocabularyTensor, Sequence[Average]]]
    name: str = "averaged rows"

    def applies(self, subject: Subject) -> bool:
        """Where something was written, and no later operation changed all tables or gave tokens other ids."""
        return subject.base_changed and subject.later.ids is None and bool(self._tables(subject))

    def _tables(self, subject: Subject) -> dict[VocabularyTensor, Sequence[Average]]:
        return {
            item: found for item, found in self.averages().items() if found and item.name not in subject.changed_later
        }

    def run(self, subject: Subject) -> AveragedReport:
        """Look at the tables as they are written; one that a later operation changed is left out."""
        written = open_place(subject.result)
        ids = read_tokenizer(written.documents, carried=written.carried).ids
        tables = self._tables(subject)
        failures: list[str] = []
        for item, averages in tables.items():
            places = [ids.get(one.content, one.index) for one in averages]
            old, new = (checkpoint.tensors[item.name] for checkpoint in (self.before, written))
            wrong = list(_wrong_places(old, new, item.axis, averages, places))
            if wrong:
                count = f"{plural(len(wrong), 'row')} {'is' if len(wrong) == 1 else 'are'}"
                first = f"id {places[wrong[0]]} ({printable(averages[wrong[0]].content)!r})"
                failures.append(
                    f"averaged rows: tensor {printable(item.name)!r}: {count} not the mean of the rows of the old"
                    f" tokens that it stands for, first that of {first}"
                )
        return AveragedReport(len(tables), sum(map(len, tables.values())), tuple(failures))


def _wrong_places(
    old: LazyTensor, new: LazyTensor, axis: int, averages: Sequence[Average], places: Sequence[int]
) -> Iterator[int]:
    """Yield which of the averages is not the row at its place, within one rounding to the table's dtype.

    The sum of n values in float64 is exact to n units of roundoff of the sum of their sizes.
    """
    import torch

    width = 8 * math.prod(old.shape[axis + 1 :])
    for batch in _batches(averages, width):
        found = [averages[place] for place in batch]
        used = sorted({part for one in found for part in one.parts})
        where = {part: row for row, part in enumerate(used)}
        flat = [where[part] for one in found for part in one.parts]
        counts = torch.tensor([len(one.parts) for one in found])
        owners = torch.repeat_interleave(torch.arange(len(found)), counts)
        parts = read_ids(old, used, axis)[flat].double()
        mean, size = (
            torch.zeros(len(found), parts.shape[1], dtype=torch.float64).index_add_(0, owners, values) / counts[:, None]
            for values in (parts, parts.abs())
        )
        written = read_ids(new, [places[place] for place in batch], axis)
        info = torch.finfo(written.dtype)
        bound = (mean.abs() + info.smallest_normal) * info.eps / 2 + 4 * counts[:, None] * UNIT * size
        wrong = ~((written.double() - mean).abs() <= bound).all(1)
        yield from (batch[row] for row in wrong.nonzero().flatten().tolist())


def _batches(averages: Sequence[Average], width: int) -> Iterator[list[int]]:
    """Places of consecutive averages whose parts take no more than the memory that they may, of ``width`` bytes in each row."""
    batch: list[int] = []
    held = 0
    for place, one in enumerate(averages):
        if batch and (held + len(one.parts)) * width > BATCH_BYTES:
            yield batch
            batch, held = [], 0
        batch.append(place)
        held += len(one.parts)
    if batch:
        yield batch
