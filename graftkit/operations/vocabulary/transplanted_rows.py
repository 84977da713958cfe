"""The rows of a donor's tokens in the tables of a base: the base's own for shared ones, the others by scheme."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from graftkit.architecture.vocabulary import VocabularyTensor
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.computed import as_bytes
from graftkit.checkpoint.gathered import gather_rows
from graftkit.checkpoint.reading import read_ids, torch_dtype
from graftkit.checkpoint.tensors import LazyTensor, Rows
from graftkit.checkpoint.tokenizer.segmentation import Segmentation
from graftkit.checkpoint.tokenizer.spelling import Spelling
from graftkit.initializers import rows as schemes
from graftkit.initializers.one_thread import begin_thread
from graftkit.operations.vocabulary.distillation import Distillation
from graftkit.operations.vocabulary.donor_space import Combined, DonorSpace
from graftkit.operations.vocabulary.new_row import Choice, NewRow
from graftkit.operations.vocabulary.rows import RowMaker
from graftkit.recipe import Mean, SubwordMean
from graftkit.recipe.schemes import Distill, SchemeSpec
from graftkit.recipe.transplant_tokenizer import Fvt, Omp
from graftkit.verification.checks import Check
from graftkit.verification.tokens.averaged_rows import Average, AveragedRowsCheck

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class TransplantedRows(RowMaker):
    """Makes the rows of the donor's ids that no token of the base has; ``space`` are the donor's tables, where the scheme asks.

    A table of a whole vocabulary is made a part at a time and never held, but where its rows are fitted.
    """

    space: DonorSpace | None = None
    _schemes: dict[str, frozenset[type]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def part(self, item: VocabularyTensor, start: int, stop: int) -> Tensor:
        """The rows from ``start`` to ``stop`` of those that are made, as they are stored. *Shape:* ``(stop - start, d)``."""
        self._begin(item)
        if Distill in self._schemes[item.name]:
            return self.values(item)[start:stop]
        return self._rows(item, self.rows[start:stop]).to(torch_dtype(self.table(item).dtype))

    def prepare(self, progress: Callable[[float], None]) -> None:
        """Find what the parts of each table are made of, which takes long where rows are fitted or a donor's are combined."""
        items = self.vocabulary.tensors
        for place, item in enumerate(items):
            self._progress = lambda share, place=place: progress((place + share) / len(items))  # type: ignore[misc]
            self._begin(item)
            progress((place + 1) / len(items))

    def _begin(self, item: VocabularyTensor) -> None:
        with self._lock:
            if item.name in self._schemes:
                return
            begin_thread()
            kinds = frozenset(type(self._choice(row, item).scheme) for row in self.rows)
            self.statistics(item)
            if Omp in kinds:
                self.combined(item)
            if Distill in kinds:
                self.values(item)
            self._schemes[item.name] = kinds

    def _scheme_rows(self, scheme: SchemeSpec, item: VocabularyTensor, rows: list[NewRow]) -> Tensor:
        if not isinstance(scheme, Omp) or self.space is None:
            return super()._scheme_rows(scheme, item, rows)
        made = schemes.mean(self.statistics(item), len(rows)).clone()
        combined = self.combined(item)
        known = [place for place, row in enumerate(rows) if row.index in combined.places]
        read = functools.partial(read_ids, self.table(item), axis=item.axis)
        made[known] = combined.rows([rows[place].index for place in known], read)
        return made

    def combined(self, item: VocabularyTensor) -> Combined:
        """The combinations for a tensor: a bias has those of the rows that its output table has."""
        if self.space is None:
            raise ValueError("no scheme asks for the donor's tables")
        table = self._output_table() if self.is_bias(item) else item
        return self.space.combine(item.role, self.statistics(table))


@dataclass
class Transplant:
    """Which row of the base ``before`` each id of the result has (``origins``), and ``make``, which gives the maker of the others.

    ``distillation`` is what the maker fits them with, where that is asked for.
    """

    before: Checkpoint
    origins: tuple[int | None, ...]
    make: Callable[[], TransplantedRows]
    distillation: Distillation | None = None

    @functools.cached_property
    def maker(self) -> TransplantedRows:
        """The maker, which looks at texts when it is first asked for."""
        return self.make()

    def tensors(self, tables: Mapping[VocabularyTensor, LazyTensor]) -> Iterator[tuple[str, LazyTensor]]:
        """Yield each table by name, with its rows in the donor's order."""
        for item, table in tables.items():
            yield item.name, gather_rows(table, axis=item.axis, origins=self.origins, produce=self._bytes(item))

    @property
    def checks(self) -> tuple[Check, ...]:
        """Checks of how the rows were made: of averages, and one where rows are fitted."""
        fitted = () if self.distillation is None else (self.distillation.check(),)
        return (AveragedRowsCheck(self.before, self._averages), *fitted)

    def _averages(self) -> dict[VocabularyTensor, list[Average]]:
        return self.maker.averages()

    def _bytes(self, item: VocabularyTensor) -> Rows:
        return lambda start, stop: as_bytes(self.maker.part(item, start, stop))

    def prepare(self, progress: Callable[[float], None]) -> None:
        """Find what rows are made of, which takes long where they are fitted or the donor's are combined."""
        self.maker.prepare(progress)

    def figures(self) -> Mapping[str, Any]:
        """What was found of each table, and of the donor's."""
        space = self.maker.space
        return {**self.maker.figures(), **({"donor": space.figures()} if space else {})}


def new_rows(
    ids: Sequence[int], scheme: SchemeSpec, base: Spelling, donor: Spelling, wanted: Sequence[int]
) -> Iterator[NewRow]:
    """Yield how the row of each of the donor's ``ids`` is made.

    Special tokens have no text, and some tokens never stand in one: ``fvt`` gives them the mean. ``wanted`` are those that ``omp``
    combines. ``distill`` fits input rows alone; output rows stay the means that it begins with.
    """
    segmentation = Segmentation(base)
    combined = frozenset(wanted)
    for index in ids:
        choice = output = Choice(Mean())
        if isinstance(scheme, Fvt | Distill) and index in donor.texts and index not in donor.unused:
            if pieces := segmentation.pieces(donor.texts[index]):
                choice = output = Choice(SubwordMean(), pieces)
                choice = Choice(scheme, pieces) if isinstance(scheme, Distill) else choice
        elif isinstance(scheme, Omp) and index in combined:
            choice = output = Choice(scheme)
        yield NewRow(index, donor.files.token_of(index), choice, output)
