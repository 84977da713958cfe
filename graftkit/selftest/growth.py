"""Faults of grown tables: the output bias of new rows padded with zeros, and a new row that takes all probability."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from graftkit.architecture.skeleton import with_values
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.reading import read_rows
from graftkit.checkpoint.tensors import Stored, patch_rows
from graftkit.selftest.copies import edit_json, edit_tensor, parts, write_shards
from graftkit.selftest.subject import NotApplicable, Subject, first

#: Rows that are appended.
ROWS = 8

#: What every value of a wild row is.
WILD = 50.0


def bias(subject: Subject) -> str:
    """The output bias, where it is not zero."""
    names = (item.name for item in subject.vocabulary.of_role("output_bias"))
    return str(first((name for name in names if subject.values(name).all()), "no output bias"))


def grow_with_zero_bias(directory: Path, subject: Subject, place: str) -> None:
    """Append rows that are the mean of the old ones, and zeros to the bias, as a plain resize of a tied bias does."""
    grow(directory, subject, zeros=place)


def output_table(subject: Subject) -> str:
    """The table that gives logits, be it the input table too."""
    if not subject.vocabulary.has_output:
        raise NotApplicable("no output table")
    return (subject.vocabulary.of_role("output") or subject.vocabulary.of_role("input"))[0].name


def grow_with_a_wild_row(directory: Path, subject: Subject, place: str) -> None:
    """Append rows that are the mean of the old ones, and overwrite the last of them."""
    grow(directory, subject)
    axis = next(item.axis for item in subject.vocabulary.tensors if item.name == place)
    edit_tensor(directory, place, lambda values: values.select(axis, values.shape[axis] - 1).fill_(WILD))


def grow(directory: Path, subject: Subject, *, zeros: str = "") -> None:
    """Append mean rows to every tensor that is indexed by the vocabulary, zeros to the one named."""
    old = subject.vocabulary.rows
    tensors = dict(Checkpoint.open(str(directory)).tensors)
    for item in subject.vocabulary.tensors:
        base = tensors[item.name]
        if not isinstance(base, Stored):
            raise TypeError(f"{item.name} is not stored")
        row = _row(base, item.axis, subject.tokenizer.size) * (item.name != zeros)
        produce = _producer(_bytes(row.expand(ROWS, -1)))
        rows = tuple(range(old, old + ROWS))
        tensors[item.name] = patch_rows(base, axis=item.axis, rows=rows, size=old + ROWS, produce=produce)
    write_shards(directory, [{name: tensors[name] for part in parts(directory, 1) for name in part}])
    config = with_values(subject.checkpoint.config, subject.vocabulary.config_paths, old + ROWS)
    edit_json(directory, "config.json", lambda values: values.update(config))


def _row(base: Stored, axis: int, live: int) -> Any:
    rows = read_rows(base, axis, 0, live)
    return rows.double().mean(0, keepdim=True).to(rows.dtype)


def _producer(raw: bytes) -> Callable[[], memoryview]:
    return lambda: memoryview(raw)


def _bytes(rows: Any) -> bytes:
    import torch

    return bytes(rows.contiguous().view(torch.uint8).numpy().tobytes())
