"""What an operation is: one function from a checkpoint to an outcome. It computes no weight."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from graftkit.architecture.correspondence import IDENTITY, Correspondence
from graftkit.architecture.dequantized import FORMATS, stored_as
from graftkit.architecture.index_map import IndexMap
from graftkit.checkpoint.adapter import Adapter
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.quantization import quantization_config
from graftkit.checkpoint.tensors import LazyTensor
from graftkit.checkpoint.tokenizer import Renamed
from graftkit.errors import InputRejected
from graftkit.verification.checks import Check
from graftkit.verification.kl_promise import KLPromise, weaker_kl
from graftkit.verification.promises import Promise, Scope
from graftkit.verification.subject import Progress, Replaced


@dataclass(frozen=True, slots=True)
class VocabularyOutcome:
    """How an operation changed the vocabulary: new ids by content, and the bound on the next-token distribution.

    ``eos_may_pad`` says that the pad token may be the end-of-sequence token. ``kl`` is called after the rows were computed,
    since the number of averaged rows is only known then; an operation that ``makes_rows`` of no id promises nothing of them.
    ``given_rows`` are tokens that were there before and have new rows now. ``renamed`` gives by its old name each token that has
    another one, and ``renamed_ids`` the id of each by that. ``moved`` says which ids were which, where some went. ``replaced`` is the
    tokenizer that took the place of all that was there before: what else is said is said of that. ``learned`` are those of the new
    tokens that are pieces of the tokenizer's model.
    """

    new_tokens: Mapping[str, int]
    special: frozenset[str]
    chat_template_changed: bool
    kl: Callable[[], KLPromise | None]
    eos_may_pad: bool = False
    given_rows: Mapping[str, int] = field(default_factory=dict)
    renamed: Mapping[str, Renamed] = field(default_factory=dict)
    renamed_ids: Mapping[str, int] = field(default_factory=dict)
    makes_rows: bool = True
    moved: IndexMap | None = None
    replaced: Replaced | None = None
    learned: frozenset[str] = frozenset()

    @property
    def untrained(self) -> tuple[int, ...]:
        """The ids of all tokens whose rows or meanings are new, ascending."""
        return tuple(sorted({*self.new_tokens.values(), *self.given_rows.values(), *self.renamed_ids.values()}))

    def then(self, later: VocabularyOutcome) -> VocabularyOutcome:
        """One change that stands for both, ``later`` coming behind."""
        if later.replaced is not None:
            return later
        if later.moved is not None:
            return self._moved(later.moved).then(replace(later, moved=None))
        special = {token for token in self.special if token not in later.renamed}
        special |= {now.content for old, now in later.renamed.items() if old in self.new_tokens and now.special}
        earlier = {now.content for now in self.renamed.values()} | {*self.new_tokens}
        renamed = {old: later.renamed.get(now.content, now) for old, now in self.renamed.items()}
        renamed |= {old: now for old, now in later.renamed.items() if old not in earlier}
        return VocabularyOutcome(
            {**later.under_new_names(self.new_tokens), **later.new_tokens},
            frozenset(special) | later.special,
            self.chat_template_changed or later.chat_template_changed,
            self._kl_with(later),
            self.eos_may_pad or later.eos_may_pad,
            {**later.under_new_names(self.given_rows), **later.given_rows},
            renamed,
            {**later.under_new_names(self.renamed_ids), **later.renamed_ids},
            self.makes_rows or later.makes_rows,
            replaced=self.replaced,
            learned=frozenset(token for token in self.learned if token not in later.renamed) | later.learned,
        )

    def _moved(self, ids: IndexMap) -> VocabularyOutcome:
        """The same change seen from behind one that left ids out; no bound holds of rows that are no longer among all of them."""
        places = [
            {token: place for token, index in held.items() if (place := ids.place(index)) is not None}
            for held in (self.new_tokens, self.given_rows, self.renamed_ids)
        ]
        gone = {token for token in self.new_tokens if token not in places[0]}
        lost = {
            now.content
            for now in self.renamed.values()
            if now.content in self.renamed_ids and now.content not in places[2]
        }
        return replace(
            self,
            new_tokens=places[0],
            special=self.special - gone,
            kl=lambda: None,
            replaced=self.replaced and self.replaced.then(ids),
            given_rows=places[1],
            renamed={old: now for old, now in self.renamed.items() if now.content not in lost},
            renamed_ids=places[2],
            learned=self.learned - gone,
        )

    def under_new_names(self, ids: Mapping[str, int]) -> dict[str, int]:
        """Ids of earlier tokens by what these are called now."""
        return {self.renamed[token].content if token in self.renamed else token: index for token, index in ids.items()}

    def _kl_with(self, later: VocabularyOutcome) -> Callable[[], KLPromise | None]:
        if not (self.makes_rows and later.makes_rows):
            return self.kl if self.makes_rows else later.kl
        return lambda: weaker_kl(self.kl(), later.kl())


def correspondence_of(outcomes: Iterable[Outcome]) -> Correspondence:
    """Which index is which after these operations, one behind the other."""
    return functools.reduce(Correspondence.then, (outcome.correspondence for outcome in outcomes), IDENTITY)


def vocabulary_of(outcomes: Iterable[Outcome]) -> VocabularyOutcome | None:
    """How these operations, one after the other, changed the vocabulary; None where none did."""
    changes = [outcome.vocabulary for outcome in outcomes if outcome.vocabulary]
    return functools.reduce(VocabularyOutcome.then, changes) if changes else None


@dataclass(frozen=True, slots=True)
class Outcome:
    """The new checkpoint, the promise, and what the plan and the report say about the operation.

    Attributes:
        checkpoint: the base after this operation; the identical object where it leaves the base as it is.
        promise: what it preserves.
        notes: sentences for the plan.
        correspondence: which index of ``checkpoint`` is which of the one that it was given.
        vocabulary: how it changed the vocabulary, if it did.
        adapter: the adapter that it makes, if it does.
        new_modules: names in memory of the modules whose every weight is new, such as ``classifier``.
        untied: ties ``(target, source)`` that it undoes on purpose, names in memory.
        scope: what of the outputs the general check compares.
        checks: checks of its own.
        prepare: called before anything is written, with a function that takes the share done: for what takes long.
        figures: called after writing; returns what was measured on the way.
        reads_weights: whether what it makes takes values of the base's weights.
        unpacked: by name on disk, the values that it reads from the base's own packed ones before it does anything with them.
    """

    checkpoint: Checkpoint
    promise: Promise
    notes: tuple[str, ...] = ()
    correspondence: Correspondence = IDENTITY
    vocabulary: VocabularyOutcome | None = None
    adapter: Adapter | None = None
    new_modules: tuple[str, ...] = ()
    untied: frozenset[tuple[str, str]] = frozenset()
    scope: Scope = Scope.EVERYTHING
    checks: tuple[Check, ...] = ()
    prepare: Callable[[Callable[[float], None]], None] | None = None
    figures: Callable[[], Mapping[str, Any]] = field(default=dict)
    reads_weights: bool = True
    unpacked: Mapping[str, LazyTensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Context:
    """What an operation may know besides its spec: the recipe's seed, its place in it, and what came before.

    Everything that is sampled is seeded by ``seed`` and ``place``. ``source`` is the checkpoint as opened and ``output`` the
    directory or URL that the recipe names. ``progress`` is called with what takes long already when it is planned, and the share done.
    """

    seed: int
    place: int
    source: Checkpoint
    output: str
    earlier: tuple[Outcome, ...] = ()
    progress: Progress | None = None


def check_plain_weights(checkpoint: Checkpoint, op: str, *, else_do: str = "dequantize it first ({convert})") -> None:
    """Refuse a quantized checkpoint where the operation ``op`` needs plain weights.

    ``else_do`` is what else can be done where the weights are of a format that is dequantized.

    Raises:
        InputRejected: config.json has a quantization_config.
    """
    if quantization_config(checkpoint.config) is None:
        return
    known = stored_as(checkpoint.config) in FORMATS
    way_out = f", or {else_do.format(convert='{op: convert, dequantize: true}')}" if known else ""
    raise InputRejected(
        f"{checkpoint.name}: config.json has a quantization_config; {op} needs plain weights: give the checkpoint that it was"
        f" quantized from{way_out}"
    )


class Operation(Protocol):
    """The contract of every operation."""

    def __call__(self, spec: Any, checkpoint: Checkpoint, context: Context) -> Outcome:
        """Return the outcome of ``spec`` on ``checkpoint``, or raise InputRejected or RecipeError."""
