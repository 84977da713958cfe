"""Texts that have several labels or none: a list of labels in one field, or a field of zeros and ones for each label."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graftkit.checkpoint.examples import READERS, check_counts, label_number, read_rows, text_of
from graftkit.errors import RecipeError, printable

#: How a field says that its label is there, and that it is not; as Python, JSON and CSV write it.
YES, NO = (1, "1", "true", "True"), (0, "0", "false", "False")


@dataclass(frozen=True, slots=True)
class SetExample:
    """A text and the numbers of its labels, ascending; ``line`` is its line in the file, or its row in a Parquet file."""

    line: int
    text: str
    labels: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SetFile:
    """A file of such examples. The field ``label`` holds a list; without it each of ``labels`` has a field of its own.

    Without ``labels`` the list holds numbers below ``count``.
    """

    path: Path
    text: str
    label: str
    labels: tuple[str, ...]
    count: int

    def read(self) -> Iterator[SetExample]:
        """Yield the examples in the order of the file.

        Raises:
            RecipeError: the file cannot be read, or an example has no text or no labels of the recipe; with the line.
        """
        numbers = {name: index for index, name in enumerate(self.labels)}
        for line, row in read_rows(self.path, READERS):
            where = f"{printable(self.path)}:{line}"
            if row.get(self.text) is None:
                raise RecipeError(f"{where}: has no field '{printable(self.text)}'; {_fields(row)}")
            found = (
                self._from_list(row[self.label], numbers, where) if self.label in row else self._from_fields(row, where)
            )
            yield SetExample(line, text_of(row[self.text], self.text, where), found)

    def survey(self) -> list[tuple[int, ...]]:
        """The labels of each example, in order: one pass that finds every complaint.

        Raises:
            RecipeError: see :meth:`read`; or a label is on too few examples, or missing on too few.
        """
        found = [example.labels for example in self.read()]
        counts = Counter(label for labels in found for label in labels)
        check_counts(self.path, self.labels, counts, self.count, "examples")
        check_counts(
            self.path, self.labels, {i: len(found) - counts[i] for i in range(self.count)}, self.count,
            "examples without it",
        )  # fmt: skip
        return found

    def _from_list(self, value: Any, numbers: Mapping[str, int], where: str) -> tuple[int, ...]:
        items = list_of(value)
        if items is None:
            raise RecipeError(
                f'{where}: {printable(self.label)} is no list of labels, found \'{printable(value)}\'; write ["a", "b"], or [] for none'
            )
        found = [label_number(item, numbers, self.count, where) for item in items]
        if len(set(found)) < len(found):
            twice = next(item for item, index in zip(items, found, strict=True) if found.count(index) > 1)
            raise RecipeError(f"{where}: names the label '{printable(twice)}' twice")
        return tuple(sorted(found))

    def _from_fields(self, row: Mapping[str, Any], where: str) -> tuple[int, ...]:
        lost = [name for name in self.labels if row.get(name) is None]
        if lost or not self.labels:
            other = f" and none for the label '{printable(lost[0])}'" if lost else ""
            raise RecipeError(f"{where}: has no field '{printable(self.label)}'{other}; {_fields(row)}")
        found = []
        for index, name in enumerate(self.labels):
            value = row[name].strip() if isinstance(row[name], str) else row[name]
            if value not in (*YES, *NO):
                raise RecipeError(
                    f"{where}: the field of the label '{printable(name)}' is neither 0 nor 1: '{printable(value)}'"
                )
            found += [index] if value in YES else []
        return tuple(found)


def list_of(value: Any) -> list[Any] | None:
    """The list in a field, which a CSV file writes as JSON; None where there is none."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    return value if isinstance(value, list) else None


def _fields(row: Mapping[str, Any]) -> str:
    return f"its fields are: {', '.join(printable(name) for name in row)}"
