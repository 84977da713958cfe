"""A plan: what applying a recipe would write, as a value."""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from graftkit.architecture.correspondence import Correspondence
from graftkit.architecture.peft.adapted import AdaptedGroup, adapted_groups
from graftkit.architecture.skeleton import build_skeleton
from graftkit.checkpoint.adapter import Adapter
from graftkit.checkpoint.changes import TensorChange, ValueChange, document_changes, tensor_changes
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.file_kinds import holds_values
from graftkit.checkpoint.inputs import Files
from graftkit.checkpoint.tokenizer import class_note
from graftkit.checkpoint.value_head import FILE as VALUE_HEAD
from graftkit.checkpoint.write import bytes_to_write
from graftkit.errors import few, plural
from graftkit.operations import Outcome
from graftkit.operations.base import VocabularyOutcome, correspondence_of, vocabulary_of
from graftkit.recipe import Recipe
from graftkit.recipe_file.request import Request
from graftkit.running import memory
from graftkit.running.paging import room
from graftkit.running.probes import KEPT_BYTES, LOGIT_BYTES
from graftkit.running.runnable import cannot_run
from graftkit.verification.promises import Promise, Scope

#: Memory for planning and writing, whatever the model's size: pieces of tables in float64, and the tokenizer.
WRITING_BYTES = 300 << 20


@dataclass(frozen=True, slots=True)
class Plan:
    """What `apply` would write, computed from headers, config and tokenizer alone.

    ``table_note`` says which ids of the result's tokenizer have no row; empty where none lack one. ``unknown`` are tensors of
    the result that no class loads; ``added`` is what the loader calls those new ones that its class leaves out. ``inputs`` are the
    files that the recipe reads, as they were when it was planned, and ``request`` is what its own file asked for. ``cannot_run`` says
    why a quantized source cannot be run on this machine, empty where it can.
    """

    recipe: Recipe
    source: Checkpoint
    result: Checkpoint
    outcomes: tuple[Outcome, ...]
    promise: Promise
    table_note: str = ""
    unknown: tuple[str, ...] = ()
    inputs: Mapping[str, Files] = field(default_factory=dict)
    added: frozenset[str] = frozenset()
    cannot_run: str = ""
    request: Request | None = None

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
        tensors = [state.all_tensors for state in states]
        changed = (new.get(name) is not old.get(name) for old, new in itertools.pairwise(tensors))
        ops = (spec.op for spec in self.recipe.operations)
        return ", ".join(dict.fromkeys(op for op, here in zip(ops, changed, strict=True) if here))

    @property
    def values(self) -> tuple[ValueChange, ...]:
        """Every value that changes in config, generation config and tokenizer files, and each file that does not come along."""
        kept = {*self.result.carried, *self.result.documents}
        gone = (path for path in self.source.carried if path not in kept)
        return (*document_changes(self.source, self.result), *(ValueChange(path, "", "a file", None) for path in gone))

    @property
    def in_memory(self) -> bool:
        """Whether a model in memory is operated on, and nothing is written."""
        return self.source.in_memory

    @property
    def bytes_taken_over(self) -> int:
        """Bytes of shards that are taken over whole; of tensors that a model in memory shares."""
        return self._base_bytes[0]

    @property
    def bytes_written(self) -> int:
        """Bytes of shards, or in memory of tensors, that are made anew, with what is copied into them; and of the adapter."""
        return self._base_bytes[1] + (self.adapter.nbytes if self.adapter else 0)

    @property
    def _base_bytes(self) -> tuple[int, int]:
        if not self.writes_base:
            return 0, 0
        if not self.in_memory:
            return bytes_to_write(self.source, self.result)
        before = {id(tensor) for tensor in self.source.tensors.values()}
        after = self.result.tensors.values()
        kept = sum(tensor.nbytes for tensor in after if id(tensor) in before)
        return kept, sum(tensor.nbytes for tensor in after) - kept

    @property
    def memory(self) -> int:
        """Bytes of memory that `apply` needs on top of the loaded libraries, about.

        Verifying outputs holds one model at a time and what the source gave, lens and signal hold both; writing holds pieces.
        Where models are paged in, outputs and lens hold no more than writing does.
        """
        wanted = self.recipe.verify
        in_float64 = wanted.lens or (wanted.outputs and self.scope.in_float64)
        both = (in_float64 or wanted.signal) and Scope.NOTHING not in self.scope
        if not (both or self.compares_outputs):
            return WRITING_BYTES
        if self.in_memory and not both:
            return self.bytes_written + KEPT_BYTES + LOGIT_BYTES
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
    def reads_weights(self) -> bool:
        """Whether `apply` takes values of the base's weights: to write it anew, to make an adapter, or to run it."""
        wanted = self.recipe.verify
        looks = wanted.lens or wanted.signal or wanted.first_step
        made = self.writes_base or any(outcome.reads_weights for outcome in self.outcomes)
        return made or looks or (wanted.outputs and not cannot_run(self.source))

    @property
    def compares_outputs(self) -> bool:
        """Whether the base's outputs are compared with the source's."""
        wanted = self.recipe.verify.outputs and self.writes_base and Scope.NOTHING not in self.scope
        return wanted and not self.cannot_run

    @property
    def adapter(self) -> Adapter | None:
        """The adapter that an operation makes, if one does."""
        return next((outcome.adapter for outcome in self.outcomes if outcome.adapter), None)

    @property
    def adapted(self) -> tuple[AdaptedGroup, ...]:
        """What the adapter trains, by module of its base; empty where no adapter is made."""
        return adapted_groups(self.adapter, build_skeleton(self.result.config)) if self.adapter else ()

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
        """What to know of the operations, of the tokenizer, of ids without a row, and of trained values beside the model."""
        own = (note for outcome in self.outcomes for note in outcome.notes)
        tables = [self.table_note] if self.table_note else []
        return (*own, *tables, *class_note(self.result.documents), *self._unknown_tensors(), *self._values_beside())

    def _unknown_tensors(self) -> Iterator[str]:
        if self.unknown:
            count = plural(len(self.unknown), "tensor")
            yield f"{count} that no class loads, so that no output shows them, carried byte for byte: {few(self.unknown)}"

    def _values_beside(self) -> Iterator[str]:
        """What becomes of heads and modules behind the model, whose values no operation reads."""
        kept = [VALUE_HEAD] if self.result.value_head and self.result.value_head is self.source.value_head else []
        beside = [*(path for path in self.result.carried if holds_values(path)), *kept] if self.writes_base else []
        if unread := [path for path in beside if "/" not in path]:
            yield f"{few(unread)}: trained values beside the model's weights, copied unread, byte for byte"
        changing = Scope.NOTHING | Scope.MEASURE
        if beside and any(outcome.scope & changing and not outcome.adapter for outcome in self.outcomes):
            one = len(beside) == 1
            yield (
                f"{few(beside)}: {'was' if one else 'were'} fitted to the source's outputs, which change here;"
                f" fit {'it' if one else 'them'} again"
            )

    def __repr__(self) -> str:
        """What `graftkit plan` prints."""
        from graftkit.report.terminal import plan_text

        return plan_text(self)

    def _repr_html_(self) -> str:
        """The top of the page, for notebooks."""
        from graftkit.report.report import plan_html

        return plan_html(self)

    @property
    def new_tokens(self) -> Mapping[str, int]:
        """Content of each new token -> its id."""
        return self.vocabulary.new_tokens if self.vocabulary else {}

    @property
    def renamed_tokens(self) -> dict[str, str]:
        """Old name of each renamed token -> its new one."""
        return {old: now.content for old, now in self.vocabulary.renamed.items()} if self.vocabulary else {}
