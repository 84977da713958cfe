"""Two checkpoints, no recipe: `diff` says what differs, streamed; `verify` runs the checks between them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graftkit.checkpoint.changes import ValueChange, document_changes
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.tokenizer import read_tokenizer
from graftkit.errors import InputRejected, VerificationFailed
from graftkit.verification.documents import Allowed, check_documents
from graftkit.verification.new_rows import check_new_biases
from graftkit.verification.outputs import OutputsReport, compare_outputs
from graftkit.verification.tensors import TensorDifference, changed_tensors, tensor_difference
from graftkit.verification.tokenization import TokenizationReport, check_tokenization
from graftkit.verification.vocabulary import VocabularyChange

if TYPE_CHECKING:
    from graftkit.verification.checks import CheckReport
    from graftkit.verification.lens.report import LensReport
    from graftkit.verification.signal.report import SignalReport

#: The checks between two checkpoints, in the order in which they run.
CHECKS = ("bytes", "config", "tokenizer", "outputs")


@dataclass(frozen=True, slots=True)
class Difference:
    """What differs between two checkpoints: values of documents, and tensors; ``equal`` counts the equal tensors."""

    values: tuple[ValueChange, ...]
    tensors: tuple[TensorDifference, ...]
    equal: int


def diff(before: str, after: str) -> Difference:
    """Compare config, tokenizer and tensors of two checkpoints, a bounded piece at a time.

    Raises:
        InputRejected: one of them cannot be opened.
    """
    return _diff(Checkpoint.open(before), Checkpoint.open(after))


def _diff(old: Checkpoint, new: Checkpoint) -> Difference:
    tensors, equal = [], 0
    for name in dict.fromkeys([*old.tensors, *new.tensors]):
        found = tensor_difference(name, old.tensors.get(name), new.tensors.get(name))
        if found is None:
            equal += 1
        else:
            tensors.append(found)
    return Difference(document_changes(old, new), tuple(tensors), equal)


@dataclass(frozen=True, slots=True)
class Verification:
    """What :func:`verify` measured between two checkpoints.

    ``found`` gives one sentence for each thing that each check of :data:`CHECKS` found wrong; a check that was left out
    is not in it. ``outputs``, ``lens`` and ``signal`` are None where they were left out or the second checkpoint does not run.
    """

    difference: Difference
    tokenization: TokenizationReport | None
    outputs: OutputsReport | None
    found: Mapping[str, tuple[str, ...]]
    lens: LensReport | None = None
    signal: SignalReport | None = None

    @property
    def checks(self) -> tuple[CheckReport, ...]:
        """What was measured beside :data:`CHECKS`."""
        return tuple(check for check in (self.lens, self.signal) if check is not None)

    @property
    def left_out(self) -> tuple[str, ...]:
        """The checks of :data:`CHECKS` that were not run."""
        return tuple(check for check in CHECKS if check not in self.found)

    @property
    def failures(self) -> tuple[str, ...]:
        """One sentence for each thing found; empty when the second checkpoint does what the first did."""
        return tuple(sentence for sentences in self.found.values() for sentence in sentences)


def verify(
    before: str,
    after: str,
    *,
    outputs: bool = True,
    leave_out: Collection[str] = (),
    lens: bool = False,
    signal: bool = False,
    device: str | None = None,
    paged: bool | None = None,
    progress: Callable[[str, float], None] | None = None,
) -> Verification:
    """Check that ``after`` does what ``before`` did, for the old vocabulary, without a recipe.

    ``leave_out`` names checks of :data:`CHECKS` that are not run; ``outputs=False`` leaves that one out.
    ``lens`` adds the comparison in float64, ``signal`` how it travels through the blocks, both on ``device``. With
    ``paged`` parameters are read from the files as the forwards ask for them; None lets the memory that is free
    decide.

    Raises:
        InputRejected: one of them cannot be opened.
        RecipeError: there is no such device.
    """
    from graftkit.architecture.vocabulary import find_vocabulary

    if lens or signal:
        from graftkit.verification.lens.setting import device_of

        device_of(device)
    left_out = {*leave_out, *(() if outputs else ("outputs",))}
    old, new = Checkpoint.open(before), Checkpoint.open(after)
    old_vocabulary, new_vocabulary = find_vocabulary(old), find_vocabulary(new)
    first, second = read_tokenizer(old.documents), read_tokenizer(new.documents)
    if new_vocabulary.rows < old_vocabulary.rows:
        raise InputRejected(
            f"{after}: has {new_vocabulary.rows} rows, fewer than the {old_vocabulary.rows} of {before}"
        )
    change = _change(old_vocabulary.rows, new_vocabulary.rows, first.size, second.size)
    found: dict[str, tuple[str, ...]] = {}
    tokenization = measured = None
    if "bytes" not in left_out:
        axes = {item.name: item.axis for item in old_vocabulary.tensors}
        forgotten = check_new_biases(new, new_vocabulary, change.fresh, first.size)
        found["bytes"] = (*changed_tensors(old, new, axes, frozenset(change.fresh)), *forgotten)
    if "config" not in left_out:
        found["config"] = tuple(check_documents(old, new, Allowed(change, first, second)))
    if "tokenizer" not in left_out:
        new_ids = {second.token_of(index): index for index in range(first.size, second.size)}
        tokenization = check_tokenization(
            old.directory,
            new.directory,
            new={token: index for token, index in new_ids.items() if token is not None},
            special=frozenset(),
            chat_template_changed=not any(_chat_templates(old)) and any(_chat_templates(new)),
        )
        found["tokenizer"] = tokenization.failures
    if "outputs" not in left_out:
        measured, found["outputs"] = _outputs(old, new, change, paged, progress)
    seen = travelled = None
    if lens:
        seen, found["lens"] = _lens(old, new, change, device, paged, progress)
    if signal:
        travelled, found["signal"] = _signal(old, new, change, device, progress)
    return Verification(_diff(old, new), tokenization, measured, found, seen, travelled)


def _change(old_rows: int, new_rows: int, old_ids: int, new_ids: int) -> VocabularyChange:
    """The ids that only the second tokenizer has, and rows behind both tokenizers that only the second table has, are fresh."""
    fresh = {*range(old_ids, new_ids), *range(max(new_ids, old_rows), new_rows)}
    return VocabularyChange(old_rows, new_rows, old_ids, tuple(sorted(fresh)))


def _signal(
    old: Checkpoint, new: Checkpoint, change: VocabularyChange, device: str | None,
    progress: Callable[[str, float], None] | None,
) -> tuple[SignalReport | None, tuple[str, ...]]:  # fmt: skip
    from graftkit.verification.signal import compare_signal

    try:
        seen = compare_signal(old.directory, new.directory, vocabulary=change, device=device, progress=progress)
    except VerificationFailed as error:
        return None, (str(error),)
    return seen, tuple(seen.failures)


def _lens(
    old: Checkpoint, new: Checkpoint, change: VocabularyChange, device: str | None, paged: bool | None,
    progress: Callable[[str, float], None] | None,
) -> tuple[LensReport | None, tuple[str, ...]]:  # fmt: skip
    from graftkit.verification.lens.lens import compare_lens

    try:
        seen = compare_lens(
            old.directory, new.directory, vocabulary=change, device=device, paged=paged, progress=progress
        )
    except VerificationFailed as error:
        return None, (str(error),)
    return seen, seen.failures


def _outputs(
    old: Checkpoint, new: Checkpoint, change: VocabularyChange, paged: bool | None,
    progress: Callable[[str, float], None] | None,
) -> tuple[OutputsReport | None, tuple[str, ...]]:  # fmt: skip
    """What was measured and found; a second checkpoint that does not load or run is found, and nothing is measured."""
    try:
        measured = compare_outputs(
            old.directory, new.directory, vocabulary=change, kl=None, paged=paged, progress=progress
        )
    except VerificationFailed as error:
        return None, (str(error),)
    return measured, measured.failures


def _chat_templates(checkpoint: Checkpoint) -> tuple[object, ...]:
    documents = checkpoint.documents
    inside = documents.get("tokenizer_config.json", {}).get("chat_template")
    return documents.get("chat_template.jinja"), documents.get("chat_template.json"), inside
