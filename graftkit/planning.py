"""Plan: what a recipe would write, computed from headers, config and tokenizer alone."""

from __future__ import annotations

import contextlib
import functools
import gc
import itertools
import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from graftkit.architecture.accounting import account, refuse_unknown
from graftkit.architecture.correspondence import Correspondence
from graftkit.architecture.missing_rows import missing_rows_of
from graftkit.checkpoint.adapter import Adapter
from graftkit.checkpoint.changes import TensorChange, ValueChange, document_changes, tensor_changes
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.file_kinds import holds_values
from graftkit.checkpoint.pickled_weights import has_only_pickles, read_pickled_weights
from graftkit.checkpoint.write import bytes_to_write
from graftkit.errors import InputRejected, RecipeError, few, plural, printable
from graftkit.operations import IMPLEMENTATIONS, NEED_PLAIN_WEIGHTS, Context, Outcome
from graftkit.operations.base import VocabularyOutcome, check_plain_weights, correspondence_of, vocabulary_of
from graftkit.operations.combinations import check_combination
from graftkit.recipe import Recipe, load_recipe, parse_recipe
from graftkit.running import memory
from graftkit.running.paging import room
from graftkit.running.probes import KEPT_BYTES, LOGIT_BYTES
from graftkit.verification.composition import compose
from graftkit.verification.promises import Promise, Scope

#: Memory for planning and writing, whatever the model's size: pieces of tables in float64, and the tokenizer.
WRITING_BYTES = 300 << 20


@dataclass(frozen=True, slots=True)
class Plan:
    """What `apply` would write, computed from headers, config and tokenizer alone.

    ``table_note`` says which ids of the result's tokenizer have no row; empty where none lack one. ``unknown`` are tensors of
    the result that no class loads.
    """

    recipe: Recipe
    source: Checkpoint
    result: Checkpoint
    outcomes: tuple[Outcome, ...]
    promise: Promise
    table_note: str = ""
    unknown: tuple[str, ...] = ()

    @property
    def tensors(self) -> tuple[TensorChange, ...]:
        """Every tensor that is not taken over as it is, with the operation that changes it."""
        return tuple(
            replace(change, operation=self._operations_on(change.name))
            for change in tensor_changes(self.source, self.result)
        )

    def _operations_on(self, name: str) -> str:
        """The operations that made, replaced or dropped a tensor, in their order."""
        states = [self.source, *(outcome.checkpoint for outcome in self.outcomes)]
        changed = (new.tensors.get(name) is not old.tensors.get(name) for old, new in itertools.pairwise(states))
        ops = (spec.op for spec in self.recipe.operations)
        return ", ".join(dict.fromkeys(op for op, here in zip(ops, changed, strict=True) if here))

    @property
    def values(self) -> tuple[ValueChange, ...]:
        """Every value that changes in config, generation config and tokenizer files."""
        return document_changes(self.source, self.result)

    @property
    def bytes_taken_over(self) -> int:
        """Bytes of shards that are taken over whole."""
        return bytes_to_write(self.source, self.result)[0] if self.writes_base else 0

    @property
    def bytes_written(self) -> int:
        """Bytes of shards that are written anew, unchanged tensors in them copied as byte ranges; and of the adapter."""
        base = bytes_to_write(self.source, self.result)[1] if self.writes_base else 0
        return base + (self.adapter.nbytes if self.adapter else 0)

    @property
    def memory(self) -> int:
        """Bytes of memory that `apply` needs on top of the loaded libraries, about.

        Verifying outputs holds one model at a time and what the source gave, lens and signal hold both; writing holds pieces.
        Where models are paged in, outputs and lens hold no more than writing does.
        """
        wanted = self.recipe.verify
        both = (wanted.lens or wanted.signal) and Scope.NOTHING not in self.scope
        if not (both or self.compares_outputs):
            return WRITING_BYTES
        models = [room.checkpoint_nbytes(checkpoint) for checkpoint in (self.source, self.result)]
        whole = (sum(models) if both else max(models)) + KEPT_BYTES + LOGIT_BYTES
        paged = whole > memory.available() if self.paged is None else self.paged
        return WRITING_BYTES + KEPT_BYTES + LOGIT_BYTES if paged and not wanted.signal else whole

    @property
    def paged(self) -> bool | None:
        """Whether parameters are paged in; None where the memory that is free decides. Pickles are loaded whole."""
        if not all(shard.endswith(".safetensors") for shard in self.source.shards):
            return False
        return None if self.recipe.verify.paged == "auto" else self.recipe.verify.paged

    @property
    def compares_outputs(self) -> bool:
        """Whether the base's outputs are compared with the source's."""
        return self.recipe.verify.outputs and self.writes_base and Scope.NOTHING not in self.scope

    @property
    def adapter(self) -> Adapter | None:
        """The adapter that an operation makes, if one does."""
        return next((outcome.adapter for outcome in self.outcomes if outcome.adapter), None)

    @property
    def writes_base(self) -> bool:
        """Whether the base differs from the source, so that it is written beside the adapter."""
        return self.result is not self.source

    @property
    def scope(self) -> Scope:
        """What of the outputs is compared with the source's."""
        return functools.reduce(operator.or_, (outcome.scope for outcome in self.outcomes), Scope.EVERYTHING)

    @property
    def vocabulary(self) -> VocabularyOutcome | None:
        """How all operations together changed the vocabulary."""
        return vocabulary_of(self.outcomes)

    @property
    def correspondence(self) -> Correspondence:
        """Which index of the result is which of the source."""
        return correspondence_of(self.outcomes)

    @property
    def notes(self) -> tuple[str, ...]:
        """What to know of the operations, of ids without a row, and of trained values that lie beside the model."""
        own = (note for outcome in self.outcomes for note in outcome.notes)
        return (*own, *([self.table_note] if self.table_note else ()), *self._unknown_tensors(), *self._values_beside())

    def _unknown_tensors(self) -> Iterator[str]:
        if self.unknown:
            count = plural(len(self.unknown), "tensor")
            yield f"{count} that no class loads, so that no output shows them, carried byte for byte: {few(self.unknown)}"

    def _values_beside(self) -> Iterator[str]:
        """What becomes of heads and modules behind the model, whose values no operation reads."""
        beside = [path for path in self.result.carried if holds_values(path)] if self.writes_base else []
        if unread := [path for path in beside if "/" not in path]:
            yield f"{few(unread)}: trained values beside the model's weights, copied unread, byte for byte"
        changing = Scope.NOTHING | Scope.MEASURE
        if beside and any(outcome.scope & changing and not outcome.adapter for outcome in self.outcomes):
            one = len(beside) == 1
            yield (
                f"{few(beside)}: {'was' if one else 'were'} fitted to the source's outputs, which change here;"
                f" fit {'it' if one else 'them'} again"
            )

    @property
    def new_tokens(self) -> Mapping[str, int]:
        """Content of each new token -> its id."""
        return self.vocabulary.new_tokens if self.vocabulary else {}

    @property
    def renamed_tokens(self) -> dict[str, str]:
        """Old name of each renamed token -> its new one."""
        return {old: now.content for old, now in self.vocabulary.renamed.items()} if self.vocabulary else {}


def _as_recipe(recipe: Recipe | Mapping[str, Any] | str | Path) -> Recipe:
    return load_recipe(recipe) if isinstance(recipe, str | Path) else parse_recipe(recipe)


@contextlib.contextmanager
def _collector_paused() -> Iterator[None]:
    """Leave the cyclic collector out: what a plan makes stays, and it would walk over all of torch again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@_collector_paused()
def plan(recipe: Recipe | Mapping[str, Any] | str | Path, *, allow_pickle: bool = False) -> Plan:
    """Plan a recipe: read headers, config and tokenizer, no weights.

    With ``allow_pickle`` a recipe that begins with ``convert`` may have a base whose weights are pickles.

    Raises:
        RecipeError: the recipe is wrong, or asks for what this checkpoint has no place for.
        InputRejected: the checkpoint cannot be operated on.
    """
    recipe = _as_recipe(recipe)
    source = result = _open(recipe, allow_pickle=allow_pickle)
    outcomes: tuple[Outcome, ...] = ()
    for place, spec in enumerate(recipe.operations):
        context = Context(recipe.seed, place, source, Path(recipe.output), outcomes)
        if spec.op in NEED_PLAIN_WEIGHTS:
            check_plain_weights(result, spec.op)
        try:
            outcome = IMPLEMENTATIONS[spec.op](spec, result, context)
            outcome = check_combination(recipe.operations[: place + 1], source, outcomes, outcome)
        except RecipeError as error:
            raise error.in_operation(place, spec.op) from error
        result = outcome.checkpoint
        outcomes += (outcome,)
    unknown = _check_result(result, recipe) if result is not source else ()
    promise = compose([(outcome.promise, outcome.scope) for outcome in outcomes])
    return Plan(recipe, source, result, outcomes, promise, missing_rows_of(result), unknown)


def _open(recipe: Recipe, *, allow_pickle: bool) -> Checkpoint:
    """Open the base; pickles are read where the recipe converts them and whoever runs it trusts them.

    Raises:
        InputRejected: the base has only pickles, which the recipe converts, and nobody said that they may be read.
    """
    base = Path(recipe.base_model)
    if recipe.operations[0].op != "convert" or not has_only_pickles(base):
        return Checkpoint.open(recipe.base_model, revision=recipe.revision)
    if not allow_pickle:
        raise InputRejected(
            f"{printable(recipe.base_model)}: its weights are pickles, which can run code when they are read; convert reads them by"
            " torch's unpickler of weights, which runs none, with --allow-pickle on the command line"
        )
    return Checkpoint.open(recipe.base_model, revision=recipe.revision, read=read_pickled_weights)


def _check_result(result: Checkpoint, recipe: Recipe) -> tuple[str, ...]:
    """A skeleton built from the new config must have exactly the shapes of the result; every document must be readable.

    Returns the tensors that no class knows, where the recipe carries them.
    """
    dict(result.documents)
    try:
        structure = account(result)
    except InputRejected as error:
        raise InputRejected(f"the planned result would not load: {error}") from error
    if recipe.unknown_tensors == "refuse":
        refuse_unknown(result, structure)
    return structure.unknown
