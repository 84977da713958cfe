"""The rows of new token ids, for every tensor that is indexed by the vocabulary: computed when they are written."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from graftkit.architecture.vocabulary import Vocabulary, VocabularyTensor
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.computed import TensorGroup
from graftkit.checkpoint.reading import read_rows, row_chunks, torch_dtype
from graftkit.checkpoint.tensors import LazyTensor
from graftkit.checkpoint.tokenizer import TokenizerFiles
from graftkit.checkpoint.tokenizer.pieces import Piece
from graftkit.errors import RecipeError, printable
from graftkit.initializers import rows as schemes
from graftkit.initializers.seeding import seed_of
from graftkit.initializers.statistics import TableStatistics, table_statistics
from graftkit.recipe import Copy, Describe, Mean, MeanCov, Normal, Scheme, SubwordMean, Zeros
from graftkit.recipe.schemes import SchemeSpec
from graftkit.verification.kl_promise import KLPromise

if TYPE_CHECKING:
    from torch import Tensor

CONVEX = (Mean, SubwordMean, Describe, Copy)


@dataclass(frozen=True, slots=True)
class Choice:
    """A scheme together with the old ids that it averages; empty for schemes that use the whole table."""

    scheme: SchemeSpec
    pieces: tuple[int, ...] = ()

    @classmethod
    def look_up(cls, scheme: Scheme, content: str | None, tokenizer: TokenizerFiles) -> Self:
        """Look up the old ids that ``scheme`` needs, in the tokenizer as it was before the token had a row."""
        match scheme:
            case SubwordMean():
                pieces = _encode(tokenizer, content or "", f"token {content!r}")
            case Describe(text=text):
                text = text or _words(content or "")
                pieces = _encode(tokenizer, text, f"description {text!r}")
            case Copy(token=token):
                index = tokenizer.id_of(token)
                if index is None:
                    raise RecipeError(f"copy: the tokenizer has no token {printable(token)!r} with a row", field="init")
                pieces = (index,)
            case _:
                pieces = ()
        return cls(scheme, pieces)


def _words(name: str) -> str:
    """The words in the name of a token, ``tool call`` for ``<|tool_call|>``."""
    words = " ".join(re.findall(r"[^\W_]+", name))
    if not words:
        raise RecipeError(f"describe: the name {printable(name)!r} holds no word; give text", field="init")
    return words


def _encode(tokenizer: TokenizerFiles, text: str, what: str) -> tuple[int, ...]:
    pieces = tuple(index for index in tokenizer.encode(text) if index in tokenizer.tokens)
    if not pieces:
        raise RecipeError(f"{printable(what)} has no old token to average; choose another init")
    return pieces


@dataclass(frozen=True, slots=True)
class NewRow:
    """One new id: its token (None for appended padding) and how its input and output rows are made."""

    index: int
    content: str | None
    input: Choice
    output: Choice

    @classmethod
    def of_piece(
        cls, index: int, piece: Piece, text: str, init: Scheme, output: Scheme, tokenizer: TokenizerFiles
    ) -> Self:
        """The row of a learned piece, which stands for its old parts and reads as ``text``."""
        parts = tuple(part for part in piece.parts if part in tokenizer.tokens)
        choices = [
            Choice(scheme, parts)
            if isinstance(scheme, SubwordMean) and parts
            else Choice.look_up(scheme, text, tokenizer)
            for scheme in (init, output)
        ]
        return cls(index, piece.content, *choices)

    @classmethod
    def resolve(cls, index: int, content: str | None, init: Scheme, output: Scheme, tokenizer: TokenizerFiles) -> Self:
        """Resolve both schemes against the old tokenizer."""
        return cls(index, content, Choice.look_up(init, content, tokenizer), Choice.look_up(output, content, tokenizer))


@dataclass
class RowMaker:
    """Makes the new rows of each vocabulary tensor on demand; statistics of a table are read once and kept.

    ``live_ids`` is how many ids the tokenizer has with a row; what stood in the rows that are ``left_out`` counts nowhere. These are
    by default those that are made anew.
    """

    checkpoint: Checkpoint
    vocabulary: Vocabulary
    live_ids: int
    rows: Sequence[NewRow]
    seed: tuple[int, int]
    left_out: Collection[int] | None = None
    _statistics: dict[str, TableStatistics] = field(default_factory=dict)
    _groups: dict[str, TensorGroup] = field(default_factory=dict)

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
        """What was found in each table: live rows, rows left out and why, and the spread."""
        return {
            name: {
                "rows_averaged": s.count, "zero": s.zero, "small": s.small, "duplicates": s.duplicates,
                "all_used": s.all_used, "std": s.std, "mean_norm": float(s.mean.norm()),
            }
            for name, s in ((item.name, self._statistics.get(item.name)) for item in self.vocabulary.tensors)
            if s is not None
        }  # fmt: skip

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

    def _make(self, item: VocabularyTensor) -> Tensor:
        """Rows in float64, cast once to the stored dtype. *Shape:* ``(len(rows), d)``."""
        import torch

        stored = self.table(item)
        made = torch.empty(
            len(self.rows), stored.nbytes // stored.shape[item.axis] // _item_bytes(stored), dtype=torch.float64
        )
        groups: dict[SchemeSpec, list[int]] = {}
        for position, row in enumerate(self.rows):
            groups.setdefault(self._choice(row, item).scheme, []).append(position)
        for scheme, positions in groups.items():
            made[positions] = self._scheme_rows(scheme, item, [self.rows[position] for position in positions])
        return made.to(torch_dtype(stored.dtype))

    def _scheme_rows(self, scheme: SchemeSpec, item: VocabularyTensor, rows: list[NewRow]) -> Tensor:
        import torch

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
            case SubwordMean() | Describe() | Copy():
                return torch.stack([self._average(item, self._choice(row, item).pieces) for row in rows])
            case _:
                return schemes.mean(self.statistics(item), len(rows))

    def _average(self, item: VocabularyTensor, pieces: tuple[int, ...]) -> Tensor:
        stored = self.table(item)
        rows = [read_rows(stored, item.axis, piece, piece + 1)[0].double() for piece in pieces]
        return sum(rows, rows[0].new_zeros(rows[0].shape)) / len(rows)


def _item_bytes(stored: LazyTensor) -> int:
    import math

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
