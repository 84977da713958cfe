"""The rows of new token ids, for every tensor that is indexed by the vocabulary: computed when they are written."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from graftkit.architecture.vocabulary import Vocabulary, VocabularyTensor
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.computed import TensorGroup
from graftkit.checkpoint.reading import read_ids, row_chunks, torch_dtype
from graftkit.checkpoint.tensors import LazyTensor
from graftkit.initializers import rows as schemes
from graftkit.initializers.seeding import seed_of
from graftkit.initializers.statistics import TableStatistics, table_statistics
from graftkit.operations.vocabulary.new_row import Choice, NewRow
from graftkit.recipe import Copy, Describe, Mean, MeanCov, Normal, SubwordMean, Zeros
from graftkit.recipe.schemes import Distill, SchemeSpec
from graftkit.verification.checks import Check
from graftkit.verification.kl_promise import KLPromise
from graftkit.verification.tokens.averaged_rows import Average, AveragedRowsCheck

if TYPE_CHECKING:
    from torch import Tensor

    from graftkit.operations.vocabulary.distillation import Distillation

CONVEX = (Mean, SubwordMean, Describe, Copy)


@dataclass
class RowMaker:
    """Makes the new rows of each vocabulary tensor on demand; statistics of a table are read once and kept.

    ``live_ids`` is how many ids the tokenizer has with a row; what stood in the rows that are ``left_out`` counts nowhere. These are
    by default those that are made anew. ``distillation`` fits input rows to texts, where a scheme asks for it.
    """

    checkpoint: Checkpoint
    vocabulary: Vocabulary
    live_ids: int
    rows: Sequence[NewRow]
    seed: tuple[int, int]
    left_out: Collection[int] | None = None
    distillation: Distillation | None = None
    _statistics: dict[str, TableStatistics] = field(default_factory=dict)
    _groups: dict[str, TensorGroup] = field(default_factory=dict)
    _progress: Callable[[float], None] = field(default=lambda _: None)

    def __post_init__(self) -> None:
        self.rows = tuple(sorted(self.rows, key=lambda row: row.index))

    @property
    def ids(self) -> tuple[int, ...]:
        """The ids whose rows are new, ascending."""
        return tuple(row.index for row in self.rows)

    def values(self, item: VocabularyTensor) -> Tensor:
        """The new rows of ``item`` as they are stored, computed once. *Shape:* ``(len(rows), d)``."""
        found: Tensor = self._groups.setdefault(item.name, TensorGroup(lambda: (self._make(item),)))()[0]
        return found

    def prepare(self, progress: Callable[[float], None]) -> None:
        """Make all rows, which takes long where they are fitted or a donor's are combined; ``progress`` is told the share done."""
        items = self.vocabulary.tensors
        for place, item in enumerate(items):
            self._progress = lambda share, place=place: progress((place + share) / len(items))  # type: ignore[misc]
            self.values(item)
            progress((place + 1) / len(items))

    @property
    def checks(self) -> tuple[Check, ...]:
        """Checks of how rows were made: of averages, and one where rows are fitted."""
        fitted = () if self.distillation is None else (self.distillation.check(),)
        return (AveragedRowsCheck(self.checkpoint, self.averages), *fitted)

    def averages(self) -> dict[VocabularyTensor, list[Average]]:
        """The rows of each table that are means of old tokens' rows; fitted ones began as such and are none any more."""
        return {
            item: [
                Average(row.content, row.index, parts)
                for row in self.rows
                if row.content is not None
                and (parts := self._choice(row, item).pieces)
                and not self._is_fitted(row, item)
            ]
            for item in self.vocabulary.tensors
        }

    def statistics(self, item: VocabularyTensor) -> TableStatistics:
        """Statistics of a table's tokenized rows; a bias has those of the rows that its output table calls live."""
        if item.name not in self._statistics:
            source = _source(self.table(item), item.axis, self.live_ids)
            if self.is_bias(item):
                self._statistics[item.name] = _bias_statistics(source, self.statistics(self._output_table()))
            else:
                left_out = self.ids if self.left_out is None else self.left_out
                self._statistics[item.name] = table_statistics(source, self.live_ids, left_out)
        return self._statistics[item.name]

    def kl_promise(self) -> KLPromise | None:
        """Which bound of the next-token distribution holds for the output rows, with the number of rows averaged."""
        if not self.vocabulary.has_output or not self.rows:
            return None
        table = self._output_table()
        choices = [self._choice(row, table).scheme for row in self.rows]
        statistics = self.statistics(table)
        if all(isinstance(scheme, Mean) for scheme in choices):
            live = statistics.live.nonzero().flatten()
            return KLPromise(
                "mean", statistics.count, tuple(live.tolist()) if statistics.count < self.live_ids else None
            )
        return KLPromise("convex") if all(isinstance(scheme, CONVEX) for scheme in choices) else None

    def figures(self) -> Mapping[str, Any]:
        """What was found in each table: live rows, rows left out and why, and the spread; and what was fitted."""
        fitted = {} if self.distillation is None else {"distilled": self.distillation.figures}
        tables = {
            name: {
                "rows_averaged": s.count, "zero": s.zero, "small": s.small, "duplicates": s.duplicates,
                "all_used": s.all_used, "std": s.std, "mean_norm": float(s.mean.norm()),
            }
            for name, s in ((item.name, self._statistics.get(item.name)) for item in self.vocabulary.tensors)
            if s is not None
        }  # fmt: skip
        return {**tables, **fitted}

    def table(self, item: VocabularyTensor) -> LazyTensor:
        """The tensor of ``item``, as it was before the new rows."""
        return self.checkpoint.tensors[item.name]

    def is_bias(self, item: VocabularyTensor) -> bool:
        """Whether it holds one value for each id."""
        return self.table(item).nbytes == self.vocabulary.rows * _item_bytes(self.table(item))

    def _output_table(self) -> VocabularyTensor:
        return (self.vocabulary.of_role("output") or self.vocabulary.of_role("input"))[0]

    def _choice(self, row: NewRow, item: VocabularyTensor) -> Choice:
        if item.role == "sibling":
            return Choice(Mean())
        tied = self.vocabulary.tied or not self.vocabulary.has_output
        return row.input if item.role in ("input", "further_input") or tied else row.output

    def _is_fitted(self, row: NewRow, item: VocabularyTensor) -> bool:
        """Whether hidden states are fitted by it; a bias of the head comes behind them."""
        fits = self.distillation is not None and not self.is_bias(item)
        return fits and isinstance(self._choice(row, item).scheme, Distill)

    def _make(self, item: VocabularyTensor) -> Tensor:
        """All rows as they are stored. *Shape:* ``(len(rows), d)``."""
        made = self._rows(item, self.rows)
        fitted = [place for place, row in enumerate(self.rows) if self._is_fitted(row, item)]
        if self.distillation is not None and fitted:
            made = self.distillation.fit(made, self.ids, fitted, self._progress)
        return made.to(torch_dtype(self.table(item).dtype))

    def _rows(self, item: VocabularyTensor, rows: Sequence[NewRow]) -> Tensor:
        """Some of the rows in float64, as they are before any is fitted. *Shape:* ``(len(rows), d)``."""
        import torch

        made = torch.empty(len(rows), math.prod(self.table(item).shape[item.axis + 1 :]), dtype=torch.float64)
        groups: dict[SchemeSpec, list[int]] = {}
        for position, row in enumerate(rows):
            groups.setdefault(self._choice(row, item).scheme, []).append(position)
        for scheme, positions in groups.items():
            made[positions] = self._scheme_rows(scheme, item, [rows[position] for position in positions])
        return made

    def _scheme_rows(self, scheme: SchemeSpec, item: VocabularyTensor, rows: list[NewRow]) -> Tensor:
        source = _source(self.table(item), item.axis, self.live_ids)
        seeds = [seed_of(*self.seed, item.role, row.index) for row in rows]
        sampled = not self.is_bias(item)
        match scheme:
            case Zeros():
                return schemes.zeros(self.statistics(item), len(rows))
            case Normal(std=std) if sampled:
                return schemes.normal(self.statistics(item), seeds, std)
            case MeanCov(eps=eps) if sampled:
                return schemes.mean_cov(source, self.statistics(item), seeds, eps)
            case SubwordMean() | Describe() | Copy() | Distill():
                return self._averages(item, [self._choice(row, item).pieces for row in rows])
            case _:
                return schemes.mean(self.statistics(item), len(rows))

    def _averages(self, item: VocabularyTensor, pieces: Sequence[tuple[int, ...]]) -> Tensor:
        """The mean of the old rows of each of these groups."""
        import torch

        used = sorted({index for group in pieces for index in group})
        old = read_ids(self.table(item), used, item.axis)
        places = {index: place for place, index in enumerate(used)}
        means = torch.zeros(len(pieces), old.shape[1], dtype=torch.float64)
        for place, group in enumerate(pieces):
            for index in group:
                means[place] += old[places[index]]
            means[place] /= len(group)
        return means


def _item_bytes(stored: LazyTensor) -> int:
    return stored.nbytes // math.prod(stored.shape)


def _source(stored: LazyTensor, axis: int, size: int) -> Callable[[], Iterator[tuple[int, Tensor]]]:
    return lambda: row_chunks(stored, axis, size)


def _bias_statistics(source: Callable[[], Iterator[tuple[int, Tensor]]], table: TableStatistics) -> TableStatistics:
    import torch

    values = torch.cat([chunk for _, chunk in source()]).double()[table.live]
    mean = values.mean(0)
    return TableStatistics(
        table.size, table.live, mean, float((values - mean).square().mean().sqrt()), table.norms,
        torch.zeros_like(table.kinds), table.all_used,
    )  # fmt: skip
