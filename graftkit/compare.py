"""Two checkpoints, no recipe: `diff` says what differs, streamed; `verify` runs the checks between them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from graftkit.checkpoint.changes import ValueChange, document_changes
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.reading import chunks, read_range, row_chunks, torch_dtype
from graftkit.checkpoint.tensors import FLOATING, LazyTensor, Stored
from graftkit.checkpoint.tokenizer import read_tokenizer
from graftkit.errors import InputRejected, printable
from graftkit.verify.outputs import OutputsReport, compare_outputs
from graftkit.verify.tokenization import TokenizationReport, check_tokenization
from graftkit.verify.vocabulary import VocabularyChange


@dataclass(frozen=True, slots=True)
class TensorDifference:
    """One tensor of two checkpoints. ``rows`` counts the old rows that changed; ``largest`` is max |Δ| over them."""

    name: str
    kind: str
    old: str | None
    new: str | None
    rows: int = 0
    largest: float | None = None


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
        found = _difference(name, old.tensors.get(name), new.tensors.get(name))
        if found is None:
            equal += 1
        else:
            tensors.append(found)
    return Difference(document_changes(old, new), tuple(tensors), equal)


def _describe(tensor: LazyTensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)}"


def _difference(name: str, old: LazyTensor | None, new: LazyTensor | None) -> TensorDifference | None:
    if old is None or new is None:
        kind = "added" if old is None else "dropped"
        return TensorDifference(name, kind, _describe(old) if old else None, _describe(new) if new else None)
    comparable = old.dtype == new.dtype and old.shape[1:] == new.shape[1:] and len(old.shape) == len(new.shape)
    if not comparable:
        return TensorDifference(name, "changed", _describe(old), _describe(new))
    if old.shape == new.shape and all(a == b for a, b in zip(chunks(old), chunks(new), strict=True)):
        return None
    if not (isinstance(old, Stored) and isinstance(new, Stored) and old.shape and old.nbytes):
        return TensorDifference(name, "changed", _describe(old), _describe(new))
    rows, largest = _row_difference(old, new)
    return TensorDifference(name, "changed", _describe(old), _describe(new), rows, largest)


def _row_difference(old: Stored, new: Stored) -> tuple[int, float | None]:
    """Count the common leading rows that differ, and the largest difference in float64."""
    changed, largest = 0, 0.0
    for a, b in _common_rows(old, new):
        different = (a != b).any(1)
        changed += int(different.sum())
        if old.dtype in FLOATING and different.any():
            dtype = torch_dtype(old.dtype)
            gap = a[different].view(dtype).double() - b[different].view(dtype).double()
            largest = max(largest, float(gap.abs().max()))
    return changed, largest if old.dtype in FLOATING else None


def _common_rows(old: Stored, new: Stored, size: int = 8 << 20) -> Iterator[tuple[Any, Any]]:
    import torch

    width = old.nbytes // old.shape[0]
    rows, step = min(old.shape[0], new.shape[0]), max(size // width, 1)
    for start in range(0, rows, step):
        count = min(step, rows - start)
        yield tuple(
            torch.from_numpy(read_range(t.path, t.offset + start * width, count * width)).view(count, width)
            for t in (old, new)
        )  # type: ignore[misc]


@dataclass(frozen=True, slots=True)
class Verification:
    """What :func:`verify` measured between two checkpoints."""

    difference: Difference
    tokenization: TokenizationReport | None
    outputs: OutputsReport | None
    changed: tuple[str, ...]

    @property
    def failures(self) -> tuple[str, ...]:
        """One sentence for each check that failed; empty when the second checkpoint does what the first did."""
        found = [*self.changed]
        for report in (self.tokenization, self.outputs):
            found += report.failures if report is not None else ()
        return tuple(found)


def verify(before: str, after: str, *, outputs: bool = True) -> Verification:
    """Check that ``after`` does what ``before`` did, for the old vocabulary, without a recipe.

    Raises:
        InputRejected: one of them cannot be opened.
    """
    from graftkit.architecture.vocabulary import find_vocabulary

    old, new = Checkpoint.open(before), Checkpoint.open(after)
    old_vocabulary, new_vocabulary = find_vocabulary(old), find_vocabulary(new)
    first, second = read_tokenizer(old.documents), read_tokenizer(new.documents)
    if new_vocabulary.rows < old_vocabulary.rows:
        raise InputRejected(
            f"{after}: has {new_vocabulary.rows} rows, fewer than the {old_vocabulary.rows} of {before}"
        )
    new_ids = {second.token_of(index): index for index in range(first.size, second.size)}
    fresh = (*range(first.size, second.size), *range(max(second.size, old_vocabulary.rows), new_vocabulary.rows))
    change = VocabularyChange(old_vocabulary.rows, new_vocabulary.rows, first.size, tuple(dict.fromkeys(fresh)))
    tokenization = check_tokenization(
        old.directory,
        new.directory,
        new={token: index for token, index in new_ids.items() if token is not None},
        special=frozenset(),
        chat_template_changed=_chat_templates(old) != _chat_templates(new),
    )
    found = compare_outputs(old.directory, new.directory, vocabulary=change, kl=None) if outputs else None
    axes = {item.name: item.axis for item in old_vocabulary.tensors}
    changed = tuple(_changed(old, new, axes, frozenset(change.fresh)))
    return Verification(_diff(old, new), tokenization, found, changed)


def _chat_templates(checkpoint: Checkpoint) -> tuple[object, ...]:
    documents = checkpoint.documents
    inside = documents.get("tokenizer_config.json", {}).get("chat_template")
    return documents.get("chat_template.jinja"), documents.get("chat_template.json"), inside


def _changed(old: Checkpoint, new: Checkpoint, axes: Mapping[str, int], fresh: frozenset[int]) -> Iterator[str]:
    """Yield a sentence for each tensor of ``old`` whose bytes are not in ``new``; rows of fresh ids may change."""
    for name, before in old.tensors.items():
        after = new.tensors.get(name)
        if after is None:
            yield f"structure: tensor {printable(name)!r} is missing"
            continue
        found = _difference(name, before, after)
        if found is None:
            continue
        if name not in axes or not (isinstance(before, Stored) and isinstance(after, Stored)):
            yield f"structure: tensor {printable(name)!r}: {found.rows} rows changed, max |Δ| {found.largest}"
            continue
        rows = _changed_rows(before, after, axes[name], fresh)
        if rows:
            yield f"structure: tensor {printable(name)!r}: {rows} rows of old ids changed"


def _changed_rows(old: Stored, new: Stored, axis: int, fresh: frozenset[int]) -> int:
    pairs = zip(row_chunks(old, axis, old.shape[axis]), row_chunks(new, axis, old.shape[axis]), strict=True)
    changed = 0
    for (start, a), (_, b) in pairs:
        rows = (a.view(_words(a)) != b.view(_words(b))).any(1).nonzero().flatten() + start
        changed += sum(row not in fresh for row in rows.tolist())
    return changed


def _words(rows: Any) -> Any:
    """The integer dtype of the same width, so that bits are compared and not values."""
    import torch

    return {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[rows.element_size()]
